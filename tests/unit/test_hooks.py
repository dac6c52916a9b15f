"""Hook points: what functions see, what they change, when they come off, what flows back."""

import copy
import functools
import re
from collections import Counter

import pytest
import tiny
import torch
from tiny import hooked, inputs
from torch import nn
from torch.testing import assert_close

from hooked_asr import HookError, InputError, KVCache, UnknownHookError, hook_table
from hooked_asr.components.attention import Attention
from hooked_asr.components.norm import LayerNorm

NAMES = list(hook_table(hooked().config))
LAZY = (
    *("hook_q_input", "hook_k_input", "hook_v_input", "hook_in"),
    *("hook_attn_scores", "hook_pattern", "hook_result"),
)
DECODER_NAMES = [n for n in NAMES if n.startswith(("decoder", "hook_decoder", "unembed"))]
GRAD_MODES = {
    "autograd": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}

every_name = pytest.mark.parametrize("name", NAMES)
every_grad_mode = pytest.mark.parametrize("grad_mode", GRAD_MODES.values(), ids=GRAD_MODES)


@pytest.fixture(scope="module")
def model():
    return hooked()


@pytest.fixture(scope="module")
def double():
    """In float64, where a difference quotient is worth something."""
    return hooked(dtype=torch.float64)


@pytest.fixture
def mel(model):
    return inputs(model)[0]


@pytest.fixture
def tokens(model):
    return inputs(model)[1]


@pytest.fixture
def audio(model, mel):
    with torch.no_grad():
        return model.encode(mel)


def watch(x, hook):
    """Looks, and changes nothing."""


def zero(x, hook):
    return torch.zeros_like(x)


def grow_last_in_place(x, hook):
    x[:, -1:] *= 1.5


def grow_last(x, hook):
    x = x.clone()
    x[:, -1:] *= 1.5
    return x


def keep_in(found):
    def keep(x, hook):
        found[hook.name] = x

    return keep


def is_bare(model):
    return not model.has_hooks and not any(
        point.fwd_fns or point.bwd_fns for point in model.hook_points.values()
    )


def number(logits):
    """One number of the logits that weighs every logit otherwise."""
    return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits).to(logits)).sum()


class TestFunctions:
    def test_sees_the_tensor_and_the_hook_point(self, model, mel, tokens):
        seen = []
        hooks = [("decoder.1.hook_resid_pre", lambda x, hook: seen.append((x, hook)))]
        model.run_with_hooks(mel, tokens, fwd_hooks=hooks)
        [(x, hook)] = seen
        assert hook is model.decoder[1].hook_resid_pre
        assert hook.name == "decoder.1.hook_resid_pre"
        assert_close(x, model(mel, tokens, stop_at="decoder.1"), rtol=0, atol=0)

    @every_grad_mode
    def test_watching_everything_changes_no_bit(self, model, mel, tokens, grad_mode):
        with grad_mode():
            watched = model.run_with_hooks(mel, tokens, fwd_hooks=[(NAMES, watch)])
            assert torch.equal(watched, model(mel, tokens))

    def test_listening_for_every_gradient_changes_no_bit(self, model, mel, tokens):
        heard = model.run_with_hooks(mel, tokens, bwd_hooks=[(NAMES, watch)])
        assert torch.equal(heard, model(mel, tokens))

    def test_what_is_returned_takes_the_tensors_place(self, model, mel, tokens, audio):
        silent = model.run_with_hooks(mel, tokens, fwd_hooks=[("hook_encoder_out", zero)])
        assert torch.equal(silent, model(tokens=tokens, audio=torch.zeros_like(audio)))

    def test_functions_on_one_point_run_in_order_each_on_what_the_last_one_left(
        self, model, mel, tokens
    ):
        def add_one(x, hook):
            return x + 1

        def double_in_place(x, hook):
            x *= 2

        found = {}
        at = "decoder.0.hook_resid_pre"
        fns = [add_one, double_in_place, keep_in(found)]
        with torch.no_grad():
            model.run_with_hooks(mel, tokens, fwd_hooks=[(at, fn) for fn in fns])
            plain = model(mel, tokens, stop_at="decoder.0")
        assert torch.equal(found[at], (plain + 1) * 2)

    @every_grad_mode
    @every_name
    def test_an_edit_in_place_does_what_an_edited_copy_does(
        self, model, mel, tokens, name, grad_mode
    ):
        with grad_mode():
            edited = model.run_with_hooks(mel, tokens, fwd_hooks=[(name, grow_last_in_place)])
            replaced = model.run_with_hooks(mel, tokens, fwd_hooks=[(name, grow_last)])
            assert torch.equal(edited, replaced)
            assert not torch.equal(edited, model(mel, tokens))

    @every_name
    def test_gradients_flow_through_an_edit_in_place(self, model, mel, tokens, name):
        weights = [model.conv1.weight, model.embed.weight]
        edited, replaced = (
            torch.autograd.grad(
                number(model.run_with_hooks(mel, tokens, fwd_hooks=[(name, fn)])), weights
            )
            for fn in (grow_last_in_place, grow_last)
        )
        assert_close(edited, replaced)

    @pytest.mark.parametrize(
        ("watched", "edited"),
        [
            ("decoder.0.attn.hook_result", "decoder.0.hook_attn_out"),
            ("decoder.0.cross_attn.hook_pattern", "decoder.0.cross_attn.hook_z"),
            ("encoder_final_ln.hook_scale", "hook_encoder_out"),
        ],
    )
    def test_what_was_watched_beside_the_fused_path_can_be_edited_behind_it(
        self, model, mel, tokens, watched, edited
    ):
        hooks = [(watched, watch), (edited, grow_last_in_place)]
        logits = model.run_with_hooks(mel, tokens, fwd_hooks=hooks)
        number(logits).backward(inputs=[model.conv1.weight])
        model.zero_grad()
        assert torch.equal(
            logits, model.run_with_hooks(mel, tokens, fwd_hooks=[(edited, grow_last)])
        )

    @pytest.mark.parametrize(
        ("wrong", "complaint"),
        [
            (
                lambda x: x[:, :1],
                r"shape \[2, 1, 32\]; expected \[2, 7, 32\] \(batch pos d_model\)",
            ),
            (lambda x: x.double(), r"dtype torch\.float64; expected torch\.float32"),
            (lambda x: x.to("meta"), r"device meta; expected cpu"),
            (lambda x: [x], "returned list; return a tensor, or None"),
            (lambda x: x.detach().numpy(), "returned ndarray; return a tensor, or None"),
            (lambda x: 0.0, "returned float; return a tensor, or None"),
            (lambda x: False, "returned bool; return a tensor, or None"),
        ],
        ids=["shape", "dtype", "device", "list", "array", "number", "bool"],
    )
    def test_what_cannot_flow_on_is_refused_by_name(self, model, mel, tokens, wrong, complaint):
        def mangle(x, hook):
            return wrong(x)

        at = "decoder.1.hook_resid_mid"
        where = f"^hook function 'mangle' on '{at}' returned .*"
        with pytest.raises(HookError, match=where) as error:
            model.run_with_hooks(mel, tokens, fwd_hooks=[(at, mangle)])
        assert error.match(complaint)
        assert is_bare(model)

    @pytest.mark.parametrize("name", ["decoder.0.ln1.hook_scale", "decoder.0.attn.hook_pattern"])
    def test_what_cannot_flow_on_is_refused_beside_the_fused_path_too(
        self, model, mel, tokens, name
    ):
        with pytest.raises(HookError, match=name):
            model.run_with_hooks(mel, tokens, fwd_hooks=[(name, lambda x, hook: x[:1])])

    def test_a_function_that_takes_no_hook_is_refused_before_anything_runs(self, model):
        def forgetful(x):
            raise AssertionError("never called")

        with (
            pytest.raises(
                HookError, match=r"'forgetful' takes \(x\); .* fn\(tensor, hook="
            ) as error,
            model.hooks([("hook_mel", watch), ("hook_mel", forgetful)]),
        ):
            raise AssertionError("never entered")
        assert error.value.__cause__ is None
        assert is_bare(model)

    @pytest.mark.parametrize("kind", ["fwd_hooks", "bwd_hooks"])
    @pytest.mark.parametrize("fn", [lambda: None, lambda x, y, hook: None, lambda x, *, point: x])
    def test_other_signatures_are_refused(self, model, fn, kind):
        with pytest.raises(HookError, match="'<lambda>' takes"):
            model.run_with_hooks(**{kind: [("hook_mel", fn)]})

    def test_lambdas_partials_methods_objects_and_modules_are_functions(self, model, mel, tokens):
        class Scale(nn.Module):
            def __init__(self, factor):
                super().__init__()
                self.factor = factor

            def forward(self, x, hook):
                return self.factor * x

            def method(self, x, **kwargs):
                return self.factor * x

        class Plain:
            def __call__(self, x, hook):
                return 2 * x

        def scale(x, hook, factor):
            return factor * x

        fns = [
            lambda x, hook: 2 * x,
            functools.partial(scale, factor=2),
            Scale(2).method,
            Scale(2),
            Plain(),
        ]
        results = [model.run_with_hooks(mel, tokens, fwd_hooks=[("hook_embed", fn)]) for fn in fns]
        assert all(torch.equal(result, results[0]) for result in results)
        assert not torch.equal(results[0], model(mel, tokens))

    def test_errors_name_a_partials_function_and_an_objects_repr(self, model, mel, tokens):
        class Named:
            def __call__(self, x, hook):
                return 0

            def method(self, x, hook):
                return 0

            def __repr__(self):
                return "Named()"

        def scale(x, hook, factor):
            return factor

        partial = functools.partial(scale, factor=2)
        for fn, name in ((partial, "scale"), (Named(), "Named()"), (Named().method, "method")):
            with pytest.raises(HookError, match=re.escape(f"hook function {name!r} on 'hook_mel'")):
                model.run_with_hooks(mel, tokens, fwd_hooks=[("hook_mel", fn)])


class TestDetaching:
    def test_a_context_attaches_and_detaches(self, model, mel, tokens):
        plain = model(mel, tokens)
        with model.hooks([("hook_embed", zero)]) as inside:
            assert inside is model
            assert model.has_hooks
            changed = model(mel, tokens)
        assert is_bare(model)
        assert not torch.equal(changed, plain)
        assert torch.equal(model(mel, tokens), plain)

    def test_contexts_nest_and_an_equal_function_comes_off_once(self, model, mel, tokens):
        calls = []

        def count(x, hook):
            calls.append(hook.name)

        with model.hooks([("hook_mel", count)]):
            with model.hooks([("hook_mel", count), ("hook_mel", count)]):
                model(mel, tokens)
                assert len(calls) == 3
            model(mel, tokens)
            assert len(calls) == 4
        assert is_bare(model)

    def test_an_equal_function_that_comes_off_is_the_right_one(self, model):
        outer = [("hook_mel", watch), ("hook_mel", zero)]
        with model.hooks(outer):
            with model.hooks([("hook_mel", watch)]):
                assert [a.fn for a in model.hook_mel.fwd_fns] == [watch, zero, watch]
            assert [a.fn for a in model.hook_mel.fwd_fns] == [watch, zero]

    def test_contexts_may_end_in_any_order(self, model, mel, tokens):
        calls = []
        first = model.hooks([("hook_mel", lambda x, hook: calls.append("first"))])
        second = model.hooks([("hook_mel", lambda x, hook: calls.append("second"))])
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        model(mel, tokens)
        assert calls == ["second"]
        second.__exit__(None, None, None)
        assert is_bare(model)

    @pytest.mark.parametrize("run", ["run_with_hooks", "run_with_cache"])
    def test_after_an_error_in_the_forward(self, model, mel, run):
        too_high = torch.full((2, 3), 64)
        with pytest.raises(InputError):
            getattr(model, run)(mel, too_high, fwd_hooks=[("*", watch)], bwd_hooks=[("*", watch)])
        assert is_bare(model)

    @pytest.mark.parametrize("run", ["run_with_hooks", "run_with_cache"])
    def test_after_an_interrupt_in_a_hook(self, model, mel, tokens, run):
        def interrupt(x, hook):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            getattr(model, run)(mel, tokens, fwd_hooks=[("*", watch), ("*hook_k", interrupt)])
        assert is_bare(model)

    @pytest.mark.parametrize("run", ["run_with_hooks", "run_with_cache"])
    @pytest.mark.parametrize("kind", ["fwd_hooks", "bwd_hooks"])
    def test_after_an_error_while_attaching(self, model, mel, tokens, run, kind):
        hooks = [("*", watch), ("decoder.0.hook_zed", watch)]
        with pytest.raises(UnknownHookError):
            getattr(model, run)(mel, tokens, **{kind: hooks})
        assert is_bare(model)

    def test_after_an_iterable_of_hooks_fails(self, model):
        def hooks():
            yield "hook_mel", watch
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), model.hooks(hooks()):
            pass
        assert is_bare(model)

    def test_a_generator_of_hooks_is_as_good_as_a_list(self, model, mel, tokens):
        listed = model.run_with_hooks(mel, tokens, fwd_hooks=[("hook_embed", zero)])
        hooks = (("hook_embed", fn) for fn in [zero])
        assert torch.equal(model.run_with_hooks(mel, tokens, fwd_hooks=hooks), listed)

    def test_an_inner_runs_error_leaves_the_outer_hooks(self, model, mel, tokens):
        with model.hooks([("hook_embed", zero)]):
            with pytest.raises(UnknownHookError):
                model.run_with_hooks(mel, tokens, fwd_hooks=[("hook_embed", watch), ("x", watch)])
            assert [a.fn for a in model.hook_embed.fwd_fns] == [zero]
        assert is_bare(model)

    def test_a_hook_may_run_the_model_itself(self, model, mel, tokens):
        """As a source that runs beside the target does."""
        other = torch.flip(mel, [-1])

        def from_other(x, hook):
            with torch.no_grad():
                return model.encoder_final_ln(model(other, stop_at="encoder.2"))

        patched = model.run_with_hooks(mel, tokens, fwd_hooks=[("hook_encoder_out", from_other)])
        assert torch.equal(patched, model(other, tokens))


class TestNeverFired:
    @pytest.mark.parametrize("kind", ["fwd_hooks", "bwd_hooks"])
    def test_a_hook_that_the_run_does_not_reach_is_an_error(self, model, tokens, audio, kind):
        with pytest.raises(HookError, match=r"'watch' on 'encoder\.\*' never fired"):
            model.run_with_hooks(
                tokens=tokens,
                audio=audio,
                **{kind: [("unembed.hook_out", watch), ("encoder.*", watch)]},
            )
        assert is_bare(model)

    @pytest.mark.parametrize(
        ("name", "places"),
        [
            ("decoder.1.hook_resid_pre", {"stop_at": "decoder.1"}),
            ("unembed.hook_out", {"stop_at": "decoder.2"}),
            ("hook_decoder_embed", {"stop_at": "encoder.1"}),
        ],
    )
    def test_nor_does_a_run_reach_what_lies_behind_its_stop(self, model, mel, tokens, name, places):
        given = {"mel": mel} if "encoder" in places["stop_at"] else {"mel": mel, "tokens": tokens}
        with pytest.raises(HookError, match=f"{name}' never fired"):
            model.run_with_hooks(**given, **places, fwd_hooks=[(name, watch)])

    def test_nor_what_lies_before_its_start(self, model, mel, tokens, audio):
        resid = model(mel, tokens, stop_at="decoder.1")
        with pytest.raises(HookError, match="never fired"):
            model.run_with_hooks(
                resid=resid, audio=audio, start_at="decoder.1",
                fwd_hooks=[("decoder.0.*", watch)],
            )  # fmt: skip

    def test_one_hook_of_several_is_enough(self, model, tokens, audio):
        hooks = [(["hook_mel", "hook_decoder_embed"], watch)]
        model.run_with_hooks(tokens=tokens, audio=audio, fwd_hooks=hooks)


class TestPositions:
    def test_count_from_0_along_the_position_axis_of_a_full_forward(self, model, mel, tokens):
        seen = {}

        def note(x, hook):
            seen[hook.name] = hook.positions
            assert x.shape[hook.spec.position_axis] == len(hook.positions)

        model.run_with_hooks(mel, tokens, fwd_hooks=[(NAMES, note)])
        lengths = {"hook_mel": 100, "conv1.hook_pre": 100, "conv1.hook_post": 100}
        for name in NAMES:
            heard = ("encoder", "conv2", "hook_embed", "hook_pos_embed", "hook_encoder_out")
            of_audio = name.startswith(heard) or name.endswith(
                tuple(f"cross_attn.hook_{leaf}" for leaf in ("k", "v", "k_input", "v_input"))
            )
            assert seen[name] == range(lengths.get(name, 50 if of_audio else 7)), name

    def test_go_on_counting_in_cached_decoding(self, model, tokens, audio):
        seen = []
        of_tokens = [
            "hook_decoder_embed",
            "hook_decoder_pos_embed",
            "decoder.1.hook_resid_pre",
            "decoder.1.ln1.hook_scale",
            "decoder.1.attn.hook_k_input",
            "decoder.1.attn.hook_k",
            "decoder.1.attn.hook_q",
            "decoder.1.attn.hook_pattern",
            "decoder.1.attn.hook_z",
            "decoder.1.cross_attn.hook_q",
            "decoder.1.cross_attn.hook_pattern",
            "decoder.1.cross_attn.hook_result",
            "decoder.1.mlp.hook_in",
            "unembed.hook_out",
        ]

        def note(x, hook):
            seen.append((hook.name, list(hook.positions)))

        past = KVCache(n_layers=2, capacity=7)
        with torch.no_grad(), model.hooks([(of_tokens, note)]):
            for start, end in ((0, 3), (3, 4), (4, 7)):
                seen.clear()
                model.decode(tokens[:, start:end], audio, past=past)
                assert seen == [(name, list(range(start, end))) for name in of_tokens]
            seen.clear()
            model.decode(tokens, audio)
            assert seen == [(name, list(range(7))) for name in of_tokens]

    def test_a_step_shows_its_queries_and_all_keys(self, model, tokens, audio):
        shapes = {}
        names = ["decoder.0.attn.hook_k", "decoder.0.attn.hook_pattern", "decoder.0.attn.hook_z"]
        past = KVCache(n_layers=2, capacity=7)
        with torch.no_grad():
            model.decode(tokens[:, :4], audio, past=past)
            with model.hooks([(names, lambda x, hook: shapes.update({hook.name: x.shape}))]):
                model.decode(tokens[:, 4:6], audio, past=past)
        assert [tuple(shapes[name]) for name in names] == [(2, 2, 4, 8), (2, 4, 2, 6), (2, 2, 4, 8)]

    def test_an_encoder_hook_sees_all_its_positions_while_steps_are_under_way(
        self, model, mel, tokens, audio
    ):
        past, seen = KVCache(n_layers=2, capacity=7), []
        with torch.no_grad(), model.hooks([("encoder.0.attn.hook_q", lambda x, hook: seen.append(
            hook.positions))]):  # fmt: skip
            model.decode(tokens[:, :4], audio, past=past)
            model.decode(tokens[:, 4:5], audio, past=past)
            model.encode(mel)
        assert seen == [range(50)]

    def test_an_edit_by_position_does_the_same_cached_and_in_one_go(self, model, tokens, audio):
        def silence_token_4(x, hook):
            for i, position in enumerate(hook.positions):
                if position == 4:
                    x[:, i] = 0

        names = [
            "decoder.0.hook_resid_mid",
            "decoder.0.attn.hook_v",
            "decoder.1.cross_attn.hook_q",
            "decoder.1.ln3.hook_normalized",
        ]
        past = KVCache(n_layers=2, capacity=7)
        with torch.no_grad(), model.hooks([(names, silence_token_4)]):
            in_one_go = model.decode(tokens, audio)
            steps = [
                model.decode(tokens[:, start:end], audio, past=past)
                for start, end in ((0, 3), (3, 4), (4, 5), (5, 7))
            ]
        assert_close(torch.cat(steps, dim=1), in_one_go)

    def test_keys_and_values_of_the_audio_pass_once_for_each_utterance(self, model, tokens, audio):
        fired = Counter()
        names = ["*.cross_attn.hook_k", "*.cross_attn.hook_v"]
        with torch.no_grad(), model.hooks([(names, lambda x, hook: fired.update([hook.name]))]):
            for _ in range(2):
                past = KVCache(n_layers=2, capacity=7)
                for i in range(5):
                    model.decode(tokens[:, i : i + 1], audio, past=past)
        assert fired == {
            f"decoder.{layer}.cross_attn.hook_{kv}": 2 for layer in (0, 1) for kv in "kv"
        }

    def test_an_edit_of_the_audios_keys_lasts_through_every_step(self, model, tokens, audio):
        past = KVCache(n_layers=2, capacity=7)
        with torch.no_grad(), model.hooks([("decoder.0.cross_attn.hook_v", grow_last_in_place)]):
            in_one_go = model.decode(tokens, audio)
            steps = [model.decode(tokens[:, i : i + 1], audio, past=past) for i in range(7)]
        assert_close(torch.cat(steps, dim=1), in_one_go)


class TestLaziness:
    @pytest.fixture
    def explicit(self, monkeypatch):
        """Who computed what is computed only while someone watches: module -> times."""
        computed = Counter()

        def spy_on(kind, method):
            plain = getattr(kind, method)

            def spied(module, *args):
                computed[module, method] += 1
                return plain(module, *args)

            monkeypatch.setattr(kind, method, spied)

        spy_on(Attention, "_pattern")
        spy_on(Attention, "result")
        spy_on(LayerNorm, "_normalize")
        return computed

    def test_a_plain_forward_computes_nothing_beside_the_fused_path(
        self, model, mel, tokens, explicit
    ):
        model(mel, tokens)
        assert not explicit

    @pytest.mark.parametrize("leaf", ["hook_attn_scores", "hook_pattern"])
    def test_maps_are_computed_only_in_the_attention_asked_for(
        self, model, mel, tokens, explicit, leaf
    ):
        hooks = [(f"decoder.1.cross_attn.{leaf}", watch)]
        model.run_with_hooks(mel, tokens, fwd_hooks=hooks)
        assert explicit == {(model.decoder[1].cross_attn, "_pattern"): 1}

    def test_results_are_computed_only_in_the_attention_asked_for(
        self, model, mel, tokens, explicit
    ):
        model.run_with_hooks(mel, tokens, fwd_hooks=[("encoder.0.attn.hook_result", watch)])
        assert explicit == {(model.encoder[0].attn, "result"): 1}

    @pytest.mark.parametrize("leaf", ["hook_scale", "hook_normalized"])
    def test_scales_are_computed_only_in_the_norm_asked_for(
        self, model, mel, tokens, explicit, leaf
    ):
        model.run_with_hooks(mel, tokens, fwd_hooks=[(f"encoder.1.ln2.{leaf}", watch)])
        assert explicit == {(model.encoder[1].ln2, "_normalize"): 1}

    def test_an_unfiltered_cache_computes_and_holds_no_map_and_no_result(
        self, model, mel, tokens, explicit
    ):
        _, cache = model.run_with_cache(mel, tokens)
        assert not any(name.endswith(LAZY) for name in cache)
        maps = {(50, 50), (7, 7), (7, 50)}
        assert not [name for name, x in cache.items() if tuple(x.shape[-2:]) in maps]
        assert {method for _, method in explicit} == {"_normalize"}


class TestNothingElseChanges:
    """An edit in place reaches what flows on, never the caller's tensors or the weights."""

    @staticmethod
    def copies(model, *given):
        return [x.clone() for x in (*given, *model.state_dict().values())]

    @staticmethod
    def ruin(x, hook):
        x.fill_(0.5)

    @pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
    @every_name
    def test_of_a_whole_forward(self, model, mel, tokens, name, grad_mode):
        before = self.copies(model, mel, tokens)
        with grad_mode():
            model.run_with_hooks(mel, tokens, fwd_hooks=[(name, self.ruin)])
        assert all(map(torch.equal, before, (mel, tokens, *model.state_dict().values())))

    @pytest.mark.parametrize("name", DECODER_NAMES)
    def test_of_a_forward_from_the_encoders_output(self, model, tokens, audio, name):
        before = self.copies(model, audio, tokens)
        with torch.no_grad():
            model.run_with_hooks(tokens=tokens, audio=audio, fwd_hooks=[(name, self.ruin)])
        assert all(map(torch.equal, before, (audio, tokens, *model.state_dict().values())))

    @pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("encoder.1", "decoder.1"))])
    def test_of_a_forward_from_a_residual_stream(self, model, tokens, audio, name):
        start = name[: len("encoder.1")]
        if start == "encoder.1":
            given = {"resid": torch.randn(2, 50, 32), "tokens": tokens}
        else:
            given = {"resid": torch.randn(2, 7, 32), "audio": audio}
        before = self.copies(model, *given.values())
        with torch.no_grad():
            model.run_with_hooks(**given, start_at=start, fwd_hooks=[(name, self.ruin)])
        assert all(map(torch.equal, before, (*given.values(), *model.state_dict().values())))


class TestGradients:
    @every_name
    def test_are_those_of_a_difference_quotient(self, double, name):
        """Nudge the activation by a hook and look at the number: no autograd in the reference."""
        mel, tokens = inputs(double)
        directions, grads = {}, {}

        def nudge(x, hook, by):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
            directions[name] = noise
            return x + by * noise

        def nudged(by):
            hooks = [(name, functools.partial(nudge, by=by))]
            with torch.no_grad():
                return number(double.run_with_hooks(mel, tokens, fwd_hooks=hooks))

        step = 1e-5
        quotient = (nudged(step) - nudged(-step)) / (2 * step)
        number(double.run_with_hooks(mel, tokens, bwd_hooks=[(name, keep_in(grads))])).backward()
        double.zero_grad()
        slope = (grads[name] * directions[name]).sum()
        assert slope != 0
        assert_close(slope, quotient, rtol=1e-5, atol=1e-8)

    @every_name
    def test_are_autograds_own(self, model, mel, tokens, name):
        tensors, grads = {}, {}

        def catch(x, hook):
            tensors[name] = x if x.requires_grad else x.requires_grad_()

        logits = model.run_with_hooks(mel, tokens, fwd_hooks=[(name, catch)])
        [expected] = torch.autograd.grad(number(logits), [tensors[name]])
        number(model.run_with_hooks(mel, tokens, bwd_hooks=[(name, keep_in(grads))])).backward()
        model.zero_grad()
        assert_close(grads[name], expected)

    def test_all_come_from_one_backward_pass(self, model, mel, tokens):
        grads = {}
        number(model.run_with_hooks(mel, tokens, bwd_hooks=[(NAMES, keep_in(grads))])).backward()
        model.zero_grad()
        assert grads.keys() == set(NAMES)
        assert all(grad.isfinite().all() and grad.any() for grad in grads.values())

    def test_come_back_through_the_points_in_reverse(self, model, mel, tokens):
        came = []
        hooks = [(NAMES, lambda grad, hook: came.append(hook.name))]
        number(model.run_with_hooks(mel, tokens, bwd_hooks=hooks)).backward()
        model.zero_grad()
        stream = [name for name in reversed(NAMES) if name.endswith(("resid_pre", "resid_post"))]
        assert [name for name in came if name in stream] == stream

    def test_a_returned_gradient_takes_the_others_place(self, model, mel, tokens):
        def conv_gradient(*bwd_hooks):
            logits = model.run_with_hooks(mel, tokens, bwd_hooks=bwd_hooks)
            return torch.autograd.grad(number(logits), model.conv1.weight)[0]

        plain = conv_gradient()
        doubled = conv_gradient(("hook_encoder_out", lambda grad, hook: 2 * grad))
        stopped = conv_gradient(("hook_encoder_out", zero))
        assert_close(doubled, 2 * plain)
        assert not stopped.any()

    def test_a_gradient_replaced_at_one_end_of_a_stream_arrives_at_the_other(
        self, model, mel, tokens
    ):
        grads = {}
        hooks = [
            ("decoder.0.hook_resid_post", keep_in(grads)),
            ("decoder.1.hook_resid_pre", zero),
        ]
        number(model.run_with_hooks(mel, tokens, bwd_hooks=hooks)).backward()
        model.zero_grad()
        assert not grads["decoder.0.hook_resid_post"].any()

    def test_an_edit_of_a_gradient_in_place_reaches_no_other_branch(self, model, mel, tokens):
        def zero_in_place(grad, hook):
            grad.zero_()

        def gradient(fn):
            grads = {}
            hooks = [("decoder.1.hook_attn_out", fn), ("decoder.1.hook_resid_pre", keep_in(grads))]
            number(model.run_with_hooks(mel, tokens, bwd_hooks=hooks)).backward()
            model.zero_grad()
            return grads["decoder.1.hook_resid_pre"]

        assert torch.equal(gradient(zero_in_place), gradient(zero))
        assert not torch.equal(gradient(zero), gradient(watch))

    def test_a_gradient_that_cannot_flow_on_is_refused_by_name(self, model, mel, tokens):
        def mangle(grad, hook):
            return grad[:1]

        hooks = [("decoder.0.hook_mlp_out", mangle)]
        logits = model.run_with_hooks(mel, tokens, bwd_hooks=hooks)
        with pytest.raises(HookError, match=r"'mangle' on 'decoder\.0\.hook_mlp_out' returned"):
            number(logits).backward()
        model.zero_grad()

    def test_are_of_what_forward_functions_left(self, model, mel, tokens):
        left, grads = {}, {}
        at = "decoder.0.hook_mlp_out"
        hooks = [(at, grow_last_in_place), (at, grow_last), (at, keep_in(left))]
        logits = model.run_with_hooks(
            mel, tokens, fwd_hooks=hooks, bwd_hooks=[(at, keep_in(grads))]
        )
        assert_close(torch.autograd.grad(number(logits), [left[at]])[0], grads[at])

    def test_may_be_asked_for_after_the_hooks_came_off(self, model, mel, tokens):
        grads = {}
        with model.hooks(bwd_hooks=[("hook_embed", keep_in(grads))]):
            logits = model(mel, tokens)
        assert is_bare(model)
        number(logits).backward()
        model.zero_grad()
        assert grads["hook_embed"].shape == (2, 50, 32)

    @pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("name", ["hook_mel", "decoder.0.ln1.hook_scale", "unembed.hook_out"])
    def test_need_autograd(self, model, mel, tokens, grad_mode, name):
        with grad_mode(), pytest.raises(HookError, match=f"no gradient will reach '{name}'"):
            model.run_with_hooks(mel, tokens, bwd_hooks=[(name, watch)])
        assert is_bare(model)

    def test_need_no_trainable_weight(self, model, mel, tokens):
        frozen, expected, grads = copy.deepcopy(model).requires_grad_(False), {}, {}
        for each, found in ((model, expected), (frozen, grads)):
            logits = each.run_with_hooks(mel, tokens, bwd_hooks=[(NAMES, keep_in(found))])
            number(logits).backward()
        model.zero_grad()
        assert_close(grads, expected)
        assert not mel.requires_grad

    def test_reach_the_callers_own_inputs(self, model, mel, tokens):
        plain, hooked_ = (mel.clone().requires_grad_() for _ in range(2))
        number(model(plain, tokens)).backward()
        with model.hooks([(NAMES, watch)], bwd_hooks=[(NAMES, watch)]):
            number(model(hooked_, tokens)).backward()
        model.zero_grad()
        assert_close(hooked_.grad, plain.grad)

    def test_are_the_weights_own_while_everything_is_watched(self, model, mel, tokens):
        weights = {n: w for n, w in model.named_parameters() if w.requires_grad}
        plain = torch.autograd.grad(number(model(mel, tokens)), list(weights.values()))
        logits = model.run_with_hooks(mel, tokens, fwd_hooks=[(NAMES, watch)])
        watched = torch.autograd.grad(number(logits), list(weights.values()))
        assert_close(
            dict(zip(weights, watched, strict=True)), dict(zip(weights, plain, strict=True))
        )


class TestAsOrdinaryModules:
    @pytest.mark.parametrize(
        "name",
        ["decoder.0.hook_mlp_out", "decoder.0.ln2.hook_scale", "decoder.0.attn.hook_pattern"],
    )
    @every_grad_mode
    def test_torchs_own_forward_hooks_see_and_change(self, model, mel, tokens, name, grad_mode):
        seen = []
        point = model.get_submodule(name)
        with grad_mode():
            replaced = model.run_with_hooks(mel, tokens, fwd_hooks=[(name, grow_last)])
            plain = model(mel, tokens)
            with point.register_forward_hook(lambda m, args, out: seen.append(out.shape)):
                assert torch.equal(model(mel, tokens), plain)
            for fn in (grow_last, grow_last_in_place):
                with point.register_forward_hook(lambda m, args, out, fn=fn: fn(out, m)):
                    assert torch.equal(model(mel, tokens), replaced)
        assert seen == [model.hook_table[name].shape(model.config, 2, 7)]
        assert is_bare(model)

    def test_a_copy_of_a_model_has_hooks_of_its_own(self, model, mel, tokens):
        twin = copy.deepcopy(model)
        plain = model(mel, tokens)
        assert torch.equal(twin(mel, tokens), plain)
        assert list(twin.hook_points) == NAMES
        assert all(twin.get_submodule(name) is point for name, point in twin.hook_points.items())
        with twin.hooks([("hook_embed", zero)]):
            assert is_bare(model)
            assert torch.equal(model(mel, tokens), plain)
            assert not torch.equal(twin(mel, tokens), plain)
        assert is_bare(twin)

    def test_a_copy_of_a_model_counts_positions_on_its_own(self, model, tokens, audio):
        twin, seen = copy.deepcopy(model), []
        past = KVCache(n_layers=2, capacity=7)

        def decode_with_the_original(x, hook):
            model.decode(tokens, audio)
            seen.append(hook.positions)

        with torch.no_grad(), twin.hooks([("*.attn.hook_z", decode_with_the_original)]):
            twin.decode(tokens[:, :4], audio, past=past)
            twin.decode(tokens[:, 4:5], audio, past=past)
        assert seen == [range(4)] * 2 + [range(4, 5)] * 2

    def test_a_point_shows_its_axes(self, model):
        assert "batch pos head d_head" in repr(model.decoder[0].attn.hook_z)


@torch.no_grad()
def test_a_forward_inside_a_hook_leaves_positions_as_they_were():
    model = tiny.hooked()
    mel, tokens = tiny.inputs(model, n_pos=5)
    audio, past, seen = model.encode(mel), KVCache(2, capacity=5), []

    def decode_anew(x, hook):
        if len(seen) < 2:
            seen.append(None)
            model.decode(tokens, audio)

    def note(x, hook):
        seen.append(hook.positions)

    model.decode(tokens[:, :4], audio, past=past)
    hooks = [
        ("decoder.0.hook_resid_pre", decode_anew),
        ("decoder.1.hook_resid_post", note),
    ]
    with model.hooks(fwd_hooks=hooks):
        model.decode(tokens[:, 4:], audio, past=past)
    assert seen[-1] == range(4, 5)
