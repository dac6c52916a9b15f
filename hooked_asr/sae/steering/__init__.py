"""Features chosen and driven while a model decodes, and what comes of it."""
