"""A sparse autoencoder of the genuine tiny.en encoder, on speakers that it was not trained on."""

import pytest
import torch
from sklearn.metrics import r2_score

from hooked_asr import HookedWhisper
from hooked_asr.features import harvest
from hooked_asr.sae import SparseAutoencoder
from hooked_asr.sae.training.train import train_sae

pytestmark = pytest.mark.long

SITE = "encoder.3.hook_resid_post"


def test_other_speakers_are_explained(shared, refit, tmp_path):
    model = HookedWhisper.from_pretrained(refit, dtype=torch.float32)
    speakers = sorted((shared / "audio" / "librispeech_train_clean_100").glob("*.flac"))[:16]
    asked = {"width": "2x", "k": 32, "frames": 256 * 120, "batch_size": 256, "progress": False}
    train_sae(model, speakers[:12], SITE, out=tmp_path / "sae", **asked)
    sae = SparseAutoencoder.load(tmp_path / "sae", model)
    others = harvest(
        model, speakers[12:], SITE, pool="frames", out=tmp_path / "others", progress=False
    )
    x = others[SITE][:]
    features = sae.encode(torch.from_numpy(x))
    # The share of the squares about the mean, over all dimensions together.
    told = r2_score(x, sae.decode(features), multioutput="variance_weighted")
    assert told >= 0.85
    assert features.bool().sum(1).float().mean() == pytest.approx(32, abs=8)
