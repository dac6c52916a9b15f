"""Training sparse autoencoders: what they find, what they are trained on, and how they go on."""

import os
import signal
import time
import tracemalloc
import warnings
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import hooked
from tiny_checkpoint import save_checkpoint

from hooked_asr.features import FeatureStore, harvest
from hooked_asr.features.rows import Rows
from hooked_asr.manifests import read_clips
from hooked_asr.records import RecordsError
from hooked_asr.sae import SAEError, SparseAutoencoder
from hooked_asr.sae.saelens import saelens
from hooked_asr.sae.training import steps as steps_module
from hooked_asr.sae.training.architectures import ARCHITECTURES
from hooked_asr.sae.training.blocks import Harvesting, LiveBlocks, StoreBlocks
from hooked_asr.sae.training.stream import Place, Stream
from hooked_asr.sae.training.train import train_sae

SITE = "encoder.1.hook_resid_post"
WEIGHTS = "sae_weights.safetensors"
WITH_K = ("batchtopk", "topk", "matryoshka", "jumprelu")
SMALL = {"frames": 64 * 12, "batch_size": 64, "width": "2x", "k": 4, "progress": False}


@pytest.fixture(scope="module")
def model():
    return hooked()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Eight recordings of noise, 0.3 to 1 s."""
    folder, draw, paths = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    for i in range(8):
        paths.append(folder / f"{i}.wav")
        soundfile.write(paths[-1], 0.1 * draw.normal(size=4800 + 1600 * i), 16000)
    return paths


@pytest.fixture(scope="module")
def store(model, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("store")
    return harvest(model, clips, SITE, pool="frames", out=out, progress=False)


class Made(FeatureStore):
    """A store of given rows, in memory."""

    def __init__(self, rows):
        sites = {"made": {"width": rows.shape[1], "dtype": "F32", "clock": "audio"}}
        asked = {"pool": "frames", "weights (hash)": ""}
        shards = [{"file": "", "rows": len(rows)}]
        index = {"rows": len(rows), "model": "made", "asked": asked, "sites": sites}
        super().__init__(Path(), index | {"shards": shards, "failed": {}, "clips": []})
        self.rows = rows

    def _map(self, shard, site):
        return self.rows


@pytest.fixture(scope="module")
def sparse():
    """Rows that 3 of 48 known directions make up, in 32 dimensions; and the directions."""
    draw = np.random.default_rng(0)
    true = draw.normal(size=(48, 32))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    active = draw.random((20_000, 48)).argsort(1) < 3
    rows = (active * draw.uniform(0.5, 1.5, active.shape)) @ true + draw.normal(size=32)
    return Made(rows.astype(np.float32)), torch.from_numpy(true).float()


def weights(folder):
    return (Path(folder) / WEIGHTS).read_bytes()


def drawn(blocks, n, place=None, memory=2**20, batch_size=16):
    stream = Stream(blocks, batch_size=batch_size, memory=memory, seed=3)
    return [one.batch for one in stream.batches(place or Place(), n)]


def blocks_of(model, clips, folder, buffer=2**30, passes=1):
    harvesting = Harvesting(model, model.hook_table[SITE], None)
    return LiveBlocks(harvesting, read_clips(clips), folder, buffer, passes, seed=0)


# --- What is found --------------------------------------------------------------------------------


def test_the_dictionary_that_made_the_rows_is_found(sparse, tmp_path):
    store, true = sparse
    sae = train_sae(
        store, out=tmp_path, width=64, k=3, frames=256 * 600, batch_size=256, progress=False,
        learning_rate=3e-3,
    )  # fmt: skip
    similar = true @ sae.directions.T
    assert similar.amax(1).mean() >= 0.9
    assert sae.sae.cfg.metadata["explained_variance"] > 0.9
    assert sae.sae.cfg.metadata["l0"] == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_and_loads_in_saelens(architecture, sparse, tmp_path):
    store, _ = sparse
    k = {"k": 4} if architecture in WITH_K else {}
    asked = {"width": "2x", "frames": 256 * 300, "batch_size": 256, "progress": False}
    sae = train_sae(store, out=tmp_path, architecture=architecture, **k, **asked)
    # Far beyond the mean alone, which tells nothing of the variance.
    assert sae.sae.cfg.metadata["explained_variance"] > 0.5
    theirs = saelens().SAE.load_from_disk(tmp_path)
    x = torch.from_numpy(store["made"][:50])
    torch.testing.assert_close(theirs.encode(x), sae.encode(x), rtol=0, atol=0)
    torch.testing.assert_close(sae.directions.norm(dim=1), torch.ones(64))
    if architecture in WITH_K:
        assert sae.sae.cfg.metadata["l0"] == pytest.approx(4, abs=1.5)
    assert theirs.cfg.metadata["hook_name"] == "made"


def test_the_folded_scale_leaves_reconstructions_in_the_rows_own_units(sparse, tmp_path):
    store, _ = sparse
    large = Made(store.rows * 1000 + 5000)
    asked = {"width": 48, "k": 3, "frames": 256 * 100, "batch_size": 256, "progress": False}
    told = [train_sae(s, out=tmp_path / str(i), **asked) for i, s in enumerate((store, large))]
    own, of_large = (one.sae.cfg.metadata["explained_variance"] for one in told)
    assert of_large == pytest.approx(own, abs=0.05)


# --- What it is trained on ------------------------------------------------------------------------


def test_batches_depend_neither_on_memory_nor_on_where_one_begins(store):
    blocks = StoreBlocks(store, SITE)
    rows = torch.from_numpy(store[SITE][:])
    a_turn = len(rows) // 16
    whole = drawn(blocks, a_turn + 5)
    tight = drawn(blocks, a_turn + 5, memory=4 * 16 * 32 * 4)
    assert all(map(torch.equal, whole, tight))
    later = drawn(blocks, 5, Place(1, 0))
    assert all(map(torch.equal, whole[a_turn:], later))
    assert torch.equal(whole[7], drawn(blocks, 1, Place(0, 7))[0])
    # Every row at most once in a turn, and another order in the next.
    met = torch.cdist(torch.cat(whole[:a_turn]), rows, compute_mode="donot_use_mm_for_euclid_dist")
    assert len(met.argmin(1).unique()) == a_turn * 16
    assert not torch.equal(whole[0], whole[a_turn])


def test_a_store_and_live_audio_give_the_same_batches(store, model, clips, tmp_path):
    live = drawn(blocks_of(model, clips, tmp_path), 20)
    assert all(map(torch.equal, live, drawn(StoreBlocks(store, SITE), 20)))


def test_blocks_of_a_small_buffer_hold_each_clip_once_an_epoch(store, model, clips, tmp_path):
    biggest = 51 * 32 * 4
    blocks = blocks_of(model, clips, tmp_path, buffer=4 * biggest, passes=2)
    assert not blocks.fits
    turns, got, most = blocks.turns(0, 10**6), [], 0
    while sum(map(len, got)) < 2 * len(store):
        got.append(next(turns)[:])
        most = max(most, sum(f.stat().st_size for f in tmp_path.rglob("shard*")))
    turns.close()
    assert len(got) > 4
    for first, second in zip(got[::2], got[1::2], strict=True):
        assert np.array_equal(first, second)
    epoch = np.concatenate(got[::2])
    assert np.allclose(np.sort(epoch, 0), np.sort(store[SITE][:], 0), atol=1e-4)
    # A shard's header tells its clips beside the rows.
    assert most <= blocks.buffer + 2**14
    again = blocks_of(model, clips, tmp_path, buffer=4 * biggest, passes=2).turns(3, 10**6)
    assert np.array_equal(next(again)[:], got[3])
    again.close()


def test_rows_on_their_way_stay_within_memory():
    rows = np.zeros((40_000, 64), np.float32)
    made = Rows([len(rows)], 64, "<f4", lambda shard: rows)

    class Fixed:
        def turns(self, start, n_rows):
            yield from repeat(made)

    memory = 2**20
    stream = Stream(Fixed(), batch_size=64, memory=memory, seed=0)
    next(stream.batches(Place(), 1))
    tracemalloc.start()
    for _ in stream.batches(Place(), 600):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    order = 8 * len(rows)  # the numbers of a block's rows
    assert memory / 4 < peak < 1.1 * memory + 2 * order
    with pytest.raises(SAEError, match="smaller batch_size"):
        drawn(Fixed(), 1, memory=1000)


# --- Going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu"])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    architecture, store, tmp_path, monkeypatch
):
    asked = SMALL | {"architecture": architecture}
    train_sae(store, out=tmp_path / "whole", **asked)
    advance, left = steps_module.Training._advance, [5]

    def interrupted(self, *given):
        advance(self, *given)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(steps_module.Training, "_advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_sae(store, out=tmp_path / "cut", **asked)
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint*")] == [
        "checkpoint-000000005"
    ]
    train_sae(store, out=tmp_path / "cut", **asked)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert left == [-7]  # the 12 steps of both together
    assert not list((tmp_path / "cut").glob("*checkpoint*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_killed_training_on_live_blocks_goes_on(model, clips, tmp_path):
    asked = SMALL | {"frames": 16 * 150, "batch_size": 16, "buffer": 4 * 51 * 32 * 4, "passes": 1}
    out = tmp_path / "killed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if not child:
        try:
            train_sae(model, clips, SITE, out=out, save_every=0.0, **asked)
        finally:
            os._exit(1)
    while not list(out.glob("checkpoint*")):
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (out / WEIGHTS).exists()
    train_sae(model, clips, SITE, out=out, **asked)
    train_sae(model, clips, SITE, out=tmp_path / "whole", **asked)
    assert weights(out) == weights(tmp_path / "whole")
    assert not (out / "buffer").exists()


def test_a_finished_training_is_only_read(store, tmp_path, monkeypatch):
    train_sae(store, out=tmp_path, **SMALL)
    monkeypatch.setattr(steps_module.Training, "run", None)
    again = train_sae(store, out=tmp_path, **SMALL)
    assert (again.site, again.weights, again.n_features) == (SITE, store.fingerprint, 64)


def test_it_belongs_to_the_model_that_it_was_trained_on(model, clips, tmp_path):
    train_sae(model, clips, ("resid_post", 1, "encoder"), out=tmp_path, **SMALL)
    assert SparseAutoencoder.load(tmp_path, model).site == SITE
    with pytest.raises(SAEError, match="other weights"):
        SparseAutoencoder.load(tmp_path, hooked("relu"))


def test_the_tokens_of_a_decoder_are_trained_on_too(model, clips, tmp_path):
    rows = [{"audio": clip, "text": "a"} for clip in clips[:2]]
    site = "decoder.1.hook_resid_post"
    spec = Harvesting(model, model.hook_table[site], None)
    assert spec.pool == "tokens"
    assert spec.most_bytes(read_clips(rows)[0]) == 24 * 32 * 4


# --- What is refused ------------------------------------------------------------------------------


def test_a_folder_of_another_training_is_refused(store, tmp_path):
    train_sae(store, out=tmp_path, **SMALL)
    with pytest.raises(RecordsError, match="k was 4, now 5"):
        train_sae(store, out=tmp_path, **SMALL | {"k": 5})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"architecture": "dense"}, "batchtopk, topk, matryoshka"),
        ({"architecture": "gated"}, "gated has the options sparsity; got k"),
        ({"sparsity": 1.0}, "batchtopk has the options k, aux"),
        ({"architecture": "topk", "k": 2.5}, "whole number"),
        ({"architecture": "matryoshka", "levels": [2.0]}, "shares"),
        ({"k": 65}, "of 64 features"),
        ({"width": "twice"}, "'8x'"),
        ({"frames": 10}, "at least one batch"),
        ({"passes": 0}, "at least 1 pass"),
        ({"site": None, "clips": ["a.wav"]}, "holds its rows already"),
    ],
)
def test_options_that_do_not_fit_are_refused(store, tmp_path, asked, said):
    with pytest.raises(SAEError, match=said):
        train_sae(store, out=tmp_path, **SMALL | asked)


def test_a_store_of_means_is_refused(model, clips, tmp_path):
    means = harvest(model, clips[:2], SITE, out=tmp_path / "means", progress=False)
    with pytest.raises(SAEError, match="pool='frames'"):
        train_sae(means, out=tmp_path / "sae", **SMALL)


def test_a_clip_larger_than_half_the_buffer_is_refused(model, clips, tmp_path):
    with pytest.raises(SAEError, match="give more"):
        train_sae(model, clips, SITE, out=tmp_path, buffer=4000, **SMALL)


# --- The command line -----------------------------------------------------------------------------


def test_the_command_line_trains_on_recordings_and_on_features(
    clips, store, tmp_path, run, unchecked
):
    folder = save_checkpoint(tmp_path / "model")
    small = ("--width", "2x", "--k", 4, "--frames", 640, "--batch-size", 64)
    heard = run(
        "sae", "train", clips[0].parent, "--model", folder, "--site", SITE, *small,
        "--out", tmp_path / "heard",
    )  # fmt: skip
    assert heard.code == 0, heard.err
    names, numbers = heard.lines[:2]
    assert names.split()[-2:] == ["features", "dead"]
    assert numbers.split()[:2] == [SITE, "64"]
    stored = run("sae", "train", store.folder, *small, "--out", tmp_path / "stored")
    assert stored.code == 0, stored.err
    assert (tmp_path / "stored" / "cfg.json").exists()
    for words, said in (
        ((clips[0].parent,), "which model"),
        ((store.folder, "--model", "m"), "holds features already"),
        ((store.folder, "--architecture", "dense"), "batchtopk"),
    ):
        refused = run("sae", "train", *words, *small, "--out", tmp_path / "none")
        assert refused.code == 2
        assert said in " ".join(refused.err.split())
