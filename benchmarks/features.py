"""Features of recordings onto the disk, against the encoder's forward that they need.

    python benchmarks/features.py [--size tiny] [--clips 48] [--batch 8] [--rounds 5]

Random weights in the shapes of the published models; recordings of 2 to 15 s in a temporary folder.
Ours: `harvest` from those files to a new store, every layer's stream averaged over real frames, all
that belongs to it included (reading, log-mel, the weights' fingerprint, writing). Theirs: the same
batches of log-mel frames, ready in memory, through `model.encode`, and nothing kept. Ratio: theirs
over ours, the share of the bare forward's throughput that is left.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
from forward import SIZES, models
from side_by_side import compare, seconds

from hooked_asr.audio import SAMPLE_RATE
from hooked_asr.features import harvest
from hooked_asr.names import select
from hooked_asr.weights.fingerprint import fingerprint

SITES = ["hook_embed", "encoder.*.hook_resid_post"]


def recordings(folder: Path, n: int) -> list[Path]:
    """Noise with a melody, as long as utterances are."""
    draw = np.random.default_rng(0)
    paths = []
    for i in range(n):
        moments = np.arange(int(draw.uniform(2, 15) * SAMPLE_RATE)) / SAMPLE_RATE
        sound = 0.1 * draw.normal(size=len(moments)) + 0.3 * np.sin(2 * np.pi * 200 * moments)
        paths.append(folder / f"{i:04d}.wav")
        soundfile.write(paths[-1], sound, SAMPLE_RATE)
    return paths


def cpu_seconds(run: Callable[[], object]) -> float:
    """Of all threads: what others do on the machine counts for little."""
    start = time.process_time()
    run()
    return time.process_time() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model, _ = models(args.size)
    stores = count()
    with TemporaryDirectory() as folder:
        paths = recordings(Path(folder), args.clips)
        batches = model.to_mel(paths).split(args.batch)

        def ours() -> None:
            out = Path(folder) / f"store {next(stores)}"
            harvest(model, paths, SITES, out=out, batch_size=args.batch, progress=False)

        def bare() -> None:
            for mel in batches:
                model.encode(mel)

        mine, theirs, ratio = compare(bare, ours, args.rounds)
        cpu = [cpu_seconds(run) for run in (bare, ours)]
        reading = seconds(lambda: [model.to_mel(path) for path in paths])
        hashing = statistics.median(seconds(lambda: fingerprint(model)) for _ in range(3))
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, float32, torch "
        f"{torch.__version__}; {args.size}, {args.clips} clips, batches of {args.batch}, "
        f"{len(select(SITES, model.hook_table))} sites"
    )
    print(
        f"bare encoder {mine:.2f} s   harvest {theirs:.2f} s   throughput left {100 * ratio:.1f} %"
    )
    print(
        f"CPU seconds, all threads: bare {cpu[0]:.2f}, harvest {cpu[1]:.2f}: "
        f"{100 * cpu[0] / cpu[1]:.1f} %"
    )
    print(f"by themselves: reading and log-mel {reading:.2f} s, fingerprint {hashing:.2f} s")


if __name__ == "__main__":
    main()
