"""Steering by features, and picking them: against whole decodings and counts one by one."""

import numpy as np
import pytest
import soundfile
import torch
from sae_tiny import made
from sklearn.metrics import roc_auc_score
from tiny_checkpoint import save_checkpoint

from hooked_asr import HookedWhisper
from hooked_asr.lenses import forced_run
from hooked_asr.patching.saving import ResultError
from hooked_asr.sae import SAEError
from hooked_asr.sae.edits import add_features, clamp_features, scale_features
from hooked_asr.sae.steering.pick import pick_features, telling_apart
from hooked_asr.sae.steering.result import SteerSweep
from hooked_asr.sae.steering.steer import feature_doses, steer_sweep

AUDIO, TEXT = "encoder.0.hook_resid_post", "decoder.0.hook_resid_post"
HEARD = {"clip 0": 25, "clip 1": 40, "clip 2": 13, "clip 3": 50}  # encoder positions with sound


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return HookedWhisper.from_pretrained(
        save_checkpoint(tmp_path_factory.mktemp("tiny"), "multilingual")
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    rows = []
    for i, (name, positions) in enumerate(HEARD.items()):
        path = folder / f"{i}.wav"
        soundfile.write(path, draw.normal(0, 0.1, 320 * positions), 16000)
        sound = {"audio": path, "id": name, "text": "ask not", "language": "en"}
        rows.append(sound | {"colour": "red" if i < 2 else "blue"})
    return rows


def test_each_feature_and_strength_is_a_decoding_of_its_own(whisper, clips):
    sae = made(whisper, AUDIO)
    sweep = steer_sweep(sae, whisper, clips[:2], {3: 1.0, 5: 2.0}, [0.0, 4.0], progress=False)
    table = sweep.to_pandas(language="de")
    assert table["name"].tolist() == ["feature 3"] * 2 + ["feature 5"] * 2
    assert table["strength"].tolist() == [0.0, 4.0] * 2
    for dose, values in enumerate([{3: 0.0}, {3: 4.0}, {5: 0.0}, {5: 8.0}]):
        edit = clamp_features(sae, values)
        for clip, outcome in zip(clips, sweep.effect.outcomes[dose], strict=False):
            (heard,) = whisper.generate(str(clip["audio"]), interventions=[edit])
            assert (outcome.text, outcome.language) == (heard.text, heard.language)
            start = torch.tensor([[whisper.generation_config.decoder_start_token_id]])
            mel = whisper.to_mel(str(clip["audio"]))
            logits = whisper.run_with_hooks(mel, start, fwd_hooks=[edit])[0, -1]
            ids = whisper.generation_config.lang_to_id
            shares = logits[list(ids.values())].softmax(-1)
            expected = dict(zip([name[2:-2] for name in ids], shares.tolist(), strict=True))
            assert outcome.languages == pytest.approx(expected, abs=1e-5)
    shares = [one.languages["de"] for one in sweep.effect.outcomes[3]]
    assert table["probability"].iloc[3] == pytest.approx(np.mean(shares))
    texts = [one.text for one in sweep.effect.outcomes[1]]
    assert table["with_text"].iloc[1] == np.mean([text != "" for text in texts])


def test_a_set_is_edited_together_and_where_it_is_asked_for(whisper, clips):
    sae = made(whisper, TEXT)
    one = feature_doses(sae, [3, 5], [2.0], together=True, positions=[0])
    (edit,) = one[0].interventions
    assert (one[0].name, one[0].strength) == ("features 3, 5", 2.0)
    assert (edit.site.hook, edit.site.positions) == (TEXT, (0,))
    mel, start = whisper.to_mel(str(clips[0]["audio"])), torch.tensor([whisper.prompt("en")])
    by_hand = {
        "clamp": clamp_features(sae, {3: 2.0, 5: 2.0}),
        "add": add_features(sae, {3: 2.0, 5: 2.0}),
        "scale": scale_features(sae, [3, 5], 2.0),
        "ablate": scale_features(sae, [3, 5], 0.0),
    }
    clean = whisper(mel, start)
    for how, expected in by_hand.items():
        strengths = None if how == "ablate" else [2.0]
        (dose,) = feature_doses(sae, [3, 5], strengths, how, together=True)
        logits = whisper.run_with_hooks(mel, start, fwd_hooks=list(dose.interventions))
        torch.testing.assert_close(
            logits, whisper.run_with_hooks(mel, start, fwd_hooks=[expected]), rtol=0, atol=1e-5
        )
        assert (logits - clean).abs().max() > 1e-3, how
    units = torch.arange(sae.n_features).float()
    (scaled,) = feature_doses(sae, [3], [2.0], units=units)
    assert scaled.interventions[0].action.values == (6.0,)


def test_what_came_of_it_is_kept_drawn_and_reported(whisper, clips, tmp_path):
    sae = made(whisper, TEXT)
    sweep = steer_sweep(sae, whisper, clips[:2], [3], how="ablate", progress=False)
    sweep.save(tmp_path / "sweep.json")
    back = SteerSweep.load(tmp_path / "sweep.json")
    assert back.to_pandas("de").equals(sweep.to_pandas("de"))
    assert (back.how, back.site, back.features) == ("ablate", TEXT, [3])
    sweep.report(tmp_path / "sweep.html", "de")
    page = (tmp_path / "sweep.html").read_text()
    assert "feature 3" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # it needs no network
    with pytest.raises(ResultError):
        sweep.report(tmp_path / "sweep.txt")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"how": "push"}, "clamp, add, scale, ablate"),
        ({"features": []}, "no features"),
        ({"how": "ablate", "strengths": [1.0]}, "leave strengths out"),
        ({"how": "scale", "features": {3: 2.0}}, "leave out their values"),
        ({"strengths": []}, "no strengths"),
        ({"features": [24]}, "features 0 to 23"),
        ({"features": [24], "units": torch.ones(24)}, "units of 24"),
    ],
)
def test_what_cannot_be_steered_is_refused(whisper, options, reason):
    sae = made(whisper, TEXT)
    with pytest.raises(SAEError, match=reason):
        feature_doses(**{"sae": sae, "features": [3]} | options)


def test_the_command_line_steers(run, whisper, clips, tmp_path):
    made(whisper, TEXT).save(tmp_path / "sae")
    audio = clips[0]["audio"]
    words = ["sae", "steer", tmp_path / "sae", audio, "--model", whisper.name, "--features", "3,5"]
    more = ["--how", "scale", "--strengths", "1,3", "--towards", "de", "--out", tmp_path / "out"]
    done = run(*words, *more)
    assert done.code == 0, done.err
    assert [line.split("  ")[0] for line in done.lines[1:5]] == [
        "feature 3: 1",
        "feature 3: 3",
        "feature 5: 1",
        "feature 5: 3",
    ]
    table = SteerSweep.load(tmp_path / "out" / "steering.json").to_pandas("de")
    assert table["changed"].tolist()[::2] == [0.0, 0.0]  # by 1 nothing changes
    assert (tmp_path / "out" / "steering.html").exists()
    wrong = run(*words[:-1], "many", *more)
    assert wrong.code == 2
    assert "--features are numbers" in wrong.err


# --- Picking --------------------------------------------------------------------------------------


def test_features_are_ranked_by_their_means_over_what_is_heard(whisper, clips):
    sae = made(whisper, AUDIO)
    pick = pick_features(sae, whisper, clips, "colour", "red", n=4, progress=False)
    means, most = [], []
    for clip in clips:
        mel = whisper.to_mel(str(clip["audio"]))
        _, cache = whisper.run_with_cache(mel, torch.tensor([[0]]), names_filter=AUDIO)
        features = sae.encode(cache[AUDIO][0, : HEARD[clip["id"]]])
        means.append(features.mean(0))
        most.append(features.amax(0))
    means = torch.stack(means).numpy()
    difference = means[:2].mean(0) - means[2:].mean(0)
    np.testing.assert_allclose(pick.table["difference"], difference, rtol=1e-4, atol=1e-6)
    telling = [i for i in np.argsort(-difference) if pick.table["auc"][i] >= 0.5]
    assert pick.features == telling[:4]
    torch.testing.assert_close(pick.greatest, torch.stack(most).amax(0), rtol=1e-4, atol=1e-5)
    assert pick.values == pytest.approx(
        {i: means[:2, i].mean() for i in pick.features}, rel=1e-4, abs=1e-6
    )


def test_in_a_decoder_positions_are_of_prompt_and_text(whisper, clips):
    sae = made(whisper, TEXT)
    pick = pick_features(
        sae, whisper, clips, "colour", "red", n=2, positions=[0, 4], progress=False
    )
    means = []
    for clip in clips:
        run = forced_run(whisper, clip["audio"], "ask not", language="en")
        _, cache = whisper.run_with_cache(**run.inputs, names_filter=TEXT)
        means.append(sae.encode(cache[TEXT][0, [0, 4]]).mean(0))
    expected = torch.stack(means[:2]).mean(0)
    np.testing.assert_allclose(pick.table["towards"], expected, rtol=1e-4, atol=1e-6)


def test_sets_that_have_names_are_each_edited_as_one(whisper, clips):
    sae = made(whisper, AUDIO)
    sets = {"warm": {3: 2.0, 5: 0.0}, "cold": [7]}
    sweep = steer_sweep(sae, whisper, clips[:1], sets, [3.0], progress=False)
    assert [one.name for one in sweep.effect.doses] == ["warm", "cold"]
    assert (sweep.features, sweep.together) == ([3, 5, 7], True)
    for outcomes, values in zip(sweep.effect.outcomes, [{3: 6.0, 5: 0.0}, {7: 3.0}], strict=True):
        edit = clamp_features(sae, values)
        (heard,) = whisper.generate(str(clips[0]["audio"]), interventions=[edit])
        assert outcomes[0].text == heard.text
    gone = feature_doses(sae, {"one": [3], "both": [3, 5]}, how="ablate")
    assert [one.interventions[0].action.features for one in gone] == [(3,), (3, 5)]
    units = torch.arange(24.0)
    (dose,) = feature_doses(sae, {"warm": [3]}, [2.0], units=units)
    assert dose.interventions[0].action.values == (6.0,)
    for empty in ({}, {"warm": [3], "none": []}):
        with pytest.raises(SAEError, match="no features to steer"):
            feature_doses(sae, empty)


def test_how_features_tell_classes_apart_is_as_defined():
    draw = np.random.default_rng(0)
    means, mine = draw.integers(0, 4, (30, 6)).astype(float), draw.random(30) < 0.4
    means[:, 5] = 2.0
    table = telling_apart(means, mine)
    expected = [roc_auc_score(mine, column) for column in means.T]
    np.testing.assert_allclose(table["auc"], expected)
    assert table["standardised"][5] == 0.0
    z = (means[:, 0] - means[:, 0].mean()) / means[:, 0].std()
    assert table["standardised"][0] == pytest.approx(z[mine].mean() - z[~mine].mean())


def test_a_class_that_is_none_is_refused(whisper, clips):
    sae = made(whisper, AUDIO)
    with pytest.raises(SAEError, match="no clip is colour green: the clips have blue, red"):
        pick_features(sae, whisper, clips, "colour", "green", progress=False)
    with pytest.raises(SAEError, match="every clip is language en"):
        pick_features(sae, whisper, clips, "language", "en", progress=False)
    with pytest.raises(SAEError, match="no clip has a 'mood'"):
        pick_features(sae, whisper, clips, "mood", "good", progress=False)
    with pytest.raises(SAEError, match="positions 0 to"):
        pick_features(sae, whisper, clips, "colour", "red", positions=[99], progress=False)
    with pytest.raises(SAEError, match="difference, standardised, auc"):
        pick_features(sae, whisper, clips, "colour", "red", by="size", progress=False)
