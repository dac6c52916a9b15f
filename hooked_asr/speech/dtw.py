"""Dynamic time warping: the cheapest way through a table of costs, forward along both axes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Int8

from hooked_asr.errors import HookedASRError

_DIAGONAL, _DOWN, _RIGHT = 0, 1, 2  # where a cell was reached from: above left, above, left

WarpingPath = tuple[Int[np.ndarray, " step"], Int[np.ndarray, " step"]]


class AlignmentError(HookedASRError):
    """Attention from which no times can be told."""


def warping_path(costs: Float[np.ndarray, "row column"]) -> WarpingPath:
    """The cheapest path from the first cell to the last: the row and the column of each step.

    A step goes one row down, one column right, or both; so the path meets every row and every
    column. It is the path of transformers' `_dynamic_time_warping`, cell by cell: of any tie it
    makes a step to the right, also where the two others tie below it. Sakoe & Chiba, "Dynamic
    programming algorithm optimization for spoken word recognition" (1978), section II, with the
    symmetric steps, unweighted.

    Raises `AlignmentError` for a table that is empty, or not finite.

    >>> rows, columns = warping_path(np.array([[0.0, 0.0, 9.0], [9.0, 9.0, 0.0]]))
    >>> rows.tolist(), columns.tolist()
    ([0, 0, 1], [0, 1, 2])
    """
    if not costs.size:
        raise AlignmentError(f"costs of shape {costs.shape} have no path: there must be a cell")
    if not np.isfinite(costs).all():
        raise AlignmentError("some costs are NaN or infinite, and no path can be compared by them")
    return _walk_back(_directions(costs), costs.shape[1])


def _directions(costs: Float[np.ndarray, "row column"]) -> Int8[np.ndarray, "diagonal row"]:
    """Where the cheapest path to each cell comes from; cell (i, j) is at [i + j, i].

    The cells of an anti-diagonal depend on the two before it alone, so each is one vector.
    """
    n_rows, n_columns = costs.shape
    directions = np.empty((n_rows + n_columns - 1, n_rows), dtype=np.int8)
    # Totals by row, with a border above the first row. They are float32, rounded at each step, as
    # the reference's are: other roundings would break ties another way.
    before = np.full(n_rows + 1, np.inf, dtype=np.float32)
    last = before.copy()
    before[0] = 0  # the border's corner, which every path starts from
    for i, diagonal in enumerate(_skewed(costs)):
        corner, above, left = before[:-1], last[:-1], last[1:]
        from_corner = (corner < above) & (corner < left)
        from_above = (above < corner) & (above < left)
        directions[i] = np.where(from_corner, _DIAGONAL, np.where(from_above, _DOWN, _RIGHT))
        total = np.where(from_corner, corner, np.where(from_above, above, left))
        before, last = last, np.full_like(last, np.inf)
        last[1:] = total + diagonal
    return directions


def _skewed(costs: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "diagonal row"]:
    """The anti-diagonals of the table, infinite where they leave it."""
    n_rows, n_columns = costs.shape
    skewed = np.full((n_rows + n_columns - 1, n_rows), np.inf)
    rows, columns = np.indices(costs.shape)
    skewed[rows + columns, rows] = costs
    return skewed


def _walk_back(directions: Int8[np.ndarray, "diagonal row"], n_columns: int) -> WarpingPath:
    i, j = directions.shape[1] - 1, n_columns - 1
    cells = [(i, j)]
    while i or j:
        direction = directions[i + j, i]
        i -= direction != _RIGHT
        j -= direction != _DOWN
        cells.append((i, j))
    rows, columns = np.array(cells[::-1]).T
    return rows, columns
