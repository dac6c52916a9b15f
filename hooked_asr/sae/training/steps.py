"""The steps of a training, with SAELens's trainer; resumable at any of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.features.rows import Rows
from hooked_asr.records import Records
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.saelens import saelens
from hooked_asr.sae.training.architectures import training_sae
from hooked_asr.sae.training.checkpoints import interrupts_wait, load_checkpoint, save_checkpoint
from hooked_asr.sae.training.stream import Drawn, Stream, shuffled

_REPORT_EVERY = 50  # steps
_SAMPLE = 16384  # rows that the start is reckoned from
# Rows without a feature until the auxiliary loss takes care of it, and until it counts as dead. The
# one is short: what is dead early is brought back while the others still move.
_SILENT, _DEAD = 30_000, 250_000
_WARM_UP, _DECAY = 0.05, 0.25  # shares of the steps
_BETAS = (0.9, 0.999)  # Adam's


@dataclass(frozen=True)
class Settings:
    """What the weights depend on, beside the rows.

    Raises `SAEError` for numbers that make no sense.
    """

    architecture: str
    options: Mapping[str, Any]
    n_features: int
    frames: int
    batch_size: int
    learning_rate: float
    seed: int

    def __post_init__(self) -> None:
        for name, fits, bounds in (
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("frames", self.frames >= self.batch_size >= 1, "at least one batch"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
        ):
            if not fits:
                raise SAEError(f"{name} is {bounds}; got {getattr(self, name)}")

    @property
    def steps(self) -> int:
        return self.frames // self.batch_size


def make_trainer(settings: Settings, d_in: int, device: str) -> Any:
    """SAELens's trainer: Adam, its rate warmed up and brought to 0 in the end."""
    lens, steps = saelens(), settings.steps
    sae = training_sae(
        settings.architecture,
        settings.options,
        d_in=d_in,
        n_features=settings.n_features,
        steps=steps,
        seed=settings.seed,
        device=device,
    )
    warm_up, decay = int(_WARM_UP * steps), int(_DECAY * steps)
    config = lens.config.SAETrainerConfig(
        total_training_samples=steps * settings.batch_size,
        train_batch_size_samples=settings.batch_size,
        device=device,
        lr=settings.learning_rate,
        lr_end=settings.learning_rate,
        lr_warm_up_steps=warm_up if warm_up > 1 else 0,
        lr_decay_steps=decay,
        adam_beta1=_BETAS[0],
        adam_beta2=_BETAS[1],
        dead_feature_window=max(1, min(_SILENT // settings.batch_size, steps // 10)),
        feature_sampling_window=steps + 1,
    )
    return lens.training.sae_trainer.SAETrainer(config, sae, None)


class Training:
    """A training in progress: trainer, stream, and the place in it that comes next.

    `records`: where the curve is kept, a line for every 50 steps.
    """

    def __init__(
        self, trainer: Any, stream: Stream, settings: Settings, folder: Path, records: Records
    ) -> None:
        self.trainer, self.stream, self.settings = trainer, stream, settings
        self.folder, self.records = folder, records
        self.place = load_checkpoint(folder, trainer)
        self._known = set(records.read()[0])
        self._saved = self.step

    @property
    def step(self) -> int:
        return int(self.trainer.n_training_steps)

    def run(self, save_every: float, progress: bool) -> Rows:
        """All steps that are left; gives the block that the last of them was in.

        Raises `KeyboardInterrupt`, and keeps what was done until then.
        """
        steps, saved_at = self.settings.steps, time.monotonic()
        drawn = self.stream.batches(self.place, steps - self.step)
        bar = tqdm(total=steps, initial=self.step, desc="sae", unit="step", disable=not progress)
        try:
            with bar:
                for one in drawn:
                    with interrupts_wait():
                        self._advance(one, bar)
                    bar.update()
                    if time.monotonic() - saved_at >= save_every and self.step < steps:
                        self.save()
                        saved_at = time.monotonic()
        except KeyboardInterrupt:
            if self._saved < self.step < steps:
                self.save()
            raise
        finally:
            drawn.close()
        return one.rows

    def save(self) -> None:
        save_checkpoint(self.folder, self.trainer, self.place)
        self._saved = self.step

    def _advance(self, drawn: Drawn, bar: Any) -> None:
        if not self.step:
            start(self.trainer, drawn.rows, self.settings)
        with torch.enable_grad():
            output = self.trainer.step(drawn.batch)
        self.trainer.n_training_steps += 1
        self.place = drawn.then
        if self.step % _REPORT_EVERY == 0 or self.step == self.settings.steps:
            said = report(self.trainer, output)
            bar.set_postfix({name: f"{value:.3g}" for name, value in said.items()}, refresh=False)
            if str(self.step) not in self._known:
                self.records.append(str(self.step), said)


def start(trainer: Any, rows: Rows, settings: Settings) -> None:
    """Begin at the mean of the rows, and bring them to a mean square of 1 about it. Features begin
    as rows that were drawn, as they are about the mean: where there is none, none is needed.

    SAELens scales by the mean norm, of which the mean itself may be any share; the rate of learning
    should not depend on that.
    """
    sample = np.sort(shuffled(len(rows), settings.seed, "start")[:_SAMPLE])
    total = np.zeros(rows.shape[1])
    squares = np.zeros(rows.shape[1])
    for first in range(0, len(sample), settings.batch_size):
        own = rows[sample[first : first + settings.batch_size]].astype(np.float64)
        total += own.sum(0)
        squares += np.square(own).sum(0)
    mean = total / len(sample)
    variance = float((squares / len(sample) - np.square(mean)).mean())
    factor = 1 / math.sqrt(variance) if variance > 0 else 1.0
    trainer.activation_scaler.scaling_factor = factor
    with torch.no_grad():
        trainer.sae.b_dec.copy_(torch.from_numpy(mean * factor))
        _begin_as_rows(trainer.sae, rows, mean, settings.seed)


def _begin_as_rows(sae: Any, rows: Rows, mean: Float[np.ndarray, " d"], seed: int) -> None:
    """Set each feature's directions, in and out, to that of a row; their norms stay."""
    order = shuffled(len(rows), seed, "features")
    chosen = rows[np.resize(order, len(sae.W_dec))].astype(np.float32) - mean.astype(np.float32)
    drawn = torch.from_numpy(chosen).to(sae.W_dec)
    directions = drawn / drawn.norm(dim=1, keepdim=True).clamp_min(1e-6)
    sae.W_dec.copy_(directions * sae.W_dec.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(sae.W_dec.T)


@torch.no_grad()
def settle_threshold(trainer: Any, x: Float[Tensor, "row d"], batch_size: int) -> None:
    """Set from where on features count, for an architecture that chooses them batch by batch.

    The mean, over batches, of the least activation that was chosen ("BatchTopK Sparse
    Autoencoders", section 3), of the weights as they are: SAELens's running mean looks back on
    older ones, and in a short training on its own start.
    """
    sae = trainer.sae
    if not hasattr(sae, "topk_threshold"):
        return
    chosen = [sae.encode(trainer.activation_scaler(own)) for own in torch.split(x, batch_size)]
    least = [own[own > 0].min() for own in chosen if bool((own > 0).any())]
    if least:
        sae.topk_threshold.copy_(torch.stack(least).mean())


@torch.no_grad()
def report(trainer: Any, output: Any) -> dict[str, float]:
    """Of one batch: loss, explained variance, L0, and the share of features that are dead."""
    x = output.sae_in
    return {
        "loss": output.loss.item(),
        "ev": explained(x, output.sae_out),
        "l0": output.feature_acts.bool().sum(-1).float().mean().item(),
        "dead": n_dead(trainer) / len(trainer.sae.W_dec),
    }


def n_dead(trainer: Any) -> int:
    """Features that none of the last 250,000 rows had (of the last half of a short training)."""
    config = trainer.cfg
    most = min(_DEAD // config.train_batch_size_samples, config.total_training_steps // 2)
    return int((trainer.n_forward_passes_since_fired > most).sum())


def explained(x: Float[Tensor, "row d"], made: Float[Tensor, "row d"]) -> float:
    """The share of the squares about the mean that is told.

    >>> explained(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
    0.5
    """
    return 1 - float((x - made).square().sum() / (x - x.mean(0)).square().sum())
