"""Lenses over a corpus: against loops over single clips written out, and resumed byte for byte."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen2

from hooked_asr import HookedQwen2Audio, HookedWhisper
from hooked_asr.bootstrap import bootstrap_means
from hooked_asr.lenses import corpus, logit_lens
from hooked_asr.lenses.corpus import CorpusError, corpus_lens, encoder_corpus
from hooked_asr.lenses.corpus_result import CorpusLens
from hooked_asr.lenses.encoder import encoder_lens
from hooked_asr.lenses.encoder_result import EncoderLens
from hooked_asr.lenses.phonemes import phoneme_error_rate
from hooked_asr.nano import bundle
from hooked_asr.patching.saving import ResultError
from hooked_asr.records import RecordsError

NAMES = ["english", "english_babble", "german", "likely", "spanish"]
TOP, AHEAD = 3, 3


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def rows():
    clips = [bundle.clip(name) for name in NAMES]
    # The babble's language is left to the model, and it is of one group with what it drowns.
    return [
        {
            "audio": str(clip.path),
            "id": clip.name,
            "text": clip.text,
            "language": None if clip.name == "english_babble" else clip.language,
            "group": "girl" if "english" in clip.name else None,
        }
        for clip in clips
    ]


def run(model, clips, **options):
    return corpus_lens(model, clips, top_k=TOP, ahead=AHEAD, progress=False, **options)


@pytest.fixture(scope="module")
def lens(model, rows):
    return run(model, rows)


# --- The numbers of a loop ------------------------------------------------------------------------


def mean(values):
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def by_hand(model, run, n_prompt, end, language):
    """What one clip's lens measures over its text, position after position."""
    one = logit_lens(model, run, top_k=TOP, ahead=AHEAD, progress=False)
    tokens = run["tokens"][0].tolist()
    text = [
        at
        for at in range(n_prompt - 1, len(tokens) - 1)
        if tokens[at + 1] < end and int(one.final_tokens[0, at]) < end
    ]
    table, stable = {}, []
    for layer in range(len(one.sites)):
        row = {
            name: mean([getattr(one, name)[layer, 0, at].item() for at in text])
            for name in ("final_prob", "final_rank", "entropy", "kl")
        }
        for i in range(AHEAD):
            for what in ("rank", "prob"):
                values = getattr(one, f"ahead_{what}")[layer, 0, :, i].tolist()
                row[f"ahead_{i + 1}_{what}"] = mean([values[at] for at in text])
        row |= likeness(model, one, layer, text, end, language)
        table[layer] = row
    for at in text:
        tops = one.top_tokens[:, 0, at, 0].tolist()
        final = int(one.final_tokens[0, at])
        stable.append(min(i for i in range(len(tops)) if set(tops[i:]) == {final}))
    return table, stable, len(text)


def is_word(token, word, end):
    return token < end and "\ufffd" not in word and any(map(str.isalnum, word))


def likeness(model, one, layer, text, end, language):
    endings = ("", "_others", "_elsewhere")
    found = {name + ending: [] for name in ("per", "cosine") for ending in endings}

    def compare(token, final, endings):
        words = [word.strip() for word in model.to_str_tokens([final, token])]
        if not all(is_word(*one, end) for one in zip((final, token), words, strict=True)):
            return False
        cosine = torch.cosine_similarity(model.W_E[final], model.W_E[token], dim=0).item()
        for ending in endings:
            found["per" + ending].append(phoneme_error_rate(*words, language))
            found["cosine" + ending].append(cosine)
        return True

    finals = [int(one.final_tokens[0, at]) for at in text]
    for i, at in enumerate(text):
        final, elsewhere = finals[i], finals[(i + len(text) // 2) % len(text)]
        for token in one.top_tokens[layer, 0, at].tolist():
            known = compare(token, final, ("",) if token == final else ("", "_others"))
            if known and len({token, final, elsewhere}) == 3:
                compare(token, elsewhere, ("_elsewhere",))
    return {name: mean(values) for name, values in found.items()}


@torch.no_grad()
def test_every_clip_has_the_numbers_of_its_own_lens(model, rows, lens):
    end = model.generation_config.eos_token_id
    for i, row in enumerate(rows):
        mel = model.to_mel(row["audio"])
        language = row["language"] or model.detect_language(mel)[0]
        text = model.transcribe(row["audio"], language)
        inputs = model.to_inputs(row["audio"], text=text, language=language)
        n_prompt = len(model.prompt(language))
        table, stable, n_text = by_hand(model, inputs, n_prompt, end, language)
        clip = lens.clips[i]
        assert (clip.text, clip.language, clip.tokens) == (text, language, n_text)
        for name in lens.measures:
            expected = [table[layer][name] for layer in lens.layers]
            found = lens.measures[name][i]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        assert lens.saturated["stable"][i].tolist() == np.bincount(stable, minlength=4).tolist()
    assert set(lens.measures) == set(table[0])
    assert lens.clips[1].text != rows[1]["text"]


@torch.no_grad()
def test_a_model_that_is_asked_in_words(tmp_path):
    model = HookedQwen2Audio.from_pretrained(save_qwen2(tmp_path / "tiny"))
    samples = 0.3 * np.sin(np.arange(9000) / 20)
    soundfile.write(tmp_path / "tone.wav", samples, 16_000)
    own = run(model, tmp_path, language="english", prompt="Say it.")
    prompt = model.to_inputs(tmp_path / "tone.wav", prompt="Say it.")
    (heard,) = model.generate(**prompt, temperature=0.0)
    tokens = torch.tensor([heard.tokens])
    longer = {
        "tokens": torch.cat([prompt["tokens"], tokens], 1),
        "attention_mask": torch.cat([prompt["attention_mask"], torch.ones_like(tokens)], 1),
    }
    n_prompt, end = prompt["tokens"].shape[1], min(model.generation_config.eos_token_id)
    table, _, n_text = by_hand(model, {**prompt, **longer}, n_prompt, end, "en")
    assert (own.clips[0].tokens, own.clips[0].language) == (n_text, "en")
    assert n_text > 3
    for name in ("final_prob", "ahead_2_rank", "cosine"):
        expected = [table[layer][name] for layer in own.layers]
        np.testing.assert_allclose(own.measures[name][0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(CorpusError, match=r"'tone.wav' has no language to say how .* sound"):
        run(model, tmp_path)
    assert run(model, tmp_path, similarity=False).clips[0].language == ""
    encoded = encoder_corpus(model, tmp_path, language="de", max_new_tokens=3, progress=False)
    assert encoded.counts(by="language")["language"].unique().tolist() == ["de"]
    assert encoded.languages().empty


def test_texts_are_forced_where_asked(model, rows):
    found = run(model, rows, force="text")
    assert [clip.text for clip in found.clips] == [row["text"] for row in rows]
    assert found.measures["ahead_1_rank"][1, -1] > 0  # it does not hear that
    assert (found.measures["final_rank"][:, -1] == 0).all()
    with pytest.raises(CorpusError, match="'likely' has no text to force"):
        run(model, [rows[0], {**rows[3], "text": None}], force="text")


# --- Means over clips -----------------------------------------------------------------------------


def test_means_and_intervals_are_over_the_clips_of_a_language(lens):
    table = lens.to_pandas()
    assert table["language"].unique().tolist() == ["de", "en", "es"]
    chosen = [i for i, clip in enumerate(lens.clips) if clip.language == "es"]
    assert [lens.clips[i].id for i in chosen] == ["english_babble", "spanish"]
    about = bootstrap_means(lens.measures["kl"][chosen].numpy())
    rows = table[table["language"] == "es"]
    for column, expected in (("kl", about.mean), ("kl_low", about.low), ("kl_high", about.high)):
        np.testing.assert_array_equal(rows[column], expected)
    assert rows["clips"].tolist() == [2] * 4
    one = table[table["language"] == "de"]
    assert one["final_prob"].tolist() == lens.measures["final_prob"][2].tolist()
    assert one["final_prob_low"].isna().all()


def test_clips_of_a_group_are_resampled_together(lens):
    groups = ["girl", "girl", "german", "likely", "spanish"]
    about = bootstrap_means(lens.measures["entropy"].numpy(), groups, level=0.8)
    table = lens.to_pandas(by=None, level=0.8)
    np.testing.assert_array_equal(table["entropy_low"], about.low)
    alone = bootstrap_means(lens.measures["entropy"].numpy(), level=0.8)
    assert not np.array_equal(about.low, alone.low)


def test_saturation_is_a_mean_and_a_distribution(lens):
    counts = lens.saturated["stable"]
    means = [(row * np.arange(4)).sum() / row.sum() for row in counts.numpy()]
    table = lens.saturation(by=None).set_index("rule")
    assert table.loc["stable", "layer"] == pytest.approx(np.mean(means))
    assert table.loc["first", "layer"] <= table.loc["stable", "layer"]
    spread = lens.saturation_counts(by=None).query("rule == 'stable'")
    assert spread["tokens"].tolist() == counts.sum(0).tolist()
    assert spread["tokens"].sum() == sum(clip.tokens for clip in lens.clips)
    assert spread["share"].sum() == pytest.approx(1)


def test_clips_without_text_count_in_no_mean(model, rows):
    clips = [
        {"audio": rows[0]["audio"], "id": "none", "text": "", "language": "en"},
        {"audio": rows[0]["audio"], "id": "one", "text": "My", "language": "en"},
        {"audio": rows[4]["audio"], "id": "mute", "text": "", "language": "es"},
    ]
    found = run(model, clips, force="text")
    assert [clip.tokens for clip in found.clips] == [0, 1, 0]
    table = found.to_pandas().set_index(["language", "layer"])
    row = table.loc["en", 3]
    assert (row["clips"], row["tokens"], row["empty"]) == (1, 1, 1)
    assert row["final_prob"] == found.measures["final_prob"][1, 3] > 0.5
    assert math.isnan(row["ahead_2_rank"])
    silent = table.loc["es"]
    assert silent["empty"].tolist() == [1] * 4
    assert silent[list(found.measures)].isna().all(axis=None)
    assert found.saturation().set_index(["language", "rule"])["layer"].isna()["es"].all()
    assert found.saturation_counts().query("language == 'es'")["share"].isna().all()
    assert found.plot().to_dict()
    with pytest.raises(ResultError, match="no clip has text"):
        run(model, clips[::2], force="text").plot()


def test_a_model_that_says_nothing_is_read(model, rows):
    only_end = torch.full((model.config.d_vocab,), -1e9)
    only_end[model.generation_config.eos_token_id] = 0

    def end(logits, hook):
        return only_end.expand_as(logits)

    model.generation_config.begin_suppress_tokens, before = (
        None,
        model.generation_config.begin_suppress_tokens,
    )
    with model.hooks([("unembed.hook_out", end)]):
        found = run(model, rows[2:3])
    model.generation_config.begin_suppress_tokens = before
    assert [(clip.text, clip.tokens) for clip in found.clips] == [("", 0)]
    assert found.measures["kl"].isnan().all()


def test_a_plot_shows_the_table(lens):
    spec = lens.plot(rule="first").to_dict()
    panels = spec["concat"]
    assert len(panels) == 4
    table = lens.to_pandas()
    shown = panels[1]["layer"][1]
    points = shown.get("data", panels[1].get("data", spec.get("data")))["values"]
    name = "phoneme error rate of candidates"
    drawn = {(one["language"], one["layer"]): one[name] for one in points}
    expected = table.set_index(["language", "layer"])["per"].to_dict()
    assert drawn == pytest.approx(expected)
    marked = [one["layer"] for one in panels[0]["layer"][2]["data"]["values"]]
    assert marked == lens.saturation().query("rule == 'first'")["layer"].tolist()
    with pytest.raises(ResultError, match="stable or first; got 'last'"):
        lens.plot(rule="last")
    with pytest.raises(ResultError, match="got 'accent'"):
        lens.to_pandas(by="accent")


def test_candidates_are_drawn_beside_chance(lens):
    panels = lens.plot_candidates().to_dict()["concat"]
    table = lens.to_pandas(by=None)
    for panel, column in zip(panels, ("per", "cosine"), strict=True):
        label = panel["layer"][1]["encoding"]["y"]["field"]
        drawn = [one[label] for one in panel["data"]["values"]]
        expected = [*table[column], *table[f"{column}_others"], *table[f"{column}_elsewhere"]]
        assert drawn == pytest.approx(expected)
    last = table.iloc[-1]
    assert last["per_others"] < last["per_elsewhere"]
    assert last["cosine_others"] > last["cosine_elsewhere"]


def test_bars_hold_where_tokens_saturate(lens):
    bars = lens.plot_saturation("first").to_dict()["data"]["values"]
    table = lens.saturation_counts().query("rule == 'first'")
    assert [one["share"] for one in bars] == table["share"].tolist()
    assert sum(one["tokens"] for one in bars) == sum(clip.tokens for clip in lens.clips)
    with pytest.raises(ResultError, match="stable or first; got 'last'"):
        lens.plot_saturation("last")


def test_saved_and_read_again(lens, tmp_path):
    for suffix in (".json", ".csv", ".html"):
        lens.save(tmp_path / f"lens{suffix}")
        assert (tmp_path / f"lens{suffix}").stat().st_size > 500
    lens.save_clips(tmp_path / "clips.csv")
    read = CorpusLens.load(tmp_path / "lens.json")
    pd.testing.assert_frame_equal(read.by_clip(), lens.by_clip(), check_exact=True)
    pd.testing.assert_frame_equal(read.to_pandas(), lens.to_pandas(), check_exact=True)
    assert len(pd.read_csv(tmp_path / "clips.csv")) == len(NAMES) * 4
    (tmp_path / "other.json").write_text(json.dumps({"clips": 3}))
    with pytest.raises(ResultError, match="no saved lens of a corpus"):
        CorpusLens.load(tmp_path / "other.json")


# --- Long work ------------------------------------------------------------------------------------


def saved(lens, path):
    lens.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("work", [run, lambda *a, **k: encoder_corpus(*a, progress=False, **k)])
def test_an_interrupted_run_goes_on_to_the_same_bytes(model, rows, tmp_path, monkeypatch, work):
    whole = saved(work(model, rows), tmp_path / "whole.json")
    out = tmp_path / "out"
    asked = []

    def interrupted(name):
        real = getattr(corpus, name)

        def call(model, clip, *others, **options):
            asked.append(clip)
            if len(asked) == 3:
                raise KeyboardInterrupt
            return real(model, clip, *others, **options)

        return call

    for name in ("clip_record", "encoder_lens"):
        monkeypatch.setattr(corpus, name, interrupted(name))
    with pytest.raises(KeyboardInterrupt):
        work(model, rows, out=out)
    (records,) = out.iterdir()
    records.write_bytes(records.read_bytes()[:-40])  # a line that a kill cut short
    again = work(model, rows, out=out)
    assert len(asked) == 3 + len(rows) - 1
    assert saved(again, tmp_path / "again.json") == whole
    assert saved(work(model, rows, out=out), tmp_path / "again.json") == whole
    assert len(asked) == 3 + len(rows) - 1
    with pytest.raises(RecordsError, match=r"language was null, now .de"):
        work(model, rows, out=out, language="de")


def test_unreadable_clips(model, rows, tmp_path):
    (tmp_path / "broken.wav").write_text("no sound")
    shutil.copy(rows[0]["audio"], tmp_path / "a.flac")
    for work in (run, lambda *a, **k: encoder_corpus(*a, progress=False, **k)):
        with pytest.raises(CorpusError, match=r"clip 'broken\.wav' \(.*/broken\.wav\)"):
            work(model, tmp_path)
        found = work(model, tmp_path, skip_errors=True)
        assert len(found.clips) == 1
        assert list(found.failed) == ["broken.wav"]
        with pytest.raises(
            CorpusError, match=r"none of 1 clips can be read; the first: clip .*broken"
        ):
            work(model, [tmp_path / "broken.wav"], skip_errors=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"force": "own"}, "heard or text; got 'own'"),
        ({"prompt": "Hi?"}, "asked by language and task; got prompt"),
        ({"similarity": False, "phonemes": str.split}, "similarity=True alone"),
        ({"language": "xx"}, "clip 'likely'.* 'xx'"),
    ],
)
def test_options_that_do_not_fit(model, rows, options, says):
    with pytest.raises(CorpusError, match=says):
        run(model, [{**rows[3], "language": None}], **options)


def test_counts_that_do_not_fit(model, rows):
    for options in ({"top_k": 0}, {"ahead": -1}):
        with pytest.raises(CorpusError, match=next(iter(options))):
            corpus_lens(model, rows, progress=False, **options)


# --- The encoder lens -----------------------------------------------------------------------------


def test_encoder_lenses_of_a_corpus_are_those_of_its_clips(model, rows, tmp_path):
    found = encoder_corpus(model, rows, layers=[0], progress=False)
    for i, row in enumerate(rows):
        one = encoder_lens(
            model, row["audio"], layers=[0], said=row["text"], language=row["language"]
        )
        assert found.clips[i].layers == one.clips[0].layers
        assert (found.clips[i].name, found.clips[i].reference) == (row["id"], row["text"])
    assert [clip.spoken for clip in found.clips] == ["en", "es", "de", "en", "es"]
    table = found.counts(by="language")
    spanish = EncoderLens([found.clips[1], found.clips[4]], found.min_repeats, model.name)
    own = table[table["language"] == "es"].drop(columns="language").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, spanish.counts())
    grouped = found.counts(by=["a", "b", "a", "a", "b"])
    pd.testing.assert_frame_equal(
        grouped[grouped["group"] == "b"].drop(columns="group").reset_index(drop=True), own
    )
    with pytest.raises(ResultError, match="list of 5 names"):
        found.counts(by=["a"])
    told = [[layer.told for layer in clip.layers] for clip in found.clips]
    for _, row in found.languages().iterrows():
        at = ["0", "3"].index(row["layer"])
        assert row["clips"] == [one[at] for one in told].count(row["told"])
    assert found.languages().groupby("layer")["clips"].sum().tolist() == [5, 5]
    found.save(tmp_path / "lens.json")
    assert EncoderLens.load(tmp_path / "lens.json") == found
