"""How good a sparse autoencoder is: for its activations, and for the model they come from."""
