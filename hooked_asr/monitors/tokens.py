"""What a monitor told along transcripts, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hooked_asr.monitors.errors import MonitorError
from hooked_asr.monitors.transcripts import ClipTranscripts, HeardClip
from hooked_asr.viz.text_heatmap import text_heatmap

_LABELS = 420  # pixels, of what was said


def scores_at(heard: ClipTranscripts, share: float, monitor: int = 0) -> list[float | None]:
    """The score of each clip when that share of its transcript's tokens had been read in.

    - `share`: above 0, up to 1: all of them. `monitor`: which, in the order given.

    None where nothing was said.

    Raises `MonitorError` for a share that is none, or a monitor that is not there.
    """
    if not 0 < share <= 1:
        raise MonitorError(f"a share of the tokens lies above 0, and is 1 at most; got {share}")
    _check(heard, monitor)
    found = []
    for one in heard.heard:
        read = [score for _, score in _read(one, monitor)]
        found.append(read[max(1, round(share * len(read))) - 1] if read else None)
    return found


def plot_tokens(heard: ClipTranscripts, ids: Sequence[str], monitor: int = 0) -> Any:
    """Transcripts of some clips, a row each, every token coloured by the score at it.

    Beside each stands what is said.

    Raises `MonitorError` for a clip or a monitor that is not there.
    """
    _check(heard, monitor)
    known = {one.clip.id: one for one in heard.heard}
    unknown = [wanted for wanted in ids if wanted not in known]
    if unknown:
        raise MonitorError(f"no clip {unknown[0]!r} was heard; the first is {next(iter(known))!r}")
    cells = [
        {"token": place, "said": _label(known[wanted]), "heard": text.strip(), "score": score}
        for wanted in ids
        for place, (text, score) in enumerate(_read(known[wanted], monitor), start=1)
    ]
    if not cells:
        raise MonitorError("nothing was heard in these clips: there is no token to colour")
    chart = text_heatmap(
        cells,
        across="token",
        down="said",
        colour="score",
        text="heard",
        title=f"{heard.monitors[monitor]}: the score at each token",
        bounds=(0.0, 1.0),
    )
    for layer in chart.layer:
        layer.encoding.y.title = None  # it would lie over long labels
    return chart.configure_axisY(labelLimit=_LABELS)


def _check(heard: ClipTranscripts, monitor: int) -> None:
    if not 0 <= monitor < len(heard.monitors):
        raise MonitorError(
            f"{len(heard.monitors)} monitors read along, from 0 on; got {monitor}: give "
            "transcribe_clips those that are to be read"
        )


def _read(one: HeardClip, monitor: int) -> list[tuple[str, float]]:
    """The tokens that were read in, with their scores."""
    scores = one.token_scores[monitor]
    # Without a tokenizer there is no text.
    texts = one.tokens or [""] * len(scores)
    both = zip(texts, scores, strict=True)
    return [(text, score) for text, score in both if score is not None]


def _label(one: HeardClip) -> str:
    return f"{one.clip.id}: {one.clip.text or 'no speech'}"
