"""Several charts as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt


def side_by_side(charts: Sequence[Any], *, title: str, subtitle: str = "") -> alt.HConcatChart:
    """Charts in a row under one title; colours that mean the same share one legend.

    >>> from hooked_asr.viz.lines import lines
    >>> chart = lines({"": {"loss": [(1, 2.0)]}}, x="step", y="nats")
    >>> len(side_by_side([chart, chart], title="twice").hconcat)
    2
    """
    heading = alt.TitleParams(title, subtitle=subtitle, anchor="start")
    return alt.hconcat(*charts).properties(title=heading)
