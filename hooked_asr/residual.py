"""The residual stream taken apart: methods of `ActivationCache` over what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from hooked_asr.config import STACKS
from hooked_asr.errors import HookedASRError
from hooked_asr.names import fitting

Components = Float[Tensor, "component *batch pos d_model"]

# Where positions are rotations, the decoder's embeddings are the tokens' (and the audio's) alone.
_EMBEDDINGS = {
    "encoder": {"embed": "hook_embed", "pos_embed": "hook_pos_embed"},
    "decoder": {"embed": "hook_decoder_embed", "pos_embed": "hook_decoder_pos_embed"},
}
_FINAL_NORM = {"encoder": "encoder_final_ln", "decoder": "decoder_final_ln"}


class CacheError(HookedASRError):
    """Something that a cache does not hold, or cannot do with what it holds."""


class ResidualStream(Mapping[Any, Tensor]):
    """What each part of a model wrote to a residual stream.

    Layers count from 0. "Up to layer n" is the stream that enters layer n; `layer=None` is the
    stream that leaves the last layer, before the final norm.
    """

    model: Any

    def stack_activation(self, name: str, *where: str) -> Float[Tensor, "layer *axes"]:
        """One activation over all layers of a stack: `cache.stack_activation("z", "cross_attn")`.

        `where` are words of the path, as in the short form of a name.
        """
        stacks = [stack for stack in STACKS if fitting(name, (0, stack, *where), self)]
        if len(stacks) > 1:
            raise CacheError(
                f"{name!r} is in both stacks: add 'encoder' or 'decoder', "
                f"as in stack_activation({name!r}, 'encoder')"
            )
        n_layers = self._need_model().config.stack(stacks[0]).n_layers if stacks else 1
        keys = [(name, i, *stacks, *where) for i in range(n_layers)]
        return torch.stack([self[key] for key in keys])

    def accumulated_resid(
        self,
        layer: int | None = None,
        stack: str = "decoder",
        incl_mid: bool = False,
        apply_ln: bool = False,
    ) -> tuple[Components, list[str]]:
        """The residual stream as it enters each layer up to `layer`, and last as it stands there.

        Returns the stack and its labels. `incl_mid` adds the streams between a layer's parts;
        `apply_ln` divides by the final norm's scale and multiplies by its weight.
        """
        labels = []
        for i in range(self._end(layer, stack)):
            labels.append(f"{i}_pre")
            if incl_mid:
                crosses = "cross_attn" in self._attentions(stack)
                labels += [f"{i}_mid", *([f"{i}_mid_cross"] if crosses else [])]
        terms = [
            self[f"{stack}.{i}.hook_resid_{part}"]
            for i, part in (label.split("_", 1) for label in labels)
        ]
        stacked = torch.stack([*terms, self._resid_at(layer, stack)])
        labels.append("final" if layer is None else f"{layer}_pre")
        return (self.apply_ln_to_stack(stacked, stack) if apply_ln else stacked), labels

    def decompose_resid(
        self,
        layer: int | None = None,
        stack: str = "decoder",
        per_head: bool = False,
        separate_bias: bool = False,
    ) -> tuple[Components, list[str]]:
        """What the embeddings and each layer's parts wrote: the terms sum to the stream there.

        Returns the terms and their labels: `embed`, `pos_embed`, `0_attn_out`, `0_cross_attn_out`
        (where there is any), `0_mlp_out`, … `per_head` splits attention into heads (`0_attn_h3`);
        `separate_bias` (implied by `per_head`) takes the output biases out of the terms and into
        one last term, `bias`.
        """
        end = self._end(layer, stack)
        terms = {
            label: self[hook]
            for label, hook in _EMBEDDINGS[stack].items()
            if hook in self._need_model().hook_table
        }
        embed, biases = terms["embed"], {}
        for i in range(end):
            block = self._block(stack, i)
            for part in self._attentions(stack):
                if per_head:
                    heads = self._head_results(stack, i, part)
                    terms |= {f"{i}_{part}_h{h}": head for h, head in enumerate(heads)}
                else:
                    terms[f"{i}_{part}_out"] = self[f"{stack}.{i}.hook_{part}_out"]
                biases[f"{i}_{part}_out"] = self._like(getattr(block, part).b_O, embed)
            terms[f"{i}_mlp_out"] = self[f"{stack}.{i}.hook_mlp_out"]
            biases[f"{i}_mlp_out"] = self._like(block.mlp.b_out, embed)
        if separate_bias or per_head:
            for name in biases.keys() & terms.keys():  # heads never had theirs
                terms[name] = terms[name] - biases[name]
            terms["bias"] = sum(biases.values(), start=torch.zeros_like(embed))
        return torch.stack(list(terms.values())), list(terms)

    def stack_head_results(
        self, layer: int | None = None, stack: str = "decoder", module: str | None = None
    ) -> tuple[Components, list[str]]:
        """What each head wrote to the stream, in every layer before `layer`, and its labels.

        `module` is "attn" or "cross_attn"; by default both where the stack has both. Computed from
        `hook_z`; output biases belong to no head and are left out.
        """
        parts = [module] if module else self._attentions(stack)
        end = self._end(layer, stack)
        if end == 0:
            raise CacheError(f"no head writes to the {stack}'s stream before layer 0")
        results = {
            f"{i}_{part}_h{h}": head
            for i in range(end)
            for part in parts
            for h, head in enumerate(self._head_results(stack, i, part))
        }
        return torch.stack(list(results.values())), list(results)

    def apply_ln_to_stack(
        self,
        components: Components,
        stack: str = "decoder",
        layer: int | None = None,
        module: str = "ln1",
    ) -> Float[Tensor, "component *batch _ d_model"]:
        """A norm as it acted in this run, applied to each component: linear, with its scale fixed.

        The final norm by default; with `layer`, that layer's `module`. The norm's bias belongs to
        no component and is left out. In front of the final norm of an encoder that pools, the
        components are pooled.
        """
        self._end(layer, stack)  # refuses a stack or a layer that is not there
        path = _FINAL_NORM[stack] if layer is None else f"{stack}.{layer}.{module}"
        if path == _FINAL_NORM["encoder"]:
            components = self._need_model().pool(components)
        scale = self[f"{path}.hook_scale"]
        if components.shape[-2] != scale.shape[-2]:
            raise CacheError(
                f"the components have {components.shape[-2]} positions where {path} had "
                f"{scale.shape[-2]}: keep the same ones of both, and in front of pooling all"
            )
        scale = scale.expand(*components.shape[:-1], 1)
        normed: Tensor = self._need_model().get_submodule(path).with_scale(components, scale)
        return normed if components.requires_grad else normed.detach()

    def logit_attrs(
        self,
        components: Components,
        tokens: int | Tensor,
        incorrect_tokens: int | Tensor | None = None,
    ) -> Float[Tensor, "component *batch pos"]:
        """How much each component adds to a token's logit (or to a difference of two logits).

        `components` come straight from `decompose_resid` and its kin; the final norm is applied
        here. `tokens` is one id, or a tensor that broadcasts to [batch pos]. The terms and
        `decoder_final_ln.bias @ W_U[:, token]` (where that norm has a bias) sum to the logit.
        """
        normed = self.apply_ln_to_stack(components)
        direction = self._unembedding(tokens, incorrect_tokens)
        return (normed * self._like(direction, normed)).sum(-1)

    def logit_directions(
        self, tokens: int | Tensor, incorrect_tokens: int | Tensor | None = None
    ) -> Float[Tensor, "*batch pos d_model"]:
        """What a token's logit (or a difference of two) reads in the stream before the final norm.

        `(components * directions).sum(-1)` is what `logit_attrs` gives, the norm being linear with
        its scale fixed; no component has to be normed, or even be there as a vector. In float32 at
        least.
        """
        scale = self["decoder_final_ln.hook_scale"]
        scale = scale.to(torch.promote_types(scale.dtype, torch.float32))
        norm = self._need_model().decoder_final_ln
        behind = self._like(self._unembedding(tokens, incorrect_tokens), scale)
        # The norm transposed: to centre is a symmetric map.
        directions: Tensor = norm._centred(behind * self._like(norm.weight, scale)) / scale
        return directions

    def _unembedding(
        self, tokens: int | Tensor, incorrect_tokens: int | Tensor | None
    ) -> Float[Tensor, "... d_model"]:
        rows: Tensor = self._need_model().W_U.T
        direction = rows[tokens]
        return direction if incorrect_tokens is None else direction - rows[incorrect_tokens]

    def _resid_at(self, layer: int | None, stack: str) -> Tensor:
        n_layers = self._need_model().config.stack(stack).n_layers
        if self._end(layer, stack) == n_layers:
            return self[f"{stack}.{n_layers - 1}.hook_resid_post"]
        return self[f"{stack}.{layer}.hook_resid_pre"]

    def _head_results(self, stack: str, layer: int, part: str) -> Float[Tensor, "head *axes"]:
        z = self[f"{stack}.{layer}.{part}.hook_z"]
        W_O = getattr(self._block(stack, layer), part).W_O
        return einsum(
            z, self._like(W_O, z),
            "... head d_head, head d_head d_model -> head ... d_model",
        )  # fmt: skip

    def _block(self, stack: str, layer: int) -> Any:
        return getattr(self._need_model(), stack)[layer]

    def _end(self, layer: int | None, stack: str) -> int:
        n_layers: int = self._need_model().config.stack(stack).n_layers
        if layer is None:
            return n_layers
        if not 0 <= layer <= n_layers:
            raise CacheError(f"the {stack} has layers 0 to {n_layers - 1}; asked for {layer}")
        return layer

    def _need_model(self) -> Any:
        if self.model is None:
            raise CacheError(
                "this cache knows no model: load it with ActivationCache.load(path, model=model)"
            )
        return self.model

    def _attentions(self, stack: str) -> list[str]:
        table = self._need_model().hook_table
        return [part for part in ("attn", "cross_attn") if f"{stack}.0.{part}.hook_z" in table]

    @staticmethod
    def _like(weight: Tensor, activation: Tensor) -> Tensor:
        """A weight where, and as what, the cached activations are kept: without gradients."""
        return weight.detach().to(activation.device, activation.dtype)
