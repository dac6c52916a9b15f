"""Reading features of the bundled model: those that were made to tell phones are found to do so."""

import json
import random

import numpy as np
import pytest
import soundfile
import torch
from sae_tiny import made

from hooked_asr import HookedWhisper
from hooked_asr.nano.clips import one_sentence
from hooked_asr.nano.corpus import bare, speak_set
from hooked_asr.probes import random_weights
from hooked_asr.sae.reading.read import read_features

pytestmark = pytest.mark.long

SITE = "encoder.3.hook_resid_post"
N_FITTED, N_READ, N_PHONES = 50, 40, 20


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """English sentences; the last ones, to be read, by voices that the first ones do not have."""
    folder, draw = tmp_path_factory.mktemp("clips"), random.Random(0)
    plans = [one_sentence(draw, "en", evaluated=i >= N_FITTED) for i in range(N_FITTED + N_READ)]
    rows = []
    for i, clip in enumerate(speak_set(plans, seed=0)):
        soundfile.write(folder / f"{i}.wav", clip.samples, 16_000)
        phones = [[bare(one.text), one.start, one.end] for one in clip.phones if bare(one.text)]
        row = {"audio": f"{i}.wav", "language": "en", "group": clip.plan.voice.speaker}
        rows.append(row | {"sex": clip.plan.voice.sex, "phones": phones})
    (folder / "read.jsonl").write_text("\n".join(map(json.dumps, rows[N_FITTED:])))
    return folder, rows[:N_FITTED]


def made_for_phones(model, folder, rows):
    """An autoencoder whose feature i is active where a ridge regression tells phone i."""
    inputs, said = [], []
    for row in rows:
        path = folder / row["audio"]
        encoded = model.run_with_cache(model.to_mel(path), torch.tensor([[0]]), names_filter=SITE)[
            1
        ][SITE][0]
        n = int(soundfile.info(path).duration * 50)
        centres = np.arange(n) * 0.02 + 0.01
        labels = np.full(n, "", object)
        for phone, start, end in row["phones"]:
            labels[(centres >= start) & (centres < end)] = phone
        inputs.append(encoded[:n])
        said.append(labels)
    x, labels = torch.cat(inputs).double(), np.concatenate(said)
    names, counts = np.unique(labels[labels != ""].astype(str), return_counts=True)
    phones = names[np.argsort(-counts)][:N_PHONES].tolist()
    y = torch.tensor(np.stack([labels == one for one in phones], 1)).double()
    mean, scale = x.mean(0), x.std(0) + 1e-6
    z = (x - mean) / scale
    gram = z.T @ z + 10.0 * torch.eye(z.shape[1])
    weight = torch.linalg.solve(gram, z.T @ (y - y.mean(0))) / scale[:, None]
    sae = made(model, SITE, N_PHONES)
    with torch.no_grad():
        sae.sae.W_enc.copy_(weight)
        sae.sae.b_enc.copy_(y.mean(0) - mean @ weight)
        sae.sae.b_dec.zero_()
    return sae, phones


@pytest.fixture(scope="module")
def own(model, corpus):
    return made_for_phones(model, *corpus)


def read(sae, model, corpus, **options):
    folder, _ = corpus
    options = {"phones": "phones", "labels": [], "progress": False, **options}
    return read_features(sae, model, folder / "read.jsonl", **options)


def test_features_made_for_phones_tell_them_of_new_voices_and_on_random_weights_do_not(
    model, corpus, own
):
    other, (sae, phones) = random_weights(model), own
    control = read(made_for_phones(other, *corpus)[0], other, corpus)
    found = read(sae, model, corpus, control=control)
    table = found.table("phone").set_index("feature")["label"]
    right = sum(table[i] == phone for i, phone in enumerate(phones) if i in table)
    assert right >= 0.9 * N_PHONES
    counts = found.count("phone", 0.6)
    assert counts["features"] >= 10
    assert counts["shuffled"] == 0
    assert counts["random"] <= counts["features"] / 3
    under = [one for i, phone in enumerate(phones) for one in found.features[i].excerpts[:3]]
    hits = sum(one.under.get("phone") == phones[n // 3] for n, one in enumerate(under))
    assert hits >= 0.8 * len(under)


def test_labels_that_come_late_are_found_with_a_lag(model, corpus, own):
    """Labels of another moment than their features: a phone away, and set right again."""
    folder, _ = corpus
    lines = [json.loads(line) for line in (folder / "read.jsonl").read_text().splitlines()]
    early = {
        one["audio"]: [[phone, a - 0.06, b - 0.06] for phone, a, b in one["phones"] if a > 0.06]
        for one in lines
    }
    told = [
        read(own[0], model, corpus, phones=early, lag=lag).association("phone").best_f1().mean()
        for lag in (0.0, 0.06)
    ]
    assert told[1] > told[0] + 0.2
