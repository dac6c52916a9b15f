"""A sweep over every decoder head (or encoder head), against what one would run instead.

    python benchmarks/sweeps.py [--size tiny base] [--tokens 30 100] [--rounds 5]
    python benchmarks/sweeps.py --only hooks nnsight     # against these alone
    python benchmarks/sweeps.py --encoder                # encoder heads, against the loop
    python benchmarks/sweeps.py --rate                   # how fast our matrix products are

Every head is patched from a reference run ("replace") or set to zero, one at a time; the metric is
a difference of two logits at the last position. Encoding the recordings is part of the time.

- `loop`: forward-pre-hooks on the Hugging Face model, and a whole forward for each head.
- `hooks`, `nnsight`, `pyvene`: the encoder runs once for each recording, and all heads are rows of
  one decoder batch, `--rows` at a time; the LM head reads the last position alone.
- `…+keys`: the same, with cross-attention's keys and values computed once and handed to all rows as
  a filled `EncoderDecoderCache`.

nnsight and pyvene are optional (benchmarks/requirements.txt); without them they are left out. All
ways are run in turn, in one process, after a run of each that is not timed and by which the values
are compared: a way whose values differ from ours by more than 1e-4 ends the script.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import platform
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import transformers
from forward import SIZES, models
from product_rate import print_rate
from side_by_side import seconds
from sweep_ways import WAYS, Setting, sweep
from torch import Tensor

KEYS = "+keys"
TOLERANCE = 1e-4


def ways(setting: Setting, only: list[str] | None) -> dict[str, Callable[[], Tensor]]:
    """The ways to compare with, by name: all that are installed, or those asked for."""
    if setting.encoder:
        return {"loop": partial(WAYS["loop"], setting)}
    found: dict[str, Callable[[], Tensor]] = {}
    for name, keys in itertools.product(WAYS, (False, True)):
        if name == "loop" and keys:
            continue
        label = name + KEYS * keys
        if only and label not in only:
            continue
        if name in ("nnsight", "pyvene") and importlib.util.find_spec(name) is None:
            print(f"{label} is left out: {name} is not installed (benchmarks/requirements.txt)")
            continue
        found[label] = partial(WAYS[name], replace(setting, keys=keys))
    return found


def timed(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in every round; who begins a round goes round too."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds(runs[name]))
    return times


def row(setting: Setting, title: str, only: list[str] | None, rounds: int) -> tuple[str, str]:
    """The head of a table, and its row for one setting."""
    ours, others = partial(sweep, setting), ways(setting, only)
    expected = ours()
    differences = {name: float((way() - expected).abs().max()) for name, way in others.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise SystemExit(f"{title}: {name} differs from ours by {difference:.1e}")
    times = timed({"hooked_asr": ours, **others}, rounds)
    own = times.pop("hooked_asr")
    cells = [title, str(len(expected)), f"{statistics.median(own):.2f} s"]
    for each in times.values():
        ratio = statistics.median(a / b for a, b in zip(each, own, strict=True))
        cells.append(f"{statistics.median(each):.2f} s, {ratio:.1f}×")
    cells.append(f"{max(differences.values(), default=0.0):.0e}")
    head = ["shape, tokens, operation", "heads", "hooked_asr", *others, "largest difference"]
    return (
        f"| {' | '.join(head)} |\n|{'---|' * len(head)}",
        f"| {' | '.join(cells)} |",
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for way in WAYS for name in (way, way + KEYS) if name != "loop" + KEYS]
    parser.add_argument("--size", nargs="+", default=["tiny", "base"], choices=SIZES)
    parser.add_argument("--tokens", nargs="+", type=int, default=[30, 100])
    operations = ["replace", "zero"]
    parser.add_argument("--operation", nargs="+", default=operations, choices=operations)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--rows", type=int, default=24, help="Rows of a batch, for those who batch."
    )
    parser.add_argument("--only", nargs="+", choices=names)
    parser.add_argument("--encoder", action="store_true")
    parser.add_argument("--rate", action="store_true")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = arguments()
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, float32; torch "
        f"{torch.__version__}, transformers {transformers.__version__}; medians of {args.rounds} "
        "rounds, and how many times as long as ours\n"
    )
    before = None
    for size in args.size:
        ours, theirs = models(size)
        clean, reference = torch.randn(2, 1, 80, 3000)
        for n, operation in itertools.product(args.tokens, args.operation):
            tokens = torch.randint(50_000, (1, n))
            setting = Setting(
                ours, theirs, clean, reference, tokens, operation, args.rows, args.encoder
            )
            title = f"{size}, {n}, {operation}"
            if args.rate:
                print_rate(title, partial(sweep, setting))
                continue
            head, line = row(setting, title, args.only, args.rounds)
            print(line if head == before else f"{head}\n{line}", flush=True)
            before = head


if __name__ == "__main__":
    main()
