"""A recorded run, replayed on other tensors."""

import math

import pytest
import torch
from torch.testing import assert_close

from hooked_asr.tape import Recorder


def recorded(fn, *inputs):
    """What a function gives, and its tape."""
    with Recorder(inputs) as recorder:
        out = fn(*inputs)
    return out, recorder.tape(out)


def of_all_kinds(x, weight):
    """Functions, methods, operators, views, tuples, writing in place, and what is no tensor."""
    low, high = torch.nn.functional.linear(x, weight).chunk(2, dim=-1)
    width = low.shape[-1]
    low = torch.where(low > 0, low, -math.inf).masked_fill(low < 0.1, 0.5 / width)
    both = torch.cat([low, high.clamp_(max=1e3)], dim=-1)
    both[:, :2] = x[:, :2].neg()
    both.mul_(1.5)
    mask = (both > 0) & ~(both > 2)
    values, _ = torch.sort(both.mT, stable=True, dim=-1)
    named = torch.nn.functional.gelu(values, approximate="tanh")
    return (named.mT + both * mask)[..., None].expand(-1, -1, 2).reshape(len(x), -1)


def test_a_replay_gives_what_the_function_gives():
    x, weight = torch.randn(3, 6), torch.randn(8, 6)
    out, tape = recorded(of_all_kinds, x, weight)
    assert_close(out, of_all_kinds(x, weight), rtol=0, atol=0)
    for seed in range(5):
        torch.manual_seed(seed)
        x, weight = torch.randn(3, 6), torch.randn(8, 6)
        assert_close(tape(x, weight), of_all_kinds(x, weight), rtol=0, atol=0)


def test_what_nothing_came_of_is_not_run_again():
    ran = []

    class Telling:
        def once(self, x):
            ran.append(x)
            return x + 1

    def looks_first(x, telling):
        if x.abs().max() > 100:
            raise AssertionError
        return telling.once(x).double()

    telling = Telling()
    x = torch.ones(2)
    with Recorder([x, telling]) as recorder, recorder.as_one(telling, "once"):
        out = looks_first(x, telling)
    tape = recorder.tape(out)
    other = Telling()
    assert_close(tape(torch.full((2,), 1000.0), other), torch.full((2,), 1001.0).double())
    assert len(ran) == 2  # its call is in the line, and what it does only once
    assert "once" not in vars(telling)


def test_a_tensor_from_elsewhere_leaves_no_tape():
    elsewhere = torch.ones(2)
    assert recorded(lambda x: x + elsewhere, torch.ones(2))[1] is None
    assert recorded(lambda x: torch.stack([x, elsewhere]), torch.ones(2))[1] is None
    assert recorded(lambda x: elsewhere, torch.ones(2))[1] is None


def test_a_call_that_spoils_it_leaves_no_tape():
    class Deciding:
        def sign(self, x):
            return x if x.sum() > 0 else -x

    deciding, x = Deciding(), torch.ones(2)
    with Recorder([x]) as recorder, recorder.spoiled_by(deciding, "sign"):
        out = deciding.sign(x) * 2
    assert recorder.tape(out) is None
    assert_close(out, x * 2)
    assert not vars(deciding)


def test_a_method_that_fails_is_put_back():
    class Failing:
        def run(self, x):
            raise ValueError("asked to")

    failing = Failing()
    recorder = Recorder([])
    with pytest.raises(ValueError, match="asked to"), recorder.as_one(failing, "run"):
        failing.run(torch.ones(1))
    assert not vars(failing)


def test_nothing_is_held_that_is_not_read_again():
    """Of a long line only its ends are alive at a time, as in the function itself."""
    import weakref

    alive, most = [], []

    class Counting:
        def look(self, x):
            alive.append(weakref.ref(x))
            most.append(sum(one() is not None for one in alive))
            return x

    def line(x, counting):
        for _ in range(20):
            x = counting.look(x) + 1
        return x

    counting, x = Counting(), torch.ones(3)
    with Recorder([x, counting]) as recorder, recorder.as_one(counting, "look"):
        out = line(x, counting)
    tape = recorder.tape(out)
    del out, recorder
    alive.clear(), most.clear()
    assert_close(tape(x, counting), x + 20)
    assert max(most) <= 3
