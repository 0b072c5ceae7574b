"""Scored scans for a reviewer: worklists, overlays, explanations."""
