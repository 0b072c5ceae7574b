"""Training: one step, one worker, many workers."""
