"""The tuned lens: a layer's stream, carried by a learned affine map to where the last layer ends.

Source: "Eliciting Latent Predictions from Transformers with the Tuned Lens" (2023), section 3.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, replace
from typing import Any

import altair as alt
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hooked_asr.lenses.errors import LensError
from hooked_asr.lenses.logit import logit_lens
from hooked_asr.lenses.logit_result import LogitLens
from hooked_asr.lenses.trace import Readable
from hooked_asr.lenses.tuned_evaluation import evaluated, figure
from hooked_asr.lenses.tuned_origin import LensOrigin
from hooked_asr.lenses.tuned_streams import MEMORY, sites_of
from hooked_asr.weights.fingerprint import fingerprint
from hooked_asr.weights.tensor_file import read_tensors, write_tensors

_KIND = "tuned lens"
_SITE = re.compile(r"(encoder|decoder)\.(\d+)\.hook_resid_(pre|post)")


class TunedLens(nn.Module):
    """A translator for each stream of a stack but the last: `x + W x + b`, as it is trained for one
    model by `train_tuned_lens`; before that the identity.

        lens = train_tuned_lens(model, "recordings/", out="lens")
        tuned_lens(model, (mel, tokens), lens).plot()

    `lens(site, stream)` is what `logit_lens` takes as `translate`. `sites` are what enters layer 0,
    and what leaves each layer but the last. A "resid_pre" is the "resid_post" of the layer below
    it, and the last layer's "resid_post" stays as it is.

    Translators are in float32, and give the stream's own float type.

    >>> lens = TunedLens(LensOrigin(model="", stack="decoder", n_layers=2, d_model=4))
    >>> lens.sites
    ['decoder.0.hook_resid_pre', 'decoder.0.hook_resid_post']
    >>> lens("decoder.0.hook_resid_post", torch.ones(1, 4)).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, origin: LensOrigin) -> None:
        super().__init__()
        self.origin = origin
        self.sites = sites_of(origin.stack, origin.n_layers)
        width = origin.d_model
        # Fresh Linears would draw from PyTorch's generator, only to be set to zero.
        with torch.device("meta"):
            self.translators = nn.ModuleList(nn.Linear(width, width) for _ in self.sites)
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def identity(cls, model: Any, stack: str = "decoder") -> TunedLens:
        """A lens that changes nothing, for a model's "decoder" or "encoder".

        Raises `LensError` for another stack, or one of a single layer.
        """
        own = _stack(model, stack)
        return cls(LensOrigin(model.name, stack, own.n_layers, own.d_model)).to(model.device)

    def forward(self, site: str, stream: Float[Tensor, "*_ d"]) -> Float[Tensor, "*_ d"]:
        """The stream of a hook, as it would be behind the last layer.

        Raises `LensError` for hooks, or streams of a width, that the lens has no translator for.
        """
        depth = self._depth(site)
        if stream.shape[-1] != self.origin.d_model:
            raise LensError(
                f"this lens reads streams that are {self.origin.d_model} wide; got "
                f"{list(stream.shape)}"
            )
        if depth == self.origin.n_layers:
            return stream
        own: Any = self.translators[depth]
        wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
        moved = F.linear(wide, own.weight.to(wide), own.bias.to(wide))
        return (wide + moved).to(stream.dtype)

    def check_fits(self, model: Any, stack: str) -> None:
        """Raises `LensError` where this is no lens for that stack of a model of this shape."""
        own, of = _stack(model, stack), self.origin
        if (stack, own.n_layers, own.d_model) != (of.stack, of.n_layers, of.d_model):
            raise LensError(
                f"a lens for the {stack} of {model.name} ({own.n_layers} layers, {own.d_model} "
                f"wide) is asked for; this one is for the {of.stack} of {of.model} ({of.n_layers} "
                f"layers, {of.d_model} wide)"
            )

    # --- How good it is ---------------------------------------------------------------------------

    def evaluate(
        self,
        model: Any,
        audio: Any,
        *,
        texts: Any = None,
        batch_size: int = 16,
        memory: int = MEMORY,
        progress: bool = True,
        **asked: Any,
    ) -> pd.DataFrame:
        """How far each site is from the model's own distributions, on clips: one row for each site.

        `layer` ("embed" for what enters layer 0); `logit_lens` and `tuned_lens`: mean of KL(final ‖
        site) in nats over `positions`, without and with the translator, in float32. For the options
        see `train_tuned_lens`, which also says how an encoder is measured.

        Raises `LensError` where the lens is for another model's shape, or clips cannot be read.
        """
        self.check_fits(model, self.origin.stack)
        return evaluated(self, model, audio, texts, batch_size, memory, progress, asked)

    @property
    def held_out(self) -> pd.DataFrame:
        """What `evaluate` gave at the training's end, on the clips that were held out from it."""
        return pd.DataFrame(self.origin.held_out)

    def plot(self, table: pd.DataFrame | None = None) -> alt.HConcatChart:
        """KL by layer, logit lens against tuned lens: of what `evaluate` gave, or of `held_out`.

        Raises `LensError` where nothing was held out.
        """
        table = self.held_out if table is None else table
        if table.empty:
            raise LensError(
                "no clips were held out from this lens's training: give what evaluate(model, "
                "clips) says of others"
            )
        return figure(table, self.origin)

    # --- Kept -------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the lens, and what it was trained for and how (.safetensors)."""
        tensors = {
            f"{site}.{name}": value
            for site, one in zip(self.sites, self.translators, strict=True)
            for name, value in one.named_parameters()
        }
        write_tensors(path, _KIND, tensors, asdict(self.origin), LensError)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: Any, *, same_weights: bool = True
    ) -> TunedLens:
        """Read a lens for a model.

        A lens is for the weights that it was trained for (in any float type that holds them
        exactly). `same_weights=False` takes it for others of their shape: a fine-tune, or the same
        weights rounded.

        Raises `LensError` for a lens of other weights or another shape, or a damaged file.
        """
        tensors, said = read_tensors(path, _KIND, LensError)
        origin = LensOrigin(**said)
        lens = cls(origin)
        lens.check_fits(model, origin.stack)
        if same_weights and origin.weights and origin.weights != fingerprint(model):
            raise LensError(
                f"{path} was trained for other weights (of {origin.model!r}) than those of "
                f"{model.name!r}: train one for these, or take it as it is with same_weights=False"
            )
        lens._fill(tensors, path)
        return lens.to(model.device)

    def _fill(self, tensors: dict[str, Tensor], path: Any) -> None:
        try:
            state = {
                f"translators.{i}.{name}": tensors[f"{site}.{name}"]
                for i, site in enumerate(self.sites)
                for name in ("weight", "bias")
            }
            self.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise LensError(f"{path} lacks translators, or has some of another shape") from error

    def _depth(self, site: str) -> int:
        """Behind how many layers a hook's stream is."""
        match = _SITE.fullmatch(site)
        of = self.origin
        depth = int(match[2]) + (match[3] == "post") if match else of.n_layers + 1
        if match is None or match[1] != of.stack or depth > of.n_layers:
            raise LensError(
                f"this lens has translators for {', '.join(self.sites)}; got {site!r}. Read "
                "streams at 'resid_post' or 'resid_pre' with it"
            )
        return depth


@torch.no_grad()
def tuned_lens(model: Any, inputs: Readable, lens: TunedLens, **options: Any) -> LogitLens:
    """Each decoder layer's stream, translated, through the final norm and the unembedding.

    The options are `logit_lens`'s; `at` is "resid_post", "resid_pre" or both.

    Raises `LensError` for a lens that does not fit the model's decoder.
    """
    lens.check_fits(model, "decoder")
    found = logit_lens(model, inputs, translate=lens, **options)
    return replace(found, name="tuned lens")


def _stack(model: Any, stack: str) -> Any:
    if stack not in ("encoder", "decoder"):
        raise LensError(f"a tuned lens is for the 'encoder' or the 'decoder'; got {stack!r}")
    return model.config.stack(stack)
