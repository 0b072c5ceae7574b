"""Features of the last layer against classes."""
