"""What a recogniser loses with a reconstruction in place: likelihood of texts, and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from hooked_asr.audio import load_audio, log_mel_and_mask
from hooked_asr.generation import Generated, end_tokens
from hooked_asr.interventions import Intervention, Site, replace, zero
from hooked_asr.manifests import Clip
from hooked_asr.names import HookSpec
from hooked_asr.patching.engine import run_rows
from hooked_asr.patching.metrics import Metric, kl, transcript_log_prob
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.edits import splice
from hooked_asr.speech import count_word_errors, language_code, normaliser
from hooked_asr.timing import FRAMES_PER_SECOND


@dataclass(frozen=True, eq=False)
class Trial:
    """An autoencoder at a site, the site's mean, and how every clip is asked and forced.

    `texts`: "heard", the model's own transcripts are forced, or "text", what the clips' rows say.
    """

    sae: SparseAutoencoder
    spec: HookSpec
    mean: Float64[Tensor, " d"]
    texts: str
    language: str | None
    wer: bool
    memory: int | str | None
    prompt: Mapping[str, Any]

    def rows(self, model: Any, where: Mapping[str, Any]) -> list[Intervention]:
        """The reconstruction, the mean and zeros in place, at these positions or seconds."""
        site = Site(self.spec.name, **where)
        shape = self.spec.shape(model.config, 1, model.config.decoder.n_ctx)
        mean = self.mean.to(model.device, model.dtype).reshape(shape[2:]).expand(shape)
        return [splice(self.sae).at(site), replace(site, mean), zero(site)]


@dataclass(frozen=True)
class ClipLosses:
    """Of one clip, sums over its transcript's tokens and their end (nats), and word errors.

    - `loss`: cross-entropy, with the model as it is, with the reconstruction in place, and with
      the site's mean, or zeros; `kl`: from the model's own next-token distributions to those with
      the reconstruction.
    - `text`, `text_spliced`: what is heard; None where nothing was decoded.
    - `errors`: of `words` of the reference, where one is known; `changed`: errors of the spliced
      transcript against the model's own, of `own_words`.
    """

    tokens: int
    loss: float
    loss_spliced: float
    loss_mean: float
    loss_zero: float
    kl: float
    text: str | None = None
    text_spliced: str | None = None
    words: int | None = None
    errors: int | None = None
    errors_spliced: int | None = None
    own_words: int | None = None
    changed: int | None = None


@torch.no_grad()
def clip_losses(model: Any, clip: Clip, trial: Trial) -> ClipLosses:
    """One recording without and with the reconstruction in place of what is real in it."""
    samples = load_audio(clip.audio_path)
    asked = _asked(model, samples, clip, trial)
    inputs = model.to_inputs(samples, **asked)
    n_prompt = inputs["tokens"].shape[1]
    rows = trial.rows(model, _where(model, samples, trial.spec, n_prompt))
    heard: list[Generated] = []
    if trial.wer or trial.texts == "heard":
        heard = _heard(model, samples, inputs, asked, rows[0], trial)
    if trial.texts == "heard":
        said = list(heard[0].tokens)
    else:
        longer = model.to_inputs(samples, text=clip.text, **asked)
        said = longer["tokens"][0, n_prompt:].tolist()
    sums = _forced(model, inputs, said, rows, trial.memory)
    words = _words(model, clip, heard, asked) if trial.wer else {}
    return ClipLosses(**sums, **words)


# --- Asking ---------------------------------------------------------------------------------------


def _asked(model: Any, samples: Tensor, clip: Clip, trial: Trial) -> dict[str, Any]:
    given = dict(trial.prompt)
    language = clip.language or trial.language
    if "language" in model.asked_by and language is not None:
        given["language"] = language_code(language)
    asked: dict[str, Any] = model.settled(samples, **given)
    return asked


def _where(model: Any, samples: Tensor, spec: HookSpec, n_prompt: int) -> dict[str, Any]:
    """What is text, or sound, and no padding."""
    if spec.clock == "pos":
        return {"positions": slice(n_prompt, None)}
    _, mask = log_mel_and_mask(samples, model.working_extractor)
    return {"seconds": (0.0, int(mask.sum()) / FRAMES_PER_SECOND)}


# --- Free decoding --------------------------------------------------------------------------------


def _heard(
    model: Any,
    samples: Tensor,
    inputs: Mapping[str, Tensor],
    asked: Mapping[str, Any],
    spliced: Intervention,
    trial: Trial,
) -> list[Generated]:
    """What is heard by the model as it is; and with the reconstruction, if words are counted."""

    def decoded(*rows: list[Intervention]) -> list[Generated]:
        if hasattr(model, "generate_rows"):
            return list(model.generate_rows(samples, list(rows), **asked))
        return [model.generate(**inputs, interventions=row)[0] for row in rows]

    if not trial.wer:
        return decoded([])
    if trial.spec.clock != "pos":
        return decoded([], [spliced])
    (own,) = decoded([])  # where nothing is said, there is no token to change anything at
    return [own, *(decoded([spliced]) if own.tokens else [own])]


def _words(
    model: Any, clip: Clip, heard: Sequence[Generated], asked: Mapping[str, Any]
) -> dict[str, Any]:
    own, spliced = (one.text for one in heard)
    language = asked.get("language") or (clip.language and language_code(clip.language))
    plain = normaliser(language or "en", model.tokenizer)
    moved = count_word_errors(own, spliced, plain)
    told = {"text": own, "text_spliced": spliced, "own_words": moved.said, "changed": moved.errors}
    if clip.text is None:
        return told
    before, after = (count_word_errors(clip.text, text, plain) for text in (own, spliced))
    known = {"words": before.said, "errors": before.errors, "errors_spliced": after.errors}
    return told | known


# --- Forced ---------------------------------------------------------------------------------------


def _forced(
    model: Any,
    prompt: Mapping[str, Tensor],
    said: list[int],
    rows: Sequence[Intervention],
    memory: int | str | None,
) -> dict[str, Any]:
    """Cross-entropy of what is said and of its end under each row, and KL under the first."""
    n_prompt = prompt["tokens"].shape[1]
    end = end_tokens(model.generation_config)[:1]
    room = model.config.decoder.n_ctx - n_prompt - len(said)
    inputs = _behind(prompt, [*said, *end[:room]])
    tokens = inputs["tokens"]
    n = tokens.shape[1] - n_prompt
    read = slice(n_prompt - 1, -1)  # what predicts them
    each = [[row] for row in rows]
    likely = run_rows(model, inputs, each, transcript_log_prob(tokens, n_prompt), memory=memory)
    own = Metric("kl", kl(model(**inputs)[:, read]).measure, read)
    (moved,) = run_rows(model, inputs, each[:1], own, memory=memory).values.tolist()
    losses = [likely.clean, *likely.values.tolist()]
    names = ("loss", "loss_spliced", "loss_mean", "loss_zero")
    sums: dict[str, Any] = {name: -n * one for name, one in zip(names, losses, strict=True)}
    return {"tokens": n, **sums, "kl": n * max(moved, 0.0)}  # below 0 by rounding alone


def _behind(prompt: Mapping[str, Tensor], said: Sequence[int]) -> dict[str, Tensor]:
    """A prompt's inputs, with what is said behind it."""
    behind = {"tokens": torch.tensor([list(said)], dtype=torch.long)}
    behind["attention_mask"] = torch.ones_like(behind["tokens"])
    longer = {
        name: torch.cat([prompt[name], new.to(prompt[name])], 1)
        for name, new in behind.items()
        if prompt.get(name) is not None
    }
    return {**prompt, **longer}
