"""`patch --manifest` on a tiny checkpoint: what it writes; killed, and shared between processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import soundfile
from tiny_checkpoint import save_checkpoint

from hooked_asr import HookedWhisper
from hooked_asr.patching import DatasetResult, components, heads, sweep_dataset

N_PAIRS = 16
SITES = ["--sites", "decoder.cross_attn", "--sites", "decoder"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """A tone for each pair, in groups of four."""
    tones = tmp_path_factory.mktemp("tones")
    time = np.arange(8000) / 16_000
    for i in range(N_PAIRS):
        soundfile.write(tones / f"{i}.wav", 0.3 * np.sin(1000 * (i + 1) * time), 16_000)
    lines = [f"{i}.wav,clip {i},{i // 4}" for i in range(N_PAIRS)]
    (tones / "pairs.csv").write_text("\n".join(["audio,id,group", *lines]))
    return tones / "pairs.csv"


@pytest.fixture(scope="module")
def whole(folder, manifest):
    """What an uninterrupted run in one process gives."""
    sites = [heads("decoder.cross_attn"), components("decoder")]
    model = HookedWhisper.from_pretrained(folder)
    return sweep_dataset(model, manifest, sites=sites, progress=False)


def same(out, whole):
    """Whether a run's numbers are those of another, bit for bit."""
    found = DatasetResult.load(out / "sites.json")
    pd.testing.assert_frame_equal(found.by_pair(), whole.by_pair(), check_exact=True)
    pd.testing.assert_frame_equal(found.to_pandas(), whole.to_pandas(), check_exact=True)
    written = [
        json.loads(line)["key"]
        for path in out.glob("records-*.jsonl")
        for line in path.read_text().splitlines()[1:]
    ]
    return sorted(written) == sorted(pair.id for pair in whole.pairs)


def test_it_writes_numbers_tables_and_figures_and_prints_the_strongest(
    run, unchecked, folder, manifest, whole, tmp_path
):
    words = ["patch", "--manifest", manifest, "-m", folder, "--out", tmp_path, *SITES, "--top", "5"]
    done = run(*words)
    assert (done.code, done.err) == (0, "")
    assert same(tmp_path, whole)
    figures = [f"{name}.{kind}" for name in ("sites", "strongest") for kind in ("html", "png")]
    tables = ["sites.json", "sites.csv", "pairs.csv"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"records-00000.jsonl", *figures, *tables}
    assert len(pd.read_csv(tmp_path / "pairs.csv")) == len(whole.by_pair())
    table = done.lines[-5:]
    for line, (_, row) in zip(table, whole.top(5).iterrows(), strict=True):
        numbers = f"{row['change']:+.4f} {row['change_low']:+.4f} to {row['change_high']:+.4f}"
        assert " ".join(line.split()).startswith(f"{row['site']} {numbers}")
        assert line.split()[-1] == str(N_PAIRS)
    assert done.lines[0].startswith(f"{N_PAIRS} pairs; wrote {tmp_path}/sites.*")


def test_a_missing_or_broken_recording(run, unchecked, folder, manifest, tmp_path):
    said = tmp_path / "pairs.csv"
    said.write_text(f"audio\n{manifest.parent / '0.wav'}\nnone.wav\n")
    words = ["patch", "--manifest", said, "-m", folder, "--out", tmp_path / "out"]
    done = run(*words)
    assert done.code == 2
    assert "pairs.csv, line 3: there is no file" in done.err
    (tmp_path / "none.wav").write_text("no sound")
    done = run(*words)
    assert done.code == 2
    assert "error: pair 'none.wav'" in done.err
    done = run(*words, "--skip-errors")
    assert done.code == 0
    assert done.lines[0].startswith("left out: none.wav: pair 'none.wav'")
    assert done.lines[1].startswith("1 pairs;")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a recording, or --manifest"),
        (["a.wav", "--manifest", "b.csv"], "one of the two"),
        (["--manifest", "b.csv", "--text", "no"], "give the manifest a column of texts"),
        (["a.wav", "--skip-errors"], "--skip-errors is for the pairs of a --manifest"),
        (["--manifest", "b.csv"], "there is no manifest 'b.csv'"),
        (["--manifest", "pairs.csv", "--sites", "decoder@each"], "give a list of positions"),
    ],
)
def test_what_makes_no_sense_is_refused(run, folder, manifest, monkeypatch, words, said):
    monkeypatch.chdir(manifest.parent)
    done = run("patch", *words, "-m", folder, "--out", "never")
    assert done.code == 2
    assert said in done.err
    assert not (manifest.parent / "never").exists()


# --- Processes of their own -----------------------------------------------------------------------


def command(folder, manifest, out):
    words = ["patch", "--manifest", manifest, "-m", folder, "--out", out, *SITES]
    return ["-m", "hooked_asr", *map(str, words)]


def environment():
    mine = {name: value for name, value in os.environ.items() if "RANK" not in name}
    return mine | {"OMP_NUM_THREADS": "1"}


def test_a_killed_run_goes_on_to_the_same_numbers(
    run, unchecked, folder, manifest, whole, tmp_path
):
    records = tmp_path / "records-00000.jsonl"
    wait = random.Random(0)
    for n in (2, 8):
        with subprocess.Popen(
            [sys.executable, *command(folder, manifest, tmp_path)],
            env=environment(),
            stdout=subprocess.DEVNULL,
        ) as child:
            while child.poll() is None and lines(records) <= n:
                time.sleep(0.002)
            time.sleep(wait.uniform(0, 0.1))
            child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        assert n < lines(records) <= N_PAIRS
    assert run(*command(folder, manifest, tmp_path)[2:]).code == 0
    assert same(tmp_path, whole)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_torchrun_shares_the_pairs(folder, manifest, whole, tmp_path):
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", "0"),
            *command(folder, manifest, tmp_path),
        ],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr
    assert same(tmp_path, whole)
    sizes = [lines(tmp_path / f"records-0000{rank}.jsonl") for rank in (0, 1)]
    assert sizes == [1 + N_PAIRS // 2] * 2
    assert launched.stdout.count("pairs; wrote") == 1
