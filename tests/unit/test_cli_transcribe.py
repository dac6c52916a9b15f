"""`hooked-asr transcribe`: formats, folders, times, and what each family of models takes."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from tiny_checkpoint import save_checkpoint
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen2

from hooked_asr import HookedQwen2Audio, HookedWhisper
from hooked_asr.interventions import zero
from hooked_asr.nano import bundle
from hooked_asr.speech import to_srt, to_vtt
from hooked_asr.weights.checkpoint import BUNDLED

ENGLISH, SPANISH = bundle.clip("english"), bundle.clip("spanish")
KEYS = [
    *("audio", "text", "tokens", "language", "segments", "avg_logprob", "no_speech_prob"),
    *("compression_ratio", "temperature", "words"),
]


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """whisper-nano with alignment heads, which it does not list."""
    folder = tmp_path_factory.mktemp("checkpoint") / "nano"
    shutil.copytree(BUNDLED["whisper-nano"], folder)
    rules = json.loads((folder / "generation_config.json").read_text())
    rules["alignment_heads"] = [[2, 5], [3, 5], [2, 2], [3, 4]]
    (folder / "generation_config.json").write_text(json.dumps(rules))
    return folder


@pytest.fixture(scope="module")
def loaded(nano):
    return HookedWhisper.from_pretrained(nano, dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_qwen2(tmp_path_factory.mktemp("checkpoint") / "qwen")


@pytest.fixture(scope="module")
def tone(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(12_000) / 12), 16_000)
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Two sentences in eight seconds; the model's window is six."""
    path = tmp_path_factory.mktemp("clips") / "long.wav"
    sound, rate = soundfile.read(ENGLISH.path)
    other, _ = soundfile.read(SPANISH.path)
    soundfile.write(path, np.concatenate([sound, np.zeros(4 * rate - len(sound)), other]), rate)
    return path


# --- Formats --------------------------------------------------------------------------------------


def test_json_tells_all_of_a_transcript(run, nano, loaded):
    done = run(
        "transcribe", ENGLISH.path, "-m", nano, "--format", "json", "--timestamps", "--words"
    )
    found = json.loads(done.out)
    (heard,) = loaded.generate(ENGLISH.path, timestamps=True, words=True)
    assert list(found) == KEYS
    assert found["audio"] == str(ENGLISH.path)
    assert (found["text"], found["tokens"]) == (ENGLISH.text, heard.tokens)
    assert found["avg_logprob"] == heard.avg_logprob
    (segment,) = found["segments"]
    assert segment["end"] == heard.segments[0].end
    assert [word["text"] for word in found["words"]] == [word.text for word in heard.words]
    assert segment["words"] == found["words"]


def test_json_has_the_same_keys_without_times(run, nano):
    found = json.loads(run("transcribe", ENGLISH.path, "-m", nano, "--format", "json").out)
    assert list(found) == KEYS
    assert found["words"] is None


def test_json_of_several_is_one_list_also_around_one_that_cannot_be_read(run, nano, tmp_path):
    missing = tmp_path / "missing.wav"
    paths = [ENGLISH.path, missing, SPANISH.path]
    done = run("transcribe", *paths, "-m", nano, "--format", "json")
    assert [one["text"] for one in json.loads(done.out)] == [ENGLISH.text, SPANISH.text]
    assert done.code == 2
    assert re.match(rf"error: '{missing}' does not exist", done.err)
    nothing = run("transcribe", missing, missing, "-m", nano, "--format", "json")
    assert json.loads(nothing.out) == []


@pytest.mark.parametrize(
    ("chosen", "options", "expected"),
    [
        ("srt", {}, lambda heard: to_srt(heard.segments)),
        ("vtt", {}, lambda heard: to_vtt(heard.segments)),
        ("vtt", {"words": True}, lambda heard: to_vtt(heard.segments, words=True)),
    ],
)
def test_subtitles_have_times_without_being_asked(run, nano, loaded, chosen, options, expected):
    flags = [f"--{name}" for name in options]
    done = run("transcribe", ENGLISH.path, "-m", nano, "--format", chosen, *flags)
    (heard,) = loaded.generate(ENGLISH.path, timestamps=True, **options)
    assert (done.code, done.out) == (0, expected(heard))
    assert ("<00:00:" in done.out) == bool(options)


def test_text_with_times_has_a_line_for_each_segment_and_word(run, nano):
    done = run("transcribe", ENGLISH.path, "-m", nano, "--timestamps", "--words")
    first, *others = done.lines
    assert re.fullmatch(rf"\[ *0\.00 – *2\.\d\d\] {re.escape(ENGLISH.text)}", first)
    assert [line.split()[-1] for line in others] == ENGLISH.text.split()
    starts = [float(line.split()[0]) for line in others]
    assert starts == sorted(starts)
    named = run("transcribe", ENGLISH.path, SPANISH.path, "-m", nano, "--timestamps")
    assert named.lines[0::2] == ["english.flac:", "spanish.flac:"]


def test_a_recording_longer_than_the_window(run, nano, long, tmp_path):
    done = run("transcribe", long, "-m", nano, "--format", "srt", "--out", tmp_path)
    assert done.code == 0
    written = (tmp_path / "long.srt").read_text()
    assert ENGLISH.text in written
    ends = [
        int(h) * 3600 + int(m) * 60 + int(s) for h, m, s in re.findall(r"> (..):(..):(..)", written)
    ]
    assert max(ends) >= 6


# --- Folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chosen", "suffix"), [("text", "txt"), ("json", "json"), ("vtt", "vtt")])
def test_a_folder_gets_a_file_for_each_recording(run, nano, tmp_path, chosen, suffix):
    out = tmp_path / "new" / "folder"
    paths = [ENGLISH.path, tmp_path / "missing.wav", SPANISH.path]
    done = run("transcribe", *paths, "-m", nano, "--format", chosen, "--out", out)
    assert done.code == 2
    assert {file.name for file in out.iterdir()} == {f"english.{suffix}", f"spanish.{suffix}"}
    assert SPANISH.text in (out / f"spanish.{suffix}").read_text(encoding="utf-8")
    assert done.lines == [f"wrote {out}/{name}.{suffix}" for name in ("english", "spanish")]


# --- How it is decoded ----------------------------------------------------------------------------


def test_beams_previous_text_and_temperature_reach_the_decoder(run, nano, monkeypatch):
    given = {}
    generate = HookedWhisper.generate

    def spy(self, path, **options):
        given.update(options)
        return generate(self, path, **options)

    monkeypatch.setattr(HookedWhisper, "generate", spy)
    flags = ["--previous", "We talk of clothes.", "--beams", "2"]
    assert run("transcribe", ENGLISH.path, "-m", nano, *flags).lines == [ENGLISH.text]
    assert (given["prompt"], given["num_beams"]) == ("We talk of clothes.", 2)
    flags = ["--temperature", "0", "--temperature", "0.4", "--seed", "1"]
    assert run("transcribe", ENGLISH.path, "-m", nano, *flags).code == 0
    assert (given["temperature"], given["seed"]) == ((0.0, 0.4), 1)
    # Without a threshold the second temperature would never be tried.
    assert (given["compression_ratio_threshold"], given["logprob_threshold"]) == (1.35, -1.0)


def test_a_drawn_transcript_comes_again_with_its_seed(run, folder, tone):
    flags = ["--temperature", "1", "--seed", "5"]
    first, second = (run("transcribe", tone, "-m", folder, *flags).out for _ in range(2))
    model = HookedWhisper.from_pretrained(folder)
    assert first == second == model.generate(tone, temperature=1.0, seed=5)[0].text + "\n"


def test_parts_are_switched_off_in_every_format(run, folder, tone):
    site = "decoder.1.cross_attn"
    done = run("transcribe", tone, "-m", folder, "--ablate", site, "--format", "json")
    model = HookedWhisper.from_pretrained(folder)
    heard = model.generate(tone, fwd_hooks=[zero(site)])[0]
    assert json.loads(done.out)["tokens"] == heard.tokens != model.generate(tone)[0].tokens


def test_what_a_model_says_is_no_markup(run, nano, loaded, monkeypatch):
    heard = loaded.generate(ENGLISH.path)
    object.__setattr__(heard[0], "text", "[red]so[/red] :smile: 1")
    monkeypatch.setattr(HookedWhisper, "generate", lambda *args, **options: heard)
    assert run("transcribe", ENGLISH.path, "-m", nano).out == "[red]so[/red] :smile: 1\n"


# --- Qwen2-Audio ----------------------------------------------------------------------------------


def test_a_model_asked_in_words_gives_text_and_tokens(run, qwen, tone):
    done = run("transcribe", tone, "-m", qwen, "--format", "json", "--prompt", "Say it.")
    model = HookedQwen2Audio.from_pretrained(qwen)
    (heard,) = model.generate(**model.to_inputs(tone, "Say it."))
    assert json.loads(done.out) == {"audio": str(tone), "text": heard.text, "tokens": heard.tokens}


def test_a_model_asked_in_words_can_draw_and_follow_beams(run, qwen, tone):
    model = HookedQwen2Audio.from_pretrained(qwen)
    inputs = model.to_inputs(tone, "Say it.")
    for flags, options in (
        (["--beams", "3"], {"num_beams": 3}),
        (["--temperature", "0.8", "--seed", "2"], {"temperature": 0.8, "seed": 2}),
    ):
        done = run(
            "transcribe", tone, "-m", qwen, "--format", "json", "--prompt", "Say it.", *flags
        )
        assert json.loads(done.out)["tokens"] == model.generate(**inputs, **options)[0].tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timestamps"], "leave out --timestamps; it is asked by --prompt"),
        (["--words"], "leave out --words"),
        (["--previous", "So."], "leave out --previous"),
        (["--temperature", "0", "--temperature", "1"], "leave out a second --temperature"),
        (["--format", "srt"], "tells no times, .*: give --format text or --format json"),
    ],
)
def test_what_it_has_not_is_refused(run, qwen, tone, options, message):
    done = run("transcribe", tone, "-m", qwen, *options)
    assert done.code == 2
    assert re.match(f"error: HookedQwen2Audio .*{message}", done.err)
    assert done.out == ""


# --- What goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{tone}", "{tone}", "--format", "vtt"], "the vtt of 2 recordings make no one file: give"),
        (["{tone}", "--format", "srt", "--words"], "srt has no times of words: leave out --words"),
        (["{tone}", "{tone}", "--out", "{new}"], r"two recordings would be written to .*tone\.txt"),
        (["{tone}", "--out", "{tone}"], "File exists"),
        (["{tone}", "{tone}", "--task", "shout"], "asked to shout"),
        (["{tone}", "{tone}", "--ablate", "decoder.9.mlp"], "layers are 0 to"),
        (["{tone}", "--words"], "lists no alignment heads"),
    ],
)
def test_what_is_asked_wrongly_is_answered_once(run, folder, tone, tmp_path, options, message):
    places = {"tone": tone, "new": tmp_path / "new"}
    done = run("transcribe", *(word.format(**places) for word in options), "-m", folder)
    assert done.code == 2
    (said,) = done.err.splitlines()
    assert re.match(f"error: .*{message}", said)
    assert not list(tmp_path.iterdir())
