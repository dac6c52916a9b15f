"""Training a sparse autoencoder from live audio, against its two halves by themselves.

    python benchmarks/sae.py [--size tiny] [--clips 48] [--passes 4] [--width 8x] [--k 32]

Random weights in the shapes of the published models; recordings of 2 to 15 s in a temporary folder,
of which the buffer holds a fourth at a time. In one run, each with all that belongs to it:

- harvest alone: `harvest` of all frames to a store. Each of its frames is trained on `--passes`
  times, and counts as often.
- trainer alone: `train_sae` on that store.
- both: `train_sae` on the recordings, one block trained on while the next is harvested.

Ratio: frames a second of both over those of the slower half. It cannot be above what the cores
allow: two halves of the same length on one core come to 0.5. The share of CPU time that the halves
take of both together tells what the stream itself costs, on a busy machine too.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from features import recordings
from forward import SIZES, models

from hooked_asr.features import harvest
from hooked_asr.manifests import read_clips
from hooked_asr.sae.training.blocks import Harvesting
from hooked_asr.sae.training.train import train_sae

BLOCKS = 4


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, the seconds it takes, and those of CPU time."""
    start, used = time.perf_counter(), time.process_time()
    made = run()
    return made, time.perf_counter() - start, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--width", default="8x")
    parser.add_argument("--k", type=float, default=32.0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a core for each half
    model, _ = models(args.size)
    site = f"encoder.{model.config.encoder.n_layers - 1}.hook_resid_post"
    options = {"width": args.width, "k": args.k, "progress": False}
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = recordings(folder, args.clips)
        train_sae(model, paths[:2], site, out=folder / "warm", frames=1024, **options)
        store, *alone = timed(
            lambda: harvest(model, paths, site, pool="frames", out=folder / "store", progress=False)
        )
        frames = args.passes * len(store)
        _, *trainer = timed(lambda: train_sae(store, out=folder / "a", frames=frames, **options))
        bound = Harvesting(model, model.hook_table[site], None)
        buffer = 2 * sum(map(bound.most_bytes, read_clips(paths))) // BLOCKS
        live = {"frames": frames, "buffer": buffer, "passes": args.passes}
        _, *both = timed(lambda: train_sae(model, paths, site, out=folder / "b", **live, **options))
    print(
        f"{platform.machine()}, 1 thread a half, float32, torch {torch.__version__}; {args.size}, "
        f"{args.clips} clips, {len(store)} frames, {args.passes} passes, {args.width}, k {args.k:g}"
    )
    for label, (wall, cpu) in (("harvest", alone), ("trainer", trainer), ("both", both)):
        print(f"{label:8} {frames / wall:8.0f} frames/s   {wall:6.1f} s   CPU {cpu:6.1f} s")
    print(
        f"both over the slower half {max(alone[0], trainer[0]) / both[0]:.2f}; CPU time of the "
        f"halves over that of both {(alone[1] + trainer[1]) / both[1]:.2f}"
    )


if __name__ == "__main__":
    main()
