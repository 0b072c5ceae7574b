"""A results folder as an archive: few large files, SQL, and tables of a data lake."""
