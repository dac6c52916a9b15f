"""An excerpt as a figure: spectrogram, activation, what is heard, and the sound itself."""

from __future__ import annotations

from html import escape

from hooked_asr.sae.pages.sound import Sounds
from hooked_asr.sae.reading.alignments import Aligned
from hooked_asr.sae.reading.excerpts import Excerpt

_SECOND = 600.0  # units that a second is wide
_TALL, _LANE = 120.0, 22.0


def excerpt_figure(
    one: Excerpt, sounds: Sounds, greatest: float, widest: float, audio: bool
) -> str:
    """A figure of HTML. `greatest`: the activation that fills the height; `widest`: the seconds
    that fill the width.
    """
    said = f"activation {one.activation:.3g} at " + (
        f"token {one.position}" if one.seconds is None else f"{one.seconds:.2f} s"
    )
    if one.span is None:
        shown = _tokens(one, greatest)
    else:
        share = (one.span[1] - one.span[0]) / widest
        drawn = _drawn(one, one.span, sounds, greatest)
        shown = f'<div style="width:{100 * share:.1f}%">{drawn}</div>'
    heard = ", ".join(f"{kind} {label}" for kind, label in one.under.items())
    player = _player(one, sounds) if audio else ""
    return (
        f"<figure><figcaption><b>{escape(one.clip)}</b> {escape(said)}"
        f"<span>{escape(heard)}</span></figcaption>{shown}{player}</figure>"
    )


def _player(one: Excerpt, sounds: Sounds) -> str:
    uri = sounds.audio(one.audio, one.span)
    return f'<audio controls preload="metadata" src="{uri}"></audio>'


# --- Frames ---------------------------------------------------------------------------------------


def _drawn(one: Excerpt, span: tuple[float, float], sounds: Sounds, greatest: float) -> str:
    width = (span[1] - span[0]) * _SECOND
    lanes = [own for own in one.aligned.values() if own]
    height = _TALL + _LANE * len(lanes)
    picture = (
        f'<image href="{sounds.spectrogram(one.audio, span)}" width="{width:.1f}" '
        f'height="{_TALL:g}" preserveAspectRatio="none"/>'
    )
    parts = [picture, _curve(one, width, greatest), _peak(one, span)]
    for i, own in enumerate(lanes):
        parts.append(_lane(own, span, _TALL + i * _LANE))
    parts.append(f'<line class="now" y1="0" y2="{height:g}" x1="-9" x2="-9"/>')
    label = f"Spectrogram of {one.clip} from {span[0]:.2f} to {span[1]:.2f} s, with the activation"
    return (
        f'<svg viewBox="0 0 {width:.1f} {height:g}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
        f'<div class="times"><span>{span[0]:.2f} s</span><span>{span[1]:.2f} s</span></div>'
    )


def _curve(one: Excerpt, width: float, greatest: float) -> str:
    """Steps: an activation holds for as long as its position hears."""
    step = width / len(one.curve)
    points = []
    for i, value in enumerate(one.curve):
        y = _TALL * (1 - min(1.0, value / greatest if greatest else 0.0))
        points += [f"{i * step:.1f},{y:.1f}", f"{(i + 1) * step:.1f},{y:.1f}"]
    line = " ".join(points)
    floor = f"{width:.1f},{_TALL:g} 0,{_TALL:g}"
    return f'<polygon class="area" points="{line} {floor}"/><polyline points="{line}"/>'


def _peak(one: Excerpt, span: tuple[float, float]) -> str:
    x = ((one.seconds or 0.0) - span[0]) * _SECOND
    return f'<line class="peak" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_TALL:g}"/>'


def _lane(own: list[Aligned], span: tuple[float, float], top: float) -> str:
    boxes = []
    for one in own:
        first, stop = max(one.start, span[0]), min(one.end, span[1])
        x, width = (first - span[0]) * _SECOND, (stop - first) * _SECOND
        name = escape(one.label)
        boxes.append(
            f'<svg x="{x:.1f}" y="{top:g}" width="{max(width, 0.1):.1f}" height="{_LANE:g}">'
            f'<rect width="100%" height="100%"/><text x="50%" y="15">{name}</text>'
            f"<title>{name}</title></svg>"
        )
    return "".join(boxes)


# --- Tokens ---------------------------------------------------------------------------------------


def _tokens(one: Excerpt, greatest: float) -> str:
    """Each token on a ground as strong as its activation."""
    spans = []
    for i, (text, value) in enumerate(zip(one.tokens or [], one.curve, strict=True)):
        share = min(1.0, value / greatest) if greatest else 0.0
        kind = ' class="at"' if one.first + i == one.position else ""
        shown = escape(text).replace(" ", "&nbsp;")
        spans.append(
            f'<span{kind} style="background:rgba(194,65,12,{0.6 * share:.2f})" '
            f'title="{value:.3g}">{shown}</span>'
        )
    return f'<p class="tokens">{"".join(spans)}</p>'
