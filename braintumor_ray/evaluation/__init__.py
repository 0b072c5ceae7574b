"""Evaluation, audit and reports."""
