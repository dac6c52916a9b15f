"""Decoding with probes that read along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hooked_asr.generation import Generation, Window, end_tokens
from hooked_asr.monitors.errors import MonitorError
from hooked_asr.monitors.lengths import left, measured, n_positions
from hooked_asr.monitors.monitor import Monitor
from hooked_asr.monitors.scores import ClipScores, WindowRow, clip_scores
from hooked_asr.monitors.watch import FrameWatch, Outputs, TokenWatch, of_cache
from hooked_asr.names import HookSpec, select


@dataclass(frozen=True, eq=False)
class Monitored:
    """What a decoding gave, and what monitors made of it.

    - `said`: as `model.generate` gives it, one for each recording (or prompt).
    - `by_monitor`: for each monitor, in the order given, the scores of each recording.
    """

    said: Generation[Any]
    by_monitor: list[list[ClipScores]]

    @property
    def scores(self) -> list[ClipScores]:
        """Of each recording; by the first monitor, where there are several."""
        return self.by_monitor[0]


@torch.no_grad()
def generate_monitored(
    model: Any, monitors: Sequence[Monitor], audio: Any = None, **options: Any
) -> Monitored:
    """What `model.generate(audio, **options)` gives, to the bit, and monitors' scores.

        heard = generate_monitored(model, [hallucination, noise], ["a.flac", "b.flac"])
        heard = generate_monitored(qwen, [monitor], **qwen.to_inputs("a.flac", prompt))

    Outputs of a probe are kept, and not what it reads, step by step; activations are seen as
    `fwd_hooks` and `interventions` leave them. With beams, or several temperatures, what wins is
    only known later: the activations of these sites alone are then kept as `names_filter` keeps
    them (the beam that won is read once more), until the last window is done.

    Raises `MonitorError` for no monitor, or a site that this decoding does not pass; `ProbeError`
    for a probe of another width; and as `generate` and `Monitor.spec`.
    """
    if not monitors:
        raise MonitorError("there is no monitor: give at least one")
    alone = not (options.get("fwd_hooks") or options.get("interventions") or model.has_hooks)
    watched = [_Watched.of(model, one, alone) for one in monitors]
    hearing = [one for one in watched if one.hears]
    if hearing:
        _check_sound(model, options, hearing[0])
    frames: list[int] = []
    if hearing and not model.config.prefix:
        audio, options, frames = measured(audio, options)
    given = () if audio is None else (audio,)
    said = model.generate(*given, **_with_watches(model, watched, options))
    rows = [_rows_of(model, one, said, options, frames) for one in watched]
    if _rereads(options) and options.get("names_filter") is None:
        said = replace(said, windows=[replace(one, cache=None) for one in said.windows])
    return Monitored(
        said,
        [
            [clip_scores(model, one.monitor, *clip) for clip in zip(said, own, strict=True)]
            for one, own in zip(watched, rows, strict=True)
        ],
    )


@dataclass(frozen=True, eq=False)
class _Watched:
    """A monitor at its hook."""

    monitor: Monitor
    spec: HookSpec
    frames: FrameWatch
    tokens: TokenWatch

    @classmethod
    def of(cls, model: Any, monitor: Monitor, alone: bool) -> _Watched:
        spec, probe = monitor.spec(model), monitor.probe.to(model.device)
        return cls(monitor, spec, FrameWatch(probe), TokenWatch(probe, alone))

    @property
    def hears(self) -> bool:
        """Whether it reads the encoder, and not the decoder."""
        return self.spec.clock != "pos"


def _rereads(options: Mapping[str, Any]) -> bool:
    """Whether what wins is only known when it is decoded."""
    temperature = options.get("temperature", 0.0)
    several = isinstance(temperature, Sequence) and len(temperature) > 1
    return several or options.get("num_beams", 1) > 1


def _with_watches(
    model: Any, watched: Sequence[_Watched], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options with all that is to be read.

    Behind the caller's interventions, to see what flows on.
    """
    rereads = _rereads(options)
    hooks: list[Any] = [(one.spec.name, one.frames) for one in watched if one.hears]
    hooks += [(one.spec.name, one.tokens) for one in watched if not (one.hears or rereads)]
    found = {**options, "interventions": [*options.get("interventions", ()), *hooks]}
    kept = [one.spec.name for one in watched if not one.hears]
    if rereads and kept:
        asked = options.get("names_filter")
        found["names_filter"] = [*([] if asked is None else select(asked, model.hook_table)), *kept]
    return found


def _check_sound(model: Any, options: Mapping[str, Any], one: _Watched) -> None:
    if model.config.prefix and options.get("mel") is None:
        raise MonitorError(
            f"these prompts hold no audio, so decoding never passes {one.spec.name!r}, which the "
            f"monitor of {one.monitor.name} reads: give a clip, or a monitor of the decoder"
        )


# --- What was read --------------------------------------------------------------------------------


def _rows_of(
    model: Any,
    watched: _Watched,
    said: Generation[Any],
    options: Mapping[str, Any],
    frames: Sequence[int],
) -> list[list[WindowRow]]:
    """For each recording its windows, with the outputs there."""
    if not watched.hears:
        return _token_rows(model, watched, said, options)
    if model.config.prefix:
        return _clips_of_prompts(model, watched, said, options)
    rows: list[list[WindowRow]] = [[] for _ in said]
    for window, outputs in zip(said.windows, watched.frames.windows, strict=True):
        tokens = _said_in(model, window, _n_prompt(model, said, window, options))
        for clip, start, own, heard in zip(
            window.clips, window.start, tokens, outputs, strict=True
        ):
            real = left(frames[clip], start, model.config.n_frames)
            kept = heard[: n_positions(watched.spec.clock, real)]
            rows[clip].append(WindowRow(start, own, kept, hears=True))
    return rows


def _clips_of_prompts(
    model: Any, watched: _Watched, said: Generation[Any], options: Mapping[str, Any]
) -> list[list[WindowRow]]:
    """As `_rows_of`, for prompts that hold clips of their own."""
    inputs = {name: options.get(name) for name in ("mel", "tokens", "mel_mask")}
    spans = model.audio_positions({k: v for k, v in inputs.items() if v is not None})
    mask = inputs["mel_mask"]
    outputs = watched.frames.windows[0]  # the projector is passed again where beams are read again
    rows: list[list[WindowRow]] = [[] for _ in said]
    for span in spans:
        n_frames = model.config.n_frames if mask is None else int(mask[span.clip].sum())
        kept = outputs[span.clip, : n_positions(watched.spec.clock, n_frames)]
        rows[span.row].append(WindowRow(0.0, said[span.row].tokens, kept, hears=True))
    return rows


def _token_rows(
    model: Any, watched: _Watched, said: Generation[Any], options: Mapping[str, Any]
) -> list[list[WindowRow]]:
    rows: list[list[WindowRow]] = [[] for _ in said]
    outputs = _outputs(model, watched, said, options)
    for window, read in zip(said.windows, outputs, strict=True):
        tokens = _said_in(model, window, read.n_prompt)
        for clip, start, own, steps in zip(
            window.clips, window.start, tokens, read.steps, strict=True
        ):
            # The token behind a limit is never read in; a row that ended runs on as padding.
            rows[clip].append(WindowRow(start, own, steps[: len(own) + 1], hears=False))
    return rows


def _outputs(
    model: Any, watched: _Watched, said: Generation[Any], options: Mapping[str, Any]
) -> Iterator[Outputs]:
    if not _rereads(options):
        yield from watched.tokens.windows(len(said.windows))
        return
    for window in said.windows:
        assert window.cache is not None  # the site is in names_filter
        x = window.cache[watched.spec.name]
        yield of_cache(watched.monitor.probe, x, _n_prompt(model, said, window, options))


# --- Tokens ---------------------------------------------------------------------------------------


def _said_in(model: Any, window: Window, n_prompt: int) -> list[list[int]]:
    """The new tokens of each row, without end and padding."""
    ends = set(end_tokens(model.generation_config))
    rows: list[list[int]] = window.whole_tokens[:, n_prompt:].tolist()
    ended = [next((i for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ended, strict=True)]


def _n_prompt(model: Any, said: Generation[Any], window: Window, options: Mapping[str, Any]) -> int:
    """How many tokens of a window's rows are prompt, padding among them."""
    if model.config.prefix:
        return int(options["tokens"].shape[1])
    # Only what is longer than a window, or has time stamps, is decoded in several.
    timestamps = options.get("timestamps", False) or len(said.windows) > 1
    prompt = model.prompt(
        said[window.clips[0]].language, options.get("task", "transcribe"), timestamps
    )
    # The rules forbid the start token in a text: the last one is this prompt's.
    starts = (window.whole_tokens[0] == prompt[0]).nonzero().flatten()
    return int(starts[-1]) + len(prompt)
