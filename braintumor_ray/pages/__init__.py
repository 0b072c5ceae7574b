"""Self-contained HTML pages, and small pictures for them."""
