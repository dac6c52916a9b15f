"""Arrays in, figures out. Nothing here knows a model."""
