"""The axes, by name, as they stand in every signature and in the hook table.

==========  ==================================================================
batch       clips (or rows) run together
frame       log-mel frames, 100 a second
n_mels      mel bins: 80, or 128 in large-v3 and turbo
audio       encoder positions, 50 a second (the second convolution halves frames)
pos         decoder positions, one for each token
d_enc       width of the encoder's residual stream
d_model     width of a residual stream (the decoder's, or either stack's)
head        attention heads
d_head      width of one head
d_mlp       width inside an MLP
d_vocab     tokens of the vocabulary
query, key  positions that attend and positions attended to
==========  ==================================================================
"""

from jaxtyping import Float, Int
from torch import Tensor

Mel = Float[Tensor, "batch n_mels frame"]
Tokens = Int[Tensor, "batch pos"]
Audio = Float[Tensor, "batch audio d_enc"]
Resid = Float[Tensor, "batch pos d_model"]
Heads = Float[Tensor, "batch pos head d_head"]
Keys = Float[Tensor, "batch key head d_head"]
Logits = Float[Tensor, "batch pos d_vocab"]

__all__ = ["Audio", "Heads", "Keys", "Logits", "Mel", "Resid", "Tokens"]
