"""Words mended: transcripts are those of plain decodings, one intervention at a time."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy.stats import binomtest
from tiny_qwen2_checkpoint import save_checkpoint

from hooked_asr import HookedQwen2Audio, HookedWhisper
from hooked_asr.audio import load_audio
from hooked_asr.interventions import Lockstep, interpolate
from hooked_asr.nano.bundle import clip
from hooked_asr.patching import (
    MendingResult,
    WordError,
    hear_words,
    mend_words,
    pair_seed,
    word_pairs,
)
from hooked_asr.patching.references import reference_sound
from hooked_asr.patching.saving import ResultError
from hooked_asr.patching.shares import share_interval
from hooked_asr.patching.words import HeardWord, verdict

ALPHAS = (0.5, 2.0)
SITES = ("encoder.1.hook_attn_out", "decoder.1.hook_mlp_out", "decoder.3.hook_cross_attn_out")


@pytest.fixture(scope="module")
def nano() -> HookedWhisper:
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    text = "My daughter has a blue belt and a green dress."
    about = {"text": text, "language": "en"}
    return [
        about
        | {"audio": str(clip("english").path), "id": "a", "word": "green", "neighbour": "red"},
        about
        | {
            "audio": str(clip("english_babble").path),
            "id": "b",
            "word": "blue",
            "neighbour": "black",
        },
    ]


@pytest.fixture(scope="module")
def heard(nano: HookedWhisper, rows: list[dict[str, Any]]) -> list[HeardWord]:
    return hear_words(nano, rows, progress=False)


def test_mended_texts_are_those_of_one_plain_decoding_each(
    nano: HookedWhisper, heard: list[HeardWord]
) -> None:
    result = mend_words(nano, heard[:1], sites=SITES, alphas=ALPHAS, seed=3, progress=False)
    samples = load_audio(heard[0].audio)
    noise = reference_sound("noise", samples, pair_seed(3, "a"))
    _, cache = nano.run_with_cache(**nano.to_inputs(noise, language="en"), names_filter=SITES[0])
    for i, site in enumerate(SITES):
        source = cache if site.startswith("encoder") else Lockstep(noise)
        for j, alpha in enumerate(ALPHAS):
            plain = nano.transcribe(samples, "en", interventions=[interpolate(site, source, alpha)])
            assert result.text(0, i, j) == plain
    assert result.changed[0]  # something was changed at all
    assert len(result.changed[0]) < len(SITES) * len(ALPHAS)  # and something was not


def test_qwen2_audio_is_mended_by_the_same_call(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    model = HookedQwen2Audio.from_pretrained(save_checkpoint(tmp_path / "tiny"))
    samples = load_audio(rows[0]["audio"])[8000:20000]
    soundfile.write(tmp_path / "short.wav", samples.numpy(), 16000)
    row = rows[0] | {"audio": str(tmp_path / "short.wav")}
    (one,) = hear_words(model, [row], max_new_tokens=6, progress=False)
    sites = ("encoder.1.hook_mlp_out", "decoder.1.hook_attn_out", "decoder.1.hook_mlp_out")
    result = mend_words(
        model, [one], sites=sites, alphas=(1.0, 5.0), max_new_tokens=6, progress=False
    )
    noise = reference_sound("noise", samples, pair_seed(0, "a"))
    source = Lockstep(model.to_inputs(noise, **one.asked))
    inputs = model.to_inputs(samples, **one.asked)
    for i, site in enumerate(sites):
        for j, alpha in enumerate((1.0, 5.0)):
            hooks = [interpolate(site, source, alpha)]
            plain = model.generate(**inputs, interventions=hooks, max_new_tokens=6)[0].text
            assert result.text(0, i, j) == plain
    assert result.changed[0]
    default = mend_words(model, [one], alphas=(1.0,), max_new_tokens=2, progress=False)
    assert len(default.sites) == 2 * (model.config.encoder.n_layers + model.config.decoder.n_layers)


def test_verdicts_are_on_whole_words(heard: list[HeardWord]) -> None:
    assert [one.verdict for one in heard] == ["said", "neighbour"]
    assert verdict("The greenhouse.", "green", "red") == "other"
    assert verdict("Green, not red!", "green", "red") == "other"
    assert verdict("I have 3 brothers.", "three", "tree") == "said"  # as Whisper's normaliser
    assert verdict("In New York.", "new york", "newark") == "said"


def test_a_killed_run_goes_on_and_others_are_refused(
    nano: HookedWhisper,
    heard: list[HeardWord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {
        "sites": SITES[:1],
        "reference": "another",
        "out": tmp_path,
        "progress": False,
    }
    whole = mend_words(nano, heard, **options)
    (file,) = (path for path in tmp_path.iterdir() if path.suffix == ".jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))  # as a kill leaves it
    again = mend_words(nano, heard, **options)
    assert again.changed == whole.changed
    calls: list[Any] = []
    monkeypatch.setattr(nano, "generate_rows", lambda *a, **k: calls.append(a))
    assert mend_words(nano, heard, **options).changed == whole.changed
    assert not calls
    with pytest.raises(Exception, match="seed"):
        mend_words(nano, heard, **options | {"seed": 1})


def test_nothing_to_mend_or_no_words_is_said(
    nano: HookedWhisper, heard: list[HeardWord], rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(WordError, match="no recordings"):
        mend_words(nano, [])
    with pytest.raises(WordError, match="none can be taken"):
        mend_words(nano, heard[:1], reference="another")
    with pytest.raises(WordError, match="'a' has no neighbour"):
        hear_words(nano, [{k: v for k, v in rows[0].items() if k != "neighbour"}])


# --- The result, counted by hand ------------------------------------------------------------------


@pytest.fixture
def result() -> MendingResult:
    """Three recordings of two pairs: the encoder mends the first two, the decoder the last."""

    def one(name: str, word: str, neighbour: str) -> HeardWord:
        text = f"A white {word}."
        return HeardWord(name, "", text, word, neighbour, f"A white {neighbour}.", [], "neighbour")

    return MendingResult(
        clips=[one("a", "lice", "rice"), one("b", "lice", "rice"), one("c", "ship", "sheep")],
        sites=["encoder.0.x", "decoder.0.x"],
        alphas=[0.5, 1.0, 2.0],
        changed=[
            {"1": "A white lice.", "2": "Lice."},
            {"1": "Lice!", "4": "Nothing."},
            {"5": "A white ship"},
        ],
        reference="noise",
        seed=0,
        model="m",
    )


def test_counts_of_mended_words(result: MendingResult) -> None:
    assert result.wrote("said").sum((1, 2)).tolist() == [2, 1, 1]
    assert result.wrote("other").sum() == 1
    assert result.whole.sum() == 2
    top = result.to_pandas().iloc[0]
    assert (top.site, top.alpha, top.said, top.whole, top.of) == ("encoder.0.x", 1.0, 2, 1, 3)
    assert list(result.by_clip("said").then) == ["A white lice.", "Lice.", "Lice!", "A white ship"]


def test_reach_tells_many_chances_from_one(result: MendingResult) -> None:
    below = result.reach()
    assert below.n.to_dict() == {
        "any encoder site": 2,
        "any decoder site": 0,
        "any site": 2,
        "best single site": 2,
        "best, chosen on other words": 0,  # what mends lice does nothing for the ship
    }
    assert below.at["best single site", "site"] == "encoder.0.x at 1"
    assert below.tries["any site"] == 4
    assert result.reach(most=2.0).n["any site"] == 3
    assert result.reach(whole=True).n["any site"] == 1
    assert result.reach("other").n["any decoder site"] == 1
    with pytest.raises(ResultError, match="none is at most"):
        result.reach(most=0.1)


def test_results_are_kept_and_drawn(result: MendingResult, tmp_path: Path) -> None:
    result.save(tmp_path / "r.json")
    assert MendingResult.load(tmp_path / "r.json").to_pandas().equals(result.to_pandas())
    (tmp_path / "no.json").write_text(json.dumps({"clips": 1}))
    with pytest.raises(ResultError, match="holds no saved mending"):
        MendingResult.load(tmp_path / "no.json")
    drawn = json.dumps(result.plot().to_dict())
    assert "encoder.0.x" in drawn
    assert "decoder.0.x" in drawn
    assert "neighbour" in json.dumps(result.plot_verdicts().to_dict())


@pytest.mark.parametrize(("count", "of"), [(0, 10), (5, 10), (10, 10), (136, 153)])
def test_intervals_of_shares_are_scipys(count: int, of: int) -> None:
    theirs = binomtest(count, of).proportion_ci(method="wilson")
    assert np.allclose(share_interval(count, of), theirs)


def test_pairs_for_a_sweep_are_measured_by_the_two_words_and_find_their_twins(
    result: MendingResult,
) -> None:
    one, two, ship = result.clips
    twin = replace(one, id="t", audio="twin", text="A white rice.", word="rice", neighbour="lice")
    rows = word_pairs([one, ship], among=[twin, two, replace(twin, group="another voice")])
    assert [(row["id"], row["reference"]) for row in rows] == [("a", "twin")]
    (first, *_), last = rows, word_pairs([ship])[0]
    assert first["metric"] == "preference:lice/rice"
    assert first["text"] == "A white rice."  # as it was heard
    assert first["group"] == "lice/rice"
    assert "reference" not in last
