"""Copies of images, and splits that never separate them."""
