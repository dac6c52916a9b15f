"""Features to look at and listen to: a page for each, and an index."""
