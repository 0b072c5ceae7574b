"""Recipes: one TOML per reference system, and their loader."""
