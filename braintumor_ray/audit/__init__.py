"""The audit of data sets: copies, leaks, conflicting labels, unreadable files, shortcuts."""
