"""Peak memory of loading a checkpoint, against its weights' size and Hugging Face's loading.

    python benchmarks/loading.py [--size small] [--dtype float16] [--as-dtype float32] [--sharded]

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

LOADERS = {
    "hooked_asr": "from hooked_asr import HookedWhisper as Loader",
    "transformers": "from transformers import WhisperForConditionalGeneration as Loader",
}
PROBE = """
import json, re, sys, torch, safetensors.torch
{imports}
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


def write_checkpoint(folder: str, size: str, dtype: str, sharded: bool) -> int:
    import torch
    from forward import models

    _, model = models(size)
    shard = "200MB" if sharded else "100GB"
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small", choices=["tiny", "base", "small"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--as-dtype", default=None, help="Load as another type than is stored.")
    parser.add_argument("--sharded", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        on_disk = write_checkpoint(folder, args.size, args.dtype, args.sharded)
        print(f"whisper-{args.size}, {args.dtype}: {on_disk / 2**20:.0f} MiB on disk")
        for name, imports in LOADERS.items():
            probe = PROBE.format(imports=imports)
            command = [sys.executable, "-c", probe, folder, args.as_dtype or args.dtype]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peak = json.loads(out.splitlines()[-1])
            print(
                f"{name:14} peak while loading {peak['loading'] / peak['weights']:.2f}x, "
                f"with every weight read {peak['used'] / peak['weights']:.2f}x "
                f"the weights in memory ({peak['weights'] / 2**20:.0f} MiB)"
            )


if __name__ == "__main__":
    main()
