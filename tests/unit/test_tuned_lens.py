"""Tuned lenses: against closed forms, the reference's hidden states, and plain hooked forwards."""

import warnings

import pytest
import tiny
import tiny_qwen2
import torch
from sklearn.linear_model import Ridge
from torch.distributions import Categorical, kl_divergence
from transformers.modeling_outputs import BaseModelOutput

from hooked_asr.lenses import (
    LensError,
    TunedLens,
    encoder_lens,
    logit_lens,
    train_tuned_lens,
    tuned_lens,
    tuned_objective,
    tuned_training,
)
from hooked_asr.records import RecordsError

FAMILIES = ["whisper", "qwen2"]
STACKS = ["decoder", "encoder"]
families = pytest.mark.parametrize("family", FAMILIES)
stacks = pytest.mark.parametrize("stack", STACKS)
# What entered layer 0, and so on; behind the last layer nothing is translated.
DECODER = ["decoder.0.hook_resid_pre", "decoder.0.hook_resid_post", "decoder.1.hook_resid_post"]


def hooked(family, dtype=torch.float32):
    """A model of three decoder layers (and one, or three, in its encoder)."""
    if family == "whisper":
        return tiny.hooked("deep_decoder", dtype)
    return tiny_qwen2.hooked("deep", dtype)


def some_runs(family, n=5, model=None):
    """Runs of one row each, of several lengths."""
    if family == "whisper":
        model = model or hooked(family)
        return [tiny.inputs(model, batch=1, n_pos=5 + i, seed=i) for i in range(n)]
    frames = [61, 100, 40]
    return [tiny_qwen2.inputs([[frames[i % 3]]], n_said=3 + i, seed=i) for i in range(n)]


def trained(model, runs, **options):
    options = {"steps": 0, "held_out": 0.0, "progress": False, **options}
    return train_tuned_lens(model, runs, **options)


def shaken(model, stack, size=0.1):
    """A lens that is no identity."""
    lens = TunedLens.identity(model, stack)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lens.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return lens


def same(one, other):
    return all(map(torch.equal, one.parameters(), other.parameters()))


# --- Reading --------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_identity_is_the_logit_lens(family, dtype):
    model = hooked(family, dtype)
    run = some_runs(family, 1, model)[0]
    asked = {"at": ["resid_pre", "resid_post"], "keep_logits": True, "progress": False}
    plain = logit_lens(model, run, **asked)
    tuned = tuned_lens(model, run, TunedLens.identity(model), **asked)
    assert plain.logits.dtype == dtype
    for name in ("logits", "kl", "top_tokens"):
        assert torch.equal(getattr(tuned, name), getattr(plain, name))


@families
def test_a_lens_is_its_affine_map_before_the_norm(family):
    model, (run,) = hooked(family), some_runs(family, 1)
    lens = shaken(model, "decoder")
    found = tuned_lens(model, run, lens, keep_logits=True, progress=False)
    inputs = run if family == "qwen2" else dict(zip(("mel", "tokens"), run, strict=True))
    logits, cache = model.run_with_cache(**inputs)
    for layer in range(2):
        stream = cache[f"decoder.{layer}.hook_resid_post"]
        own = lens.translators[layer + 1]
        moved = stream + stream @ own.weight.T + own.bias
        with torch.no_grad():
            expected = model.unembed(model.decoder_final_ln(moved))
        torch.testing.assert_close(found.logits[layer], expected, rtol=1e-4, atol=1e-5)
        below = tuned_lens(model, run, lens, at="resid_pre", keep_logits=True, progress=False)
        assert torch.equal(below.logits[layer + 1], found.logits[layer])
    assert torch.equal(found.logits[2], logits)


def test_streams_without_a_translator_are_refused():
    model = hooked("whisper")
    (run,) = some_runs("whisper", 1)
    lens = TunedLens.identity(model)
    assert lens.sites == DECODER
    with pytest.raises(LensError, match=r"hook_resid_mid'. Read streams at 'resid_post'"):
        tuned_lens(model, run, lens, at="resid_mid", progress=False)
    with pytest.raises(LensError, match=r"32 wide; got \[1, 31\]"):
        lens(DECODER[0], torch.zeros(1, 31))
    with pytest.raises(LensError, match="this one is for the encoder"):
        tuned_lens(model, run, TunedLens.identity(model, "encoder"))
    with pytest.raises(LensError, match=r"the encoder of .* is asked for; this one is for the dec"):
        encoder_lens(model, run[0], tuned=lens)
    with pytest.raises(LensError, match="'encoder' or the 'decoder'; got 'middle'"):
        TunedLens.identity(model, "middle")


# --- Where the training begins --------------------------------------------------------------------


def last_layers_silenced(family):
    """The last layer of each stack adds a constant, whatever it reads; gives it for each stack."""
    model = hooked(family)
    added = {}
    with torch.no_grad():
        for stack in STACKS:
            ends = written_by(getattr(model, stack)[-1])
            for end in ends:
                end.weight.zero_()
            added[stack] = sum(end.bias for end in ends if end.bias is not None)
    return model, added


def written_by(block):
    """The linear maps that write to the stream."""
    heads = (getattr(block, name, None) for name in ("attn", "cross_attn"))
    return [*(one.o_proj for one in heads if one is not None), block.mlp.fc_out]


# A Qwen2's layers have no biases, and would add nothing at all.
@pytest.mark.parametrize(
    ("family", "stack"), [("whisper", "decoder"), ("whisper", "encoder"), ("qwen2", "encoder")]
)
def test_a_layer_that_adds_a_constant_is_found(family, stack):
    model, added = last_layers_silenced(family)
    runs = some_runs(family)
    lens = trained(model, runs, stack=stack)
    own = lens.translators[-1]
    torch.testing.assert_close(own.weight, torch.zeros_like(own.weight), atol=1e-5, rtol=0)
    expected = torch.zeros_like(own.bias) + added[stack]
    torch.testing.assert_close(own.bias, expected, atol=1e-5, rtol=1e-4)
    table = lens.evaluate(model, runs, progress=False)
    assert table["tuned_lens"].iloc[-1] == pytest.approx(0, abs=1e-6)
    assert table["logit_lens"].iloc[-1] > 1e-3


def test_it_begins_as_ridge_regression_to_the_last_layer():
    hf, model = tiny.hf_whisper("deep_decoder"), hooked("whisper")
    runs = some_runs("whisper", 12, model)
    lens = trained(model, runs)
    # The reference's last hidden state is normed: what the norm read is kept instead.
    last = []
    hf.model.decoder.layer_norm.register_forward_pre_hook(lambda _, args: last.append(args[0][0]))
    with torch.no_grad():
        states = [
            hf(mel, decoder_input_ids=tokens, output_hidden_states=True).decoder_hidden_states[:3]
            for mel, tokens in runs
        ]
    target = torch.cat(last).double()
    for i, own in enumerate(lens.translators):
        x = torch.cat([state[i][0] for state in states]).double()
        scale = x.std(0, correction=0)
        ridge = Ridge(alpha=32 + 1e-4 * len(x)).fit(x / scale, target - x)
        weight = torch.from_numpy(ridge.coef_) / scale
        torch.testing.assert_close(own.weight.double(), weight, rtol=1e-3, atol=1e-4)
        bias = torch.from_numpy(ridge.intercept_)
        torch.testing.assert_close(own.bias.double(), bias, rtol=1e-3, atol=1e-4)


# --- What is measured, and brought down -----------------------------------------------------------


@families
def test_the_measure_is_the_logit_lens_kl(family):
    model, runs = hooked(family), some_runs(family, 3)
    lens = shaken(model, "decoder")
    table = lens.evaluate(model, runs, batch_size=2, progress=False)
    kls = []
    for run in runs:
        tokens = run["tokens"] if family == "qwen2" else run[1]
        heard = (tokens[0] == tiny_qwen2.AUDIO).nonzero() if family == "qwen2" else []
        start = int(heard[-1]) + 1 if len(heard) else 0
        asked = {"pos_slice": slice(start, None), "progress": False}
        own = [logit_lens(model, run, **asked), tuned_lens(model, run, lens, **asked)]
        kls.append(torch.stack([one.kl[:-1, 0] for one in own]))
    expected = torch.cat(kls, -1).double().mean(-1)
    assert table["layer"].tolist() == ["embed", "0", "1"]
    assert set(table["positions"]) == {sum(kl.shape[-1] for kl in kls)}
    for name, own in zip(("logit_lens", "tuned_lens"), expected, strict=True):
        found = torch.tensor(table[name].tolist()[1:])
        torch.testing.assert_close(found.double(), own, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_an_encoder_is_measured_by_the_references_decoder():
    hf, model = tiny.hf_whisper("distilled"), tiny.hooked("distilled")
    runs = [tiny.inputs(model, batch=1, n_pos=4 + i, seed=i) for i in range(3)]
    lens = shaken(model, "encoder")
    table = lens.evaluate(model, runs, batch_size=2, progress=False)
    assert table["layer"].tolist() == ["embed", "0", "1", "2"]

    def distributions(output, tokens):
        out = hf(encoder_outputs=BaseModelOutput(output), decoder_input_ids=tokens)
        return Categorical(logits=out.logits[0])

    for i, site in enumerate(lens.sites):
        kls = {"logit_lens": [], "tuned_lens": []}
        for mel, tokens in runs:
            states = hf.model.encoder(mel, output_hidden_states=True).hidden_states
            final = distributions(states[-1], tokens)
            for name, stream in zip(kls, (states[i], lens(site, states[i])), strict=True):
                heard = distributions(hf.model.encoder.layer_norm(stream), tokens)
                kls[name].append(kl_divergence(final, heard))
        for name, found in kls.items():
            assert table[name][i] == pytest.approx(torch.cat(found).mean().item(), rel=1e-4)


@torch.no_grad()
def test_an_encoder_that_is_pooled_is_measured_by_a_hooked_forward():
    model, runs = hooked("qwen2"), some_runs("qwen2", 3)
    lens = shaken(model, "encoder")
    table = lens.evaluate(model, runs, batch_size=3, progress=False)
    last = f"encoder.{model.config.encoder.n_layers - 1}.hook_resid_post"
    for i, site in enumerate(lens.sites):
        kls = []
        for run in runs:
            logits, cache = model.run_with_cache(**run, names_filter=[site])
            moved = lens(site, cache[site])
            tuned = model.run_with_hooks(
                **run, fwd_hooks=[(last, lambda stream, hook, moved=moved: moved)]
            )
            start = int((run["tokens"][0] == tiny_qwen2.AUDIO).nonzero()[-1]) + 1
            final, heard = (Categorical(logits=one[0, start:]) for one in (logits, tuned))
            kls.append(kl_divergence(final, heard))
        assert table["tuned_lens"][i] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-3)


@families
@stacks
def test_training_brings_it_down(family, stack):
    model, runs = hooked(family), some_runs(family)
    before = trained(model, runs, stack=stack).evaluate(model, runs, progress=False)
    lens = trained(model, runs, stack=stack, steps=40, batch_size=3, learning_rate=3e-3)
    after = lens.evaluate(model, runs, progress=False)
    assert (after["tuned_lens"] < before["tuned_lens"]).all()
    assert (after["tuned_lens"] < 0.5 * after["logit_lens"]).all()
    assert (after["logit_lens"] == before["logit_lens"]).all()
    assert all(weight.grad is None for weight in model.parameters())


def test_held_out_clips_are_measured_and_not_trained_on(tmp_path):
    model, runs = hooked("whisper"), some_runs("whisper", 6)
    lens = trained(model, runs, steps=3, held_out=0.34, seed=1)
    tested, rest = tuned_training._split(6, 0.34, 1)
    assert (len(tested), sorted(tested + rest)) == (2, list(range(6)))
    alone = trained(model, [runs[i] for i in rest], steps=3, seed=1)
    assert same(lens, alone)
    table = alone.evaluate(model, [runs[i] for i in tested], progress=False)
    assert lens.held_out.equals(table)
    lens.plot().save(str(tmp_path / "kl.html"))
    with pytest.raises(LensError, match="no clips were held out"):
        alone.plot()
    with pytest.raises(LensError, match="cannot be held out and trained on both"):
        trained(model, runs[:1], held_out=0.5)


def test_streams_that_do_not_fit_are_computed_again():
    model, runs = hooked("whisper"), some_runs("whisper")
    one = trained(model, runs, steps=4, batch_size=2)
    other = trained(model, runs, steps=4, batch_size=2, memory=2000)
    assert same(one, other)


def test_hooks_and_float16_do_not_reach_the_training():
    model = hooked("whisper", torch.float16)
    runs = some_runs("whisper", 4, model)
    plain = trained(model, runs, steps=3)
    with model.hooks([("decoder.0.hook_resid_post", lambda stream, hook: 0 * stream)]):
        hooked_one = trained(model, runs, steps=3)
    assert same(plain, hooked_one)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    assert model.unembed.weight.dtype == torch.float16


# --- The encoder lens -----------------------------------------------------------------------------


@torch.no_grad()
def test_the_encoder_lens_is_decoded_from_translated_streams():
    hf, model = tiny.hf_whisper("distilled"), tiny.hooked("distilled")
    mel, _ = tiny.inputs(model, batch=1)
    lens = shaken(model, "encoder", 0.3)
    (plain,) = encoder_lens(model, mel, max_new_tokens=6).clips
    (same_as,) = encoder_lens(
        model, mel, max_new_tokens=6, tuned=TunedLens.identity(model, "encoder")
    ).clips
    assert same_as == plain
    (clip,) = encoder_lens(model, mel, max_new_tokens=6, tuned=lens).clips
    states = hf.model.encoder(mel, output_hidden_states=True).hidden_states
    for i, site in enumerate(lens.sites):
        output = hf.model.encoder.layer_norm(lens(site, states[i]))
        expected = hf.generate(encoder_outputs=BaseModelOutput(output), max_new_tokens=6)
        own = clip.layers[i].tokens
        assert own == expected[0, -len(own) :].tolist()[: len(own)]
        assert own != plain.layers[i].tokens
    assert clip.layers[-1] == plain.layers[-1]


@torch.no_grad()
def test_the_encoder_lens_of_a_model_that_pools():
    model, (run,) = hooked("qwen2"), some_runs("qwen2", 1)
    lens = shaken(model, "encoder", 0.3)
    (clip,) = encoder_lens(model, run, max_new_tokens=6, tuned=lens).clips
    last = f"encoder.{model.config.encoder.n_layers - 1}.hook_resid_post"
    for site, heard in zip(lens.sites, clip.layers[:-1], strict=True):
        _, cache = model.run_with_cache(**run, names_filter=[site])
        moved = lens(site, cache[site])
        (expected,) = model.generate(
            **run, max_new_tokens=6, fwd_hooks=[(last, lambda stream, hook, moved=moved: moved)]
        )
        assert heard.tokens == expected.tokens


# --- Interrupted ----------------------------------------------------------------------------------


@pytest.fixture
def ended_early(monkeypatch):
    """Make a training end with an error, as it begins its n-th step."""

    def ended_early(n):
        steps = iter(range(n))
        batch = tuned_objective.Objective.batch

        def until(self, runs):
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return batch(self, runs)

        monkeypatch.setattr(tuned_objective.Objective, "batch", until)

    monkeypatch.setattr(tuned_training, "_SAVE_EVERY", 0.0)
    yield ended_early
    monkeypatch.undo()


@stacks
@pytest.mark.parametrize("at", [0, 4])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, ended_early, stack, at):
    model, runs = hooked("qwen2"), some_runs("qwen2")
    asked = {"stack": stack, "steps": 6, "batch_size": 2, "held_out": 0.2, "weight_decay": 0.1}
    whole = trained(model, runs, **asked)
    with pytest.MonkeyPatch.context() as patch:
        batch = tuned_objective.Objective.batch
        ended_early(at)
        with pytest.raises(KeyboardInterrupt):
            trained(model, runs, out=tmp_path, **asked)
        patch.setattr(tuned_objective.Objective, "batch", batch)
        assert (tmp_path / tuned_training.STATE).exists()
        resumed = trained(model, runs, out=tmp_path, **asked)
    assert same(resumed, whole)
    assert resumed.held_out.equals(whole.held_out)
    ended_early(0)  # what is finished takes no step
    again = trained(model, runs, out=tmp_path, **asked)
    assert same(again, whole)
    assert again.origin == resumed.origin
    assert not (tmp_path / tuned_training.STATE).exists()


def test_a_state_of_other_settings_or_a_damaged_one_is_refused(tmp_path, ended_early):
    model, runs = hooked("whisper"), some_runs("whisper")
    with pytest.MonkeyPatch.context() as patch:
        batch = tuned_objective.Objective.batch
        ended_early(2)
        with pytest.raises(KeyboardInterrupt):
            trained(model, runs, out=tmp_path, steps=5)
        patch.setattr(tuned_objective.Objective, "batch", batch)
        with pytest.raises(RecordsError, match=r"steps was 5, now 6\."):
            trained(model, runs, out=tmp_path, steps=6)
        with pytest.raises(RecordsError, match="clips was"):
            trained(model, [*runs[:-1], tiny.inputs(model, 1, seed=99)], out=tmp_path, steps=5)
        state = tmp_path / tuned_training.STATE
        state.write_bytes(state.read_bytes()[:-2000])
        with pytest.raises(LensError, match=r"is damaged .*: remove it"):
            trained(model, runs, out=tmp_path, steps=5)
        state.unlink()
        assert same(trained(model, runs, out=tmp_path, steps=5), trained(model, runs, steps=5))


# --- Kept -----------------------------------------------------------------------------------------


@families
@stacks
def test_a_saved_lens_is_the_same(tmp_path, family, stack):
    model = hooked(family)
    lens = trained(model, some_runs(family), stack=stack, steps=1, held_out=0.2)
    lens.save(tmp_path / "lens.safetensors")
    read = TunedLens.load(tmp_path / "lens.safetensors", model)
    assert same(read, lens)
    assert read.origin == lens.origin
    assert read.origin.settings["steps"] == 1
    assert not [file for file in tmp_path.iterdir() if file.name != "lens.safetensors"]


def test_a_lens_is_for_its_weights_in_any_type_that_holds_them(tmp_path):
    narrow = hooked("whisper", torch.float16)
    path = tmp_path / "lens.safetensors"
    trained(narrow, some_runs("whisper", 3, narrow)).save(path)
    wide = hooked("whisper", torch.float16).float()
    assert len(TunedLens.load(path, wide).sites) == 3
    exact = hooked("whisper")
    with pytest.raises(LensError, match="was trained for other weights"):
        TunedLens.load(path, exact)
    assert len(TunedLens.load(path, exact, same_weights=False).sites) == 3
    with pytest.raises(LensError, match=r"this one is for the decoder of .*\(3 layers"):
        TunedLens.load(path, tiny.hooked("base"), same_weights=False)


def test_damaged_files_are_refused(tmp_path):
    model = hooked("whisper")
    path = tmp_path / "lens.safetensors"
    lens = TunedLens.identity(model)
    lens.save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole[:-1] + b"\x01", b"", b"no lens at all"):
        path.write_bytes(damaged)
        with pytest.raises(LensError, match="damaged"):
            TunedLens.load(path, model)
    with pytest.raises(LensError, match="there is no tuned lens"):
        TunedLens.load(tmp_path / "other.safetensors", model)
    with pytest.raises(LensError, match=r"saved as \.safetensors; got 'lens.pt'"):
        lens.save("lens.pt")


# --- What is given --------------------------------------------------------------------------------


def test_what_cannot_be_trained_on_is_refused():
    model, runs = hooked("whisper"), some_runs("whisper", 2)
    for option, said in (
        ({"steps": -1}, "steps is from 0"),
        ({"batch_size": 0}, "batch_size is at least 1; got 0"),
        ({"learning_rate": 0.0}, "learning_rate is above 0"),
        ({"held_out": 1.0}, "held_out is a share"),
        ({"stack": "middle"}, "got 'middle'"),
        ({"prompt": "Say it."}, "asked by language and task; got prompt"),
        ({"texts": ["one"]}, "2 clips take as many texts; got 1"),
    ):
        with pytest.raises(LensError, match=said):
            trained(model, runs, **option)
    two = tiny.inputs(model, batch=2)
    with pytest.raises(LensError, match="1 of 3 clips cannot be used: clip 2: a run has one row"):
        trained(model, [*runs, two])
    with pytest.warns(UserWarning, match="1 of 3 clips cannot be used.*They are skipped"):
        lens = trained(model, [*runs, two], skip_unreadable=True)
    with warnings.catch_warnings():
        assert same(lens, trained(model, runs))
