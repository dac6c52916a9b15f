"""What each feature of a sparse autoencoder goes with: moments, words, phones, classes."""
