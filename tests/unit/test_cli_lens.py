"""`hooked-asr lens`: what it prints, writes and refuses; on the bundled model and clips."""

import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import soundfile
import torch
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen2

from hooked_asr import HookedQwen2Audio, HookedWhisper
from hooked_asr.lenses import (
    CorpusLens,
    CrossAttentionLens,
    EncoderLens,
    LogitLens,
    TunedLens,
    corpus_lens,
    encoder_lens,
    forced_run,
    logit_lens,
    saturation_layers,
)
from hooked_asr.nano import bundle

pytestmark = pytest.mark.usefixtures("unchecked")

NANO = ["-m", "whisper-nano"]
CLIP = bundle.clip("english")
STEM = "english-logit"


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few of the bundled clips, one of them twice in a manifest."""
    clips = tmp_path_factory.mktemp("clips")
    for name in ("english", "german", "likely", "spanish"):
        shutil.copy(bundle.clip(name).path, clips)
    return clips


@pytest.fixture
def numbers_alone(monkeypatch):
    """Without figures, which take most of the time; other tests draw them."""
    for module in ("lens_options", "lens_corpus"):
        monkeypatch.setattr(sys.modules[f"hooked_asr.cli.{module}"], "SUFFIXES", (".json",))


@pytest.fixture
def terminal(monkeypatch):
    """As on a terminal of so many columns."""

    def set_width(columns):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLORTERM", "truecolor")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("NO_COLOR", raising=False)

    return set_width


def table(lines, header):
    """The cells of each row from a header on, to an empty line or one that is no row."""
    start = next(i for i, line in enumerate(lines) if line.split()[: len(header)] == header)
    rows = []
    for line in lines[start:]:
        if not line.strip() or line.startswith("wrote "):
            break
        rows.append(re.split(r"\s{2,}", line.strip()))
    return rows


def bare(line):
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


# --- lens logit -----------------------------------------------------------------------------------


def shown(model, ids):
    return [re.sub("^ ", "▁", token) for token in model.to_str_tokens(list(map(int, ids)))]


def test_logit_prints_the_likeliest_tokens_and_writes_everything(run, model, tmp_path):
    done = run("lens", "logit", CLIP.path, *NANO, "--out", tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.lines[0] == f"text: {CLIP.text}"
    own = forced_run(model, CLIP.path)
    expected = logit_lens(
        model, own.inputs, pos_slice=slice(own.n_prompt - 1, None), progress=False
    )
    head, *rows = table(done.lines, ["layer"])
    assert head[1:] == shown(model, own.inputs["tokens"][0, own.n_prompt - 1 :])
    for row, tops in zip(rows, expected.top_tokens[:, 0, :, 0], strict=False):
        assert row[1:] == shown(model, tops)
    assert [row[0] for row in rows] == ["0", "1", "2", "3 (last)", "saturation"]
    assert list(map(int, rows[-1][1:])) == saturation_layers(expected)[0].tolist()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{STEM}{suffix}" for suffix in (".json", ".csv", ".html", ".png")
    }
    found = LogitLens.load(tmp_path / f"{STEM}.json")
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas())


@pytest.mark.usefixtures("numbers_alone")
def test_logit_of_a_text_at_another_stream(run, model, tmp_path):
    words = ("--text", "My father.", "--language", "german", "--at", "resid_mid", "--top", "2")
    done = run("lens", "logit", CLIP.path, *NANO, *words, "--ahead", "3", "--out", tmp_path)
    found = LogitLens.load(tmp_path / f"{STEM}.json")
    assert found.streams == ["resid_mid"] * 4
    assert (found.top_tokens.shape[-1], found.ahead_rank.shape[-1]) == (2, 3)
    assert model.to_string(found.tokens[0]).startswith("<|startoftranscript|><|de|>")
    assert model.text_of(found.tokens[0].tolist()) == "My father."
    rows = {row[0]: row[1:] for row in table(done.lines, ["layer"])}
    assert rows["model"] == shown(model, found.final_tokens[0])
    never = {str(4): "–"}
    layers = map(str, saturation_layers(found)[0].tolist())
    assert rows["saturation"] == [never.get(layer, layer) for layer in layers]


@pytest.mark.usefixtures("numbers_alone")
def test_on_a_terminal_columns_are_coloured_and_fit(run, terminal, tmp_path):
    plain = run("lens", "logit", CLIP.path, *NANO, "--out", tmp_path)
    assert "\x1b" not in plain.out
    terminal(50)
    done = run("lens", "logit", CLIP.path, *NANO, "--out", tmp_path)
    begin = next(i for i, line in enumerate(done.lines) if bare(line).startswith("layer"))
    lines = [line for line in done.lines[begin:] if "wrote" not in line]
    assert max(len(bare(line)) for line in lines) <= 50
    blocks = " ".join(map(bare, lines)).split("layer ")[1:]
    assert len(blocks) > 2
    whole = [token for row in table(plain.lines, ["layer"])[:1] for token in row[1:]]
    heads = [token for line in lines for token in bare(line).split()[1:] if "layer" in line]
    assert heads == whole
    # The yellow of a probability of one, as in the figures; within a rounding of the colour.
    last = next(line for line in lines if bare(line).startswith("3 (last)"))
    red, green, blue = map(int, re.search(r"48;2;(\d+);(\d+);(\d+)m", last).groups())
    assert red > 240
    assert green > 225
    assert blue < 60


@pytest.mark.usefixtures("numbers_alone")
def test_texts_that_look_like_markup_stay_as_they_are(run, tmp_path):
    done = run("lens", "logit", CLIP.path, *NANO, "--text", "[red]My[/]", "--out", tmp_path)
    assert done.lines[0] == "text: [red]My[/]"
    assert "▁[" in "".join(table(done.lines, ["layer"])[0])


# --- lens encoder ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("numbers_alone")
def test_encoder_prints_what_each_layer_hears(run, model, tmp_path):
    clips = [CLIP, bundle.clip("chant")]
    paths, texts = [clip.path for clip in clips], [clip.text for clip in clips]
    said = [word for text in texts for word in ("--text", text)]
    done = run("lens", "encoder", *paths, *NANO, *said, "--out", tmp_path)
    assert (done.code, done.err) == (0, "")
    expected = encoder_lens(model, paths, said=texts)
    found = EncoderLens.load(tmp_path / "encoder.json")
    assert found == expected
    for clip in expected.clips:
        start = done.lines.index(f"{clip.name}: {clip.reference} (said)")
        rows = table(done.lines[start:], ["layer"])[1:]
        assert [row[0] for row in rows] == ["embed", "0", "1", "2", "3"]
        assert [row[-1] for row in rows] == [one.text for one in clip.layers]
        assert [row[1] for row in rows] == [f"{one.wer:.3f}" for one in clip.layers]
    counts = table(done.lines, ["layer", "clips"])[1:]
    assert [row[3] for row in counts] == [str(one) for one in expected.counts()["loops"]]


@pytest.mark.usefixtures("numbers_alone")
def test_encoder_of_chosen_layers(run, tmp_path):
    words = ("--layer", "embed", "--layer", "1", "--language", "each", "--max-new-tokens", "3")
    done = run("lens", "encoder", CLIP.path, *NANO, *words, "--out", tmp_path)
    assert done.code == 0
    (clip,) = EncoderLens.load(tmp_path / "english-encoder.json").clips
    assert [one.layer for one in clip.layers] == ["embed", "1", "3"]
    assert all(one.language == one.told for one in clip.layers)
    assert max(len(one.tokens) for one in clip.layers) <= 3


# --- lens train, lens tuned -----------------------------------------------------------------------


def test_a_lens_is_trained_and_read_with(run, model, folder, tmp_path):
    file = tmp_path / "own.safetensors"
    done = run("lens", "train", folder, *NANO, "--lens", file, "--steps", "0")
    assert (done.code, done.err) == (0, "")
    lens = TunedLens.load(file, model)
    rows = table(done.lines, ["layer", "logit_lens"])[1:]
    assert [row[0] for row in rows] == lens.held_out["layer"].tolist()
    assert [row[2] for row in rows] == [f"{one:.3f}" for one in lens.held_out["tuned_lens"]]
    for suffix in (".csv", ".html", ".png"):
        assert file.with_suffix(suffix).stat().st_size > 50
    done = run("lens", "tuned", CLIP.path, *NANO, "--lens", file, "--out", tmp_path)
    assert done.code == 0
    own = forced_run(model, CLIP.path)
    expected = logit_lens(
        model,
        own.inputs,
        pos_slice=slice(own.n_prompt - 1, None),
        translate=lens,
        progress=False,
    )
    found = LogitLens.load(tmp_path / "english-tuned.json")
    assert torch.equal(found.top_tokens, expected.top_tokens)
    done = run("lens", "encoder", CLIP.path, *NANO, "--lens", file, "--out", tmp_path)
    assert done.code == 2
    assert re.match("error: a lens for the encoder .* this one is for the decoder", done.err)
    out = tmp_path / "out"
    words = ("--lens", file, "--no-similarity", "--ahead", "1", "--out", out)
    done = run("lens", "corpus", folder / "english.flac", *NANO, *words)
    assert done.code == 0
    means = CorpusLens.load(out / "decoder" / "lens.json")
    assert means.tuned
    text = slice(0, means.clips[0].tokens)
    kl = expected.kl[:, 0, text].double().mean(-1)
    torch.testing.assert_close(means.measures["kl"][0], kl)
    done = run("lens", "corpus", folder / "english.flac", *NANO, "--no-similarity", "--out", out)
    assert done.code == 2
    assert "holds results of other work: tuned was" in done.err.replace("ahead was 1, now 3; ", "")


# --- lens corpus ----------------------------------------------------------------------------------


def test_corpus_prints_and_writes_means_and_goes_on(run, model, folder, tmp_path):
    words = ("lens", "corpus", folder, *NANO, "--out", tmp_path)
    done = run(*words)
    assert (done.code, done.err) == (0, "")
    assert done.lines[0].startswith(f"4 clips; wrote {tmp_path}/decoder/lens.*")
    out = tmp_path / "decoder"
    assert {path.name for path in out.iterdir()} == {
        *("records-00000.jsonl", "lens.json", "lens.csv", "lens.html", "lens.png"),
        *("clips.csv", "saturation.csv", "saturation_counts.csv"),
    }
    expected = corpus_lens(model, folder, progress=False)
    found = CorpusLens.load(out / "lens.json")
    pd.testing.assert_frame_equal(found.by_clip(), expected.by_clip(), check_exact=True)
    means = expected.to_pandas()
    rows = table(done.lines, ["language", "layer", "clips"])[1:]
    assert [row[:2] for row in rows] == means[["language", "layer"]].astype(str).to_numpy().tolist()
    assert [row[8] for row in rows] == [f"{one:.3f}" for one in means["per"]]
    rules = table(done.lines, ["language", "rule"])[1:]
    layers = expected.saturation()["layer"]
    assert [row[2] for row in rules] == [f"{one:.3f}" for one in layers]
    records = (out / "records-00000.jsonl").read_bytes()
    written = (out / "lens.json").read_bytes()
    again = run(*words)
    assert again.out == done.out
    assert (out / "records-00000.jsonl").read_bytes() == records
    assert (out / "lens.json").read_bytes() == written


@pytest.mark.usefixtures("numbers_alone")
def test_corpus_of_a_manifest_by_the_encoder(run, folder, tmp_path):
    manifest = folder / "clips.csv"
    lines = [f"{one}.flac,{bundle.clip(one).text},{bundle.clip(one).language}"
             for one in ("english", "spanish")]  # fmt: skip
    manifest.write_text("\n".join(["audio,text,language", *lines, "broken.wav,,"]))
    (folder / "broken.wav").write_text("no sound")
    words = ("lens", "corpus", manifest, *NANO, "--stack", "encoder", "--max-new-tokens", "12")
    done = run(*words, "--out", tmp_path)
    assert done.code == 2
    assert "error: clip 'broken.wav'" in done.err
    done = run(*words, "--out", tmp_path, "--skip-errors")
    (folder / "broken.wav").unlink()
    assert done.code == 0
    assert done.lines[0].startswith("left out: broken.wav: clip 'broken.wav'")
    found = EncoderLens.load(tmp_path / "encoder" / "lens.json")
    assert list(found.failed) == ["broken.wav"]
    assert [clip.against for clip in found.clips] == ["said", "said"]
    rows = table(done.lines, ["language", "layer"])[1:]
    assert [row[0] for row in rows] == ["en"] * 5 + ["es"] * 5
    assert [row[5] for row in rows[:5]] == [f"{one.wer:.3f}" for one in found.clips[0].layers]
    counts = pd.read_csv(tmp_path / "encoder" / "counts.csv")
    pd.testing.assert_frame_equal(counts, found.counts(by="language"))


@pytest.mark.usefixtures("numbers_alone")
def test_a_terminal_too_narrow_cuts_no_number(run, terminal, folder, tmp_path):
    words = ("lens", "corpus", folder, *NANO, "--out", tmp_path, "--no-similarity")
    plain = [line.rstrip() for line in run(*words).lines if re.match(r"(de|en|es) ", line)]
    terminal(30)
    narrow = [bare(line).rstrip() for line in run(*words).lines]
    assert len(plain) > 8
    assert [line for line in narrow if re.match(r"(de|en|es) ", line)] == plain


# --- lens attention -------------------------------------------------------------------------------


def test_attention_ranks_heads_and_draws_the_best(run, tmp_path):
    words = ("--out", tmp_path, "--top", "4")
    done = run("lens", "attention", CLIP.path, *NANO, *words)
    assert (done.code, done.err) == (0, "")
    found = CrossAttentionLens.load(tmp_path / "english-attention.json")
    expected = found.heads_table().sort_values("alignment", ascending=False).head(4)
    rows = table(done.lines, ["layer", "head"])[1:]
    places = expected[["layer", "head"]].astype(str).to_numpy().tolist()
    assert [row[:2] for row in rows] == places
    assert [row[-1] for row in rows] == [f"{one:.3f}" for one in expected["alignment"]]
    best = ".".join(places[0])
    for suffix in (".html", ".png"):
        assert (tmp_path / f"english-attention-{best}{suffix}").stat().st_size > 5000
    done = run("lens", "attention", CLIP.path, *NANO, *words, "--head", "0.1", "--head", "3.5")
    names = [line.rpartition("/")[2] for line in done.lines if "wrote" in line]
    assert names[1:] == ["english-attention-0.1.*", "english-attention-3.5.*"]


# --- The other family -----------------------------------------------------------------------------


def test_a_model_that_is_asked_in_words(run, tmp_path):
    checkpoint = save_qwen2(tmp_path / "tiny")
    model = HookedQwen2Audio.from_pretrained(checkpoint)
    sound = tmp_path / "clip.flac"
    samples, rate = soundfile.read(CLIP.path, frames=12_000)
    soundfile.write(sound, samples, rate)
    words = (sound, "-m", checkpoint, "--prompt", "Say it.", "--out", tmp_path)
    done = run("lens", "logit", *words)
    own = forced_run(model, sound, prompt="Say it.")
    found = LogitLens.load(tmp_path / "clip-logit.json")
    assert torch.equal(found.tokens, own.inputs["tokens"])
    assert found.positions[0] == own.n_prompt - 1
    assert done.code == run("lens", "encoder", *words).code == 0
    assert run("lens", "attention", *words).code == 0
    corpus = ("lens", "corpus", *words)
    assert re.search("no language to say how its words sound", run(*corpus).err)
    assert run(*corpus, "--language", "en").code == 0
    assert CorpusLens.load(tmp_path / "decoder" / "lens.json").clips[0].language == "en"
    assert (
        "not asked by --language, but by --prompt"
        in run("lens", "logit", *words, "--language", "de").err
    )


# --- What goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["logit", "{clip}", "--at", "resid_end"], "decoder's resid_pre, .*; got at="),
        (["logit", "{clip}", "--top", "9999"], "1409 tokens; asked for the top 9999"),
        (["logit", "none.wav"], "'none.wav' does not exist"),
        (["logit", "{clip}", "--prompt", "Hi?"], "not asked by --prompt, but by --language"),
        (["logit", "{clip}", "--language", "xx"], "'xx'"),
        (["encoder", "{clip}", "--layer", "9"], "layers 0 to 3, and 'embed' .*asked for 9"),
        (["encoder", "{clip}", "--text", "a", "--text", "b"], "1 clips take as many texts; got 2"),
        (["tuned", "{clip}", "--lens", "none.safetensors"], "none.safetensors"),
        (["train", "{clip}", "--lens", "lens.bin"], "a file .safetensors; got --lens lens.bin"),
        (["corpus", "empty"], "no sound files in 'empty'"),
        (["corpus", "none"], "a manifest is a file .csv or .jsonl; got 'none'"),
        (["corpus", "none.csv"], "no manifest 'none.csv'"),
        (["corpus", "{clip}", "--force", "text"], "has no text to force: give the manifest"),
        (["corpus", "{clip}", "--force", "both"], "heard or text; got 'both'"),
        (["corpus", "{clip}", "--max-new-tokens", "3"], "--max-new-tokens is for --stack encoder"),
        (["corpus", "{clip}", "--stack", "encoder", "--top", "3"], "--top is for --stack decoder"),
        (["attention", "{clip}", "--head", "3"], r"as in 2\.4; got --head 3"),
        (["attention", "{clip}", "--head", "9.1"], r"layers \[0, 1, 2, 3\].*layer=9"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_one_line(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    done = run("lens", *(word.format(clip=CLIP.path) for word in words), *NANO)
    assert done.code == 2
    (said,) = (line for line in done.err.splitlines() if line.strip())
    assert re.match(rf"error: .*{message}", said)


# --- Figures --------------------------------------------------------------------------------------


def test_a_figure_is_drawn_by_a_browser(run, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser")
    assert run("lens", "logit", CLIP.path, *NANO, "--out", tmp_path).code == 0
    page = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--virtual-time-budget=8000", "--dump-dom", f"--user-data-dir={tmp_path / 'own'}"),
            (tmp_path / f"{STEM}.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert "<canvas" in page or "<svg" in page
    assert "Error" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
