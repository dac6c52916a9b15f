"""References decoded beside a target, against the slow way: both over all tokens, at every step.

The slow way runs, at each step, the reference over the tokens so far with `run_with_cache`, and the
target over the same tokens, uncached, with that cache as the source.
"""

import warnings

import pytest
import tiny
import tiny_qwen2
import torch
from test_generation import pair as speaks_of_times
from torch.testing import assert_close

from hooked_asr.generation import GenerationError, PromptShape, Steps, logits_processors
from hooked_asr.generation.lockstep import encoding_beside, references
from hooked_asr.interventions import Lockstep, Site, interpolate, mean, replace, zero

LOGITS = "unembed.hook_out"
N_PROMPT = 2  # start, and no time stamps
TIMES = range(tiny.NO_TIMESTAMPS + 1, tiny.N_VOCAB)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def whisper(layout="base"):
    """A tiny Whisper that says no times of its own accord: one window for each clip."""
    model = tiny.hooked(layout)
    model.generation_config.suppress_tokens = [1, 7, 9, tiny.START, tiny.NO_TIMESTAMPS, *TIMES]
    return model


@pytest.fixture(scope="module")
def model():
    return whisper()


def sounds(clips, seed, n_frames=100, n_mels=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, n_mels, n_frames, generator=generator)


NOISY, CLEAN = sounds(3, seed=0), sounds(3, seed=1)


def every_hook(model, *prefixes):
    return [name for name in model.hook_table if name.startswith(prefixes)]


# --- The slow way ---------------------------------------------------------------------------------


def slow_logits(model, target, reference, tokens, n_prompt, make):
    """Each step's last logits; `make(cache)` gives the interventions.

    `target(tokens)` and `reference(tokens)` are a forward's inputs.
    """
    logits = []
    for end in range(n_prompt, tokens.shape[1] + 1):
        so_far = tokens[:, :end]
        _, cache = model.run_with_cache(**reference(so_far), names_filter=lambda name: True)
        with model.hooks(make(cache)):  # which may act at positions that come later
            logits.append(model(**target(so_far))[:, -1])
    return torch.stack(logits, dim=1)


def heard(mel):
    return lambda tokens: {"mel": mel, "tokens": tokens}


def likeliest(model, logits, tokens, n_prompt, timestamps=False):
    """What each step says, by the rules."""
    rules = logits_processors(model.generation_config, PromptShape(n_prompt, "cpu"), timestamps)
    steps = range(logits.shape[1])
    said = [rules(tokens[:, : n_prompt + i], logits[:, i].clone()).argmax(-1) for i in steps]
    return torch.stack(said, dim=1)


def check_window(model, window, ours, theirs, said, make, n_prompt=N_PROMPT, timestamps=False):
    """Tokens and logits of one window's rows are those of the slow way, up to each row's end."""
    tokens, fast = window.whole_tokens, window.cache[LOGITS][:, n_prompt - 1 :]
    slow = slow_logits(
        model, heard(ours), heard(theirs), tokens[:, : n_prompt + fast.shape[1] - 1], n_prompt, make
    )
    expected = likeliest(model, slow, tokens, n_prompt, timestamps)
    for row, n in enumerate(said):
        n_steps = min(n + 1, fast.shape[1])  # the last one says that it ends
        assert_close(fast[row, :n_steps], slow[row, :n_steps], rtol=1e-5, atol=1e-5)
        assert torch.equal(
            tokens[row, n_prompt:][:n_steps], expected[row, :n_steps][: tokens.shape[1] - n_prompt]
        )


def check(model, ours, theirs, make, source=None, **options):
    """`generate` with `make(Lockstep)` against the slow way; gives what was heard."""
    options = {"max_new_tokens": 8, "names_filter": LOGITS} | options
    source = Lockstep(theirs) if source is None else source
    out = model.generate(ours, interventions=make(source), **options)
    spread = theirs.expand(len(ours), -1, -1)
    check_window(model, out.windows[0], ours, spread, [len(one.tokens) for one in out], make)
    return out


# --- Whisper --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", every_hook(tiny.hooked(), "decoder.1.", "unembed"))
def test_what_the_reference_computes_comes_in_at_every_hook_of_a_layer(model, name):
    check(model, NOISY[:2], CLEAN[:2], lambda source: [replace(Site(name), source)])


@pytest.mark.parametrize("name", every_hook(tiny.hooked(), "encoder.1.", "hook_", "encoder_final"))
def test_what_the_references_encoder_computes_comes_in(model, name):
    check(model, NOISY[:2], CLEAN[:2], lambda source: [replace(Site(name), source)])


@pytest.mark.parametrize(
    "site",
    [
        "decoder.0.cross_attn.1,3",
        "decoder.1.attn.hook_pattern.2@3-5",
        "decoder.0.resid_post@4-",
        "decoder.*.mlp",
        "encoder.0.attn.1@0.2s-0.6s",
        "decoder.1.attn.hook_attn_scores",
    ],
)
@pytest.mark.parametrize("alpha", [0.35, 1.0])
def test_heads_positions_and_shares(model, site, alpha):
    plain = model.generate(NOISY, names_filter=LOGITS, max_new_tokens=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a row may end before the last position
        out = check(model, NOISY, CLEAN, lambda source: [interpolate(site, source, alpha)])
    n = min(plain.cache[LOGITS].shape[1], out.cache[LOGITS].shape[1])
    assert not torch.allclose(plain.cache[LOGITS][:, :n], out.cache[LOGITS][:, :n], atol=1e-3)


@pytest.mark.parametrize("layout", ["unequal_heads", "distilled", "one_head"])
def test_every_shape_of_model(layout):
    other = whisper(layout)
    check(other, NOISY, CLEAN, lambda source: [interpolate("decoder.0.cross_attn.0", source, 0.7)])


def test_steps_bound_it_too(model):
    n_behind = range(N_PROMPT + 1, N_PROMPT + 3)

    def make(source):
        if isinstance(source, Lockstep):
            return [replace("decoder.0.mlp", source).at_steps(2, 4)]
        n_read = source["decoder.0.hook_mlp_out"].shape[1]
        return [replace(Site("decoder.0.hook_mlp_out", positions=[p]), source)
                for p in n_behind if p < n_read]  # fmt: skip

    check(model, NOISY, CLEAN, make)


@pytest.mark.parametrize(
    "name",
    [
        "decoder.1.hook_mlp_out",
        "decoder.0.attn.hook_pattern",
        "decoder.0.cross_attn.hook_v",
        "encoder.1.hook_resid_pre",
        "hook_mel",
    ],
)
def test_a_mean_is_each_rows_own_over_all_that_was_passed(model, name):
    spec = model.hook_table[name]
    means = []  # at each step so far, of all that the reference passed by then

    def make(source):
        if isinstance(source, Lockstep):
            return [mean(Site(name), source)]
        axis = spec.position_axis
        means.append(source[name].mean(axis, keepdim=True))
        if spec.clock != "pos":
            return [replace(Site(name), means[-1].expand_as(source[name]))]
        # Each position was given the mean of its own step; of keys that came later, nothing.
        size = source[name].shape[-1] if spec.axes[-1] == "key" else None
        parts = [means[0]] * N_PROMPT + means[1:]
        if size is not None:
            parts = [torch.nn.functional.pad(one, (0, size - one.shape[-1])) for one in parts]
        return [replace(Site(name), torch.cat(parts, dim=axis))]

    check(model, NOISY, CLEAN, make)


@pytest.mark.parametrize(
    "name", ["decoder.0.hook_mlp_out", "decoder.1.attn.hook_pattern", "encoder.0.attn.hook_result"]
)
def test_none_of_it_changes_nothing(model, name):
    plain = model.generate(NOISY, names_filter=LOGITS)
    hooks = [interpolate(Site(name), Lockstep(CLEAN), 0.0)]
    out = model.generate(NOISY, names_filter=LOGITS, interventions=hooks)
    assert torch.equal(out.whole_tokens, plain.whole_tokens)
    assert torch.equal(out.cache[LOGITS], plain.cache[LOGITS])


@pytest.mark.parametrize(
    "name", ["decoder.0.hook_mlp_out", "decoder.1.cross_attn.hook_k", "encoder.0.attn.hook_z", "*"]
)
def test_the_same_audio_changes_nothing(model, name):
    plain = model.generate(NOISY, names_filter=LOGITS)
    hooks = [replace(Site(name), Lockstep(NOISY))]
    out = model.generate(NOISY, names_filter=LOGITS, interventions=hooks)
    assert torch.equal(out.whole_tokens, plain.whole_tokens)
    assert torch.equal(out.cache[LOGITS], plain.cache[LOGITS])


def test_with_all_of_its_last_stream_the_reference_speaks(model):
    expected = model.generate(CLEAN)
    hooks = [replace("decoder.1.resid_post", Lockstep(CLEAN))]
    out = model.generate(NOISY, interventions=hooks)
    assert [one.tokens for one in out] == [one.tokens for one in expected]
    assert [one.tokens for one in out] != [one.tokens for one in model.generate(NOISY)]


def test_languages_are_told_in_lockstep():
    model = whisper("multilingual")
    mel = torch.cat([sounds(1, seed) * (1 + seed) for seed in range(8)])
    theirs = mel.flip(0)
    told, other = model.detect_language(mel), model.detect_language(theirs)
    assert told != other
    out = model.generate(mel, interventions=[replace("decoder.1.resid_post", Lockstep(theirs))])
    assert [one.language for one in out] == other
    assert [one.tokens for one in out] == [one.tokens for one in model.generate(theirs)]


def test_one_reference_for_all(model):
    check(model, NOISY, CLEAN[1:2], lambda source: [replace("decoder.0.cross_attn", source)])
    check(model, NOISY, CLEAN[1:2], lambda source: [replace("encoder.0.mlp", source)])


def test_several_references(model):
    third = sounds(3, seed=2)
    first_site, second_site = "decoder.0.mlp", "decoder.1.cross_attn.0,2"
    sources = Lockstep(CLEAN), Lockstep(third)
    out = model.generate(
        NOISY,
        interventions=[replace(first_site, sources[0]), replace(second_site, sources[1])],
        names_filter=LOGITS,
        max_new_tokens=8,
    )

    def make(cache):
        tokens = out.whole_tokens[:, : cache["decoder.0.hook_mlp_out"].shape[1]]
        _, other = model.run_with_cache(third, tokens)
        return [replace(first_site, cache), replace(second_site, other)]

    said = [len(one.tokens) for one in out]
    check_window(model, out.windows[0], NOISY, CLEAN, said, make)


def test_one_reference_read_at_several_sites_runs_once(model):
    def make(source):
        return [replace("decoder.0.mlp", source), replace("decoder.1.cross_attn.1", source)]

    check(model, NOISY, CLEAN, make)
    source, passes = Lockstep(CLEAN), []
    with pytest.MonkeyPatch.context() as patch:
        step = Steps.__call__
        patch.setattr(Steps, "__call__", lambda *a: passes.append(0) or step(*a))
        out = model.generate(NOISY, interventions=make(source), max_new_tokens=6)
        with_reference = len(passes)
        model.generate(NOISY, max_new_tokens=6)
    assert max(len(one.tokens) for one in out) == 6
    assert (with_reference, len(passes) - with_reference) == (12, 6)


def test_the_reference_is_read_without_the_callers_hooks(model):
    """`zero` silences the target alone, and what is kept is the target's."""
    seen = []
    note = ("decoder.0.hook_mlp_out", lambda x, hook: seen.append(len(hook.positions)))

    def make(source):
        return [zero("decoder.0.mlp"), zero("encoder.1.mlp"), replace("decoder.1.mlp", source)]

    out = check(model, NOISY, CLEAN, make)
    source = Lockstep(CLEAN)
    model.generate(NOISY, interventions=make(source), fwd_hooks=[note], max_new_tokens=8)
    read = out.cache[LOGITS].shape[1]
    assert seen == [N_PROMPT] + [1] * (read - N_PROMPT)
    assert not model.has_hooks


def test_hooks_around_a_decoding_may_read_it_too(model):
    hooks = [replace("decoder.0.mlp", Lockstep(CLEAN))]
    expected = model.generate(NOISY, interventions=hooks)
    with model.hooks(hooks):
        out = model.generate(NOISY)
    assert [one.tokens for one in out] == [one.tokens for one in expected]


def test_windows_of_long_recordings_are_read_at_the_same_moments():
    _, model = speaks_of_times()
    ours, theirs = sounds(2, seed=5, n_frames=250), sounds(2, seed=6, n_frames=270)
    lengths = torch.tensor([250, 140])
    mask = (torch.arange(250) < lengths[:, None]).long()

    def make(source):
        return [interpolate("decoder.0.cross_attn", source, 0.6), replace("encoder.1.mlp", source)]

    out = model.generate(
        ours, mel_mask=mask, interventions=make(Lockstep(theirs)), names_filter=LOGITS
    )
    ours = [mel[:, :n] for mel, n in zip(ours, lengths, strict=True)]
    assert any(len(set(window.start)) > 1 for window in out.windows)
    assert any(len(window.clips) == 1 for window in out.windows)
    for window in out.windows:
        starts = zip(window.clips, window.start, strict=True)
        places = [(clip, round(start * 100)) for clip, start in starts]
        own, other = (
            torch.stack([piece(mel[i], at) for i, at in places]) for mel in (ours, theirs)
        )
        fast = window.cache[LOGITS]
        tokens = window.whole_tokens[:, : fast.shape[1]]
        slow = slow_logits(model, heard(own), heard(other), tokens, 1, make)
        assert_close(fast, slow, rtol=1e-5, atol=1e-5)


def piece(mel, seek, n_frames=100):
    cut = mel[:, seek : seek + n_frames]
    return torch.nn.functional.pad(cut, (0, n_frames - cut.shape[1]))


def test_a_reference_speaks_through_every_window_and_prompt():
    """Prompts of unequal length, padded on the left, among them."""
    _, model = speaks_of_times()
    ours, theirs = sounds(2, seed=0, n_frames=250), sounds(2, seed=1, n_frames=250)
    options = {"condition_on_prev_tokens": True, "names_filter": LOGITS}
    hooks = [replace("decoder.1.resid_post", Lockstep(theirs))]
    out, expected = (
        model.generate(ours, interventions=hooks, **options),
        model.generate(theirs, **options),
    )
    assert [one.tokens for one in out] == [one.tokens for one in expected]
    starts = [window.whole_tokens[:, 0] for window in expected.windows]
    assert any(len(set(start.tolist())) > 1 for start in starts)  # padded, and not


def test_rows_that_fail_are_decoded_again_beside_their_own_references(model):
    def make(source):
        return [interpolate("decoder.0.cross_attn", source, 0.5)]

    hooks = make(Lockstep(CLEAN))
    first = model.generate(NOISY, interventions=hooks, max_new_tokens=8)
    logprobs = sorted(one.avg_logprob for one in first)
    threshold = (logprobs[1] + logprobs[2]) / 2
    out = model.generate(
        NOISY,
        interventions=hooks,
        temperature=(0.0, 0.7),
        logprob_threshold=threshold,
        names_filter=LOGITS,
        max_new_tokens=8,
        seed=0,
    )
    assert {one.temperature for one in out} == {0.0, 0.7}
    tokens, fast = out.whole_tokens[:, :-1], out.cache[LOGITS][:, N_PROMPT - 1 :]
    slow = slow_logits(model, heard(NOISY), heard(CLEAN), tokens, N_PROMPT, make)
    for row, one in enumerate(out):
        n = min(len(one.tokens) + 1, slow.shape[1])
        assert_close(fast[row, :n], slow[row, :n], rtol=1e-5, atol=1e-5)


def test_rows_may_leave_and_change_places(model):
    _, tokens = tiny.inputs(model, batch=3, n_pos=7)
    name, order = "decoder.0.hook_mlp_out", torch.tensor([2, 0])
    fast = []
    with model.hooks([mean(name, Lockstep(CLEAN)), replace("decoder.1.attn.1", Lockstep(CLEAN))]):
        theirs = [(one, {"mel": CLEAN}) for one in references(model)]
        with encoding_beside(theirs) as beside:
            audio = model.encode(NOISY)
        steps = Steps(model, {"audio": audio, "tokens": tokens[:, :3], **beside}, limit=7)
        fast += [steps(tokens[:, :3])[order, -1], steps(tokens[:, :4])[order, -1]]
        steps.reorder(order)
        fast += [steps(tokens[order, :end])[:, -1] for end in (5, 6, 7)]
    means = []

    def make(cache):
        means.append(cache[name].mean(1, keepdim=True))
        parts = torch.cat([means[0]] * 3 + means[1:], dim=1)
        return [replace(name, parts), replace("decoder.1.attn.1", cache)]

    slow = slow_logits(model, heard(NOISY[order]), heard(CLEAN[order]), tokens[order], 3, make)
    assert_close(torch.stack(fast, dim=1), slow, rtol=1e-5, atol=1e-5)


def test_a_decoding_may_run_within_another(model):
    """A function that decodes something else by the same source leaves the outer one as it was."""
    hooks = [replace("decoder.0.mlp", Lockstep(CLEAN[:1]))]
    expected = model.generate(NOISY[:1], interventions=hooks)
    inner = []

    def decode(x, hook):
        if hook.clock.step == 2 and not inner:
            inner.append(None)
            inner[0] = model.generate(NOISY[1:2])[0].tokens

    out = model.generate(
        NOISY[:1], interventions=hooks, fwd_hooks=[("decoder.0.hook_resid_pre", decode)]
    )
    assert out[0].tokens == expected[0].tokens
    assert inner == [model.generate(NOISY[1:2], interventions=hooks)[0].tokens]


# --- What cannot be done --------------------------------------------------------------------------


def refused(model, message, source, target=NOISY, error=GenerationError, **options):
    passes = []
    hooks = [("hook_mel", lambda x, hook: passes.append(hook.name))]
    with pytest.raises(error, match=message):
        model.generate(
            target, fwd_hooks=hooks, interventions=[replace("decoder.0.mlp", source)], **options
        )
    assert not passes
    assert not model.has_hooks


def test_beams_have_no_lockstep(model):
    refused(model, "3 beams.*leave out num_beams", Lockstep(CLEAN), num_beams=3)


def test_a_reference_that_ends_first(model):
    longer = sounds(1, seed=0, n_frames=250)
    refused(model, r"lasts 2.5 s, its reference only 2.3 s", Lockstep(longer[..., :230]), longer)
    refused(model, r"lasts 2.5 s, its reference only 1 s", Lockstep(CLEAN[:1]), longer)


def test_as_many_references_as_recordings(model):
    refused(model, "3 recordings take one reference, or as many; .* has 2", Lockstep(CLEAN[:2]))


# --- Qwen2-Audio ----------------------------------------------------------------------------------


def qwen_pair(frames, **options):
    ours = tiny_qwen2.inputs(frames, seed=0, **options)
    theirs = tiny_qwen2.inputs(frames, seed=1, **options)
    assert not torch.equal(ours["tokens"], theirs["tokens"])
    return ours, theirs


def lengthened(inputs):
    """A forward's inputs, with more tokens behind the prompt."""

    def of(tokens):
        n_prompt = inputs["tokens"].shape[1]
        new = tokens[:, n_prompt:]
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)
        own = torch.cat([inputs["tokens"], new], dim=1)
        return {**inputs, "tokens": own, "attention_mask": mask}

    return of


def check_qwen(model, ours, theirs, make, n_new=6, spread=None):
    kept = []
    keep = (LOGITS, lambda x, hook: kept.append(x[:, -1].clone()))
    out = model.generate(
        **ours, interventions=[*make(Lockstep(theirs)), keep], max_new_tokens=n_new
    )
    fast = torch.stack(kept, dim=1)
    said = [[*one.tokens, *[tiny_qwen2.END] * n_new][: fast.shape[1] - 1] for one in out]
    tokens = torch.cat([ours["tokens"], torch.tensor(said).long()], dim=1)
    n_prompt = ours["tokens"].shape[1]
    slow = slow_logits(
        model, lengthened(ours), lengthened(spread or theirs), tokens, n_prompt, make
    )
    expected = slow.index_fill(-1, torch.tensor(tiny_qwen2.AUDIO), -torch.inf).argmax(-1)
    for row, one in enumerate(out):
        n = min(len(one.tokens) + 1, fast.shape[1])
        assert_close(fast[row, :n], slow[row, :n], rtol=1e-5, atol=1e-5)
        n_said = min(n, len(one.tokens))
        assert expected[row, :n_said].tolist() == one.tokens[:n_said]
    return out


@pytest.fixture(scope="module")
def qwen():
    """It never says an audio token, which a forward would want sound for."""
    return tiny_qwen2.hooked("gqa", suppress_tokens=[tiny_qwen2.AUDIO])


@pytest.mark.parametrize("name", every_hook(tiny_qwen2.hooked("gqa"), "decoder.1.", "hook_dec"))
def test_an_answer_at_every_hook_of_a_layer(qwen, name):
    ours, theirs = qwen_pair([[61], [61]])
    check_qwen(qwen, ours, theirs, lambda source: [replace(Site(name), source)])


@pytest.mark.parametrize("name", ["encoder.0.hook_mlp_out", "projector.hook_out", "hook_mel"])
def test_an_answer_to_another_sound(qwen, name):
    ours, theirs = qwen_pair([[61], [40, 23]], side="left")
    check_qwen(qwen, ours, theirs, lambda source: [replace(Site(name), source)])


def test_an_answer_of_padded_prompts(qwen):
    ours, theirs = qwen_pair([[100], [40], [61]], side="left")
    check_qwen(qwen, ours, theirs, lambda source: [interpolate("decoder.0.attn.1", source, 0.6)])


def test_one_set_of_inputs_for_all_prompts(qwen):
    ours, _ = qwen_pair([[61, 23]] * 2)
    theirs = tiny_qwen2.inputs([[61, 23]], seed=1)
    spread = {name: torch.cat([value] * 2) for name, value in theirs.items()}
    for site in ("decoder.0.resid_post", "encoder.1.attn.2"):
        check_qwen(qwen, ours, theirs, lambda s, at=site: [replace(at, s)], spread=spread)


def test_a_reference_of_text_alone(qwen):
    ours = tiny_qwen2.inputs([[61]])
    theirs = tiny_qwen2.inputs([[]], n_text=ours["tokens"].shape[1] - 4, seed=1)
    check_qwen(qwen, ours, theirs, lambda source: [replace("decoder.1.mlp", source)])


def test_the_same_inputs_change_no_answer(qwen):
    ours, _ = qwen_pair([[61], [40]], side="left")
    plain = qwen.generate(**ours)
    out = qwen.generate(**ours, interventions=[replace("*", Lockstep(ours))])
    assert [one.tokens for one in out] == [one.tokens for one in plain]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(1, 8, 100), "model.to_inputs.*got Tensor"),
        (tiny_qwen2.inputs([[61]], n_said=9), r"tokens \[2, \d+\] take a Lockstep of as many"),
        (tiny_qwen2.inputs([[61]] * 3), r"in one row or in 2; got \[3, \d+\]"),
    ],
)
def test_inputs_that_do_not_answer_to_the_prompts(qwen, source, message):
    with pytest.raises(GenerationError, match=message):
        qwen.generate(
            **tiny_qwen2.inputs([[61]] * 2),
            interventions=[replace("decoder.0.mlp", Lockstep(source))],
        )
