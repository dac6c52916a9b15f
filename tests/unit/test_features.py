"""Features: against loops over Hugging Face's own activations, and resumed byte for byte."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny_checkpoint import save_checkpoint as save_whisper
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen2
from transformers import (
    Qwen2AudioForConditionalGeneration,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from hooked_asr import HookedQwen2Audio, HookedWhisper, UnknownHookError
from hooked_asr.features import FeatureError, FeatureStore, harvest
from hooked_asr.manifests import Clip, ManifestError
from hooked_asr.nano import bundle

RATE = 16_000
SAMPLES = [16_000, 9_999, 4_801, 12_345, 1_300]  # a window of the tiny models is one second
TEXTS = ["ask it", "no", "me her", "it", "her no ask"]
LENIENT = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five clips and their manifest."""
    place = tmp_path_factory.mktemp("clips")
    draw = np.random.default_rng(0)
    lines = []
    for i, (n, text) in enumerate(zip(SAMPLES, TEXTS, strict=True)):
        sound = draw.normal(0, 0.1, n) * np.sin(np.arange(n) / (20 + 9 * i))
        soundfile.write(place / f"{i}.wav", sound, RATE)
        labels = {"sex": "mf"[i % 2], "age": 20 + i, "position": "here"}
        lines.append({"audio": f"{i}.wav", "text": text, "group": f"g{i // 2}", **labels})
    (place / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return place


@pytest.fixture(scope="module")
def clips(folder):
    return folder / "clips.jsonl"


class Family:
    """A model, the reference's, and by hand what that has at a clip's real positions."""

    def __init__(self, path, ours, theirs, sites):
        self.model = ours.from_pretrained(path, dtype=torch.float32)
        self.hf = theirs.from_pretrained(path, attn_implementation="sdpa").eval()
        self.sites = sites

    def activations(self, path, text=None):
        """`[pos d]` of each site at the positions that count, and the tokens of text."""
        seen = {}

        def keeper(name):
            def keep(module, args, out):
                seen[name] = out[0] if isinstance(out, tuple) else out

            return keep

        handles = [part.register_forward_hook(keeper(name)) for name, part in self.parts().items()]
        with torch.no_grad():
            places, tokens, lengths = self.run(path, text, seen)
        for handle in handles:
            handle.remove()
        kept = {}
        for name in self.sites:
            own = seen[name].reshape(seen[name].shape[-2:])
            kept[name] = own[places] if name in self.in_decoder else own[: lengths[name]]
        return kept, tokens

    @property
    def in_decoder(self):
        return [name for name in self.sites if name.startswith("decoder")]


class Whisper(Family):
    def parts(self):
        encoder, decoder = self.hf.model.encoder, self.hf.model.decoder
        return dict(zip(self.sites, [encoder.layers[0], encoder, decoder.layers[1]], strict=True))

    def run(self, path, text, seen):
        sound, _ = soundfile.read(path, dtype="float32")
        extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
        mel = extractor(sound, sampling_rate=RATE, return_tensors="pt").input_features
        prompt = [41, 49]  # start, no time stamps
        if text is None:
            said = self.hf.generate(mel)[0].tolist()
        else:
            said = self.model.tokenizer.encode(f" {text}", add_special_tokens=False)
        said = [token for token in said if token < 40]
        out = self.hf(mel, decoder_input_ids=torch.tensor([[*prompt, *said]]))
        seen["hook_encoder_out"] = out.encoder_last_hidden_state
        n = math.ceil(len(sound) / 320)
        return list(range(2, 2 + len(said))), said, dict.fromkeys(self.sites, n)


class Qwen2(Family):
    def parts(self):
        tower, decoder = self.hf.model.audio_tower, self.hf.model.language_model
        modules = [tower.layers[0], self.hf.model.multi_modal_projector, decoder.layers[1]]
        return dict(zip(self.sites, modules, strict=True))

    def run(self, path, text, seen):
        names = {"mel": "input_features", "mel_mask": "feature_attention_mask"}
        names |= {"tokens": "input_ids", "attention_mask": "attention_mask"}

        def given(text):
            made = self.model.to_inputs(path, "Transcribe the speech.", text=text)
            return {names[name]: value for name, value in made.items()}

        asked = given(None)
        n_prompt = asked["input_ids"].shape[1]
        if text is None:
            whole = self.hf.generate(**asked, do_sample=False)[0].tolist()
            ends = self.hf.generation_config.eos_token_id
            said = [token for token in whole[n_prompt:] if token not in ends]
            forced = dict(asked)
            for name, new in (("input_ids", said), ("attention_mask", [1] * len(said))):
                forced[name] = torch.cat([asked[name], torch.tensor([new])], 1)
        else:
            forced = given(text)
            said = forced["input_ids"][0, n_prompt:].tolist()
        self.hf(**forced)
        n_text = min(self.hf.generation_config.eos_token_id)
        places = [n_prompt + i for i, token in enumerate(said) if token < n_text]
        n = math.ceil(soundfile.info(path).frames / 320)
        lengths = dict(zip(self.sites, [n, n // 2, 0], strict=True))
        return places, [token for token in said if token < n_text], lengths


@pytest.fixture(scope="module", params=["whisper", "qwen2"])
def family(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "whisper":
        sites = ["encoder.0.hook_resid_post", "hook_encoder_out", "decoder.1.hook_resid_post"]
        return Whisper(save_whisper(path), HookedWhisper, WhisperForConditionalGeneration, sites)
    sites = ["encoder.0.hook_resid_post", "projector.hook_out", "decoder.1.hook_resid_post"]
    return Qwen2(save_qwen2(path), HookedQwen2Audio, Qwen2AudioForConditionalGeneration, sites)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return HookedWhisper.from_pretrained(save_whisper(tmp_path_factory.mktemp("whisper")))


def kept(model, clips, sites, out, **options):
    return harvest(model, clips, sites, out=out, **{"progress": False, "batch_size": 2} | options)


# --- The numbers ----------------------------------------------------------------------------------

BY_HAND = {
    "mean": lambda x: x.mean(0, True),
    "max": lambda x: x.max(0, True).values,
    "last": lambda x: x[-1:],
}


@pytest.mark.parametrize("texts", ["heard", "text"])
def test_pooled_rows_are_those_of_a_loop_over_the_reference(family, folder, clips, tmp_path, texts):
    known = [
        family.activations(folder / f"{i}.wav", text if texts == "text" else None)
        for i, text in enumerate(TEXTS)
    ]
    for pool, by_hand in BY_HAND.items():
        store = kept(family.model, clips, family.sites, tmp_path / pool, pool=pool, texts=texts)
        assert sorted(store.sites) == sorted(family.sites)
        for site in family.sites:
            expected = torch.cat([by_hand(own[site]) for own, _ in known])
            torch.testing.assert_close(torch.from_numpy(store[site][:]), expected, **LENIENT)
    for pool, sites in (("frames", family.sites[:1]), ("tokens", family.sites[2:])):
        store = kept(family.model, clips, sites, tmp_path / pool, pool=pool, texts=texts)
        expected = torch.cat([own[sites[0]] for own, _ in known])
        torch.testing.assert_close(torch.from_numpy(store[sites[0]][:]), expected, **LENIENT)
    table = store.table()
    assert table.token_id.tolist() == [token for _, tokens in known for token in tokens]
    assert (table.token == [family.model.to_string([i]) for i in table.token_id]).all()


def test_frames_of_every_clock_and_heads_side_by_side(family, clips, tmp_path):
    sites = {"hook_mel": 160, "encoder.1.attn.hook_z": 320}
    if family.model.config.prefix:
        sites["hook_encoder_pool"] = 640
    for i, (site, samples) in enumerate(sites.items()):
        store = kept(family.model, clips, site, tmp_path / str(i), pool="frames")
        # A pooled position takes both of its halves.
        rounded = math.floor if samples == 640 else math.ceil
        counts = [
            rounded(math.ceil(n / min(samples, 320)) / max(1, samples // 320)) for n in SAMPLES
        ]
        table = store.table()
        assert [len(own) for _, own in table.groupby("clip")] == counts
        assert table.position.tolist() == [p for n in counts for p in range(n)]
        np.testing.assert_allclose(table.start, table.position * samples / RATE)
    assert store[site].shape == (sum(counts), 32)
    mel = family.model.to_mel(clips.parent / "1.wav")[0].T
    first = FeatureStore.open(tmp_path / "0")
    np.testing.assert_array_equal(first["mel"][100:163], mel[:63])
    z = family.model.run_with_cache(
        family.model.to_mel(clips.parent / "0.wav"), stop_at="encoder.2", names_filter="*.hook_z"
    )[1]["z", 1]
    second = FeatureStore.open(tmp_path / "1")
    torch.testing.assert_close(torch.from_numpy(second["z"][:50]), z[0].flatten(1), **LENIENT)


def test_a_function_pools(whisper, clips, tmp_path):
    def spread(own, hook):
        assert hook.name in ("hook_embed", "decoder.0.cross_attn.hook_k")
        return own.std(0)[:5]

    sites = ["hook_embed", "decoder.0.cross_attn.hook_k"]
    store = kept(whisper, clips, sites, tmp_path / "a", pool=spread, texts="text")
    frames = kept(whisper, clips, "hook_embed", tmp_path / "b", pool="frames")
    own = frames["hook_embed"][50 : 50 + 32]
    np.testing.assert_allclose(store["hook_embed"][1], own.std(0, ddof=1)[:5], rtol=1e-4)
    with pytest.raises(
        FeatureError, match=r"gives one vector \[d\] for 'hook_embed'.*got \[50, 32\]"
    ):
        kept(whisper, clips, "hook_embed", tmp_path / "c", pool=lambda own, hook: own)


def test_only_what_is_needed_runs(whisper, clips, tmp_path):
    def stop(module, args):
        raise AssertionError("it ran")

    for part in (whisper.encoder[1], whisper.encoder_final_ln, whisper.decoder[0]):
        handle = part.register_forward_pre_hook(stop)
        kept(whisper, clips, "encoder.0.*", tmp_path / str(id(part)))
        handle.remove()
    with whisper.decoder[1].register_forward_pre_hook(stop) as _, pytest.raises(AssertionError):
        kept(whisper, clips, "decoder.0.hook_resid_post", tmp_path / "heard")
    with whisper.decoder[1].register_forward_pre_hook(stop) as _:
        kept(whisper, clips, "decoder.0.hook_resid_post", tmp_path / "text", texts="text")


def test_whisper_tells_languages_and_words(tmp_path):
    names = ["english", "german", "spanish"]
    bundled = [bundle.clip(name) for name in names]
    rows = [{"audio": str(clip.path), "id": clip.name} for clip in bundled]
    model = HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)
    store = kept(model, rows, "decoder.1.hook_resid_post", tmp_path, pool="tokens", batch_size=3)
    for clip, known in zip(bundled, store.clips, strict=True):
        assert (known.text, known.language) == (model.transcribe(clip.path), clip.language)
        own = store.table().query("clip == @clip.name")
        assert "".join(own.token).strip() == known.text
        assert own.position.tolist() == list(range(4, 4 + len(own)))


# --- What lies on the disk ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames(whisper, clips, tmp_path_factory):
    """A store of several shards."""
    out = tmp_path_factory.mktemp("frames")
    limit = 2 * 50 * 32 * 4 * 2  # two clips, two sites
    sites = "encoder.*.hook_resid_post"
    return kept(whisper, clips, sites, out / "store", pool="frames", memory=limit), limit


def test_rows_are_read_as_from_one_array(frames):
    store, limit = frames
    files = sorted(store.folder.glob("*.safetensors"))
    assert len(files) == 3
    assert all(sum(t.nbytes for t in load_file(file).values()) <= limit for file in files)
    for site in store:
        whole = torch.cat([load_file(file)[site] for file in files]).numpy()
        rows = store[site]
        assert len(store) == len(rows) == len(whole) == sum(math.ceil(n / 320) for n in SAMPLES)
        draw = np.random.default_rng(0).integers(-len(whole), len(whole), 200)
        mask = whole[:, 0] > 0
        for which in (slice(None), slice(40, 90), slice(-3, None), slice(90, 3, -7), slice(9, 2)):
            np.testing.assert_array_equal(rows[which], whole[which])
        for which in (7, -1, draw, draw.tolist(), mask, []):
            expected = whole[:0] if isinstance(which, list) and not which else whole[which]
            np.testing.assert_array_equal(rows[which], expected)
        np.testing.assert_array_equal(np.asarray(rows), whole)
    assert isinstance(store._map(0, site), np.memmap)
    assert list(store.features()) == store.sites
    with pytest.raises(IndexError, match=f"rows 0 to {len(whole) - 1}; asked for {len(whole)}"):
        rows[len(whole)]
    with pytest.raises(FeatureError, match=r"rows are asked for by number"):
        rows[mask[:-1]]
    with pytest.raises(UnknownHookError, match=r"resid_mid"):
        store["resid_mid", 0]


def test_batches_take_every_row_once(frames):
    store, _ = frames
    rows = store["resid_post", 1]
    for seed in (None, 7):
        batches = list(store.batches(("resid_post", 1), 40, shuffle=seed))
        numbers = np.concatenate([own for own, _ in batches])
        assert sorted(numbers) == list(range(len(store)))
        assert (numbers.tolist() == sorted(numbers)) is (seed is None)
        np.testing.assert_array_equal(np.concatenate([x for _, x in batches]), rows[numbers])
    again = next(iter(store.batches(("resid_post", 1), 40, shuffle=7)))
    np.testing.assert_array_equal(again[0], batches[0][0])


def test_the_table_says_what_each_row_is(frames):
    store, _ = frames
    table = store.table()
    row = table.iloc[50 + 31]
    assert row[["clip", "position", "start", "end"]].tolist() == ["1.wav", 31, 0.62, 0.64]
    own = row[["text", "group", "sex", "age", "position (label)"]].tolist()
    assert own == ["no", "g0", "f", 21, "here"]
    assert store.clips[3].labels["age"] == 23


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(whisper, frames, clips, tmp_path, dtype):
    sites = "encoder.*.hook_resid_post"
    store = kept(whisper, clips, sites, tmp_path, pool="frames", dtype=dtype)
    exact = torch.from_numpy(frames[0]["resid_post", 0][:]).to(dtype)
    own = store["resid_post", 0]
    assert own.dtype == {torch.float16: "f2", torch.bfloat16: "f4", torch.float64: "f8"}[dtype]
    np.testing.assert_array_equal(own[60:70], exact[60:70].to(torch.from_numpy(own[:1]).dtype))
    np.testing.assert_array_equal(own[[99, 0]], exact[[99, 0]].to(torch.from_numpy(own[:1]).dtype))


# --- Killed, shared, and other work ---------------------------------------------------------------

# One process that forks: each child harvests, and is killed at its n-th write, or at any moment.
DRIVER = """
import os, random, resource, signal, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import torch
torch.set_num_threads(1)
from hooked_asr import HookedWhisper
from hooked_asr.features import harvest

place = Path(sys.argv[2])
model = HookedWhisper.from_pretrained(place / "model")
paths = [str(path) for path in sorted((place / "clips").glob("*.wav"))]
SITES = ["encoder.*.hook_resid_post", "decoder.1.hook_resid_post"]

def work(out, clips=paths, sites=SITES, **options):
    said = {"batch_size": 2, "memory": 2 * 32 * 4 * 3, "progress": False} | options
    harvest(model, clips, sites, out=out, **said)

def child(run):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    return pid

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}

def killed_at(n, out):
    left = [n]
    def counted(real):
        def call(*args):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*args)
        return call
    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    work(out)

start = time.perf_counter()
assert end(child(lambda: work(place / "whole"))) == 0
took = time.perf_counter() - start
whole = files(place / "whole")
assert len(whole) == 2 + len(paths) // 2, whole.keys()

n = 0
while True:
    out = place / f"at {n}"
    if end(child(lambda: killed_at(n, out))) == 0:
        break
    assert end(child(lambda: work(out))) == 0
    assert files(out) == whole, f"killed at write {n}"
    n += 1
assert n == 3 * len(whole), n

wait, kills, i = random.Random(0), 0, 0
while kills < 5:
    i += 1
    assert i < 20, kills
    out = place / f"random {i}"
    while True:
        pid = child(lambda: work(out))
        time.sleep(wait.uniform(0.1, 0.7) * took)
        os.kill(pid, signal.SIGKILL)
        if end(pid) == 0:
            break
        kills += 1
        if (out / "index.json").exists():
            break
    assert end(child(lambda: work(out))) == 0
    assert files(out) == whole, f"killed at random, {i}"

def rank(i, out):
    os.environ.update(RANK=str(i), WORLD_SIZE="2")
    work(out)

out = place / "shared"
first = child(lambda: rank(0, out))
second = child(lambda: rank(1, out))
time.sleep(0.3 * took)
os.kill(second, signal.SIGKILL)
end(second)
second = child(lambda: rank(1, out))
assert (end(first), end(second)) == (0, 0)
assert files(out) == whole

def grown(memory):
    sites = [name for name, spec in model.hook_table.items()
             if name.startswith("encoder.") and not spec.lazy]
    clips = [{"audio": path, "id": f"{i} {path}"} for i in range(30) for path in paths]
    many = {"pool": "frames", "batch_size": 30, "memory": memory}
    work(place / f"few {memory}", clips[:30], sites, **many)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = place / f"many {memory}"
    work(out, clips, sites, **many)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) * 1024, sum(path.stat().st_size for path in out.iterdir()), flush=True)

for memory in ("6 MB", "1 GB"):
    assert end(child(lambda: grown(memory))) == 0
"""


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    place = tmp_path_factory.mktemp("driven")
    save_whisper(place / "model")
    (place / "clips").mkdir()
    draw = np.random.default_rng(1)
    for i in range(8):
        sound = draw.normal(0, 0.1, int(draw.integers(2000, RATE)))
        soundfile.write(place / "clips" / f"{i:02d}.wav", sound, RATE)
    mine = {name: value for name, value in os.environ.items() if "RANK" not in name}
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(Path(__file__).parents[2]), str(place)],
        env=mine | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_kills_and_sharing_leave_the_bytes_of_an_uninterrupted_harvest(driven):
    assert driven.returncode == 0, driven.stderr[-3000:]


def test_memory_holds_one_shard_and_not_the_corpus(driven):
    (bounded, total), (free, same) = (map(int, line.split()) for line in driven.stdout.splitlines())
    assert total == pytest.approx(same, rel=0.01)
    print(bounded, total, free)
    assert bounded < 0.25 * total < 0.7 * total < free


def test_other_work_is_refused_by_what_differs(whisper, clips, folder, tmp_path):
    site = "encoder.0.hook_resid_post"
    first = kept(whisper, clips, site, tmp_path)
    assert kept(whisper, clips, site, tmp_path).index == first.index
    for said, changes in {
        r"sites was \[.*\], now \[": {"sites": "encoder.1.hook_resid_post"},
        'pool was "mean", now "max"': {"pool": "max"},
        "clips .hash. was": {"clips": [folder / "0.wav"]},
        "batch_size was 2, now 3": {"batch_size": 3},
        'dtype was null, now "float16"': {"dtype": torch.float16},
    }.items():
        given = {"clips": clips, "sites": site} | changes
        with pytest.raises(FeatureError, match=rf"features of other work: .*{said}"):
            kept(whisper, given.pop("clips"), given.pop("sites"), tmp_path, **given)
    (tmp_path / "begun.json").unlink()  # an index tells it too
    other = HookedWhisper(whisper.config)
    other.feature_extractor = whisper.feature_extractor
    with pytest.raises(FeatureError, match=r"other work: weights .hash. was"):
        kept(other, clips, site, tmp_path)


def test_stores_that_are_not_whole_are_refused(whisper, clips, tmp_path):
    with pytest.raises(FeatureError, match=r"there is no feature store in"):
        FeatureStore.open(tmp_path / "none")
    store = kept(whisper, clips, "hook_embed", tmp_path, pool="frames")
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(FeatureError, match=r"missing or damaged .it is cut short."):
        FeatureStore.open(tmp_path)["hook_embed"][0]
    (tmp_path / "index.json").unlink()
    with pytest.raises(FeatureError, match=r"not all there: run the same harvest again"):
        FeatureStore.open(tmp_path)
    shard.unlink()
    again = kept(whisper, clips, "hook_embed", tmp_path, pool="frames")
    np.testing.assert_array_equal(again["hook_embed"][:], store["hook_embed"][:])


# --- Clips that cannot be used --------------------------------------------------------------------


def test_what_cannot_be_used_is_named_or_noted(whisper, folder, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.ones(RATE + 1) / 2, RATE)
    soundfile.write(tmp_path / "empty.wav", np.ones(0), RATE)
    (tmp_path / "noise.wav").write_bytes(b"no sound")
    bad = {"long": "lasts 1.00 s", "empty": "0 samples", "noise": "not a sound file"}
    for name, said in bad.items():
        rows = [folder / "0.wav", tmp_path / f"{name}.wav"]
        with pytest.raises(FeatureError, match=rf"clip '.*{name}.wav' .*{said}"):
            kept(whisper, rows, "hook_embed", tmp_path / name)
    with pytest.raises(ManifestError, match=r"row 0: there is no file"):
        kept(whisper, ["nowhere.wav"], "hook_embed", tmp_path / "none")
    rows = [folder / "0.wav", *(tmp_path / f"{name}.wav" for name in bad), folder / "1.wav"]
    out = tmp_path / "out"
    store = kept(whisper, rows, "hook_embed", out, skip_errors=True)
    assert [Path(clip.id).name for clip in store.clips] == ["0.wav", "1.wav"]
    assert [Path(name).stem for name in store.failed] == list(bad)
    assert all(said in store.failed[str(tmp_path / f"{name}.wav")] for name, said in bad.items())
    alone = kept(whisper, [rows[0], rows[-1]], "hook_embed", tmp_path / "alone", batch_size=1)
    np.testing.assert_allclose(store["hook_embed"][:], alone["hook_embed"][:], rtol=1e-5, atol=1e-6)
    with pytest.raises(FeatureError, match=r"3 clips were left out .* by an earlier harvest"):
        kept(whisper, rows, "hook_embed", out)
    with pytest.raises(FeatureError, match=r"none of 3 clips can be used; the first: .*long"):
        kept(whisper, rows[1:-1], "hook_embed", tmp_path / "all", skip_errors=True)


def test_where_nothing_is_said(family, folder, tmp_path):
    site = family.sites[2]
    texts = [TEXTS[0], ""]
    rows = [
        Clip(audio=str(folder / f"{i}.wav"), id=str(i), text=text) for i, text in enumerate(texts)
    ]
    said = {"texts": "text", "skip_errors": True}
    tokens = kept(family.model, rows, site, tmp_path / "tokens", pool="tokens", **said)
    assert set(tokens.table()["clip"]) == {"0"}
    mean = kept(family.model, rows, site, tmp_path / "mean", **said)
    assert list(mean.failed) == ["1"]
    assert "nothing is said in it" in mean.failed["1"]
    alone = kept(family.model, rows[1:], site, tmp_path / "alone", pool="tokens", **said)
    assert (len(alone), len(alone.table()), len(alone[site][:])) == (0, 0, 0)
    last = kept(family.model, rows, site, tmp_path / "last", pool="last", **said)
    asked = {} if "language" in family.model.asked_by else {"prompt": "Transcribe the speech."}
    inputs = family.model.to_inputs(folder / "1.wav", **asked)
    _, cache = family.model.run_with_cache(**inputs, names_filter=site)
    torch.testing.assert_close(torch.from_numpy(last[site][1]), cache[site][0, -1], **LENIENT)


def test_infinite_activations_are_named(whisper, clips, tmp_path):
    def burst(x, hook):
        x[0, 3] = math.inf if len(x) == 2 else 1e5

    with whisper.hooks([("hook_embed", burst)]):
        with pytest.raises(
            FeatureError, match=r"clip '0.wav' .*row 3 of 'hook_embed' is NaN or inf"
        ):
            kept(whisper, clips, "hook_embed", tmp_path / "a", pool="frames")
        store = kept(whisper, clips, "hook_embed", tmp_path / "b", pool="mean", skip_errors=True)
        assert [clip.id for clip in store.clips] == ["1.wav", "3.wav", "4.wav"]
        with pytest.raises(FeatureError, match=r"does not fit torch.float16, which ends at 65504"):
            kept(
                whisper, [clips.parent / "0.wav"], "hook_embed", tmp_path / "c", pool="max",
                dtype=torch.float16,
            )  # fmt: skip


def test_options_that_do_not_fit_are_refused(whisper, clips, folder, tmp_path):
    for said, sites, options in [
        ("pool is mean, max, last", "hook_embed", {"pool": "median"}),
        ("counts frames of sound: pool='tokens'", "hook_embed", {"pool": "tokens"}),
        ("counts tokens: pool='frames'", "decoder.0.hook_resid_pre", {"pool": "frames"}),
        ("do not have the same ones .frame, audio.", ["mel", "hook_embed"], {"pool": "frames"}),
        ("is an attention map", "decoder.0.attn.hook_pattern", {}),
        ("texts is heard or text", "decoder.0.hook_resid_pre", {"texts": "said"}),
        ("asked by language and task; got prompt", "hook_embed", {"prompt": "What?"}),
        ("at least 1 clip", "hook_embed", {"batch_size": 0}),
        ("memory is 10.0 B: give more", "hook_embed", {"memory": 10}),
        ("features are floats", "hook_embed", {"dtype": torch.int8}),
        ("no sites: name at least one", [], {}),
    ]:
        with pytest.raises(FeatureError, match=said):
            kept(whisper, clips, sites, tmp_path / "out", **options)
    with pytest.raises(UnknownHookError, match=r"did you mean"):
        kept(whisper, clips, "hook_encoder_ou", tmp_path / "out")
    rows = [{"audio": str(folder / "0.wav"), "id": "0.wav"}]
    with pytest.raises(FeatureError, match=r"'0.wav' has no text to force"):
        kept(whisper, rows, "decoder.0.hook_resid_pre", tmp_path / "out", texts="text")
    rows = [{"audio": str(folder / "0.wav"), "id": "a", "sex": {1, 2}}]
    with pytest.raises(FeatureError, match=r"label 'sex' of clip 'a' is .*JSON does not hold"):
        kept(whisper, rows, "hook_embed", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rows = [{"audio": str(folder / "0.wav"), "id": "a", "text": "n" * 34}]
    with pytest.raises(FeatureError, match=r"clip 'a' .*have 36 tokens, and the decoder 24"):
        kept(whisper, rows, "decoder.0.hook_resid_pre", tmp_path / "long", texts="text")
