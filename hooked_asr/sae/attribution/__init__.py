"""Which features carry a token or an error."""
