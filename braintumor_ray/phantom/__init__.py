"""Synthetic scans with exact tumor masks; they say nothing about patients."""
