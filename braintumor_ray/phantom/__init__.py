"""Synthetic scans with exact tumor masks; not data of patients."""
