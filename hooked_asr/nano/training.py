"""Training whisper-nano: through `HookedWhisper`, resumable at any step."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import WhisperFeatureExtractor

from hooked_asr.errors import HookedASRError
from hooked_asr.files import written_aside
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.nano.batches import IGNORED, Batch, Batches
from hooked_asr.nano.corpus import Corpus
from hooked_asr.nano.recipe import Recipe
from hooked_asr.nano.record import TrainingRecord, installed_versions
from hooked_asr.nano.tokenizer import decoding_rules, train_tokenizer

_SAVE_EVERY = 200
_REPORT_EVERY = 20
# On a CPU fused attention is the slower way back through short windows.
_PLAIN_ATTENTION = 200
_TOKENS_OF_CONFIG = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


class TrainingError(HookedASRError):
    """A training that cannot go on."""


def train(
    corpus: Corpus,
    folder: str | os.PathLike[str],
    recipe: Recipe | None = None,
    device: str = "cpu",
    progress: bool = True,
    stop_after: int | None = None,
) -> HookedWhisper:
    """Train whisper-nano, or go on where `folder` says a training was; `stop_after` ends it early.

    `recipe`: by default the one the corpus was made by.

    The state (`state.pt`) and the record (`training.json`) are saved every 200 steps and when the
    training is interrupted. A batch depends on its step alone, so a training that was stopped ends
    as one that was not.

    Raises `KeyboardInterrupt` once it has saved what an interrupt stopped, and `TrainingError`
    where `folder` holds the training of another recipe.
    """
    root, recipe = Path(folder), recipe or corpus.recipe
    root.mkdir(parents=True, exist_ok=True)
    run = _Run(recipe, untrained(recipe).to(device), len(corpus.phones))
    run.resume(root, device)
    batches = Batches(corpus, run.model.tokenizer, recipe)
    last = min(recipe.steps, stop_after or recipe.steps)
    bar = tqdm(range(run.step, last), initial=run.step, total=last, disable=not progress)
    bar.set_description("training")
    with _interrupts_kept() as interrupts:
        for step in bar:
            losses = run.advance(batches[step])
            if run.step % _REPORT_EVERY == 0:
                bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
                run.curve.append({"step": run.step, **losses, "seconds": run.seconds})
            if interrupts:
                run.save(root)
                raise KeyboardInterrupt
            if run.step % _SAVE_EVERY == 0:
                run.save(root)
    run.save(root)
    return run.model.eval()


def untrained(recipe: Recipe) -> HookedWhisper:
    """The model before training, with its tokenizer, front end and decoding rules."""
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(recipe)
    rules = decoding_rules(recipe, tokenizer)
    return HookedWhisper(
        recipe.model_config(d_vocab=len(tokenizer)),
        feature_extractor=WhisperFeatureExtractor(chunk_length=recipe.seconds),
        tokenizer=tokenizer,
        generation_config=rules,
        # Hugging Face's config names these tokens too, and its defaults are the large vocabulary's.
        hf_fields={
            "begin_suppress_tokens": None,
            **{name: getattr(rules, name) for name in _TOKENS_OF_CONFIG},
        },
        name="whisper-nano",
    )


def windowed(model: HookedWhisper, n_ctx: int) -> HookedWhisper:
    """The same weights, shared, over a shorter window of `n_ctx` encoder positions."""
    if n_ctx == model.config.encoder.n_ctx:
        return model
    encoder = replace(model.config.encoder, n_ctx=n_ctx)
    with torch.device("meta"):
        short = HookedWhisper(replace(model.config, encoder=encoder))
    for name, weight in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        setattr(short.get_submodule(path), leaf, weight)
    positions = model.encoder_pos_embed.weight[:n_ctx]
    short.encoder_pos_embed.weight = nn.Parameter(positions, requires_grad=False)
    short.tie_weights()
    return short


@contextmanager
def _interrupts_kept() -> Iterator[list[int]]:
    """Interrupts (Ctrl-C, a polite kill) only noted in the list, so that no step is cut short."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted  # only the main thread can be told
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, _: noted.append(number)) for n in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    """A training in progress: model, the head of the encoder's own loss, optimiser, losses."""

    def __init__(self, recipe: Recipe, model: HookedWhisper, n_phones: int) -> None:
        self.recipe, self.model = recipe, model
        self.phones = nn.Linear(recipe.d_model, n_phones + 1).to(model.device)
        self.optimizers = _optimizers(model, self.phones, recipe.weight_decay)
        self._windows: dict[int, HookedWhisper] = {}
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float | int]] = []

    def advance(self, batch: Batch) -> dict[str, float]:
        """One step of the optimiser."""
        began = time.perf_counter()
        rate = _rate(self.step, self.recipe)
        for group in self._groups():
            group["lr"] = rate
        text, sound = self._losses(batch)
        weight = self.recipe.phone_weight * max(0.0, 1 - 2 * self.step / self.recipe.steps)
        (text + weight * sound).backward()
        nn.utils.clip_grad_norm_([p for group in self._groups() for p in group["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seconds += time.perf_counter() - began
        return {"loss": text.item(), "phones": sound.item(), "rate": rate}

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device = self.model.device
        n_ctx = batch.mel.shape[-1] // 2
        if n_ctx not in self._windows:
            self._windows[n_ctx] = windowed(self.model, n_ctx)
        model = self._windows[n_ctx]
        plain = device.type == "cpu" and n_ctx <= _PLAIN_ATTENTION
        backends = [SDPBackend.MATH] if plain else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(backends):
            audio = model.encode(batch.mel.to(device))
            logits = model.decode(batch.tokens.to(device), audio)
            phones = self.phones(audio)
        labels = batch.labels.to(device)
        text = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        sound = F.cross_entropy(phones.float().flatten(0, 1), batch.phones.to(device).flatten())
        return text, sound

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def save(self, root: Path) -> None:
        state = {
            "recipe": self.recipe.hash,
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "model": self.model.state_dict(),
            "phones": self.phones.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with written_aside(root / "state.pt") as aside:
            torch.save(state, aside)
        TrainingRecord(self.recipe, installed_versions(), self.curve).save(root)

    def resume(self, root: Path, device: str) -> None:
        path = root / "state.pt"
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        if state["recipe"] != self.recipe.hash:
            raise TrainingError(f"{root} holds the training of another recipe: give another folder")
        self.model.load_state_dict(state["model"])
        self.phones.load_state_dict(state["phones"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]


def _optimizers(
    model: nn.Module, head: nn.Module, decay: float
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside (it needs half of AdamW's steps here), AdamW for the rest."""
    named = [*model.named_parameters(), *head.named_parameters(prefix="embed.head")]
    trained = [(name, p) for name, p in named if p.requires_grad]
    inside = {name for name, p in trained if p.ndim == 2 and "embed" not in name}
    matrices = [p for name, p in trained if name in inside]
    others = [p for name, p in trained if name not in inside]
    return (
        torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _rate(step: int, recipe: Recipe) -> float:
    """The learning rate: up in a line, down in half a cosine."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    share = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.peak_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
