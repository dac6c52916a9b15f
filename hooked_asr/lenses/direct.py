"""Direct logit attribution: what each part of the decoder adds to a token's logit.

Source: "A Mathematical Framework for Transformer Circuits" (2021); TransformerLens's `logit_attrs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.hooks import Hooks
from hooked_asr.lenses.direct_result import DirectAttribution
from hooked_asr.lenses.errors import LensError
from hooked_asr.lenses.trace import Readable, Trace, kept_by, last_stream, texts_of, trace

Asked = int | str | Int[Tensor, "..."]
Ids = Int[Tensor, "batch pos"]
# Terms with their labels: those of one part of the decoder.
Terms = tuple[list[str], Float[Tensor, "_ batch pos"]]

_EMBEDDINGS = {"embed": "hook_decoder_embed", "pos_embed": "hook_decoder_pos_embed"}
_SCALE = "decoder_final_ln.hook_scale"
_HOOKS = {
    "layer": ["decoder.*.hook_resid_post"],
    "component": ["decoder.*.hook_*_out"],
    "head": ["decoder.*.hook_z", "decoder.*.hook_mlp_out"],
    "neuron": ["decoder.*.hook_*attn_out", "decoder.*.mlp.hook_post"],
}


@torch.no_grad()
def direct_logit_attribution(
    model: Any,
    inputs: Readable,
    *,
    of: str = "component",
    tokens: Asked | None = None,
    versus: Asked | None = None,
    pos_slice: int | slice | None = None,
    fwd_hooks: Hooks = (),
    progress: bool = True,
) -> DirectAttribution:
    """What each part of the decoder adds to a token's logit by writing to the stream.

        parts = direct_logit_attribution(model, (mel, tokens), of="head")
        parts.top(10), parts.plot(), parts.to_pandas()

    The final norm's scale is held as it was in the run: with it fixed a norm is linear, so that the
    terms sum to the logit. What a part does through later parts is not in its term.

    - `inputs`: of one run, as `logit_lens` takes them, or a decoding that kept what is needed.
    - `of`: "layer", all that the stream gained there, by hooks too; "component", what each
      attention and each MLP wrote; "head", each head, and MLPs as wholes; "neuron", each neuron of
      the MLPs, and attentions as wholes. Beside these stand the embeddings (Qwen2-Audio's hold the
      audio's) and the final norm's bias, where it has one; in "head" and "neuron" also the output
      biases of all attentions and MLPs, as one term.
    - `tokens`: whose logit, at each position that is read: an id, a text that is one token, or ids
      that broadcast to `[batch pos]`; by default the model's own likeliest token there.
    - `versus`: another token, or others: attribute the difference of the two logits.
    - `pos_slice`: read only these positions.
    - `fwd_hooks`: attribute a run with these attached; see `DirectAttribution.remainder`.

    Raises `LensError` for another `of`, tokens that do not fit, or activations that a decoding did
    not keep; `InputError` for a text that is several tokens.
    """
    if of not in _HOOKS:
        raise LensError(f"parts are of {', '.join(_HOOKS)}; got of={of!r}")
    fwd_hooks = list(fwd_hooks)
    passed = trace(model, inputs, _hooks(model, of, inputs, fwd_hooks), pos_slice, fwd_hooks)
    logits = _own_logits(model, passed)
    targets = logits.argmax(-1) if tokens is None else _ids(model, tokens, logits, "tokens")
    others = None if versus is None else _ids(model, versus, logits, "versus")
    direction = passed.cache.logit_directions(targets, others)
    walk = _Walk(model, passed.cache, direction, _norm_bias(model, targets, others, direction))
    return _result(model, of, passed, targets, others, logits, walk.terms(of, progress))


# --- What is asked for ----------------------------------------------------------------------------


def _hooks(model: Any, of: str, inputs: Readable, fwd_hooks: list[Any]) -> list[str]:
    """What has to be kept; hook names and globs."""
    embeddings = [hook for hook in _EMBEDDINGS.values() if hook in model.hook_table]
    return [*embeddings, *_HOOKS[of], _SCALE, *_edited_results(model, inputs, fwd_hooks)]


def _edited_results(model: Any, inputs: Readable, fwd_hooks: list[Any]) -> list[str]:
    """Heads' own results where hooks may change these: nothing else shows what was written."""
    results = [f"decoder.{i}.{part}.hook_result" for i, part in _attentions(model)]
    kept = kept_by(inputs)
    if kept is not None:
        return [name for name in results if name in kept]
    with model.hooks(fwd_hooks):
        return [name for name in results if model.hook_points[name].active]


def _attentions(model: Any) -> list[tuple[int, str]]:
    parts = [one for one in ("attn", "cross_attn") if f"decoder.0.{one}.hook_z" in model.hook_table]
    return [(i, part) for i in range(model.config.decoder.n_layers) for part in parts]


def _own_logits(model: Any, passed: Trace) -> Float[Tensor, "batch pos d_vocab"]:
    if passed.logits is not None:
        return passed.logits
    with model.unhooked():
        logits: Tensor = model.unembed(model.decoder_final_ln(passed.cache[last_stream(model)]))
    return logits


def _ids(model: Any, asked: Asked, logits: Float[Tensor, "batch pos d_vocab"], what: str) -> Ids:
    """One token for each position."""
    ids = torch.as_tensor(model.to_single_token(asked) if isinstance(asked, str) else asked)
    if ids.is_floating_point():
        raise LensError(f"{what} are ids or a text; got {ids.dtype}")
    *shape, d_vocab = logits.shape
    try:
        spread = ids.long().to(logits.device).expand(shape)
    except RuntimeError:
        raise LensError(
            f"{what} must broadcast to {shape} (batch, positions read); got {list(ids.shape)}"
        ) from None
    if ids.min() < 0 or ids.max() >= d_vocab:
        raise LensError(
            f"{what} are ids from 0 to {d_vocab - 1}; got {int(ids.min())} to {int(ids.max())}"
        )
    return spread


# --- The terms ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Walk:
    """A walk along the stream, that reads what each part wrote in one direction.

    - `direction`: what the logits read in the stream, the final norm's scale fixed.
    - `norm_bias`: what that norm's bias adds to them; None where it has none.
    """

    model: Any
    cache: Mapping[Any, Tensor]
    direction: Float[Tensor, "batch pos d_model"]
    norm_bias: Float[Tensor, "batch pos"] | None

    def terms(self, of: str, progress: bool) -> list[Terms]:
        """In the order of the forward, on the CPU."""
        found = list(self._embeddings())
        n_layers = self.model.config.decoder.n_layers
        for i in tqdm(range(n_layers), desc="attribution", unit="layer", disable=not progress):
            found += self._gained(i) if of == "layer" else self._parts(i, of)
        if of in ("head", "neuron"):
            found.append((["bias"], self._read(self._biases())))
        if self.norm_bias is not None:
            found.append((["final_ln_bias"], self.norm_bias[None].cpu()))
        return found

    def _embeddings(self) -> Iterator[Terms]:
        for label, hook in _EMBEDDINGS.items():
            if hook in self.cache:
                yield [label], self._read(self.cache[hook])

    def _gained(self, layer: int) -> Iterator[Terms]:
        if layer:
            before = self._wide(self.cache[f"decoder.{layer - 1}.hook_resid_post"])
        else:
            hooks = [hook for hook in _EMBEDDINGS.values() if hook in self.cache]
            before = torch.stack([self._wide(self.cache[hook]) for hook in hooks]).sum(0)
        after = self._wide(self.cache[f"decoder.{layer}.hook_resid_post"])
        yield [f"{layer}_layer"], self._read(after - before)

    def _parts(self, layer: int, of: str) -> Iterator[Terms]:
        block = self.model.decoder[layer]
        for part in [part for i, part in _attentions(self.model) if i == layer]:
            if of == "head":
                yield self._heads(layer, part)
            else:
                bias = getattr(block, part).b_O if of == "neuron" else None
                yield self._whole(f"{layer}_{part}_out", f"decoder.{layer}.hook_{part}_out", bias)
        if of == "neuron":
            yield self._neurons(layer)
        else:
            bias = block.mlp.b_out if of == "head" else None
            yield self._whole(f"{layer}_mlp_out", f"decoder.{layer}.hook_mlp_out", bias)

    def _whole(self, label: str, hook: str, bias: Float[Tensor, " d_model"] | None) -> Terms:
        """All that was written at a hook, but the bias where this is a term of its own."""
        written = self._wide(self.cache[hook])
        return [label], self._read(written if bias is None else written - self._wide(bias))

    def _heads(self, layer: int, part: str) -> Terms:
        path = f"decoder.{layer}.{part}"
        if f"{path}.hook_result" in self.cache:
            values = einsum(
                self._wide(self.cache[f"{path}.hook_result"]), self.direction,
                "batch pos head d_model, batch pos d_model -> head batch pos",
            )  # fmt: skip
        else:
            W_O = getattr(self.model.decoder[layer], part).W_O
            read = einsum(
                self.direction, self._wide(W_O),
                "batch pos d_model, head d_head d_model -> batch pos head d_head",
            )  # fmt: skip
            values = (self._wide(self.cache[f"{path}.hook_z"]) * read).sum(-1).movedim(-1, 0)
        return [f"{layer}_{part}_h{h}" for h in range(len(values))], values.cpu()

    def _neurons(self, layer: int) -> Terms:
        # The direction through the weights first: as vectors, neurons would be d_model times this.
        read = self.direction @ self._wide(self.model.decoder[layer].mlp.W_out).T
        values = (self._wide(self.cache[f"decoder.{layer}.mlp.hook_post"]) * read).movedim(-1, 0)
        return [f"{layer}_mlp_n{n}" for n in range(len(values))], values.cpu()

    def _biases(self) -> Float[Tensor, " d_model"]:
        blocks = self.model.decoder
        biases = [getattr(blocks[i], part).b_O for i, part in _attentions(self.model)]
        biases += [block.mlp.b_out for block in blocks]
        return torch.stack([self._wide(bias) for bias in biases]).sum(0)

    def _read(self, written: Float[Tensor, "... d_model"]) -> Float[Tensor, "1 batch pos"]:
        return (self._wide(written) * self.direction).sum(-1)[None].cpu()

    def _wide(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return x.to(self.direction)


def _norm_bias(
    model: Any, targets: Ids, others: Ids | None, direction: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos"] | None:
    bias = model.decoder_final_ln.bias
    if bias is None:
        return None
    rows = model.W_U.T
    read = rows[targets] if others is None else rows[targets] - rows[others]
    norm_bias: Tensor = read.to(direction) @ bias.to(direction)
    return norm_bias


# --- What comes of it -----------------------------------------------------------------------------


def _result(
    model: Any,
    of: str,
    passed: Trace,
    targets: Ids,
    others: Ids | None,
    logits: Float[Tensor, "batch pos d_vocab"],
    terms: list[Terms],
) -> DirectAttribution:
    values = torch.cat([values for _, values in terms])
    own = logits.gather(-1, targets[..., None])[..., 0].cpu().to(values)
    if others is not None:
        own = own - logits.gather(-1, others[..., None])[..., 0].cpu().to(values)
    ids = [_blanked(one.cpu(), passed) for one in (targets, others) if one is not None]
    return DirectAttribution(
        of=of,
        labels=[label for labels, _ in terms for label in labels],
        positions=list(passed.positions),
        tokens=passed.tokens,
        real=passed.real,
        targets=ids[0],
        versus=None if others is None else ids[1],
        values=_blanked(values, passed),
        logits=_blanked(own, passed),
        model=model.name,
        texts=texts_of(model, passed.tokens, *ids),
    )


def _blanked(values: Tensor, passed: Trace) -> Tensor:
    """NaN, or -1 among ids, where there is only padding."""
    return torch.where(passed.real, values, math.nan if values.is_floating_point() else -1)
