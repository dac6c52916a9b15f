"""What was probed, on one page that needs nothing else."""

from __future__ import annotations

import os
from collections import Counter
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_asr.files import written_aside
from hooked_asr.probes.errors import ProbeError
from hooked_asr.probes.scores import Score, score_names

if TYPE_CHECKING:
    from hooked_asr.probes.result import ProbeResult

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { border-bottom: 1px solid #ddd; padding: 0.2rem 0.7rem; text-align: right }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto }
.facts td { text-align: left }
small { color: #555; display: block; white-space: nowrap }
.wide { overflow-x: auto }
"""


def write_report(result: ProbeResult, path: str | os.PathLike[str]) -> None:
    """A page with task, data, scores, curves, and the confusions of the best site.

    Raises `ProbeError` for another suffix than .html.
    """
    if Path(path).suffix != ".html":
        raise ProbeError(f"a report is a page, .html; got {os.fspath(path)!r}")
    parts = [
        f"<h1>Linear probes: {escape(result.name)}</h1>",
        _facts(result),
        *(_scores(result, score) for score in score_names(result.task)),
        _confusion(result),
    ]
    title = f"<title>Linear probes: {escape(result.name)}</title>"
    head = f'<meta charset="utf-8">{title}<style>{_STYLE}</style>'
    body = "\n".join(parts)
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    with written_aside(path) as aside:
        aside.write_text(page, encoding="utf-8")


def _facts(result: ProbeResult) -> str:
    counts = Counter(result.labels)
    best = result.best()
    facts = {
        "task": result.task,
        "data": result.data,
        "model": result.origin.model or "not said",
        "weights": result.origin.weights[:12] or "not said",
        "pool": result.origin.pool or "not said",
        "best site": best,
    }
    if result.classes is not None:
        facts["classes"] = ", ".join(f"{one} ({counts[one]})" for one in result.classes)
    rows = "".join(f"<tr><th>{name}</th><td>{escape(one)}</td></tr>" for name, one in facts.items())
    return f'<table class="facts">{rows}</table>'


def _scores(result: ProbeResult, score: str) -> str:
    columns = {"probe": result.scores, **result.baselines}
    head = "".join(f"<th>{escape(name)}</th>" for name in ("site", *columns))
    rows = "".join(
        f"<tr><td>{escape(site)}</td>"
        + "".join(f"<td>{_told(of[site][score])}</td>" for of in columns.values())
        + "</tr>"
        for site in result.sites
    )
    table = f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
    return f"<h2>{score}</h2>{table}{_svg(result.plot(score))}"


def _confusion(result: ProbeResult) -> str:
    if result.classes is None:
        return ""
    counts = result.confusion()
    head = "".join(f"<th>{escape(str(one))}</th>" for one in ("true, told as", *counts.columns))
    rows = "".join(
        f"<tr><td>{escape(str(true))}</td>{''.join(f'<td>{n}</td>' for n in row)}</tr>"
        for true, row in zip(counts.index, counts.to_numpy().tolist(), strict=True)
    )
    table = f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
    return f"<h2>Confusions at {escape(result.best())}</h2>{table}{_svg(result.plot_confusion())}"


def _told(score: Score) -> str:
    interval = f"{score.low:.3f} to {score.high:.3f}" if score.low == score.low else ""
    return f"{score.value:.3f} <small>{interval}</small>" if interval else f"{score.value:.3f}"


def _svg(chart: Any) -> str:
    text = StringIO()
    chart.save(text, format="svg")
    return text.getvalue()
