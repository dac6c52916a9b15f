"""Decoding with a monitor that reads along, against the same decoding without.

    python benchmarks/monitors.py [--rounds 31] [--tokens 100] [--model whisper-nano]

whisper-nano, and random weights in whisper-tiny's shapes; one clip, and eight at once. The end
token is forbidden, so that both sides take the same steps; log-mel frames are ready in memory.
Given are with over without, in CPU seconds of all threads: the median ratio of rounds in turn, and
the fastest rounds of each. And from inside, which other work on the machine hardly disturbs: the
seconds in hook points that are listened to and behind the decoding, over those of all else, the
timing itself included.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from decoding import endless, nano, tiny

from hooked_asr import HookedWhisper
from hooked_asr.hooks import HookPoint
from hooked_asr.monitors import Monitor
from hooked_asr.probes import LinearProbe, ProbeOrigin

MODELS = {"whisper-nano": nano, "tiny's shapes": tiny}


def monitors(model: HookedWhisper) -> dict[str, Monitor]:
    """One of the decoder's last layer, one of the encoder's."""
    found = {}
    for stack, pool in (("decoder", "last"), ("encoder", "mean")):
        own = getattr(model.config, stack)
        site = f"{stack}.{own.n_layers - 1}.hook_resid_post"
        weights, bias = torch.randn(1, own.d_model), torch.zeros(1)
        origin = ProbeOrigin(pool=pool)
        found[stack] = Monitor(LinearProbe(weights, bias, ["no", "yes"], "any", site, origin))
    return found


def spent(run: Callable[[], object]) -> float:
    """Seconds of the CPU."""
    start = time.process_time()
    run()
    return time.process_time() - start


def compared(
    plain: Callable[[], object], other: Callable[[], object], rounds: int
) -> tuple[float, float]:
    """Other over plain: of the fastest rounds, and the median of all rounds' ratios."""
    times: list[tuple[float, float]] = []
    for i in range(rounds + 2):
        if i % 2:
            a, b = spent(plain), spent(other)
        else:
            b, a = spent(other), spent(plain)
        times.append((a, b))
    kept = times[2:]
    fastest = min(b for _, b in kept) / min(a for a, _ in kept)
    return fastest, statistics.median(b / a for a, b in kept)


@contextmanager
def timed(owner: type, method: str, seconds: list[float]) -> Iterator[None]:
    """Add up the seconds in a class's method for the length of a block."""
    run = getattr(owner, method)

    def timing(*args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        out = run(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return out

    setattr(owner, method, timing)
    try:
        yield
    finally:
        setattr(owner, method, run)


def inside(run: Callable[[], object], rounds: int) -> float:
    """What a monitor takes of its decoding, over what is left without it; median of rounds."""
    shares = []
    for _ in range(rounds):
        hooks: list[float] = []
        decoding: list[float] = []
        start = time.perf_counter()
        with timed(HookPoint, "_run", hooks), timed(HookedWhisper, "generate", decoding):
            run()
        whole = time.perf_counter() - start
        plain = sum(decoding) - sum(hooks)
        shares.append((whole - plain) / plain)
    return statistics.median(shares)


def measure(name: str, model: HookedWhisper, n_clips: int, n_tokens: int, rounds: int) -> None:
    mel = torch.randn(n_clips, model.config.front_end.n_mels, model.config.n_frames)
    options = {"max_new_tokens": min(n_tokens, model.config.decoder.n_ctx - 4)}
    if model.config.d_vocab < 2000:
        options |= {"language": "en"}

    def plain() -> object:
        return model.generate(mel, **options)

    seconds = statistics.median(spent(plain) for _ in range(3))
    for stack, monitor in monitors(model).items():
        assert monitor.generate(model, mel, **options).said.said == plain().said

        def watched(monitor: Monitor = monitor) -> object:
            return monitor.generate(model, mel, **options)

        fastest, median = compared(plain, watched, rounds)
        share = inside(watched, rounds)
        print(
            f"{name}, {n_clips} clips, {options['max_new_tokens']} tokens ({seconds:.2f} s): "
            f"{stack} monitor {100 * (median - 1):+.1f} % (fastest {100 * (fastest - 1):+.1f} %), "
            f"from inside {100 * share:.1f} %",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--model", choices=MODELS, help="one of them alone")
    args = parser.parse_args()
    threads, version = torch.get_num_threads(), torch.__version__
    print(f"{platform.machine()}, {threads} threads, float32, torch {version}")
    for name in [args.model] if args.model else MODELS:
        ours, theirs = MODELS[name]()
        endless(theirs, times=False)
        ours.generation_config = theirs.generation_config
        for n_clips in (1, 8):
            measure(name, ours, n_clips, args.tokens, args.rounds)


if __name__ == "__main__":
    main()
