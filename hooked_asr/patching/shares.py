"""How sure a share of clips is."""

from __future__ import annotations

import math

_SDS = 1.959963984540054  # of a normal distribution, within which 95 % of it lies


def share_interval(count: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share of independent clips, NaN for a share of none.

    Unlike resampling, it tells how little is known where all clips, or none, are counted.

    >>> tuple(round(end, 3) for end in share_interval(0, 40))
    (0.0, 0.088)

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    if not of:
        return math.nan, math.nan
    share, z2 = count / of, _SDS**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    reach = _SDS * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2)) / (1 + z2 / of)
    low = 0.0 if count == 0 else middle - reach
    return low, 1.0 if count == of else middle + reach
