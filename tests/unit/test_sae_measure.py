"""Measures of autoencoders: against loops written by hand, and those whose worth is known."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sae_tiny import made
from tiny_checkpoint import save_checkpoint as save_whisper
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen2

from hooked_asr import HookedQwen2Audio, HookedWhisper
from hooked_asr.features import harvest
from hooked_asr.patching.saving import ResultError
from hooked_asr.records import RecordsError
from hooked_asr.sae import SAEError, SparseAutoencoder
from hooked_asr.sae.measuring import measure as measure_module
from hooked_asr.sae.measuring.frontier import frontier
from hooked_asr.sae.measuring.loss import clip_losses
from hooked_asr.sae.measuring.measure import measure_sae
from hooked_asr.sae.measuring.ratios import ratio
from hooked_asr.sae.measuring.result import SAEMeasures
from hooked_asr.sae.saelens import saelens
from hooked_asr.speech import normaliser, wer
from hooked_asr.weights.fingerprint import fingerprint

RATE = 16_000
SAMPLES = [16_000, 9_999, 4_801]  # a window of the tiny models is one second
TEXTS = ["ask it", "no", "me her no"]
HEARD, HEADS, TEXT = "encoder.0.hook_resid_post", "encoder.1.attn.hook_z", "decoder.0.hook_mlp_out"


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    place = tmp_path_factory.mktemp("clips")
    draw = np.random.default_rng(0)
    lines = []
    for i, (n, text) in enumerate(zip(SAMPLES, TEXTS, strict=True)):
        sound = draw.normal(0, 0.1, n) * np.sin(np.arange(n) / (20 + 9 * i))
        soundfile.write(place / f"{i}.wav", sound, RATE)
        lines.append({"audio": f"{i}.wav", "text": text})
    (place / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return place / "clips.jsonl"


@pytest.fixture(scope="module", params=["whisper", "qwen2"])
def family(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    kind, save = {
        "whisper": (HookedWhisper, save_whisper),
        "qwen2": (HookedQwen2Audio, save_qwen2),
    }[request.param]
    return request.param, kind.from_pretrained(save(path), dtype=torch.float32)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    path = save_whisper(tmp_path_factory.mktemp("whisper"))
    return HookedWhisper.from_pretrained(path, dtype=torch.float32)


def rows_of(model, clips, site, out, **options):
    """The site's rows as a feature store holds them."""
    pool = "tokens" if site.startswith("decoder") else "frames"
    store = harvest(model, clips, site, pool=pool, out=out, progress=False, **options)
    return torch.from_numpy(store[site][:]), store.table()["clip"].to_numpy()


def handmade(model, site, w_enc, b_enc, w_dec, b_dec):
    config = saelens().StandardSAEConfig(d_in=len(b_dec), d_sae=len(b_enc))
    config.metadata["hooked_asr_weights"] = fingerprint(model)
    sae = saelens().StandardSAE(config)
    for name, value in {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec}.items():
        getattr(sae, name).copy_(value)
    return SparseAutoencoder(sae, site)


def perfect(model, site, d):
    """Every dimension has a feature each way: x = relu(x) - relu(-x)."""
    eye = torch.eye(d)
    both = torch.cat([eye, -eye])
    return handmade(model, site, both.T, torch.zeros(2 * d), both, torch.zeros(d))


def constant(model, site, value):
    """Gives one vector, whatever it reads."""
    d = len(value)
    return handmade(model, site, torch.zeros(d, 5), -torch.ones(5), torch.zeros(5, d), value)


def measured(sae, model, clips, **options):
    return measure_sae(sae, model, clips, progress=False, **{"batch_size": 3} | options)


def table(measures):
    return measures.to_pandas().set_index("measure")["value"]


# --- Autoencoders whose worth is known ------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("site", [HEARD, TEXT])
def test_a_perfect_dictionary_changes_nothing(family, clips, site):
    _, model = family
    d = math.prod(model.hook_table[site].shape(model.config, 1, 1)[2:])
    found = measured(perfect(model, site, d), model, clips)
    values = table(found)
    assert values["explained_variance"] == pytest.approx(1.0, abs=1e-10)
    assert values["l0"] == d
    assert values["loss_spliced"] == pytest.approx(values["loss"], abs=1e-5)
    assert values["loss_recovered"] == pytest.approx(1.0, abs=1e-3)
    assert values["loss_recovered_zero"] == pytest.approx(1.0, abs=1e-3)
    assert values["kl"] == pytest.approx(0.0, abs=1e-6)
    assert values["wer_spliced"] == values["wer"] > 0
    assert values["wer_own"] == 0
    assert all(clip.losses.text == clip.losses.text_spliced for clip in found.clips)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("site", [HEARD, TEXT])
def test_the_mean_alone_explains_nothing(family, clips, site, tmp_path):
    _, model = family
    mean = rows_of(model, clips, site, tmp_path)[0].double().mean(0)
    found = measured(constant(model, site, mean), model, clips, wer=False)
    values = table(found)
    assert values["explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert (values["l0"], values["dead"], found.dead) == (0, 1, [*range(5)])
    assert values["loss_mean"] == pytest.approx(values["loss_spliced"], abs=1e-5)
    assert values["loss_recovered"] == pytest.approx(0.0, abs=1e-3)
    assert values["kl"] > 1e-4
    assert np.isnan(values["wer_spliced"])
    assert found.rows_with == [sum(clip.rows for clip in found.clips)]


# --- Against loops --------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [HEARD, HEADS, TEXT])
def test_sums_are_those_of_a_loop_and_of_saelens(family, clips, site, tmp_path):
    _, model = family
    sae = made(model, site)
    rows, of = rows_of(model, clips, site, tmp_path, texts="text")
    # So little memory that every row is a chunk of its own.
    found = measured(sae, model, clips, texts="text", losses=False, memory=1)
    from sae_lens.evals import ExplainedVarianceCalculator

    theirs = ExplainedVarianceCalculator()
    theirs.add_batch(sae.sae(rows), rows)
    assert found.explained_variance == pytest.approx(theirs.compute(), rel=1e-4)  # float32
    wide, rebuilt = rows.double(), sae.sae(rows).double()
    left = (wide - rebuilt).square().sum() / (wide - wide.mean(0)).square().sum()
    assert found.explained_variance == pytest.approx(1 - left.item(), rel=1e-6)
    active = torch.stack([sae.sae.encode(row) for row in rows]) > 0
    each = active.sum(1)
    assert found.l0 == pytest.approx(each.double().mean().item())
    assert found.density == pytest.approx(active.double().mean(0).tolist())
    assert found.rows_with == each.bincount().tolist()
    assert found.greatest == pytest.approx(sae.sae.encode(rows).amax(0).tolist(), rel=1e-5)
    for number, clip in enumerate(found.by_clip().itertuples()):
        own = rows[of == clip.id].double()
        assert clip.rows == len(own) > 0, number
        spread = (own - rows.double().mean(0)).square().sum().item()
        assert clip.spread == pytest.approx(spread, rel=1e-6)
        error = (own - sae.sae(own.float()).double()).square().sum().item()
        assert clip.error == pytest.approx(error, rel=1e-5)
    assert np.isnan(table(found)["loss"])


class ByHand:
    """One clip of a model, forced and decoded under a plain hook function."""

    def __init__(self, model, path, site, text=None):
        self.model, self.site = model, site
        self.prompt = model.to_inputs(path, **model.settled(path))
        self.n_prompt = self.prompt["tokens"].shape[1]
        self.n_real = math.ceil(soundfile.info(path).frames / 320)
        if text is None:
            said = self.decoded(lambda x: x).tokens
        else:
            longer = model.to_inputs(path, text=text, **model.settled(path))
            said = longer["tokens"][0, self.n_prompt :].tolist()
        ends = model.generation_config.eos_token_id
        self.said = torch.tensor([*said, ends[0] if isinstance(ends, list) else ends])

    def hooks(self, change):
        """Positions of text, or of sound, one by one."""

        def hook(x, hook):
            for i, position in enumerate(hook.positions):
                if position >= self.n_prompt if self.site == TEXT else position < self.n_real:
                    x[:, i] = change(x[:, i])

        return [(self.site, hook)]

    def decoded(self, change):
        hooks = {"fwd_hooks": self.hooks(change)}
        if "attention_mask" in self.prompt:
            return self.model.generate(**self.prompt, **hooks)[0]
        return self.model.generate(self.prompt["mel"], **hooks)[0]

    def log_probs(self, change):
        """`[said d_vocab]`: of what may come in each place of what is said."""
        inputs = dict(self.prompt)
        inputs["tokens"] = torch.cat([inputs["tokens"], self.said[None]], 1)
        if "attention_mask" in inputs:
            inputs["attention_mask"] = torch.ones_like(inputs["tokens"])
        logits = self.model.run_with_hooks(**inputs, fwd_hooks=self.hooks(change))
        return logits[0, self.n_prompt - 1 : -1].double().log_softmax(-1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("site", "texts"), [(HEARD, "text"), (TEXT, "heard")])
def test_losses_are_those_of_plain_hook_functions(family, clips, site, texts, tmp_path):
    _, model = family
    sae = made(model, site)
    rows, _ = rows_of(model, clips, site, tmp_path, texts=texts)
    found = measured(sae, model, clips, texts=texts)
    put = {
        "loss": lambda x: x,
        "loss_spliced": sae.sae,
        "loss_mean": lambda x: rows.mean(0).expand_as(x),
        "loss_zero": torch.zeros_like,
    }
    for i, clip in enumerate(found.clips):
        text = TEXTS[i] if texts == "text" else None
        own = ByHand(model, clips.parent / f"{i}.wav", site, text)
        logs = {measure: own.log_probs(change) for measure, change in put.items()}
        for measure, log_probs in logs.items():
            loss = -log_probs.gather(-1, own.said[:, None]).sum().item()
            assert getattr(clip.losses, measure) == pytest.approx(loss, rel=1e-4, abs=1e-4)
        assert clip.losses.tokens == len(own.said)
        moved = logs["loss"].exp() * (logs["loss"] - logs["loss_spliced"])
        assert clip.losses.kl == pytest.approx(moved.sum().item(), rel=1e-3, abs=1e-5)
        assert clip.losses.text == own.decoded(put["loss"]).text
        spliced = own.decoded(sae.sae).text
        assert clip.losses.text_spliced == spliced
        assert clip.losses.words == len(TEXTS[i].split())
        errors = wer(TEXTS[i], spliced, normaliser("en", model.tokenizer)) * clip.losses.words
        assert clip.losses.errors_spliced == pytest.approx(errors)
    each = found.by_clip()
    values = table(found)
    total = each[["loss", "loss_spliced", "loss_mean", "kl"]].sum()
    recovered = (total.loss_mean - total.loss_spliced) / (total.loss_mean - total.loss)
    assert values["loss_recovered"] == pytest.approx(recovered)
    assert values["kl"] == pytest.approx(total.kl / each.tokens.sum())


# --- Intervals ------------------------------------------------------------------------------------


def test_losses_that_are_kept_are_measured_once(whisper, clips, tmp_path, monkeypatch):
    sae = made(whisper, HEARD)
    plain = measure_sae(sae, whisper, clips, progress=False)
    done = []
    monkeypatch.setattr(
        measure_module, "clip_losses", lambda *said: done.append(said[1].id) or clip_losses(*said)
    )
    for _ in range(2):
        found = measure_sae(sae, whisper, clips, out=tmp_path, progress=False)
        assert found.clips == plain.clips
        assert done == [clip.id for clip in plain.clips]
    with pytest.raises(RecordsError, match="texts was"):
        measure_sae(sae, whisper, clips, texts="text", out=tmp_path, progress=False)


def test_intervals_are_as_wide_as_they_should_be():
    draw = np.random.default_rng(1)
    below = draw.uniform(1, 3, 400)
    above = below * 0.5 + draw.normal(0, 1, 400)
    found = ratio(above, below)
    assert found.value == pytest.approx(above.sum() / below.sum())
    # By the delta method: the residuals' spread over the mean below.
    error = (above - found.value * below).std() / below.mean() / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_groups_are_drawn_whole():
    above, below = np.array([0.0, 0.0, 1.0, 1.0]), np.ones(4)
    two = ratio(above, below, ["a", "a", "b", "b"])
    assert (two.value, two.low, two.high) == (0.5, 0.0, 1.0)
    assert two == ratio(above[::2], below[::2])
    one = ratio(above, below, ["a"] * 4)
    assert one.value == 0.5
    assert np.isnan([one.low, one.high]).all()
    assert np.isnan(ratio(np.full(2, np.nan), np.ones(2)).value)


# --- Files and figures ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(whisper, clips):
    with torch.no_grad():
        return measured(made(whisper, HEARD), whisper, clips)


def test_saved_and_read_again(found, tmp_path):
    found.save(tmp_path / "measures.json")
    again = SAEMeasures.load(tmp_path / "measures.json")
    pd.testing.assert_frame_equal(again.to_pandas(), found.to_pandas())
    assert (again.clips, again.rows_with) == (found.clips, found.rows_with)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ResultError, match="holds no measures of an autoencoder"):
        SAEMeasures.load(tmp_path / "other.json")
    features = found.features()
    assert features["density"].tolist() == found.density
    with pytest.raises(ResultError, match="measures are dead, explained_variance"):
        found.estimate("ev")


def test_figures_count_every_feature_and_position(found, tmp_path):
    density, positions = found.plot().to_dict()["hconcat"]
    counted = [sum(one["features"] for one in density["data"]["values"])]
    counted += [sum(one["positions"] for one in positions["data"]["values"])]
    alive = found.n_features - len(found.dead)
    assert counted == [alive, sum(clip.rows for clip in found.clips)]
    found.save(tmp_path / "measures.png")
    explained, kl = frontier({"a": found, "b": found}).to_dict()["hconcat"]
    values = table(found)
    for panel, measure in ((explained, "explained_variance"), (kl, "kl")):
        (points,) = (one["data"]["values"] for one in [panel])
        assert [(p["name"], p["l0"], p[measure]) for p in points] == [
            (name, values["l0"], values[measure]) for name in "ab"
        ]
    with pytest.raises(SAEError, match="no measures to show"):
        frontier({})


def test_without_losses_the_frontier_has_one_panel(whisper, clips):
    found = measured(made(whisper, HEARD), whisper, clips, losses=False)
    assert len(frontier({"a": found}).to_dict()["hconcat"]) == 1


def test_refusals(whisper, clips, tmp_path):
    sae = made(whisper, HEARD)
    for options, words in (
        ({"texts": "said"}, "texts is heard or text"),
        ({"batch_size": 0}, "at least 1 clip"),
        ({"prompt": "Go."}, "asked by language and task; got prompt"),
    ):
        with pytest.raises(SAEError, match=words):
            measured(sae, whisper, clips, **options)
    paths = [clips.parent / "0.wav"]
    with pytest.raises(SAEError, match="has no text to force"):
        measured(sae, whisper, paths, texts="text")
    soundfile.write(tmp_path / "long.wav", np.ones(3 * RATE), RATE)
    with pytest.raises(SAEError, match=r"long.wav.*window is 1 s"):
        measured(sae, whisper, [*paths, tmp_path / "long.wav"])
    sae.weights = "another"
    with pytest.raises(SAEError, match="has other weights"):
        measured(sae, whisper, paths)


# --- The command line -----------------------------------------------------------------------------


def test_several_on_the_command_line(run, tmp_path, tmp_path_factory, clips):
    checkpoint = save_whisper(tmp_path_factory.mktemp("checkpoint"))
    model = HookedWhisper.from_pretrained(checkpoint, dtype=torch.float32)
    folders = [tmp_path / name for name in ("a/sae", "b/sae", "c")]
    for i, folder in enumerate(folders):
        made(model, HEARD, n_features=8 * (i + 1)).save(folder)
    out = tmp_path / "out"
    options = ["--model", checkpoint, "--no-losses", "--out", out]
    told = run("sae", "measure", *folders, clips, *options)
    assert told.code == 0, told.err
    assert f"c: 24 features at {HEARD}, 3 clips" in told.lines
    names = {file.name for file in out.iterdir()}
    assert {"c.json", "c.csv", "c.html", "c.png", "frontier.html", "frontier.png"} <= names
    assert sum(name.endswith("b-sae.json") for name in names) == 1
    found = SAEMeasures.load(out / "c.json")
    own = measured(SparseAutoencoder.load(folders[2], model), model, clips, losses=False)
    pd.testing.assert_frame_equal(found.to_pandas(), own.to_pandas())
    told = run("sae", "measure", tmp_path / "none", clips, "--model", checkpoint)
    assert told.code == 2
    assert "there is no sparse autoencoder in" in told.err
