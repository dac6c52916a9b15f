"""Multi-head attention whose every tensor can be seen and changed."""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from hooked_asr.components.factored import FactoredMatrix
from hooked_asr.components.kv_cache import LayerCache
from hooked_asr.config import StackConfig
from hooked_asr.hooks import HookPoint, fused_unless_edited
from hooked_asr.shapes import Audio, Heads, Keys, Resid


class Attention(nn.Module):
    """Self-attention, causal in a decoder.

    Hooks: `hook_q`, `hook_k`, `hook_v`, `hook_z` `[batch pos head d_head]`. Lazy ones:
    `hook_attn_scores` (scaled and masked) and `hook_pattern` `[batch head query key]`; and
    `hook_result` `[batch pos head d_model]`, what each head writes to the stream (without the
    output bias).

    `hook_q` is the plain projection; as in the reference, it is scaled afterwards. Lazy tensors are
    computed beside the fused path, and take its place only where a hook function changed them.
    """

    def __init__(
        self, stack: StackConfig, causal: bool = False, d_source: int | None = None
    ) -> None:
        super().__init__()
        d_source = d_source or stack.d_model
        self.n_heads, self.d_head, self.causal = stack.n_heads, stack.d_head, causal
        self.q_proj = nn.Linear(stack.d_model, stack.d_model)
        self.k_proj = nn.Linear(d_source, stack.d_model, bias=False)
        self.v_proj = nn.Linear(d_source, stack.d_model)
        self.o_proj = nn.Linear(stack.d_model, stack.d_model)
        self.hook_q = HookPoint()
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_z = HookPoint()
        self.hook_result = HookPoint()

    def forward(self, x: Resid, past: LayerCache | None = None) -> Resid:
        k, v = self.keys_values(x)
        if past is not None:
            k, v = past.extend(k, v)
        return self.read(x, k, v)

    def keys_values(self, source: Resid) -> tuple[Heads, Heads]:
        """The keys and values that `source` offers."""
        k = self.hook_k(self._split(self.k_proj(source)))
        v = self.hook_v(self._split(self.v_proj(source)))
        return k, v

    def read(self, x: Resid, k: Keys, v: Keys) -> Resid:
        """What the positions of `x` read from keys and values, written to the stream."""
        q = self.hook_q(self._split(self.q_proj(x))) * self.d_head**-0.5
        z = self.hook_z(self._attend(q, k, v))
        if not self.hook_result.active:
            return self.o_proj(z.flatten(-2))
        result, edited = self.hook_result.watch(self.result(z))
        return fused_unless_edited(
            result,
            edited,
            fused=lambda: self.o_proj(z.flatten(-2)),
            explicit=lambda: result.sum(-2) + self.b_O,
        )

    def result(self, z: Heads) -> Float[Tensor, "batch pos head d_model"]:
        """What each head writes to the stream."""
        return einsum(
            z, self.W_O, "batch pos head d_head, head d_head d_model -> batch pos head d_model"
        )

    def _attend(self, q: Heads, k: Keys, v: Keys) -> Heads:
        if not (self.hook_attn_scores.active or self.hook_pattern.active):
            return self._fused(q, k, v)
        pattern, edited = self._pattern(q, k)
        return fused_unless_edited(
            pattern,
            edited,
            fused=lambda: self._fused(q, k, v),
            explicit=lambda: einsum(
                pattern, v, "batch head query key, batch key head d_head -> batch query head d_head"
            ),
        )

    def _fused(self, q: Heads, k: Keys, v: Keys) -> Heads:
        n_query, n_key = q.shape[1], k.shape[1]
        # The kernel's own causal mask fits only a square map.
        square = self.causal and n_query > 1 and n_query == n_key
        return F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=None if square else self._mask(n_query, n_key, q.device),
            is_causal=square,
            scale=1.0,
        ).transpose(1, 2)

    def _pattern(self, q: Heads, k: Keys) -> tuple[Float[Tensor, "batch head query key"], bool]:
        """Where each query looks, and whether a hook function had a hand in it."""
        scores = einsum(
            q, k, "batch query head d_head, batch key head d_head -> batch head query key"
        )
        mask = self._mask(q.shape[1], k.shape[1], q.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        scores, scores_edited = self.hook_attn_scores.watch(scores)
        pattern, edited = self.hook_pattern.watch(scores.softmax(-1))
        return pattern, edited or scores_edited

    def _mask(
        self, n_query: int, n_key: int, device: torch.device
    ) -> Bool[Tensor, "query key"] | None:
        """True where a query may look; None where it may look everywhere.

        The queries are the last positions of the keys, all of them but in cached decoding.
        """
        if not self.causal or n_query == 1:
            return None
        may_look = torch.ones(n_query, n_key, dtype=torch.bool, device=device)
        return may_look.tril(n_key - n_query)

    def _split(self, x: Resid) -> Heads:
        return x.unflatten(-1, (self.n_heads, self.d_head))

    # --- Weights in the field's shapes: views, never copies ---------------------------------------

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self._by_head(self.q_proj.weight)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        return self._by_head(self.k_proj.weight)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        return self._by_head(self.v_proj.weight)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return self.o_proj.weight.T.unflatten(0, (self.n_heads, self.d_head))

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return self.q_proj.bias.unflatten(0, (self.n_heads, self.d_head))

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        """Zeros: the key projection has no bias."""
        return torch.zeros_like(self.b_V)

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        return self.v_proj.bias.unflatten(0, (self.n_heads, self.d_head))

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.o_proj.bias

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q @ W_K.T` of each head, `[head d_model d_model]`: who looks at whom (unscaled)."""
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V @ W_O` of each head, `[head d_model d_model]`: what a look writes."""
        return FactoredMatrix(self.W_V, self.W_O)

    def _by_head(self, weight: Tensor) -> Float[Tensor, "head d_model d_head"]:
        return weight.unflatten(0, (self.n_heads, self.d_head)).mT


class CrossAttention(Attention):
    """Attention of the decoder's positions to the encoder's output, with the same hooks.

    `hook_k` and `hook_v` `[batch audio head d_head]` fire once for each utterance, also in cached
    decoding; `hook_attn_scores` and `hook_pattern` are `[batch head pos audio]`.
    """

    def __init__(self, stack: StackConfig, d_source: int) -> None:
        super().__init__(stack, d_source=d_source)

    def forward(  # type: ignore[override]  # it reads from a second stream
        self, x: Resid, audio: Audio, past: LayerCache | None = None
    ) -> Resid:
        if past is None:
            return self.read(x, *self.keys_values(audio))
        return self.read(x, *past.audio(lambda: self.keys_values(audio)))
