"""Backbones, heads and the bundle that carries them."""
