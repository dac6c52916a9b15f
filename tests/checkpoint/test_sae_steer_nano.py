"""Steering the bundled model by features: another language told, and no text where nobody speaks.

The autoencoders are small, fitted here in seconds; voices, sentences and noises that are steered
are not those that features were fitted to, or picked by.
"""

import random

import numpy as np
import pytest
import soundfile
import torch

from hooked_asr import HookedWhisper
from hooked_asr.audio import load_audio
from hooked_asr.nano.clips import one_sentence, speak
from hooked_asr.nano.espeak import Espeak
from hooked_asr.sae import SparseAutoencoder
from hooked_asr.sae.attribution.attribute import attribute_features
from hooked_asr.sae.saelens import saelens
from hooked_asr.sae.steering.pick import pick_features
from hooked_asr.sae.steering.steer import steer_sweep

pytestmark = pytest.mark.long

TELLS_LANGUAGE, HEARS_HISS = "decoder.3.hook_resid_post", "encoder.0.hook_resid_post"
LEVELS = (-70.0, -65.0, -60.0)  # dBFS: the faint hiss that has text


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


def spoken(folder, language, n, held_out=False):
    draw, espeak, rows = random.Random(f"{language}{held_out}"), Espeak(seed=1), []
    while len(rows) < n:
        clip = speak(espeak, one_sentence(draw, language, evaluated=held_out))
        if clip.seconds > 6:
            continue
        path = folder / f"{language}-{held_out}-{len(rows)}.wav"
        soundfile.write(path, clip.samples.astype(np.float32) / 2**15, 16000, subtype="FLOAT")
        about = {"text": clip.text, "language": language, "group": clip.plan.voice.speaker}
        rows.append({"audio": path, "id": path.name, "sound": "speech", **about})
    return rows


def hisses(folder, n, seed):
    draw, rows = np.random.default_rng(seed), []
    for i in range(n):
        samples = draw.standard_normal(int(draw.uniform(1, 6) * 16000))
        path = folder / f"hiss-{seed}-{i}.wav"
        level = 10 ** (LEVELS[i % len(LEVELS)] / 20)
        soundfile.write(path, (level * samples).astype(np.float32), 16000, subtype="FLOAT")
        rows.append({"audio": path, "id": path.name, "sound": "hiss", "text": ""})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sounds")


@pytest.fixture(scope="module")
def speech(folder):
    return [row for language in ("en", "es", "de") for row in spoken(folder, language, 10)]


@pytest.fixture(scope="module")
def english(folder):
    return spoken(folder, "en", 6, held_out=True)


def fitted(model, site, x, n_features, k, steps):
    """A top-k autoencoder of rows `[row d]`, by Adam."""
    lens, draw = saelens(), torch.Generator().manual_seed(0)
    mean, d = x.mean(0), x.shape[1]
    scale = (x - mean).norm(dim=1).mean() / d**0.5
    y = (x - mean) / scale
    write = torch.randn(n_features, d, generator=draw)
    write /= write.norm(dim=1, keepdim=True)
    read = write.T.clone().requires_grad_()
    write.requires_grad_()
    adam = torch.optim.Adam([read, write], lr=2e-3)
    with torch.enable_grad():
        for _ in range(steps):
            rows = y[torch.randint(len(y), (256,), generator=draw)]
            top = (rows @ read).relu().topk(k, dim=1)
            features = torch.zeros(len(rows), n_features).scatter(1, top.indices, top.values)
            adam.zero_grad()
            (rows - features @ write).pow(2).sum(1).mean().backward()
            adam.step()
            write.data /= write.data.norm(dim=1, keepdim=True)
    sae = lens.TopKSAE(lens.TopKSAEConfig(d_in=d, d_sae=n_features, k=k))
    sae.W_enc.data, sae.W_dec.data = read.data, write.data
    sae.b_enc.data, sae.b_dec.data = torch.zeros(n_features), mean
    return SparseAutoencoder(sae, site)


@pytest.fixture(scope="module")
def of_language(model, speech):
    """Of the stream at the start token, behind which the language is told."""
    with torch.no_grad():
        mel = model.to_mel([row["audio"] for row in speech])
        start = torch.tensor([model.prompt("en")[:1]] * len(speech))
        _, cache = model.run_with_cache(mel, start, names_filter=TELLS_LANGUAGE)
    return fitted(model, TELLS_LANGUAGE, cache[TELLS_LANGUAGE][:, 0], 24, 3, 300)


@pytest.fixture(scope="module")
def of_hiss(model, speech, folder):
    rows = []
    with torch.no_grad():
        for clip in [*speech, *hisses(folder, 12, seed=0)]:
            samples = load_audio(clip["audio"])
            start = torch.tensor([model.prompt("en")])
            _, cache = model.run_with_cache(model.to_mel(samples), start, names_filter=HEARS_HISS)
            rows.append(cache[HEARS_HISS][0, : len(samples) // 320])
    return fitted(model, HEARS_HISS, torch.cat(rows), 256, 10, 250)


def test_english_is_told_as_german_by_features_of_german(model, of_language, speech, english):
    where = {"positions": [0], "progress": False}
    german = pick_features(of_language, model, speech, "language", "de", n=3, **where)
    own = pick_features(of_language, model, speech, "language", "en", n=3, **where)
    # Some times as active as they are in German on average, and what is active in English gone.
    values = dict.fromkeys(own.features, 0.0) | german.values
    sweep = steer_sweep(of_language, model, english, values, [0.0, 2.0], together=True, **where)
    table = sweep.to_pandas(language="de").set_index("strength")
    assert {clip.before.language for clip in sweep.effect.clips} == {"en"}
    assert table["identified"][0.0] <= 0.2
    assert table["identified"][2.0] >= 0.5
    assert table["probability"][2.0] >= 0.5


def test_no_text_is_invented_where_features_of_hiss_are_gone(
    model, of_hiss, speech, english, folder
):
    known = [*speech, *hisses(folder, 12, seed=0)]
    pick = pick_features(of_hiss, model, known, "sound", "hiss", n=3, progress=False)
    ablation = {"how": "ablate", "together": True, "progress": False}
    silenced, heard = (
        steer_sweep(of_hiss, model, clips, pick.features, language=language, **ablation).to_pandas()
        for clips, language in ((hisses(folder, 9, seed=1), None), (english, "own"))
    )
    assert silenced["with_text_before"][0] >= 0.8
    assert silenced["with_text"][0] <= silenced["with_text_before"][0] / 2
    assert heard["wer"][0] <= heard["wer_before"][0] + 0.01


def test_attribution_finds_the_features_that_invent_the_text(model, of_hiss, folder):
    (clip,) = hisses(folder, 3, seed=2)[2:]
    (heard,) = model.generate(str(clip["audio"]))
    assert heard.text
    inputs = model.to_inputs(str(clip["audio"]), heard.text, language=heard.language)
    n_prompt = len(model.prompt(heard.language))
    end = model.generation_config.eos_token_id

    def text_rather_than_none(logits):
        here = logits[:, n_prompt - 1]
        return here[:, heard.tokens[0]] - here[:, end]

    found = attribute_features(
        of_hiss, model, inputs, text_rather_than_none, method="integrated", top_exact=5,
        progress=False,
    )  # fmt: skip
    # The one that is picked for being active in hiss is among those that carry its text.
    known = [*hisses(folder, 6, seed=3), *spoken(folder, "en", 6)]
    pick = pick_features(of_hiss, model, known, "sound", "hiss", n=1, progress=False)
    assert pick.features[0] in found.by_feature()["feature"].head(5).tolist()
    assert found.exact[pick.features[0]] < 0
