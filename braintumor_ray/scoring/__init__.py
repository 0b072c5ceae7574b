"""The archive job: score, resume, verify."""
