"""Peak memory of loading a checkpoint, against its weights' size and Hugging Face's loading.

    python benchmarks/loading.py [--size small] [--dtype float16] [--as-dtype float32] [--sharded]
    python benchmarks/loading.py --family qwen2-audio [--as-dtype float32]

Writes a checkpoint with random weights to a temporary folder, and loads it in fresh processes. What
counts is the process's peak resident memory above what it held with everything imported; mapped
pages of the file count too. After loading, every weight is read once, so nothing is left unmapped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CLASSES = {
    "whisper": ("HookedWhisper", "WhisperForConditionalGeneration"),
    "qwen2-audio": ("HookedQwen2Audio", "Qwen2AudioForConditionalGeneration"),
}
PROBE = """
import json, re, sys, torch, safetensors.torch
from {library} import {kind} as Loader
def memory(what):
    text = open("/proc/self/status").read()
    return 1024 * int(re.search(what + r":\\s+(\\d+)", text)[1])
torch.zeros(1)
before = memory("VmRSS")
model = Loader.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
peak_loading = memory("VmHWM") - before
checksum = sum(float(p.sum()) for p in model.parameters())
weights = sum(p.nbytes for p in model.parameters())
print(json.dumps(dict(loading=peak_loading, used=memory("VmHWM") - before, weights=weights)))
"""


def write_checkpoint(folder: str, family: str, size: str, dtype: str, sharded: bool) -> None:
    import qwen2_audio
    import torch
    from forward import models

    if family == "qwen2-audio":
        qwen2_audio.write_checkpoint(folder, size, getattr(torch, dtype))
    else:
        _, model = models(size)
        shard = "200MB" if sharded else "100GB"
        model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="whisper", choices=CLASSES)
    parser.add_argument("--size", help="tiny, base, small (whisper); medium, large (qwen2-audio).")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--as-dtype", default=None, help="Load as another type than is stored.")
    parser.add_argument("--sharded", action="store_true", help="As qwen2-audio always is.")
    args = parser.parse_args()
    usual = ("small", "float32") if args.family == "whisper" else ("large", "bfloat16")
    size, dtype = args.size or usual[0], args.dtype or usual[1]
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, args.family, size, dtype, args.sharded)
        files = [file.stat().st_size for file in Path(folder).glob("*.safetensors")]
        print(
            f"{args.family}, {size}, {dtype}: {sum(files) / 2**20:.0f} MiB on disk "
            f"in {len(files)} files"
        )
        for library, kind in zip(("hooked_asr", "transformers"), CLASSES[args.family], strict=True):
            probe = PROBE.format(library=library, kind=kind)
            command = [sys.executable, "-c", probe, folder, args.as_dtype or dtype]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peak = json.loads(out.splitlines()[-1])
            print(
                f"{library:14} peak while loading {peak['loading'] / peak['weights']:.2f}x, "
                f"with every weight read {peak['used'] / peak['weights']:.2f}x "
                f"the weights in memory ({peak['weights'] / 2**20:.0f} MiB)"
            )


if __name__ == "__main__":
    main()
