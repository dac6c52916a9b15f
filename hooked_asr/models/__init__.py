"""The recognisers."""
