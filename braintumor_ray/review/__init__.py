"""The worklist as a page that works: a reviewer looks at scored scans and labels them."""
