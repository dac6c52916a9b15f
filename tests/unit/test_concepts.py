"""Concept directions and erasures: against closed forms, hand-written hooks and a reference."""

import math
import warnings
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
import scipy.linalg
import soundfile
import tiny
import tiny_qwen2
import torch
from sklearn.linear_model import LogisticRegression
from tiny_checkpoint import save_checkpoint
from tiny_qwen2_checkpoint import save_checkpoint as save_qwen2
from torch.testing import assert_close

from hooked_asr import HookedQwen2Audio, HookedWhisper
from hooked_asr.concepts import (
    ConceptDirection,
    ConceptEffect,
    ConceptError,
    Dose,
    Erasure,
    ErasureFitter,
    concept_effect,
    cosine,
    fit_erasure,
    mean_difference,
    steering,
)
from hooked_asr.concepts import effect as effect_module
from hooked_asr.generation import greedy
from hooked_asr.interventions import InterventionError, add, clamp, from_json, to_json
from hooked_asr.patching.engine import run_rows
from hooked_asr.patching.metrics import kl
from hooked_asr.patching.saving import ResultError
from hooked_asr.records import RecordsError
from hooked_asr.speech import normaliser

SITE = "decoder.0.hook_resid_post"


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def features(n, d, seed=0, apart=2.0):
    """Features of correlated dimensions, far from zero, and which of three classes each has."""
    mixing = torch.randn(d, d, generator=rng(seed)).double()
    labels = torch.arange(n) % 3
    centres = apart * torch.randn(3, d, generator=rng(seed + 1)).double()
    x = torch.randn(n, d, generator=rng(seed + 2)).double() @ mixing + centres[labels] + 10.0
    return x, labels


@pytest.fixture(params=["whisper", "qwen2"], scope="module")
def run(request):
    """A model of either family, and inputs of a run."""
    if request.param == "qwen2":
        return SimpleNamespace(model=tiny_qwen2.hooked(), inputs=tiny_qwen2.inputs())
    model = tiny.hooked()
    return SimpleNamespace(
        model=model, inputs=dict(zip(("mel", "tokens"), tiny.inputs(model), strict=True))
    )


def direction_of(run, site=SITE, seed=0):
    d = run.model.config.decoder.d_model
    x, labels = features(60, d, seed)
    return mean_difference(x[labels == 0], x[labels == 1], site, model=run.model)


# --- Directions -----------------------------------------------------------------------------------


def test_a_mean_difference_is_the_difference_of_the_means():
    x, labels = features(60, 5)
    a, b = x[labels == 0].numpy(), x[labels == 1].numpy()
    a.flags.writeable = False  # as one mapped from a file
    for unit in (False, True):
        made = mean_difference(a, b, "encoder.1.mlp", unit=unit)
        difference = a.mean(0) - b.mean(0)
        length = np.linalg.norm(difference)
        expected = difference / length if unit else difference
        np.testing.assert_allclose(made.vector, expected, rtol=1e-6)
        assert made.distance == pytest.approx(length)
        assert (made.means.n_positive, made.means.n_negative) == (20, 20)
        step = made.steer(1.5).action
        np.testing.assert_allclose(step.scale * step.direction, 1.5 * difference, rtol=1e-6)


def test_the_concepts_own_scale_is_0_and_1_at_the_class_means():
    x, labels = features(90, 5)
    probe = SimpleNamespace(direction=torch.randn(5, generator=rng(9)), site="encoder.1.mlp")
    for made in (
        mean_difference(x[labels == 0], x[labels == 1], "encoder.1.mlp"),
        ConceptDirection.of(probe).on(x[labels == 0], x[labels == 1]),
    ):
        for label, at in ((0, 1.0), (1, 0.0)):
            own = made.project(x[labels == label], own_scale=True)
            assert own.mean().item() == pytest.approx(at, abs=1e-5)
        unit = made.vector.double() / made.vector.double().norm()
        assert_close(made.project(x), x @ unit, rtol=1e-6, atol=1e-6)


def test_cosine():
    a = ConceptDirection([3.0, 4.0], "encoder.0.mlp")
    assert cosine(a, ConceptDirection([8.0, 6.0], "encoder.0.mlp")) == pytest.approx(0.96)
    assert cosine(a, ConceptDirection([-4.0, 3.0], "encoder.0.mlp")) == pytest.approx(0.0, abs=1e-7)
    with pytest.raises(ConceptError, match="has 3 dimensions, the others 2"):
        cosine(a, ConceptDirection([1.0, 0.0, 0.0], "encoder.0.mlp"))


@pytest.mark.parametrize(
    ("positive", "negative", "says"),
    [
        (torch.ones(2, 3), torch.ones(4, 3), "same mean"),
        (torch.ones(2, 3), torch.zeros(4, 2), "negative has 2 dimensions, the others 3"),
        (torch.ones(3), torch.zeros(4, 3), r"positive are \[sample d\].*got \[3\]"),
        (torch.ones(0, 3), torch.zeros(4, 3), "one row at least"),
        (torch.ones(2, 3), torch.tensor([[0.0, 1, 2], [0, math.nan, 1]]), "negative: row 1 holds"),
    ],
)
def test_features_without_a_direction(positive, negative, says):
    with pytest.raises(ConceptError, match=says):
        mean_difference(positive, negative, SITE)


def test_vectors_that_are_no_directions():
    for vector, says in (
        ([0.0, 0.0], "has a length"),
        ([[1.0]], "one vector"),
        ([math.inf], "NaN"),
    ):
        with pytest.raises(ConceptError, match=says):
            ConceptDirection(vector, SITE)
    with pytest.raises(InterventionError, match="has a length"):
        clamp(SITE, torch.zeros(4))


def test_a_probes_direction_has_no_strength_of_its_own():
    probe = SimpleNamespace(direction=torch.ones(4), site=SITE)
    made = ConceptDirection.of(probe, name="sex")
    for act in (made.steer, made.clamp):
        with pytest.raises(ConceptError, match=r"'sex' has no class means .* direction\.on\("):
            act(1.0)
    assert str(made.ablate(positions=[2])) == "clamp decoder.0.resid_post@2"


def test_a_probe_of_several_classes_has_a_direction_to_each():
    origin = SimpleNamespace(model="some/model", weights="abc", pool="mean")
    classes = ["de", "en", "es"]
    probe = SimpleNamespace(direction=torch.eye(3), site=SITE, classes=classes, origin=origin)
    english = ConceptDirection.of(probe, "en")
    assert english.vector.tolist() == [0, 1, 0]
    assert (english.model, english.weights) == ("some/model", "abc")
    with pytest.raises(ConceptError, match="say towards which; got 'fr'"):
        ConceptDirection.of(probe, "fr")
    with pytest.raises(ConceptError, match="does not say where it reads"):
        ConceptDirection.of(SimpleNamespace(direction=torch.ones(3), site=""))


# --- What directions do ---------------------------------------------------------------------------


def by_hand(model, inputs, name, change, where=slice(None)):
    """Logits with a plain hook function in the place of an intervention."""

    def edit(x, hook):
        x[:, where] = change(x[:, where])

    return model.run_with_hooks(**inputs, fwd_hooks=[(name, edit)])


@pytest.mark.parametrize("where", [None, range(2, 5)], ids=["everywhere", "positions"])
def test_steered_runs_are_those_of_hand_written_hooks(run, where):
    model, inputs = run.model, run.inputs
    made = direction_of(run)
    high, low = made.means.positive, made.means.negative
    unit = made.vector / made.vector.norm()
    changes = {
        made.steer(0.7, positions=where): lambda x: x + 0.7 * (high - low) * unit,
        made.ablate(positions=where): lambda x: x - (x * unit).sum(-1, keepdim=True) * unit,
        made.clamp(0.3, positions=where): lambda x: (
            x + (low + 0.3 * (high - low) - (x * unit).sum(-1, keepdim=True)) * unit
        ),
    }
    plain = model(**inputs)
    for intervention, change in changes.items():
        there = slice(None) if where is None else slice(where.start, where.stop)
        expected = by_hand(model, inputs, SITE, change, there)
        ours = model.run_with_hooks(**inputs, fwd_hooks=[intervention])
        assert_close(ours, expected, rtol=1e-4, atol=1e-5)
        assert (ours - plain).abs().max() > 1e-2


def test_a_clamped_coordinate_is_the_value_and_nothing_else_moves(run):
    made = direction_of(run)
    name = [SITE]
    _, before = run.model.run_with_cache(**run.inputs, names_filter=name)
    for intervention, at in ((made.clamp(0.25), 0.25), (made.ablate(), None)):
        _, after = run.model.run_with_cache(
            **run.inputs, names_filter=name, fwd_hooks=[intervention]
        )
        along = made.project(after[SITE], own_scale=at is not None)
        assert_close(along, torch.full_like(along, at or 0.0), rtol=0, atol=1e-5)
        moved = after[SITE] - before[SITE]
        rest = moved - made.project(moved)[..., None] * made.unit
        assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-5)


def test_strength_zero_changes_no_bit(run):
    made = direction_of(run)
    nothing = made.steer(0.0)
    plain = run.model(**run.inputs)
    steered = run.model.run_with_hooks(**run.inputs, fwd_hooks=[nothing])
    assert torch.equal(steered.view(torch.int32), plain.view(torch.int32))
    # Where the stream itself is a negative zero, adding zero would make it a positive one.
    minus = ("decoder.0.hook_resid_post", lambda x, hook: torch.full_like(x, -0.0))
    _, cache = run.model.run_with_cache(
        **run.inputs, names_filter=[SITE], fwd_hooks=[minus, nothing]
    )
    assert cache[SITE].signbit().all()


def test_half_precision_is_computed_in_full(run):
    made = direction_of(run)
    x = torch.randn(1, 4, len(made.vector), generator=rng(5)) * 30
    halves = made.clamp(0.5).action.apply(x.bfloat16())
    assert halves.dtype == torch.bfloat16
    assert torch.equal(halves, made.clamp(0.5).action.apply(x.bfloat16().float()).bfloat16())


def test_heads_neurons_and_seconds():
    model = tiny.hooked()
    inputs = dict(zip(("mel", "tokens"), tiny.inputs(model), strict=True))
    head = ConceptDirection(torch.arange(1.0, 9.0), "decoder.1.cross_attn.2").ablate()
    name = "decoder.1.cross_attn.hook_z"
    _, cache = model.run_with_cache(**inputs, names_filter=[name], fwd_hooks=[head])
    assert cache[name][:, :, 2].matmul(torch.arange(1.0, 9.0)).abs().max() < 1e-4
    assert cache[name][:, :, 1].matmul(torch.arange(1.0, 9.0)).abs().max() > 1e-1
    sound = ConceptDirection(torch.ones(32), "encoder.1.resid_post").ablate(seconds=(0.2, 0.4))
    assert str(sound) == "clamp encoder.1.resid_post@0.2s-0.4s"
    model.run_with_hooks(**inputs, fwd_hooks=[sound])
    wrong = ConceptDirection(torch.ones(5), SITE).ablate()
    with pytest.raises(InterventionError, match="clamp of 5 dimensions does not fit"):
        model.run_with_hooks(**inputs, fwd_hooks=[wrong])


def interventions(run):
    """One of each kind, in both stacks."""
    made = direction_of(run)
    x, labels = features(60, run.model.config.encoder.d_model, seed=3)
    erasure = fit_erasure(x, labels, "encoder.1.resid_post")
    start = run.inputs["tokens"].shape[1] - 2
    return [
        made.steer(0.5),
        made.clamp(0.5, positions=slice(start, None)),
        made.ablate().at("decoder.1.resid_pre"),
        erasure.intervention(),
    ]


def test_rows_of_a_sweep_are_whole_forwards(run):
    rows = [[one] for one in interventions(run)]
    inputs = {name: value[:1] for name, value in run.inputs.items()}
    metric = kl(run.model(**inputs))
    found = run_rows(run.model, inputs, rows, metric)
    assert found.plain == ()
    each = [metric(run.model.run_with_hooks(**inputs, fwd_hooks=row)).mean().item() for row in rows]
    assert found.values.tolist() == pytest.approx(each, rel=1e-3, abs=1e-6)
    assert min(each) > 1e-4


def test_cached_decoding_is_teacher_forcing(run):
    acting = interventions(run)
    whisper = isinstance(run.model, HookedWhisper)
    given = {"audio": run.inputs["mel"][:1]} if whisper else run.inputs
    if whisper:
        acting[1] = direction_of(run).clamp(0.5, positions=slice(4, None))
    name = "decoder.1.hook_resid_post"
    said = run.model.generate(**given, interventions=acting, names_filter=[name], max_new_tokens=6)
    cached = said.cache[name]
    assert len(said[0].tokens) > 2
    tokens = said.whole_tokens[:, : cached.shape[1]]
    forced = {"mel": given["audio"]} if whisper else dict(given)
    if not whisper:
        forced["attention_mask"] = torch.ones_like(tokens)
    _, expected = run.model.run_with_cache(
        **forced | {"tokens": tokens}, names_filter=[name], fwd_hooks=acting
    )
    assert_close(cached, expected[name], rtol=1e-4, atol=1e-4)


def test_they_are_kept_as_json(run):
    before = interventions(run)
    after = from_json(to_json(before))
    assert list(map(str, after)) == list(map(str, before))
    ours, theirs = (
        run.model.run_with_hooks(**run.inputs, fwd_hooks=one) for one in (before, after)
    )
    assert torch.equal(ours, theirs)


# --- Files ----------------------------------------------------------------------------------------


def test_directions_are_saved_and_loaded(run, tmp_path):
    before = direction_of(run, "decoder.0.resid_post@3-")
    before.save(tmp_path / "direction.safetensors")
    after = ConceptDirection.load(tmp_path / "direction.safetensors")
    assert torch.equal(after.vector, before.vector)
    for name in ("site", "means", "name", "model", "weights"):
        assert getattr(after, name) == getattr(before, name)
    after.check(run.model)
    other = tiny.hooked("relu")
    with pytest.raises(ConceptError, match="has others"):
        after.check(other)


def test_erasures_are_saved_and_loaded(tmp_path):
    x, labels = features(60, 5)
    before = fit_erasure(x, labels, "encoder.1.resid_post")
    before.save(tmp_path / "erasure.safetensors")
    after = Erasure.load(tmp_path / "erasure.safetensors")
    assert torch.equal(after.apply(x), before.apply(x))
    assert (after.site, after.counts) == (before.site, {"0": 20, "1": 20, "2": 20})


def test_files_of_something_else(tmp_path):
    made = ConceptDirection([1.0, 2.0], SITE)
    path = tmp_path / "one.safetensors"
    with pytest.raises(ConceptError, match=r"saved as \.safetensors"):
        made.save(tmp_path / "one.pt")
    with pytest.raises(ConceptError, match="there is no concept direction"):
        ConceptDirection.load(path)
    made.save(path)
    with pytest.raises(ConceptError, match="holds a concept direction; asked for a concept erasu"):
        Erasure.load(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ConceptError, match="or a damaged one"):
        ConceptDirection.load(path)


# --- Erasure --------------------------------------------------------------------------------------


def closed_form(x, labels):
    """Theorem 4.3 of the paper, in its own symbols: r(x) = x - W⁺ P W (x - E[x])."""
    x, z = x.numpy(), np.eye(3)[labels]
    sigma = np.cov(x.T, bias=True)
    sigma_xz = (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)
    w = np.linalg.pinv(scipy.linalg.sqrtm(sigma).real, rcond=1e-6)
    a = w @ sigma_xz
    p = a @ np.linalg.pinv(a, rcond=1e-6)
    return x - (x - x.mean(0)) @ (np.linalg.pinv(w, rcond=1e-6) @ p @ w).T


def test_an_erasure_is_the_papers_closed_form():
    for n, d in ((90, 7), (12, 20)):  # in the second, features lie in a subspace
        x, labels = features(n, d)
        ours = fit_erasure(x, labels, SITE).apply(x)
        np.testing.assert_allclose(ours, closed_form(x, labels), rtol=1e-6, atol=1e-7)


def test_an_erasure_is_the_reference_implementations():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it scripts a function on import
        from concept_erasure import LeaceFitter
    x, labels = features(90, 7)
    z = torch.nn.functional.one_hot(labels).double()
    theirs = LeaceFitter.fit(x, z, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-8).eraser
    assert_close(fit_erasure(x, labels, SITE).apply(x), theirs(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("n", "d", "shrinkage"), [(150, 6, 0.0), (150, 6, 0.3), (30, 40, 0.1)])
def test_behind_an_erasure_no_linear_probe_beats_the_majority(n, d, shrinkage):
    x, labels = features(n, d, apart=4.0)
    labels = labels.clone()
    labels[: n // 5] = 0  # a majority
    x, majority = x - x.mean(0), (labels == 0).double().mean().item()

    def accuracy(rows):
        # lbfgs, unpenalised or nearly so: a linear probe as good as they come
        probe = LogisticRegression(C=1e4, max_iter=5000)
        return probe.fit(rows.numpy(), labels.numpy()).score(rows.numpy(), labels.numpy())

    erasure = fit_erasure(x, labels, SITE, shrinkage=shrinkage)
    erased = erasure.apply(x)
    assert erasure.rank == 2
    assert accuracy(x) > majority + 0.2
    assert accuracy(erased) == pytest.approx(majority)
    assert_close(erased.mean(0), x.mean(0), rtol=0, atol=1e-9)


def test_no_other_erasure_changes_the_features_less():
    x, labels = features(150, 6)
    z = torch.nn.functional.one_hot(labels).double()
    centred = x - x.mean(0)
    least = (fit_erasure(x, labels, SITE).apply(x) - x).square().sum()
    # Any projection along what is left of them, with the kernel that guards them, is an erasure.
    span, _ = torch.linalg.qr((centred.T @ (z - z.mean(0)))[:, :2])
    for seed in range(20):
        along = span if not seed else torch.randn(6, 2, generator=rng(seed)).double()
        oblique = span @ torch.linalg.inv(along.T @ span) @ along.T
        erased = centred - centred @ oblique.T
        assert (erased.T @ (z - z.mean(0))).abs().max() < 1e-8
        assert (erased - centred).square().sum() > least * 1.001


def test_batches_give_what_all_samples_at_once_do():
    x, labels = features(200, 6)
    x += 1e4  # a mean so large that sums of squares would have no digits left
    names = [("de", "en", "es")[i] for i in labels.tolist()]
    fitter = ErasureFitter(["de", "en", "es"])
    for start in (0, 3, 50, 51):
        stop = {0: 3, 3: 50, 50: 51, 51: 200}[start]
        fitter.update(x[start:stop], names[start:stop])
    parts, whole = fitter.fit(SITE), fit_erasure(x, names, SITE)
    assert_close(parts.apply(x), whole.apply(x), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(whole.apply(x), closed_form(x, labels), rtol=1e-9, atol=1e-6)
    assert parts.counts == whole.counts == {"de": 67, "en": 67, "es": 66}


def test_numbers_are_erased_too():
    x, _ = features(100, 6)
    z = x[:, :1] ** 2 + x[:, 1:2]
    erased = fit_erasure(x, z, SITE).apply(x)
    correlated = (erased - erased.mean(0)).T @ (z - z.mean(0))
    assert correlated.abs().max() < 1e-6
    assert ((x - x.mean(0)).T @ (z - z.mean(0))).abs().max() > 1


def test_erasures_that_cannot_be():
    x, labels = features(30, 4)
    cases = [
        (x, ["a"] * 30, "two classes at least"),
        (x, labels[:9], "30 samples take as many labels; got 9"),
        (x * math.nan, labels, "row 0 holds NaN"),
        (x, [None] * 30, "a text or a whole number; got None"),
        (x, torch.ones(30), "tell nothing of the concept"),
    ]
    for rows, classes, says in cases:
        with pytest.raises(ConceptError, match=says):
            fit_erasure(rows, classes, SITE)
    fitter = ErasureFitter(["a", "b"])
    with pytest.raises(ConceptError, match="no samples yet"):
        fitter.fit(SITE)
    with pytest.raises(ConceptError, match="'c' is no class"):
        fitter.update(x[:1], ["c"])
    fitter.update(x[:2], ["a", "b"])
    with pytest.raises(ConceptError, match="features have 4 dimensions"):
        fitter.update(x[:2, :3], ["a", "b"])
    with pytest.raises(ConceptError, match="shrinkage is 0 to 1"):
        fitter.fit(SITE, shrinkage=1.5)


# --- Effects --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for i, pitch in enumerate((300, 900, 2000)):
        time = torch.arange(12_000) / 16_000
        noise = 0.1 * torch.randn(12_000, generator=rng(i))
        path = folder / f"clip{i}.wav"
        soundfile.write(path, (0.3 * torch.sin(6.28 * pitch * time) + noise).numpy(), 16_000)
        rows.append({"audio": path, "id": f"clip {i}", "text": "ask her no", "language": "en"})
    return rows


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp("tiny"), "multilingual")
    return HookedWhisper.from_pretrained(folder)


@pytest.fixture(scope="module")
def made(whisper):
    run = SimpleNamespace(model=whisper)
    return [direction_of(run, seed=1), direction_of(run, "decoder.1.resid_post", seed=5)]


@pytest.fixture(scope="module")
def doses(made):
    # The tiny model's streams are small beside these features.
    return steering({"early": made[0], "late": made[1]}, [0.0, 0.05, 0.3])


@pytest.fixture(scope="module")
def effect(whisper, clips, doses):
    with torch.no_grad():
        return concept_effect(whisper, clips, doses, progress=False)


def forced_numbers(model, inputs, tokens, n_prompt, acting):
    """KL from the plain run's next tokens, and mean log-probability, by loops over positions."""
    plain = model(**inputs).log_softmax(-1)[0]
    new = model.run_with_hooks(**inputs, fwd_hooks=acting).log_softmax(-1)[0]
    reads = range(n_prompt - 1, n_prompt + len(tokens))
    kls = [(plain[i].exp() * (plain[i] - new[i])).sum().item() for i in reads]
    likely = [new[n_prompt - 1 + i, token].item() for i, token in enumerate(tokens)]
    return sum(kls) / len(kls), sum(likely) / len(likely)


def test_outcomes_are_those_of_decodings_one_by_one(whisper, clips, doses, effect):
    changed = set()
    for i, row in enumerate(clips):
        (plain,) = whisper.generate(str(row["audio"]))
        before = effect.clips[i].before
        assert (before.text, before.language) == (plain.text, plain.language)
        inputs = whisper.to_inputs(str(row["audio"]), language=plain.language)
        n_prompt = inputs["tokens"].shape[1]
        said = torch.tensor([plain.tokens], dtype=torch.long)
        inputs["tokens"] = torch.cat([inputs["tokens"], said], 1)
        normalise = normaliser("en", whisper.tokenizer)
        for dose, outcomes in zip(doses, effect.outcomes, strict=True):
            (heard,) = whisper.generate(str(row["audio"]), interventions=dose.interventions)
            ours = outcomes[i]
            assert (ours.text, ours.language) == (heard.text, heard.language)
            assert ours.changed == (heard.text != plain.text)
            texts = normalise(row["text"]), normalise(heard.text)
            assert ours.word_errors / 3 == pytest.approx(jiwer.wer(*texts))
            assert ours.character_errors / 10 == pytest.approx(jiwer.cer(*texts))
            expected = forced_numbers(
                whisper, inputs, plain.tokens, n_prompt, list(dose.interventions)
            )
            assert (ours.kl, ours.log_prob) == pytest.approx(expected, rel=1e-3, abs=1e-5)
            changed.add((dose.strength == 0.0, ours.changed))
    assert (True, True) not in changed  # strength zero
    assert (False, True) in changed


def test_the_language_told_is_that_under_each_dose(whisper, clips, doses, effect):
    moved = [
        one.language != c.before.language
        for d in effect.outcomes
        for one, c in zip(d, effect.clips, strict=True)
    ]
    assert any(moved)
    asked = concept_effect(whisper, clips[:1], doses, language="own", batch_size=2, progress=False)
    mel = whisper.to_mel(str(clips[0]["audio"]))
    for dose, (outcome,) in zip(doses, asked.outcomes, strict=True):
        with whisper.hooks(dose.interventions):
            assert outcome.language == whisper.detect_language(mel)[0]
        (heard,) = whisper.generate(
            str(clips[0]["audio"]), language="en", interventions=dose.interventions
        )
        assert outcome.text == heard.text


def test_what_acts_in_some_steps_only_is_not_forced(whisper, clips, made):
    sound = add("encoder.0.attn.hook_q", torch.linspace(-1, 1, 8), 9.0)
    rows = {"prompt": made[0].steer(0.3).in_prompt(), "sound": sound}
    found = concept_effect(whisper, clips[:1], rows, language="en", progress=False)
    (prompt,), (heard,) = found.outcomes
    assert (prompt.kl, prompt.log_prob) == (None, None)
    assert heard.kl > 0
    mel = whisper.to_mel(str(clips[0]["audio"]))
    with whisper.hooks([sound]):
        assert heard.language == whisper.detect_language(mel)[0]


def test_a_model_without_languages(clips, tmp_path):
    model = HookedQwen2Audio.from_pretrained(save_qwen2(tmp_path))
    d = model.config.decoder.d_model
    made = ConceptDirection(torch.randn(d, generator=rng()), "decoder.0.resid_post")
    x, labels = features(60, d)
    rows = {"steer": made.on(x[labels == 0], x[labels == 1]).steer(3.0), "ablate": made.ablate()}
    found = concept_effect(
        model, clips[:1], rows, texts=["ask"], max_new_tokens=5, progress=False, prompt="Say."
    )
    inputs = model.to_inputs(str(clips[0]["audio"]), "Say.")
    n_prompt = inputs["tokens"].shape[1]
    (tokens,) = greedy(model, model.encoded(inputs), limit=n_prompt + 5)
    assert found.clips[0].before.text == model.text_of(tokens)
    assert (found.clips[0].reference, found.clips[0].words) == ("ask", 1)
    inputs["tokens"] = torch.cat([inputs["tokens"], torch.tensor([tokens])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["tokens"])
    for intervention, (outcome,) in zip(rows.values(), found.outcomes, strict=True):
        given = model.to_inputs(str(clips[0]["audio"]), "Say.")
        (said,) = model.generate(**given, interventions=[intervention], max_new_tokens=5)
        assert (outcome.text, outcome.language) == (said.text, "")
        expected = forced_numbers(model, inputs, tokens, n_prompt, [intervention])
        assert (outcome.kl, outcome.log_prob) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found.to_pandas()["language_changed"].isna().all()
    with pytest.raises(ConceptError, match="asked in no language"):
        concept_effect(model, clips[:1], rows, language="en", progress=False)


def test_tables_are_means_over_clips(effect, doses):
    table = effect.to_pandas(language="de")
    assert list(table["name"]) == ["early"] * 3 + ["late"] * 3
    for i, outcomes in enumerate(effect.outcomes):
        row = table.iloc[i]
        assert row["changed"] == pytest.approx(np.mean([one.changed for one in outcomes]))
        assert row["identified"] == pytest.approx(
            np.mean([one.language == "de" for one in outcomes])
        )
        assert row["wer"] == pytest.approx(sum(one.word_errors for one in outcomes) / 9)
        assert row["kl"] == pytest.approx(np.mean([one.kl for one in outcomes]))
        assert row["kl_low"] <= row["kl"] <= row["kl_high"]
    before = sum(clip.before.word_errors for clip in effect.clips)
    assert (table["wer_before"] == before / 9).all()
    assert len(effect.by_clip()) == 18
    told = effect.languages()
    assert told.groupby(["name", "strength"], dropna=False)["clips"].sum().tolist() == [3] * 7


def test_effects_are_saved_and_plotted(effect, tmp_path):
    effect.save(tmp_path / "effect.json")
    after = ConceptEffect.load(tmp_path / "effect.json")
    for name in ("clips", "doses", "outcomes", "model", "failed"):
        assert getattr(after, name) == getattr(effect, name)
    effect.save(tmp_path / "effect.html")
    chart = effect.plot(language="de").to_dict()
    drawn = [panel["layer"][1]["encoding"]["y"]["title"] for panel in chart["concat"]]
    assert drawn == [
        "share of texts changed",
        "share identified as de",
        "word error rate",
        "KL (nats)",
    ]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ResultError, match="holds no saved concept effect"):
        ConceptEffect.load(tmp_path / "other.json")


def test_a_run_goes_on_where_it_was(whisper, clips, doses, effect, tmp_path, monkeypatch):
    def failing(model, clip, *others):
        if clip.id == "clip 1":
            raise KeyboardInterrupt
        return record(model, clip, *others)

    record = effect_module.clip_record
    monkeypatch.setattr(effect_module, "clip_record", failing)
    with pytest.raises(KeyboardInterrupt):
        concept_effect(whisper, clips, doses, out=tmp_path, progress=False)
    done = []
    monkeypatch.setattr(
        effect_module, "clip_record", lambda *given: done.append(given[1].id) or record(*given)
    )
    resumed = concept_effect(whisper, clips, doses, out=tmp_path, progress=False)
    assert done == ["clip 1", "clip 2"]
    assert resumed.outcomes == effect.outcomes
    with pytest.raises(RecordsError, match="holds results of other work"):
        concept_effect(whisper, clips, doses[:2], out=tmp_path, progress=False)


def test_effects_that_cannot_be_measured(whisper, clips, made, tmp_path):
    steer = made[0].steer(1.0)

    def asked(given, rows=clips, **options):
        return concept_effect(whisper, rows, given, progress=False, **options)

    for given, says in (
        ([], "no interventions"),
        ([("decoder.0.hook_resid_post", torch.relu)], "interventions are what acts"),
        ([3], "lists of them, are what acts; got 3"),
        ([steer, Dose(str(steer), (steer,))], "is there twice"),
    ):
        with pytest.raises(ConceptError, match=says):
            asked(given)
    with pytest.raises(ConceptError, match="3 clips take as many texts; got 1"):
        asked([steer], texts=["a"])
    with pytest.raises(ConceptError, match="asked by language and task; got prompt"):
        asked([steer], prompt="Say.")
    bare = [{"audio": clips[0]["audio"]}]
    with pytest.raises(ConceptError, match="no language of its own"):
        asked([steer], bare, language="own")
    long = tmp_path / "long.wav"
    soundfile.write(long, torch.rand(40_000).numpy(), 16_000)
    with pytest.raises(ConceptError, match=r"clip .*long\.wav"):
        asked([steer], [long])
    found = asked([steer], [long, clips[0]["audio"]], skip_errors=True)
    assert (len(found.clips), len(found.failed)) == (1, 1)
    assert found.clips[0].against == "before"
