"""The command line on a tiny checkpoint and tones: what it prints, writes and refuses."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from tiny_checkpoint import save_checkpoint

from hooked_asr import HookedWhisper, hook_table
from hooked_asr.interventions import zero
from hooked_asr.patching import SweepResult, heads, sweep
from hooked_asr.patching.inputs import patching_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return HookedWhisper.from_pretrained(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A low tone, a high one, and one longer than the model's window of a second."""
    tones = tmp_path_factory.mktemp("clips")
    for name, pitch, seconds in (("low", 200, 0.8), ("high", 2000, 0.5), ("long", 200, 1.2)):
        time = np.arange(int(16_000 * seconds)) / 16_000
        soundfile.write(tones / f"{name}.wav", 0.3 * np.sin(2 * np.pi * pitch * time), 16_000)
    return tones


def rows(lines, header):
    """The words of each row of the table whose header begins so."""
    start = next(i for i, line in enumerate(lines) if line.startswith(header))
    return [line.split() for line in lines[start + 1 :]]


# --- patch ----------------------------------------------------------------------------------------


def test_patch_prints_the_strongest_heads_and_writes_them_down(run, folder, clips, tmp_path):
    done = run("patch", clips / "low.wav", "-m", folder, "--out", tmp_path)
    assert done.code == 0
    stem = "low-decoder.cross_attn-replace-noise-transcript"
    assert names(tmp_path) == {f"{stem}{suffix}" for suffix in (".json", ".csv", ".html", ".png")}

    result = SweepResult.load(tmp_path / f"{stem}.json")
    strongest = result.to_pandas().sort_values("change", key=abs, ascending=False)
    table = rows(done.lines, "site")
    assert [row[0] for row in table] == list(strongest["site"])
    shown = np.array([[float(number) for number in row[1:]] for row in table])
    numbers = strongest[["value", "change", "normalized"]].to_numpy()
    np.testing.assert_allclose(shown, numbers, atol=5.1e-5)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_patch_gives_the_numbers_of_a_sweep(run, folder, model, clips, tmp_path):
    done = run("patch", clips / "low.wav", "-m", folder, "--out", tmp_path)
    inputs = patching_inputs(model, clips / "low.wav")
    expected = sweep(
        model,
        clean=inputs.clean,
        reference=inputs.reference,
        sites=heads("decoder.cross_attn"),
        metric=inputs.metric,
        progress=False,
    )
    result = SweepResult.load(tmp_path / "low-decoder.cross_attn-replace-noise-transcript.json")
    assert torch.equal(result.values, expected.values)
    assert (result.clean, result.reference) == (expected.clean, expected.reference)
    assert result.model == str(folder)
    assert done.lines[:2] == [f"text: {inputs.text}", f"metric: {inputs.metric.name}"]
    assert f"clean {expected.clean:.4f}, reference {expected.reference:.4f}" in done.lines[2]
    assert done.lines[2].endswith(
        f"wrote {tmp_path}/low-decoder.cross_attn-replace-noise-transcript.*"
    )


def test_patch_ranks_several_kinds_of_sites_together(run, folder, clips, tmp_path):
    chosen = ["decoder.cross_attn", "decoder", "encoder.attn"]
    options = [word for sites in chosen for word in ("--sites", sites)]
    done = run("patch", clips / "low.wav", "-m", folder, "--out", tmp_path, *options, "--top", "7")
    assert done.code == 0
    tables = [pd.read_csv(path) for path in sorted(tmp_path.glob("*.csv"))]
    assert len(tables) == 3
    everything = pd.concat(tables)
    strongest = everything.sort_values("change", key=abs, ascending=False, kind="stable").head(7)
    table = rows(done.lines, "site")
    assert len(table) == 7
    assert [abs(float(row[-2])) for row in table] == sorted(
        (abs(float(row[-2])) for row in table), reverse=True
    )
    change = dict(zip(everything["site"], everything["change"], strict=True))
    for row, expected in zip(table, strongest["change"], strict=True):
        assert float(row[-2]) == pytest.approx(change[row[0]], abs=5.1e-5)
        assert abs(float(row[-2])) == pytest.approx(abs(expected), abs=5.1e-5)


def test_patch_at_each_position_names_the_tokens(run, folder, model, clips, tmp_path):
    options = ["--sites", "decoder.mlp@each", "--sites", "decoder.attn", "--text", "ask her"]
    done = run("patch", clips / "low.wav", "-m", folder, "--out", tmp_path, *options, "--top", "99")
    result = SweepResult.load(tmp_path / "low-decoder.mlp_each-replace-noise-transcript.json")
    assert result.axes["position"] == [0, 1, 2, 3]
    assert result.tokens[2:] == [" ask", " her"]
    lines = {line.split()[0]: line for line in done.lines[4:]}
    assert "' ask'" in lines["decoder.1.mlp@2"]
    assert "'<|notimestamps|>'" in lines["decoder.0.mlp@1"]
    assert "'" not in lines["decoder.0.attn.1"]
    assert "nan" not in done.out


@pytest.mark.parametrize("reference", ["noise", "silence", "recording"])
def test_patch_against_each_reference(run, folder, model, clips, tmp_path, reference):
    other = clips / "high.wav" if reference == "recording" else reference
    done = run(
        *("patch", clips / "low.wav", "-m", folder, "--out", tmp_path, "--text", "no"),
        *("--reference", other, "--seed", "3"),
    )
    assert done.code == 0
    inputs = patching_inputs(model, clips / "low.wav", str(other), text="no", seed=3)
    with torch.no_grad():
        expected = float(inputs.metric(model(**inputs.reference)))
    stem = f"low-decoder.cross_attn-replace-{Path(other).stem}-transcript"
    result = SweepResult.load(tmp_path / f"{stem}.json")
    assert result.reference == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "operation", "alpha", "metric"),
    [
        (["--operation", "zero", "--metric", "kl"], "zero", 1.0, "kl(pos=None)"),
        (["--operation", "mean"], "mean", 1.0, "transcript_log_prob(from_position=2)"),
        (["--alpha", "0.25", "--metric", "log_prob:no"], "replace", 0.25, "log_prob(no, pos=1)"),
        (["--metric", "logit_diff:no/it@0"], "replace", 1.0, "logit_diff(no/it, pos=0)"),
    ],
)
def test_patch_does_what_its_options_say(
    run, folder, model, clips, tmp_path, options, operation, alpha, metric
):
    assert [model.to_single_token(word) for word in (" no", " it")] == [36, 35]
    where = ["patch", clips / "low.wav", "-m", folder, "--out", tmp_path, "--text", "no"]
    assert run(*where, *options).code == 0
    (written,) = tmp_path.glob(f"low-decoder.cross_attn-{operation}-noise-*.json")
    result = SweepResult.load(written)
    assert (result.operation, result.alpha, result.metric) == (operation, alpha, metric)


def test_patch_names_files_by_what_was_done(run, folder, clips, tmp_path):
    where = ["patch", clips / "low.wav", "-m", folder, "--out", tmp_path, "--text", "no"]
    different = [[], ["--alpha", "0.5"], ["--metric", "kl"], ["--reference", "silence"]]
    for options in different:
        assert run(*where, *options).code == 0
    assert len(names(tmp_path)) == 4 * len(different)


def test_patch_makes_the_folder_it_writes_to(run, folder, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("patch", clips / "low.wav", "-m", folder, "--text", "no").code == 0
    assert len(names(tmp_path / "patching")) == 4


# --- transcribe -----------------------------------------------------------------------------------


def test_transcribe_prints_the_text_alone(run, folder, model, clips):
    done = run("transcribe", clips / "low.wav", "-m", folder)
    assert (done.code, done.out) == (0, model.transcribe(clips / "low.wav") + "\n")


def test_transcribe_names_each_of_several_files(run, folder, model, clips):
    paths = [clips / "low.wav", clips / "high.wav"]
    done = run("transcribe", *paths, "-m", folder)
    assert done.lines == [f"{path.name}: {model.transcribe(path)}" for path in paths]


def test_transcribe_with_parts_switched_off(run, folder, model, clips):
    clip, sites = clips / "low.wav", ["decoder.1.cross_attn", "decoder.0.attn.1,2@1-4"]
    done = run("transcribe", clip, "-m", folder, *(w for site in sites for w in ("--ablate", site)))
    expected = model.transcribe(clip, fwd_hooks=[zero(site) for site in sites])
    assert done.out.strip() == expected != model.transcribe(clip)


def test_transcribe_in_a_language(run, clips, tmp_path):
    folder = save_checkpoint(tmp_path / "tiny", "multilingual")
    model = HookedWhisper.from_pretrained(folder)
    done = run(
        *("transcribe", clips / "low.wav", "-m", folder),
        *("--language", "german", "--task", "translate"),
    )
    assert done.out.strip() == model.transcribe(clips / "low.wav", "de", task="translate")


def test_transcribe_in_half_precision(run, folder, clips):
    model = HookedWhisper.from_pretrained(folder, dtype=torch.bfloat16)
    done = run("transcribe", clips / "low.wav", "-m", folder, "--dtype", "bfloat16")
    assert done.out.strip() == model.transcribe(clips / "low.wav")


# --- hooks ----------------------------------------------------------------------------------------


def test_hooks_lists_every_name_of_the_table(run, folder, model):
    done = run("hooks", "-m", folder, "--batch", "2", "--tokens", "11")
    listed = rows(done.lines, "hook")
    table = hook_table(model.config)
    assert [row[0] for row in listed] == list(table)
    for row in listed:
        spec = table[row[0]]
        shape = spec.shape(model.config, batch=2, n_pos=11)
        axes = len(shape)
        assert row[1 : 1 + axes] == list(spec.axes)
        assert row[1 + axes : 1 + 2 * axes] == [str(size) for size in shape]
        assert (row[-1] == "†") == spec.lazy


def test_hooks_lists_what_a_glob_matches(run, folder):
    done = run("hooks", "-m", folder, "decoder.1.cross_attn.hook_*")
    listed = [row[0] for row in rows(done.lines, "hook")]
    assert listed == [f"decoder.1.cross_attn.hook_{x}" for x in ("k", "v", "q", "z")]
    done = run("hooks", "-m", folder, "*.hook_pattern")
    assert len(rows(done.lines, "hook")) == 6


def test_hooks_reads_no_weights(run, folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert run("hooks", "-m", tmp_path).lines == run("hooks", "-m", folder).lines


# --- validate -------------------------------------------------------------------------------------


def test_validate_finds_every_tensor_bit_equal(run, folder, clips):
    for words in ([], [clips / "low.wav"], ["--dtype", "bfloat16"]):
        done = run("validate", folder, *words)
        assert done.code == 0
        listed = rows(done.lines[:-1], "tensor")
        assert {row[-1] for row in listed} == {"yes"}
        assert {row[1] for row in listed} == {"0"}
        dtype = "bfloat16" if words[:1] == ["--dtype"] else "float32"
        assert done.lines[-1] == (
            f"18 of 18 tensors bit-equal (torch {torch.__version__}, {dtype}, cpu)"
        )


def test_validate_fails_where_a_weight_differs(run, folder, monkeypatch):
    def perturbed(model, device, dtype):
        reference = model.source.hf_model.from_pretrained(
            model.name, dtype=dtype, attn_implementation="sdpa"
        )
        with torch.no_grad():
            reference.model.decoder.layers[1].fc2.weight[0, 0] += 1e-3
        return reference.eval()

    monkeypatch.setattr(sys.modules["hooked_asr.cli.validate"], "load_reference", perturbed)
    done = run("validate", folder)
    assert done.code == 1
    equal = {row[0]: row[-1] for row in rows(done.lines[:-1], "tensor")}
    different = {"decoder.1.hook_mlp_out", "decoder.1.hook_resid_post", "logits"}
    assert {name for name, says in equal.items() if says == "no"} == different
    assert done.lines[-1].startswith("15 of 18 tensors bit-equal")


# --- What goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["patch", "{clips}/lwo.wav", "-m", "{model}"], r"lwo\.wav' does not exist\. Near it: low"),
        (["patch", "{clips}", "-m", "{model}"], "is a folder"),
        (["patch", "{clips}/long.wav", "-m", "{model}"], r"lasts 1\.20 s .* window is 1 s"),
        (["patch", "{low}", "-m", "{clips}"], r"no checkpoint: it has no config\.json"),
        (["patch", "{low}", "-m", "{low}"], "is a file; give the folder"),
        (["patch", "{low}", "-m", "{model}", "--reference", "nois"], "'nois' does not exist"),
        (["patch", "{low}", "-m", "{model}", "--sites", "decoder.mpl"], "has no part 'mpl'"),
        (["patch", "{low}", "-m", "{model}", "--sites", "decoder@3"], "behind @ stands 'each'"),
        (["patch", "{low}", "-m", "{model}", "--metric", "loss"], "no metric 'loss'; there are"),
        (["patch", "{low}", "-m", "{model}", "--metric", "log_prob:xyz"], "'xyz' is 3 tokens"),
        (["patch", "{low}", "-m", "{model}", "--operation", "swap"], "operations are 'replace'"),
        (["patch", "{low}", "-m", "{model}", "--text", ""], "transcript is empty"),
        (
            ["patch", "{low}", "-m", "{model}", "--text", "b" * 22],
            "24 positions; got 25 tokens: give a shorter",
        ),
        (["patch", "{low}", "-m", "{model}", "--language", "de"], "only transcribes English"),
        (["patch", "{low}", "-m", "{model}", "--device", "gpu"], "cannot run on 'gpu'"),
        (["patch", "{low}", "-m", "{model}", "--out", "{low}"], "File exists"),
        (["transcribe", "{clips}/lwo.wav", "-m", "{model}"], "does not exist"),
        (["transcribe", "{low}", "-m", "{model}", "--ablate", "decoder.9.mlp"], "layers are 0 to"),
        (["transcribe", "{low}", "-m", "{model}", "--ablate", "decoder.0.attn.4"], "heads 0 to 3"),
        (["transcribe", "{low}", "-m", "{model}", "--ablate", "decoder.0.mlp@"], "7-9 or 2,5"),
        (["transcribe", "{low}", "-m", "{model}", "--task", "shout"], "asked to shout"),
        (["hooks", "-m", "{clips}"], r"no config\.json"),
        (["hooks", "-m", "{model}", "decoder.*.hook_pattrn"], "matches no hook"),
        (["validate", "{clips}"], r"no config\.json"),
        (["validate", "{model}", "{clips}/long.wav"], "lasts"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_one_line(
    run, folder, clips, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    places = {"clips": clips, "low": clips / "low.wav", "model": folder}
    done = run(*(word.format(**places) for word in options))
    assert done.code == 2
    said = [line for line in done.err.splitlines() if line.strip()]
    assert len(said) == 1
    assert re.match(rf"error: .*{message}", said[0])
    assert not list(tmp_path.iterdir())


def test_an_error_may_have_square_brackets_in_it(run, folder, tmp_path):
    for name in ("[batch pos].wav", "[/].wav", "[red]loud[/red].wav"):
        done = run("transcribe", tmp_path / name, "-m", folder)
        assert done.code == 2
        assert f"{tmp_path}/{name}" in done.err


def test_a_path_may_have_square_brackets_in_it(run, folder, clips, tmp_path):
    out = tmp_path / "[/results]"
    done = run("patch", clips / "low.wav", "-m", folder, "--text", "no", "--out", out)
    assert done.code == 0
    assert f"wrote {out}/low-" in done.out


def test_a_site_misspelt_among_others_costs_no_sweep(run, folder, clips, tmp_path):
    done = run(
        *("patch", clips / "low.wav", "-m", folder, "--out", tmp_path),
        *("--sites", "decoder", "--sites", "decoder.mpl"),
    )
    assert done.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ["patch", "{low}"],
        ["patch", "-m", "{model}"],
        ["patch", "{low}", "-m", "{model}", "--alpha", "half"],
        ["patch", "{low}", "-m", "{model}", "--top", "0"],
        ["patch", "{low}", "-m", "{model}", "--dtype", "int8"],
        ["hooks", "-m", "{model}", "--tokens", "0"],
        ["listen"],
    ],
)
def test_options_that_are_missing_or_unknown(run, folder, clips, options):
    done = run(*(word.format(low=clips / "low.wav", model=folder) for word in options))
    assert done.code == 2
    assert "Usage" in done.err
    assert "Traceback" not in done.err


# --- The program itself ---------------------------------------------------------------------------


def test_the_package_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "hooked_asr", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("patch", "transcribe", "hooks", "validate"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["patch", "transcribe", "hooks", "validate"])
def test_every_command_explains_itself(run, command):
    done = run(command, "--help")
    assert done.code == 0
    assert "--model" in done.out or "model" in done.out


def test_a_trained_checkpoint_end_to_end(run, refit: Path, shared: Path, tmp_path):
    clip = shared / "audio" / "speech_en" / "jfk.flac"
    if not clip.is_file():
        pytest.skip("no jfk.flac among the shared recordings")
    text = "Ask not what your country can do for you."
    done = run(
        *("patch", clip, "-m", refit, "--out", tmp_path, "--text", text, "--top", "3"),
        *("--metric", "log_prob:country"),
    )
    assert done.code == 0
    result = SweepResult.load(
        tmp_path / "jfk-decoder.cross_attn-replace-noise-log_prob_country.json"
    )
    assert result.values.shape == (4, 6)
    assert result.clean > result.reference + 1  # the clip says so, and noise does not
    table = rows(done.lines, "site")
    assert [row[0] for row in table] == list(result.top(3)["site"])
    assert all(result.top(3)["change"] < 0)


def test_a_warning_is_one_line_too(run, folder, clips, monkeypatch):
    monkeypatch.setattr("warnings.filters", [])
    done = run("transcribe", clips / "low.wav", "-m", folder, "--ablate", "decoder.0.mlp@23")
    assert done.code == 0
    (said,) = done.err.splitlines()
    assert said.startswith("warning: ")
    assert "position 23" in said
