"""Sparse autoencoders trained by SAELens, on stored rows or on clips as they are heard."""
