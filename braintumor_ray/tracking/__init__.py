"""Runs of MLflow: what was trained and measured, and the bundle as a model."""
