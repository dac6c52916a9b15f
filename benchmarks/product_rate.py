"""How fast the matrix products within a piece of work are, beside one large plain one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from side_by_side import seconds
from torch.profiler import ProfilerActivity, profile

LARGE = 2048  # rows, columns and depth of the plain product
# Operators by kind, and where among their inputs the two factors are.
FACTORS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


def flops(operator: str, shapes: list[list[int]]) -> float:
    """Multiplications and additions of an operator, from the shapes of its inputs.

    >>> flops("aten::mm", [[2, 3], [3, 5]])
    60.0
    """
    if operator in FACTORS:
        left, right = shapes[FACTORS[operator] :][:2]
        return 2.0 * math.prod(left) * right[-1]
    if operator == ATTENTION:  # queries with keys, and patterns with values
        batch, heads, n_query, d_head = shapes[0]
        return 4.0 * batch * heads * n_query * shapes[1][2] * d_head
    return 0.0


def plain_rate(rounds: int = 7) -> float:
    """FLOP/s of one large float32 product, the best of several."""
    a, b = torch.randn(2, LARGE, LARGE)
    return 2.0 * LARGE**3 / min(seconds(lambda: a @ b) for _ in range(rounds))


def print_rate(title: str, work: Callable[[], object]) -> None:
    """Profile the work, and print the rate of each kind of product as a share of the plain one's.

    Times are an operator's own, without those it calls, summed over calls; a causal map counts
    whole, though half of it is masked.
    """
    work()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        whole = seconds(work)
    plain = plain_rate()
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for event in profiled.key_averages(group_by_input_shape=True):
        if event.key in (*FACTORS, ATTENTION):
            kind = "attention" if event.key == ATTENTION else "matrix products"
            own = spent[kind]
            own[0] += event.count
            own[1] += event.self_cpu_time_total / 1e6
            own[2] += event.count * flops(event.key, event.input_shapes)
    print(
        f"{title}: {whole:.2f} s (profiled); one product of {LARGE} x {LARGE} x {LARGE}: "
        f"{plain / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads"
    )
    for kind, (calls, time, work_done) in spent.items():
        print(
            f"  {kind:16} {calls:6.0f} calls {time:7.3f} s ({time / whole:4.0%} of the time) "
            f"{work_done / 1e9:8.1f} GFLOP {work_done / time / 1e9:7.1f} GFLOP/s "
            f"({work_done / time / plain:4.0%} of the plain rate)"
        )
