"""The axes, by name, as they stand in every signature and in the hook table.

==========  ==================================================================
batch       rows of tokens run together
clip        recordings run together: one a row, but where a prompt may hold several or none
frame       log-mel frames, 100 a second
n_mels      mel bins: 80, or 128 in large-v3 and turbo
audio       encoder positions, 50 a second (the second convolution halves frames)
pooled      encoder positions averaged two by two, 25 a second (Qwen2-Audio)
pos         decoder positions, one for each token
d_enc       width of the encoder's residual stream
d_model     width of a residual stream (the decoder's, or either stack's)
head        attention heads
kv_head     heads of keys and values, where several query heads share one
d_head      width of one head
d_mlp       width inside an MLP
d_vocab     tokens of the vocabulary
query, key  positions that attend and positions attended to
==========  ==================================================================
"""

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Mel = Float[Tensor, "clip n_mels frame"]
Tokens = Int[Tensor, "batch pos"]
Positions = Int[Tensor, "#batch pos"]  # one row may stand for all
Audio = Float[Tensor, "clip audio d_enc"]
Resid = Float[Tensor, "#batch pos d_model"]  # where rows join, one becomes many on its way
Heads = Float[Tensor, "#batch pos head d_head"]
Keys = Float[Tensor, "_ key kv_head d_head"]  # one row may be read by many
MelMask = Shaped[Tensor, "_ _"]  # 1 for a real frame
TokenMask = Shaped[Tensor, "_ _"]  # 1 for a token, 0 for padding
Mask = Bool[Tensor, "#batch 1 #query key"]  # True where a query may look
Logits = Float[Tensor, "batch pos d_vocab"]

__all__ = [
    "Audio",
    "Heads",
    "Keys",
    "Logits",
    "Mask",
    "Mel",
    "MelMask",
    "Resid",
    "TokenMask",
    "Tokens",
]
