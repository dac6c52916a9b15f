"""Dictionaries of principal components in the bundled model: their worth is known beforehand."""

import pytest
import torch

from hooked_asr import HookedWhisper
from hooked_asr.features import harvest
from hooked_asr.nano import bundle
from hooked_asr.sae import SparseAutoencoder
from hooked_asr.sae.edits import ablate_features, add_features, clamp_features, splice
from hooked_asr.sae.measuring.measure import measure_sae
from hooked_asr.sae.saelens import saelens

SITE = "encoder.3.hook_resid_post"
CLIPS = [bundle.clip(name) for name in ("english", "scottish", "german", "likely")]
ROWS = [
    {"audio": one.path, "id": one.name, "text": one.text, "language": one.language} for one in CLIPS
]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def frames(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("frames")
    store = harvest(model, ROWS, SITE, pool="frames", out=out, progress=False)
    return torch.from_numpy(store[SITE][:]).double()


@pytest.fixture(scope="module")
def components(frames):
    """Principal components of the frames, the largest first, and the variance along each."""
    values, vectors = torch.linalg.eigh(frames.T.cov())
    return vectors.flip(1).T, values.flip(0)


@pytest.fixture(scope="module")
def dictionary(frames, components):
    def of(n):
        """Two features for each of the first `n` components: one for either way along it."""
        ways = torch.cat([components[0][:n], -components[0][:n]])
        config = saelens().StandardSAEConfig(d_in=ways.shape[1], d_sae=2 * n)
        sae = saelens().StandardSAE(config)
        sae.W_dec.copy_(ways)
        sae.W_enc.copy_(ways.T)
        sae.b_dec.copy_(frames.mean(0))
        sae.b_enc.zero_()
        return SparseAutoencoder(sae, SITE)

    return of


def test_principal_components_explain_their_eigenvalues(model, frames, components, dictionary):
    shares = components[1].cumsum(0) / components[1].sum()
    recovered, width = [], frames.shape[1]
    for n in (1, 16, width):
        found = measure_sae(dictionary(n), model, ROWS, progress=False, wer=n == width)
        assert found.explained_variance == pytest.approx(shares[n - 1].item(), abs=1e-5)
        assert found.l0 == pytest.approx(n, rel=1e-3)  # a coordinate of 0 has no feature
        recovered.append(found.loss_recovered)
    assert recovered == sorted(recovered)
    assert recovered[0] < 0.5
    assert recovered[-1] == pytest.approx(1.0, abs=1e-4)
    values = found.to_pandas().set_index("measure")["value"]
    assert values["wer_own"] == 0
    assert values["kl"] < 1e-6


def test_rows_are_decodings_of_their_own(model, dictionary):
    few, all_of_them = dictionary(4), dictionary(192)
    rows = [
        splice(few, seconds=(0.0, 1.0)),
        ablate_features(all_of_them, range(3)),
        clamp_features(all_of_them, {0: 20.0, 192: 0.0}, seconds=(0.5, 1.5)),
        add_features(all_of_them, {5: 40.0}),
        splice(all_of_them),
    ]
    sound = CLIPS[0].path
    together = model.generate_rows(sound, [[], *rows], language="en")
    alone = [model.generate(sound, interventions=[row], language="en")[0] for row in rows]
    assert [one.tokens for one in together[1:]] == [one.tokens for one in alone]
    assert together[0].text == together[-1].text == CLIPS[0].text
    assert len({one.text for one in together[:3]}) > 1


def test_features_taken_out_are_components_projected_out(model, components, dictionary):
    mel = model.to_mel(CLIPS[0].path)
    _, cache = model.run_with_cache(mel, torch.tensor([model.prompt("en")]), names_filter=SITE)
    sae, x = dictionary(192), cache[SITE].double()
    # Less the mean, which is no feature's.
    centred = x - sae.sae.b_dec.double()
    kept = components[0][2:]
    expected = centred @ kept.T @ kept + sae.sae.b_dec.double()
    _, edited = model.run_with_cache(
        mel,
        torch.tensor([model.prompt("en")]),
        names_filter=SITE,
        fwd_hooks=[ablate_features(sae, [0, 1, 192, 193])],
    )
    assert torch.allclose(edited[SITE].double(), expected, atol=1e-3)
