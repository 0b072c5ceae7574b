"""The one predictor, the schema of its rows, and their reader."""
