"""The command line on a tiny Qwen2-Audio: what it prints, writes and refuses."""

import re
import sys

import numpy as np
import pytest
import soundfile
import torch
from rich.control import strip_control_codes
from tiny_qwen2_checkpoint import save_checkpoint

from hooked_asr import HookedQwen2Audio, hook_table
from hooked_asr.interventions import zero
from hooked_asr.patching import SweepResult, heads, sweep
from hooked_asr.patching.inputs import patching_inputs

PROMPT = "Say it."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return HookedQwen2Audio.from_pretrained(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A low tone, a shorter high one, and one longer than the model's window of a second."""
    tones = tmp_path_factory.mktemp("clips")
    for name, pitch, seconds in (("low", 200, 0.8), ("high", 2000, 0.5), ("long", 500, 1.2)):
        time = np.arange(int(16_000 * seconds)) / 16_000
        soundfile.write(tones / f"{name}.wav", 0.3 * np.sin(2 * np.pi * pitch * time), 16_000)
    return tones


def rows(lines, header):
    """The words of each row of the table whose header begins so."""
    start = next(i for i, line in enumerate(lines) if line.startswith(header))
    return [line.split() for line in lines[start + 1 :]]


# --- hooks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ([], {"batch": 1, "n_clips": 1, "n_pos": 55}),
        (["--batch", "2"], {"batch": 2, "n_clips": 2, "n_pos": 55}),
        (["--clips", "3"], {"batch": 1, "n_clips": 3, "n_pos": 105}),
        (["--batch", "2", "--clips", "3"], {"batch": 2, "n_clips": 3, "n_pos": 80}),
        (["--clips", "3", "--tokens", "7"], {"batch": 1, "n_clips": 3, "n_pos": 7}),
    ],
)
def test_hooks_lists_every_name_with_rows_and_clips(run, folder, model, options, sizes):
    done = run("hooks", "-m", folder, *options)
    listed = rows(done.lines, "hook")
    table = hook_table(model.config)
    assert [row[0] for row in listed] == list(table)
    for row in listed:
        spec = table[row[0]]
        shape = spec.shape(model.config, **sizes)
        axes = len(shape)
        assert row[1 : 1 + axes] == list(spec.axes)
        assert row[1 + axes : 1 + 2 * axes] == [str(size) for size in shape]
        assert (row[-1] == "†") == spec.lazy


# --- validate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("clip", [None, "low.wav"])
def test_validate_finds_every_tensor_bit_equal(run, clips, tmp_path, stored, dtype, clip):
    folder = save_checkpoint(tmp_path / "tiny", keys="old", shards=True, dtype=stored)
    words = [] if clip is None else [clips / clip]
    done = run("validate", folder, *words, "--dtype", dtype)
    assert done.code == 0
    listed = rows(done.lines[:-1], "tensor")
    assert {row[-1] for row in listed} == {"yes"}
    assert {row[1] for row in listed} == {"0"}
    assert {"hook_encoder_out", "projector.hook_out", "logits"} < {row[0] for row in listed}
    assert done.lines[-1] == (
        f"17 of 17 tensors bit-equal (torch {torch.__version__}, {dtype}, cpu)"
    )


@pytest.mark.parametrize(
    ("weight", "first"),
    [
        ("audio_tower.layers.1.fc2", "encoder.1.hook_mlp_out"),
        ("multi_modal_projector.linear", "projector.hook_out"),
        ("language_model.layers.1.mlp.up_proj", "decoder.1.hook_mlp_out"),
    ],
)
def test_validate_fails_where_a_weight_differs(run, folder, monkeypatch, weight, first):
    def perturbed(model, device, dtype):
        reference = model.source.hf_model.from_pretrained(
            model.name, dtype=dtype, attn_implementation="sdpa"
        )
        with torch.no_grad():
            reference.model.get_submodule(weight).weight += 1e-2
        return reference.eval()

    monkeypatch.setattr(sys.modules["hooked_asr.cli.validate"], "load_reference", perturbed)
    done = run("validate", folder)
    assert done.code == 1
    listed = rows(done.lines[:-1], "tensor")
    names = [row[0] for row in listed]
    assert [row[-1] for row in listed] == [
        "yes" if i < names.index(first) else "no" for i in range(len(names))
    ]


# --- transcribe -----------------------------------------------------------------------------------


def shown(text):
    """A text as a terminal may be given it: what the tiny model says can be any byte."""
    return strip_control_codes(text).strip()


def test_transcribe_asks_as_it_is_told(run, folder, model, clips):
    clip = clips / "low.wav"
    done = run("transcribe", clip, "-m", folder)
    usual = shown(model.transcribe(clip))
    assert (done.code, done.out.strip()) == (0, usual)
    asked = run("transcribe", clip, "-m", folder, "--prompt", PROMPT)
    assert asked.out.strip() == shown(model.transcribe(clip, PROMPT)) != usual


def test_transcribe_names_each_of_several_files(run, folder, model, clips):
    paths = [clips / "low.wav", clips / "high.wav"]
    done = run("transcribe", *paths, "-m", folder, "--prompt", PROMPT)
    heard = [shown(model.transcribe(path, PROMPT)) for path in paths]
    assert done.out == "".join(f"{p.name}: {text}\n" for p, text in zip(paths, heard, strict=True))


@pytest.mark.parametrize(
    "site", ["decoder.1.attn.2", "encoder.0.attn.1,3", "encoder.1.mlp@5-9", "decoder.0.mlp@20"]
)
def test_transcribe_with_parts_switched_off(run, folder, model, clips, site):
    clip = clips / "low.wav"
    done = run("transcribe", clip, "-m", folder, "--prompt", PROMPT, "--ablate", site)
    expected = shown(model.transcribe(clip, PROMPT, fwd_hooks=[zero(site)]))
    assert done.out.strip() == expected != shown(model.transcribe(clip, PROMPT))


# --- patch ----------------------------------------------------------------------------------------


def test_patch_gives_the_numbers_of_a_sweep_and_writes_them_down(
    run, folder, model, clips, tmp_path
):
    clip = clips / "low.wav"
    done = run("patch", clip, "-m", folder, "--out", tmp_path, "--prompt", PROMPT)
    assert done.code == 0
    stem = "low-decoder.attn-replace-noise-transcript"
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{stem}{suffix}" for suffix in (".json", ".csv", ".html", ".png")
    }
    inputs = patching_inputs(model, clip, prompt=PROMPT)
    expected = sweep(
        model,
        clean=inputs.clean,
        reference=inputs.reference,
        sites=heads("decoder.attn"),
        metric=inputs.metric,
        progress=False,
    )
    result = SweepResult.load(tmp_path / f"{stem}.json")
    assert torch.equal(result.values, expected.values)
    assert (result.clean, result.reference) == (expected.clean, expected.reference)
    strongest = result.to_pandas().sort_values("change", key=abs, ascending=False)
    assert [row[0] for row in rows(done.lines, "site")] == list(strongest["site"])


@pytest.mark.parametrize("reference", ["noise", "silence", "high.wav", "long.wav"])
def test_both_runs_have_the_same_tokens_whatever_the_reference(model, clips, reference):
    """Also where its clip is shorter, or longer than the window."""
    other = str(clips / reference) if reference.endswith("wav") else reference
    made = patching_inputs(model, clips / "low.wav", other, text="no", prompt=PROMPT)
    assert made.clean.keys() == made.reference.keys()
    for name in ("tokens", "attention_mask", "mel_mask"):
        assert torch.equal(made.clean[name], made.reference[name])
    assert not torch.equal(made.clean["mel"], made.reference["mel"])
    n_prompt = made.clean["tokens"].shape[1] - 2
    assert made.metric.name == f"transcript_log_prob(from_position={n_prompt})"
    assert model.to_string(made.clean["tokens"][0, n_prompt:]) == "no"


def test_patch_at_each_position_names_tokens_and_audio(run, folder, model, clips, tmp_path):
    done = run(
        *("patch", clips / "low.wav", "-m", folder, "--out", tmp_path, "--text", "no"),
        *("--sites", "decoder.mlp@each", "--sites", "encoder.attn", "--top", "999"),
    )
    assert done.code == 0
    result = SweepResult.load(tmp_path / "low-decoder.mlp_each-replace-noise-transcript.json")
    inputs = patching_inputs(model, clips / "low.wav", text="no").clean
    assert result.axes["position"] == list(range(inputs["tokens"].shape[1]))
    assert result.tokens == model.to_str_tokens(inputs["tokens"])
    (span,) = model.audio_positions(inputs)
    lines = {line.split()[0]: line for line in done.lines[4:]}
    assert "'<|AUDIO|>'" in lines[f"decoder.1.mlp@{span.positions[3]}"]
    assert "'<|audio_eos|>'" in lines[f"decoder.0.mlp@{span.positions.stop}"]
    assert "'" not in lines["encoder.0.attn.1"]


# --- What goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["transcribe", "{low}", "--language", "de"], "not asked by --language, but by --prompt"),
        (["transcribe", "{low}", "--task", "translate"], "not asked by --task, but by --prompt"),
        (["transcribe", "{long}"], r"lasts 1\.20 s .* window is 1 s"),
        (
            ["transcribe", "{low}", "--ablate", "decoder.0.cross_attn.1"],
            r"no hook 'decoder\.0\.cross_attn\.hook_z'; did you mean 'decoder\.0\.attn\.hook_z'",
        ),
        (["transcribe", "{low}", "--ablate", "decoder.0.attn.4"], "heads 0 to 3; asked for 4"),
        (["patch", "{low}", "--language", "de"], "not asked by --language, but by --prompt"),
        (
            ["patch", "{low}", "--sites", "decoder.cross_attn"],
            r"decoder has no cross_attn; heads are those of 'encoder\.attn' or 'decoder\.attn'",
        ),
        (["patch", "{low}", "--sites", "decoder.resid_mid_cross"], "no part 'resid_mid_cross'"),
        (["patch", "{low}", "--text", ""], "transcript is empty"),
        (["patch", "{low}", "--text", "b" * 300], "decoder has 256 positions"),
        (["hooks", "decoder.*.cross_attn.*"], "matches no hook"),
        (["hooks", "hook_decoder_pos_embed"], "no hook 'hook_decoder_pos_embed'"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_one_line(
    run, folder, clips, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    places = {"low": clips / "low.wav", "long": clips / "long.wav"}
    done = run(*(word.format(**places) for word in options), "-m", folder)
    assert done.code == 2
    (said,) = (line for line in done.err.splitlines() if line.strip())
    assert re.match(rf"error: .*{message}", said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["transcribe", "{low}", "--prompt", "Hi?"], "not asked by --prompt, but by --language"),
        (["patch", "{low}", "--prompt", "Hi?"], "not asked by --prompt, but by --language"),
        (["hooks", "--clips", "2"], "one clip for each row of tokens: leave out --clips"),
    ],
)
def test_what_only_this_family_takes_is_refused_elsewhere(run, clips, options, message):
    low = clips / "low.wav"
    done = run(*(word.format(low=low) for word in options), "-m", "whisper-nano")
    assert done.code == 2
    assert re.match(f"error: .*{message}", done.err)


@pytest.mark.usefixtures("unchecked")
def test_word_error_rates_are_of_what_follows_the_prompt(model, clips):
    runs = patching_inputs(model, clips / "low.wav", metric="wer", text="a b", prompt=PROMPT)
    prompt = model.to_inputs(clips / "low.wav", prompt=PROMPT)
    assert torch.equal(runs.clean["tokens"], prompt["tokens"])
    result = sweep(
        model,
        clean=runs.clean,
        reference=runs.reference,
        sites=heads("encoder.attn", layers=[1]),
        metric=runs.metric,
        progress=False,
    )
    assert result.clean == runs.metric(model.generate(**prompt)[0].text)
