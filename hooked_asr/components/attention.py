"""Multi-head attention whose every tensor can be seen and changed."""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from hooked_asr.components.factored import FactoredMatrix
from hooked_asr.components.kv_cache import LayerCache
from hooked_asr.components.mlp import bias_of
from hooked_asr.components.rotary import Rotation
from hooked_asr.config import StackConfig
from hooked_asr.hooks import HookPoint, fused_unless_edited
from hooked_asr.shapes import Audio, Heads, Keys, Mask, Resid

HeadInputs = Float[Tensor, "#batch pos head d_model"]


class Attention(nn.Module):
    """Self-attention, causal in a decoder.

    Hooks: `hook_q`, `hook_z` `[batch pos head d_head]`; `hook_k`, `hook_v`
    `[batch pos kv_head d_head]` (as many heads, unless queries share them in groups). Lazy ones:
    `hook_attn_scores` (scaled and masked) and `hook_pattern` `[batch head query key]`; and
    `hook_result` `[batch pos head d_model]`, what each head writes to the stream (without the
    output bias). `hook_q_input` `[batch pos head d_model]`, `hook_k_input` and `hook_v_input`
    (`kv_head`; over the source's positions and width) are lazy too: what each head's projection
    reads, behind the norm, a copy for each head to be changed on its own.

    `hook_q` is the plain projection; as in the reference, it is scaled afterwards. Lazy tensors are
    computed beside the fused path, and take its place only where a hook function changed them.

    `mask` says where each query may look; None where a decoder's looks back and an encoder's
    everywhere.
    """

    kernel_scale = 1.0  # Whisper scales queries before the product

    def __init__(
        self,
        stack: StackConfig,
        causal: bool = False,
        d_source: int | None = None,
        biased: str = "qvo",
    ) -> None:
        super().__init__()
        d_source = d_source or stack.d_model
        d_keys = stack.n_kv_heads * stack.d_head
        self.n_heads, self.n_kv_heads = stack.n_heads, stack.n_kv_heads
        self.group_size, self.d_head, self.causal = stack.group_size, stack.d_head, causal
        self.q_proj = nn.Linear(stack.d_model, stack.d_model, "q" in biased)
        self.k_proj = nn.Linear(d_source, d_keys, "k" in biased)
        self.v_proj = nn.Linear(d_source, d_keys, "v" in biased)
        self.o_proj = nn.Linear(stack.d_model, stack.d_model, "o" in biased)
        self.hook_q_input = HookPoint()
        self.hook_k_input = HookPoint()
        self.hook_v_input = HookPoint()
        self.hook_q = HookPoint()
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_z = HookPoint()
        self.hook_result = HookPoint()

    def forward(self, x: Resid, past: LayerCache | None = None, mask: Mask | None = None) -> Resid:
        k, v = self.keys_values(x)
        if past is not None:
            k, v = past.extend(k, v)
        return self.read(self.query(x), k, v, mask)

    def query(self, x: Resid) -> Heads:
        """What the positions of `x` look for."""
        return self.hook_q(self._project(x, self.q_proj, self.hook_q_input)) * self.d_head**-0.5

    def keys_values(self, source: Resid | None) -> tuple[Heads, Heads]:
        """The keys and values that `source` offers."""
        k = self.hook_k(self._project(source, self.k_proj, self.hook_k_input))
        v = self.hook_v(self._project(source, self.v_proj, self.hook_v_input))
        return k, v

    def _project(self, x: Resid | None, proj: nn.Linear, hook_input: HookPoint) -> Heads:
        if not hook_input.active:
            return self._split(proj(x))
        n_heads = proj.out_features // self.d_head
        shared: Any = repeat(x, "batch pos d_model -> batch pos head d_model", head=n_heads)
        # Copies: a function may edit one head's input in place.
        inputs, edited = hook_input.watch(shared.clone())
        return fused_unless_edited(
            inputs,
            edited,
            fused=lambda: self._split(proj(x)),
            explicit=lambda: self._project_each(inputs, proj),
        )

    def _project_each(self, inputs: HeadInputs, proj: nn.Linear) -> Heads:
        weight, bias = self._by_head(proj.weight), bias_of(proj).unflatten(0, (-1, self.d_head))
        heads = einsum(
            inputs,
            weight,
            "batch pos head d_model, head d_model d_head -> batch pos head d_head",
        )
        return heads + bias

    def read(self, q: Heads, k: Keys, v: Keys, mask: Mask | None = None) -> Resid:
        """What queries read from keys and values, written to the stream."""
        if k.shape[0] != v.shape[0]:  # rows have joined at one of them
            k, v = torch.broadcast_tensors(k, v)
        z = self.hook_z(self._attend(q, k, v, mask))
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

    def _attend(self, q: Heads, k: Keys, v: Keys, mask: Mask | None) -> Heads:
        if not (self.hook_attn_scores.active or self.hook_pattern.active):
            return self._fused(q, k, v, mask)
        if k.shape[0] < q.shape[0]:
            k, v = (x.repeat(q.shape[0] // k.shape[0], 1, 1, 1) for x in (k, v))
        pattern, edited = self._pattern(q, k, mask)
        return fused_unless_edited(
            pattern,
            edited,
            fused=lambda: self._fused(q, k, v, mask),
            explicit=lambda: einsum(
                pattern,
                self._for_each_query_head(v),
                "batch head query key, batch key head d_head -> batch query head d_head",
            ),
        )

    def _fused(self, q: Heads, k: Keys, v: Keys, mask: Mask | None) -> Heads:
        n_clips, n_rows = k.shape[0], q.shape[0]
        if n_clips < n_rows:  # many rows read one recording: their queries stand in a line
            line = rearrange(q, "(row clip) pos ... -> clip (row pos) ...", clip=n_clips)
            z = self._fused(line, k, v, mask)
            return rearrange(z, "clip (row pos) ... -> (row clip) pos ...", pos=q.shape[1])
        n_query, n_key = q.shape[1], k.shape[1]
        # The kernel's own causal mask fits only a square map.
        square = mask is None and self.causal and n_query > 1 and n_query == n_key
        if mask is None and not square:
            mask = self._causal_mask(n_query, n_key, q.device)
        # With a mask, the kernels that share keys between queries are slow.
        grouped = self.group_size > 1 and mask is None
        if not grouped:
            k, v = self._for_each_query_head(k), self._for_each_query_head(v)
        return F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=square,
            scale=self.kernel_scale,
            enable_gqa=grouped,
        ).transpose(1, 2)

    def _pattern(
        self, q: Heads, k: Keys, mask: Mask | None
    ) -> tuple[Float[Tensor, "batch head query key"], bool]:
        """Where each query looks, and whether a hook function had a hand in it."""
        scores = self.kernel_scale * einsum(
            q,
            self._for_each_query_head(k),
            "batch query head d_head, batch key head d_head -> batch head query key",
        )
        if mask is None:
            mask = self._causal_mask(q.shape[1], k.shape[1], q.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        scores, scores_edited = self.hook_attn_scores.watch(scores)
        pattern = scores.softmax(-1)
        if mask is not None:  # a query that may look nowhere, as padding on the left, reads nothing
            pattern = pattern.masked_fill(~mask.any(-1, keepdim=True), 0.0)
        pattern, edited = self.hook_pattern.watch(pattern)
        return pattern, edited or scores_edited

    def _causal_mask(
        self, n_query: int, n_key: int, device: torch.device
    ) -> Bool[Tensor, "query key"] | None:
        """True where a query may look; None where it may look everywhere."""
        if not self.causal or n_query == 1:
            return None
        return looking_back(n_query, n_key, device)

    def _for_each_query_head(self, keys: Keys) -> Float[Tensor, "#batch key head d_head"]:
        return keys if self.group_size == 1 else keys.repeat_interleave(self.group_size, dim=2)

    def _split(self, x: Resid) -> Heads:
        return x.view(*x.shape[:-1], -1, self.d_head)

    # --- Weights in the field's shapes: views, never copies ---------------------------------------

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self._by_head(self.q_proj.weight)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._by_head(self.k_proj.weight)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._by_head(self.v_proj.weight)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return self.o_proj.weight.T.unflatten(0, (-1, self.d_head))

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return bias_of(self.q_proj).unflatten(0, (-1, self.d_head))

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        """Zeros where the key projection has no bias, as in Whisper."""
        return bias_of(self.k_proj).unflatten(0, (-1, self.d_head))

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        return bias_of(self.v_proj).unflatten(0, (-1, self.d_head))

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Zeros where the output projection has no bias, as in Qwen2."""
        return bias_of(self.o_proj)

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q @ W_K.T` of each head, `[head d_model d_model]`: who looks at whom (unscaled)."""
        return FactoredMatrix(self.W_Q, self._of_each_query_head(self.W_K).mT)

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V @ W_O` of each head, `[head d_model d_model]`: what a look writes."""
        return FactoredMatrix(self._of_each_query_head(self.W_V), self.W_O)

    def _by_head(self, weight: Tensor) -> Float[Tensor, "_ d_model d_head"]:
        return weight.unflatten(0, (-1, self.d_head)).mT

    def _of_each_query_head(self, weight: Tensor) -> Float[Tensor, "head d_model d_head"]:
        return weight if self.group_size == 1 else weight.repeat_interleave(self.group_size, dim=0)


class RotaryAttention(Attention):
    """Causal self-attention whose queries and keys are turned by their positions (Qwen2).

    Hooks `hook_rot_q` `[batch pos head d_head]` and `hook_rot_k` `[batch pos kv_head d_head]` are
    behind the rotation, `hook_q` and `hook_k` before it. Scores are scaled after the product.
    """

    def __init__(self, stack: StackConfig) -> None:
        super().__init__(stack, causal=True, biased="qkv")
        self.kernel_scale = self.d_head**-0.5
        self.hook_rot_q = HookPoint()
        self.hook_rot_k = HookPoint()

    def forward(  # type: ignore[override]  # positions are not in its stream
        self,
        x: Resid,
        rotation: Rotation,
        past: LayerCache | None = None,
        mask: Mask | None = None,
    ) -> Resid:
        k, v = self.keys_values(x)
        k = self.hook_rot_k(rotation(k))
        if past is not None:
            k, v = past.extend(k, v)
        q = self.hook_rot_q(rotation(self.query(x)))
        return self.read(q, k, v, mask)

    def query(self, x: Resid) -> Heads:
        """What the positions of `x` look for, before the rotation."""
        q: Heads = self.hook_q(self._project(x, self.q_proj, self.hook_q_input))
        return q


class CrossAttention(Attention):
    """Attention of the decoder's positions to the encoder's output, with the same hooks.

    `hook_k` and `hook_v` `[batch audio head d_head]` fire once for each utterance, also in cached
    decoding; `hook_attn_scores` and `hook_pattern` are `[batch head pos audio]`.
    """

    def __init__(self, stack: StackConfig, d_source: int) -> None:
        super().__init__(stack, d_source=d_source)

    def forward(  # type: ignore[override]  # it reads from a second stream
        self, x: Resid, audio: Audio | None, past: LayerCache | None = None
    ) -> Resid:
        """`audio` may be None where `past` has its keys and values."""
        if past is None:
            k, v = self.keys_values(audio)
        else:
            k, v = past.audio(lambda: self.keys_values(audio))
        return self.read(self.query(x), k, v)


def looking_back(n_query: int, n_key: int, device: torch.device) -> Bool[Tensor, "query key"]:
    """True where a query may look: at itself and what comes before.

    The queries are the last positions of the keys, all of them but in cached decoding.
    """
    may_look = torch.ones(n_query, n_key, dtype=torch.bool, device=device)
    return may_look.tril(n_key - n_query)
