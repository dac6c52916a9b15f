"""Training a tuned lens, resumable at any step.

Source: "Eliciting Latent Predictions from Transformers with the Tuned Lens" (2023), section 3 and
appendix; here from a start in closed form, and with Adam.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from tqdm.auto import tqdm

from hooked_asr.files import written_aside
from hooked_asr.lenses.errors import LensError
from hooked_asr.lenses.tuned import TunedLens
from hooked_asr.lenses.tuned_clips import gathered, taught
from hooked_asr.lenses.tuned_evaluation import mean_kls
from hooked_asr.lenses.tuned_objective import Objective, start_by_least_squares
from hooked_asr.lenses.tuned_origin import LensOrigin
from hooked_asr.lenses.tuned_streams import MEMORY, RunStreams, Streams
from hooked_asr.weights.fingerprint import fingerprint

LENS, STATE = "lens.safetensors", "training.pt"
_SAVE_EVERY = 60.0  # seconds
_WARMUP = 10  # steps
_BETAS = (0.9, 0.98)  # Adam's


@dataclass(frozen=True)
class _Settings:
    """What a training depends on beside the model and the clips."""

    stack: str
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    held_out: float
    seed: int

    def __post_init__(self) -> None:
        for name, fits, bounds in (
            ("steps", self.steps >= 0, "from 0 (least squares alone) up"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "from 0 up"),
            ("held_out", 0 <= self.held_out < 1, "a share from 0 to below 1"),
        ):
            if not fits:
                raise LensError(f"{name} is {bounds}; got {getattr(self, name)}")


def train_tuned_lens(
    model: Any,
    audio: Any,
    *,
    stack: str = "decoder",
    out: str | os.PathLike[str] | None = None,
    texts: Sequence[str | None] | None = None,
    steps: int = 250,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    held_out: float = 0.1,
    seed: int = 0,
    skip_unreadable: bool = False,
    memory: int = MEMORY,
    progress: bool = True,
    **asked: Any,
) -> TunedLens:
    """Train a translator for each stream of a stack, on clips that are forced with transcripts.

        lens = train_tuned_lens(model, "recordings/", out="lens")
        print(lens.held_out)

    Each translator begins as the affine map that comes nearest to the last layer's stream (least
    squares), and is then trained by Adam to bring KL(final ‖ site) down, the mean over positions.
    A decoder's stream is read by the final norm and the unembedding. An encoder's goes to the
    frozen decoder, and what counts is its distributions; so an encoder costs a decoder's pass
    forth and back for each layer and step. The model is left as it is, and hooks on it do not act.

    - `audio`: a folder, a manifest, or a list of paths or rows (see `manifests.read_clips`), of
      one window each at most; samples at 16 kHz, or a list of them; or a list of runs, each the
      inputs of one row, as `model.to_inputs` gives them.
    - `stack`: "decoder" or "encoder".
    - `out`: a folder for the lens (`lens.safetensors`) and the state of its training. Run again, it
      goes on where it was, however it ended, and gives the numbers of an uninterrupted training; a
      finished one is only read.
    - `texts`: what is said in each clip, None where the model is to tell: what neither these nor a
      manifest give is the model's own greedy transcript, and the language it tells.
    - `steps` of `batch_size` clips; 0 for least squares alone. `learning_rate`: at its peak; it
      falls to 0 in a line. `weight_decay`: towards the identity.
    - `held_out`: the share of clips to measure on at the end (`TunedLens.held_out`), drawn by
      `seed`, as the order of the others is.
    - `skip_unreadable`: leave clips out that cannot be read, with a warning.
    - `memory`: bytes of streams that are kept from one epoch to the next; others are computed anew.
    - `asked`: how the model is asked: `language` and `task` for Whisper, `prompt` for Qwen2-Audio.

    Positions that count: all of a Whisper's; behind the audio, where the prompt holds it.

    Raises `LensError` for clips that cannot be read, options that do not fit, or a damaged state;
    `RecordsError` for an `out` that holds another training, and what differs.
    """
    settings = _Settings(stack, steps, batch_size, learning_rate, weight_decay, held_out, seed)
    lens = TunedLens.identity(model, stack)
    clips = gathered(model, audio, texts, asked, skip_unreadable, progress)
    origin = _origin(model, lens, settings, clips.digest, len(clips.clips), asked)
    runs = taught(
        model,
        clips.clips,
        asked,
        folder=out,
        settings={"model": origin.weights, "type": str(model.dtype), **origin.settings},
        batch_size=batch_size,
        progress=progress,
    )
    folder = None if out is None else Path(out)
    if folder and (folder / LENS).exists():
        return TunedLens.load(folder / LENS, model)
    tested, trained = _split(len(runs), held_out, seed)
    streams = Streams(model, stack, [runs[i] for i in trained], memory)
    objective = Objective(model, stack)
    _Training(lens, objective, streams, settings, folder).run(progress)
    others = Streams(model, stack, [runs[i] for i in tested], memory=0)
    rows = mean_kls(lens, objective, others, batch_size, progress) if tested else []
    lens.origin = replace(origin, held_out=rows)
    if folder:
        lens.save(folder / LENS)
        (folder / STATE).unlink(missing_ok=True)
    return lens


def _origin(
    model: Any,
    lens: TunedLens,
    settings: _Settings,
    digest: str,
    n_clips: int,
    asked: Mapping[str, Any],
) -> LensOrigin:
    said = {**asdict(settings), "clips": digest, "n_clips": n_clips, **asked}
    versions = {name: version(name) for name in ("torch", "hooked_asr")}
    return replace(lens.origin, weights=fingerprint(model), settings=said, versions=versions)


def _split(n_clips: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Clips to measure on, and clips to train on; at least one of each, where some are held out.

    Raises `LensError` where one clip would have to be both.
    """
    n_tested = max(1, round(held_out * n_clips)) if held_out else 0
    if n_tested >= n_clips:
        raise LensError(
            f"{n_clips} clips cannot be held out and trained on both: give more, or held_out=0"
        )
    order = _shuffled(n_clips, seed, "held out")
    return sorted(order[:n_tested]), sorted(order[n_tested:])


def _shuffled(n: int, seed: int, *of: object) -> list[int]:
    """An order that hangs on what it is of, and on nothing that was drawn before."""
    digest = hashlib.sha256(repr((seed, *of)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(n, generator=generator).tolist()


class _Training:
    """A training in progress: translators, optimiser, and the step that comes next."""

    def __init__(
        self,
        lens: TunedLens,
        objective: Objective,
        runs: Sequence[RunStreams],
        settings: _Settings,
        folder: Path | None,
    ) -> None:
        self.lens, self.objective, self.runs = lens, objective, runs
        self.settings, self.step = settings, 0
        self.optimizer = torch.optim.AdamW(
            lens.parameters(), betas=_BETAS, weight_decay=settings.weight_decay
        )
        self.path = None if folder is None else folder / STATE
        self._saved_at = time.monotonic()

    def run(self, progress: bool) -> None:
        """From the beginning, or from where it was, to the end."""
        if not self._resumed():
            bar = tqdm(self.runs, desc="least squares", unit="clip", disable=not progress)
            start_by_least_squares(self.lens, iter(bar))
            self._save()
        steps = range(self.step, self.settings.steps)
        with tqdm(
            total=self.settings.steps,
            initial=self.step,
            desc=f"{self.settings.stack} lens",
            unit="step",
            disable=not progress,
        ) as bar:
            for _ in steps:
                bar.set_postfix(kl=f"{self._advance():.3f}", refresh=False)
                bar.update()
                if time.monotonic() - self._saved_at >= _SAVE_EVERY:
                    self._save()

    @torch.enable_grad()
    def _advance(self) -> float:
        """One step; gives KL, the mean over sites and positions."""
        batch = self.objective.batch([self.runs[i] for i in self._clips()])
        found = []
        for kl, translator in zip(batch.kls(self.lens), self.lens.translators, strict=True):
            parameters = list(translator.parameters())
            # Gradients of these alone: the model's own weights need none.
            gradients = torch.autograd.grad(kl.mean(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            found.append(kl.mean().item())
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.step += 1
        return sum(found) / len(found)

    def _clips(self) -> list[int]:
        """The clips of the step: all are seen once, in a new order, before any is seen again."""
        size = self.settings.batch_size
        epoch, place = divmod(self.step, -(-len(self.runs) // size))
        order = _shuffled(len(self.runs), self.settings.seed, "epoch", epoch)
        return order[place * size : (place + 1) * size]

    def _rate(self) -> float:
        """The learning rate: up in a few steps, down to 0 in a line."""
        up = min(1.0, (self.step + 1) / _WARMUP)
        return self.settings.learning_rate * up * (1 - self.step / self.settings.steps)

    # --- The state on the disk --------------------------------------------------------------------

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        if self.path is None:
            return
        state = {
            "step": self.step,
            "lens": self.lens.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with written_aside(self.path) as aside:
            torch.save(state, aside)

    def _resumed(self) -> bool:
        if self.path is None or not self.path.exists():
            return False
        device = next(self.lens.parameters()).device
        try:
            state = torch.load(self.path, map_location=device, weights_only=True)
            self.lens.load_state_dict(state["lens"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, UnpicklingError) as error:
            raise LensError(
                f"{self.path} is damaged ({error!r}): remove it, and the training begins anew"
            ) from error
        return True
