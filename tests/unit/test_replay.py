"""Steps replayed from a tape, against the model's own forward, step by step."""

import copy
import gc
import io
import weakref
from contextlib import ExitStack, nullcontext

import pytest
import tiny
import tiny_qwen2
import torch
from torch import nn
from torch.testing import assert_close

from hooked_asr.components.kv_cache import KVCache
from hooked_asr.generation import Steps, replay

N_STEPS, LIMIT = 4, 20


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def whisper(batch=2, layout="base"):
    model = tiny.hooked(layout)
    mel, tokens = tiny.inputs(model, batch, n_pos=3 + N_STEPS)
    return model, {"audio": model.encode(mel), "tokens": tokens[:, :3]}, tokens


def qwen(batch=2, layout="gqa"):
    model = tiny_qwen2.hooked(layout)
    given = tiny_qwen2.inputs([[61]] * batch)
    inputs = model.encoded({k: v for k, v in given.items() if k != "attention_mask"})
    new = torch.randint(0, tiny_qwen2.END, (batch, N_STEPS))
    return model, inputs, torch.cat([inputs["tokens"], new], dim=1)


FAMILIES = {"whisper": whisper, "qwen2_audio": qwen}


def stepwise(model, inputs, tokens, hooks=()):
    """Each step's logits, by the forward alone."""
    rest = {name: value for name, value in inputs.items() if name != "tokens"}
    n_prompt = inputs["tokens"].shape[1]
    past = KVCache(model.config.decoder.n_layers, tokens.shape[1] + 1)
    with model.hooks(hooks):
        logits = [model.decode(tokens[:, :n_prompt], past=past, **rest)[:, -1]]
        for i in range(n_prompt, tokens.shape[1]):
            with model.clock.stepping(i - n_prompt + 1):
                logits.append(model.decode(tokens[:, i : i + 1], past=past)[:, -1])
    return torch.stack(logits, dim=1)


def replayed(model, inputs, tokens, hooks=()):
    """The same by `Steps`."""
    n_prompt, steps = inputs["tokens"].shape[1], Steps(model, inputs, tokens.shape[1] + 1)
    with model.hooks(hooks):
        ends = range(n_prompt, tokens.shape[1] + 1)
        return torch.stack([steps(tokens[:, :end])[:, -1] for end in ends], dim=1)


def check(model, inputs, tokens, hooks=()):
    """Twice: what is recorded in one decoding is replayed in the next."""
    expected = stepwise(model, inputs, tokens, hooks)
    for _ in range(2):
        assert torch.equal(replayed(model, inputs, tokens, hooks), expected)
    return expected


class forwards:  # noqa: N801
    """How often the model's own decoder ran in a block."""

    def __init__(self, model):
        self.model, self.n = model, 0

    def __enter__(self):
        decode = self.model.decode

        def counted(*args, **kwargs):
            self.n += 1
            return decode(*args, **kwargs)

        self.model.__dict__["decode"] = counted
        return self

    def __exit__(self, *error):
        del self.model.__dict__["decode"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_the_forwards(family, batch):
    model, inputs, tokens = FAMILIES[family](batch)
    check(model, inputs, tokens)
    with forwards(model) as ran:
        replayed(model, inputs, tokens)
    assert ran.n == 1  # the prompt


def test_each_number_of_rows_has_its_own_tape():
    model, inputs, tokens = qwen(3)
    for rows in ([0], [0, 1, 2], [1, 2], [2]):
        check(model, {name: value[rows] for name, value in inputs.items()}, tokens[rows])


@pytest.mark.parametrize("layout", ["unequal_heads", "deep_decoder", "untied", "relu", "one_head"])
def test_every_layout_is_replayed(layout):
    model, inputs, tokens = whisper(layout=layout)
    check(model, inputs, tokens)


def doubled(x, hook):
    return x * 2


def late(x, hook):
    """Nothing at first; then a new tensor, or an edit in place, step by step."""
    step = hook.clock.step
    return None if step < 3 else x * 2 if step % 2 else x.mul_(0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_functions_act_at_every_hook(family):
    """Also at lazy ones, where a function that changes nothing yet leaves no tape."""
    model, inputs, tokens = FAMILIES[family]()
    untouched = stepwise(model, inputs, tokens)
    passed = [name for name, spec in model.hook_table.items() if spec.clock == "pos"]
    for name in passed:
        assert not torch.equal(check(model, inputs, tokens, [(name, late)]), untouched)


def test_several_functions_see_positions_and_steps():
    model, inputs, tokens = whisper()
    seen = []

    def look(x, hook):
        seen.append((hook.name, hook.positions, hook.clock.step, x.clone()))

    hooks = [("decoder.*.hook_resid_post", look), ("decoder.0.attn.hook_z", doubled)]
    stepwise(model, inputs, tokens, hooks)
    expected, seen = seen, []
    hooks[0] = (hooks[0][0], look)
    check_runs = [replayed(model, inputs, tokens, hooks) for _ in range(2)]
    assert torch.equal(*check_runs)
    assert len(seen) == 2 * len(expected)
    for theirs, ours in zip(expected * 2, seen, strict=True):
        assert theirs[:3] == ours[:3]
        assert torch.equal(theirs[3], ours[3])


def test_functions_come_and_go_between_steps():
    model, inputs, tokens = whisper()
    n_prompt = inputs["tokens"].shape[1]
    plain = stepwise(model, inputs, tokens)
    for start in (4, 5):
        steps, got = Steps(model, inputs, LIMIT), []
        for end in range(n_prompt, tokens.shape[1] + 1):
            hooks = model.hooks([("decoder.1.hook_mlp_out", doubled)])
            with hooks if end >= start else nullcontext():
                got.append(steps(tokens[:, :end])[:, -1])
        got = torch.stack(got, dim=1)
        before = start - n_prompt
        assert torch.equal(got[:, :before], plain[:, :before])
        assert not (got[:, before:] == plain[:, before:]).all(-1).any()


@pytest.mark.parametrize("site", ["hook_mlp_out", "attn.hook_pattern", "ln1.hook_scale"])
def test_what_a_function_attaches_is_no_part_of_later_decodings(site):
    model, inputs, tokens = whisper()
    attached = ExitStack()

    def attaches(x, hook):
        if hook.clock.step == 1:
            attached.enter_context(model.hooks([(f"decoder.1.{site}", doubled)]))

    with attached:
        replayed(model, inputs, tokens, [("decoder.0.hook_mlp_out", attaches)])
    check(model, inputs, tokens, [("decoder.0.hook_mlp_out", lambda x, hook: None)])


def test_a_function_may_run_the_model():
    model, inputs, tokens = whisper()

    def runs(x, hook):
        with model.unhooked():
            steps = Steps(model, inputs, LIMIT)
            return x + sum(steps(tokens[:, :end]).sum() for end in (3, 4, 5))

    check(model, inputs, tokens, [("decoder.0.hook_resid_mid", runs)])
    check(model, inputs, tokens)


def test_a_function_that_fails_leaves_all_as_it_was():
    model, inputs, tokens = whisper()
    plain = stepwise(model, inputs, tokens)

    def fails(x, hook):
        if hook.clock.step == 1:
            raise ValueError("asked to")

    with pytest.raises(ValueError, match="asked to"):
        replayed(model, inputs, tokens, [("decoder.0.hook_mlp_out", fails)])
    assert torch.equal(replayed(model, inputs, tokens), plain)
    assert not any("forward" in vars(point) for point in model.hook_points.values())


def edited(model):
    model.decoder[0].mlp.fc_in.weight.mul_(-1)


def replaced(model):
    model.decoder[1].attn.q_proj.weight = nn.Parameter(torch.randn(32, 32))


def assigned(model):
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model.tie_weights()


def untied(model):
    model.unembed.weight = nn.Parameter(model.unembed.weight + 1)


def doubly_precise(model):
    model.double()


def narrowed(model):
    """Every MLP loses half of its neurons."""
    for block in model.decoder:
        block.mlp.fc_in.weight = nn.Parameter(block.mlp.fc_in.weight[:24].clone())
        block.mlp.fc_in.bias = nn.Parameter(block.mlp.fc_in.bias[:24].clone())
        block.mlp.fc_out.weight = nn.Parameter(block.mlp.fc_out.weight[:, :24].clone())


def swapped(model):
    model.decoder[0].mlp = copy.deepcopy(model.decoder[1].mlp)


CHANGES = [edited, replaced, assigned, untied, doubly_precise, narrowed, swapped]


@pytest.mark.parametrize("change", CHANGES)
def test_weights_and_modules_may_change_between_decodings(change):
    model, inputs, tokens = whisper()
    before = check(model, inputs, tokens)
    change(model)
    inputs = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    after = check(model, inputs, tokens)
    assert not torch.equal(before, after)


def test_a_norm_rounds_to_the_type_that_the_model_has_now():
    model, inputs, tokens = qwen()
    check(model, inputs, tokens)
    model.double()
    check(model, {**inputs, "audio": inputs["audio"].double()}, tokens)


class Counting(nn.Module):
    """Another's module, that does more than compute."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += 1
        return x * self.n


def test_modules_of_others_are_run_as_ever():
    model, inputs, tokens = whisper()
    check(model, inputs, tokens)
    model.decoder[0].mlp.activation = counting = Counting()
    expected = stepwise(model, inputs, tokens)
    counting.n = 0
    assert torch.equal(replayed(model, inputs, tokens), expected)
    assert counting.n == 1 + N_STEPS


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_pytorchs_own_hooks_are_called(kind):
    model, inputs, tokens = whisper()
    check(model, inputs, tokens)
    called = []
    with getattr(model.decoder[1].attn.q_proj, kind)(lambda *args: called.append(0)):
        check(model, inputs, tokens)
    assert len(called) == 3 * (1 + N_STEPS)
    with model.hook_points["decoder.1.hook_resid_mid"].register_forward_hook(
        lambda module, args, out: out + 1
    ):
        changed = check(model, inputs, tokens)
    assert not torch.equal(changed, check(model, inputs, tokens))


def test_gradients_reach_what_was_said():
    model, inputs, tokens = whisper()
    check(model, inputs, tokens)
    with torch.enable_grad(), forwards(model) as ran:
        logits = replayed(model, inputs, tokens)
        assert ran.n == 1 + N_STEPS
        gradient = torch.autograd.grad(logits.sum(), model.decoder[0].mlp.fc_in.weight)[0]
    assert gradient.abs().sum() > 0
    assert_close(logits, stepwise(model, inputs, tokens))


def test_autocast_is_heeded():
    model, inputs, tokens = whisper()
    plain = check(model, inputs, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = check(model, inputs, tokens)
        with forwards(model) as ran:
            replayed(model, inputs, tokens)
    assert ran.n == 1 + N_STEPS
    assert not torch.equal(plain.float(), rounded.float())


def test_a_padded_prompt_is_run_as_ever():
    model = tiny_qwen2.hooked()
    inputs = model.encoded(tiny_qwen2.inputs([[61], [33]]))
    assert not inputs["attention_mask"].all()
    more = torch.randint(0, tiny_qwen2.END, (2, 3))
    tokens = torch.cat([inputs["tokens"], more], dim=1)
    with forwards(model) as ran:
        stepped = replayed(model, inputs, tokens)
    assert ran.n == 1 + 3
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    rest = {"audio": inputs["audio"], "mel_mask": inputs["mel_mask"], "attention_mask": mask}
    whole = model.decode(tokens, position_ids=places, **rest)
    assert_close(stepped, whole[:, -4:])


def test_a_model_that_was_decoded_with_can_be_copied_saved_and_freed():
    model, inputs, tokens = whisper()
    expected = check(model, inputs, tokens)
    twin = copy.deepcopy(model)
    edited(model)
    assert torch.equal(check(twin, inputs, tokens), expected)
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    assert torch.equal(check(torch.load(file, weights_only=False), inputs, tokens), expected)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_no_more_tapes_are_kept_than_serve(monkeypatch):
    monkeypatch.setattr(replay, "_MOST", 2)
    model, inputs, tokens = whisper()
    sites = ["decoder.0.hook_mlp_out", "decoder.0.attn.hook_z", "unembed.hook_out"]
    for site in sites * 2:
        check(model, inputs, tokens, [(site, doubled)])
        assert len(replay._tapes[model]) <= 2
