"""A feature's page: its labels, its excerpts, and what it speaks for."""

from __future__ import annotations

from html import escape

from hooked_asr.sae.pages.excerpt import excerpt_figure
from hooked_asr.sae.pages.logits import Favoured
from hooked_asr.sae.pages.parts import number, page, score, table
from hooked_asr.sae.pages.sound import Sounds
from hooked_asr.sae.reading.feature import FeatureNote, LabelScore
from hooked_asr.sae.reading.reading import FeatureReading

_BAR, _BARS = 14, 60  # units that a bar of the histogram is wide, and the highest is tall


def feature_page(
    reading: FeatureReading,
    note: FeatureNote,
    tokens: Favoured | None,
    sounds: Sounds,
    top: int,
    audio: bool,
) -> str:
    """All of it as HTML, sound and pictures included."""
    title = f"Feature {note.number}"
    widest = max((one.span[1] - one.span[0] for one in note.excerpts if one.span), default=0.0)
    figures = [
        excerpt_figure(one, sounds, note.greatest, widest, audio) for one in note.excerpts[:top]
    ]
    body = [
        f'<nav><a href="../index.html">all features</a></nav><h1>{title}</h1>',
        f"<p>{escape(reading.site)} of {escape(reading.model)}</p>",
        f'<div class="facts">{_facts(reading, note)}{_histogram(note)}</div>',
        "<h2>Where it is most active</h2>",
        f'<div class="figures">{"".join(figures)}</div>',
        _labels(reading, note),
        "" if tokens is None else _favoured(tokens),
    ]
    return page(f"{title}: {reading.site}", "\n".join(body), "feature.js")


def _facts(reading: FeatureReading, note: FeatureNote) -> str:
    unit = "tokens" if reading.clock == "pos" else "frames"
    facts = {
        f"active in so many of {reading.n_rows} {unit}": f"{100 * note.density:.3g} %",
        "mean where it is active": number(note.mean),
        "greatest": number(note.greatest),
    }
    return (
        "<dl>"
        + "".join(f"<dt>{name}</dt><dd>{one}</dd>" for name, one in facts.items())
        + ("</dl>")
    )


def _histogram(note: FeatureNote) -> str:
    most = max([*note.histogram, 1])
    step = note.greatest / max(1, len(note.histogram))
    bars = []
    for i, n in enumerate(note.histogram):
        tall = _BARS * n / most
        said = f"{i * step:.3g} to {(i + 1) * step:.3g}: {n}"
        bars.append(
            f'<rect x="{i * _BAR}" y="{_BARS - tall:.1f}" width="{_BAR - 2}" '
            f'height="{tall:.1f}"><title>{said}</title></rect>'
        )
    width = _BAR * len(note.histogram)
    return (
        f'<div class="histogram"><svg viewBox="0 0 {width} {_BARS}" role="img" '
        f'aria-label="Histogram of its activations">{"".join(bars)}</svg>'
        f'<div class="times"><span>0</span><span>activations</span>'
        f"<span>{number(note.greatest)}</span></div></div>"
    )


def _labels(reading: FeatureReading, note: FeatureNote) -> str:
    if not note.labels:
        return ""
    controlled = reading.control is not None
    head = ["kind", "label", "F1", "bits", "F1 shuffled"]
    head += ["F1 random weights"] if controlled else []
    head += ["above", "of its activation", "of its active time", "of all time"]
    rows = [_label_row(one, controlled) for one in note.labels]
    said = (
        "F1 and mutual information on clips that neither threshold nor label was chosen on; beside "
        "them F1 with shuffled labels"
        + (", and of the best feature of the control" if controlled else "")
        + "."
    )
    return f"<h2>Labels that it goes with</h2>{table(head, rows, (0, 1))}<p class='note'>{said}</p>"


def _label_row(one: LabelScore, controlled: bool) -> list[str]:
    numbers = [score(one.f1), score(one.bits), score(one.shuffled)]
    numbers += [score(one.random)] if controlled else []
    shares = [f"{100 * share:.1f} %" for share in (one.mass, one.active, one.base)]
    return [escape(one.kind), escape(one.label), *numbers, number(one.threshold), *shares]


def _favoured(tokens: Favoured) -> str:
    rows = [
        [escape(repr(up)), number(more), escape(repr(down)), number(less)]
        for (up, more), (down, less) in zip(tokens.up, tokens.down, strict=True)
    ]
    said = "What the feature, active at 1, adds to logits, the final norm's scale taken as 1."
    head = ["speaks for", "logit", "speaks against", "logit"]
    return f"<h2>Tokens</h2>{table(head, rows, (0, 2))}<p class='note'>{said}</p>"
