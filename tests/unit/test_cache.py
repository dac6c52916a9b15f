"""What a run keeps, how it is stored, and the residual stream taken apart."""

import functools
import math

import pytest
import torch
from safetensors.torch import save_file
from tiny import hf_whisper, hooked, inputs
from torch.nn import functional as F
from torch.testing import assert_close

from hooked_asr import (
    ActivationCache,
    FrontEndConfig,
    HookedWhisper,
    HookError,
    ModelConfig,
    StackConfig,
    UnknownHookError,
)
from hooked_asr.errors import HookedASRError
from hooked_asr.files import written_aside
from hooked_asr.names import hook_table, select

LAZY = (
    *("hook_q_input", "hook_k_input", "hook_v_input", "hook_in"),
    *("hook_attn_scores", "hook_pattern", "hook_result"),
)
NAMES = list(hook_table(hooked().config))
KEPT = [name for name in NAMES if not name.endswith(LAZY)]
MAPS = ("hook_attn_scores", "hook_pattern")
OF_FRAMES = ("hook_mel", "conv1.hook_pre", "conv1.hook_post")
OF_AUDIO = [
    name
    for name in NAMES
    if name.startswith(("encoder", "conv2", "hook_embed", "hook_pos_embed", "hook_encoder_out"))
    or name.endswith(tuple(f"cross_attn.hook_{leaf}" for leaf in ("k", "v", "k_input", "v_input")))
]
OF_TOKENS = [name for name in NAMES if name not in OF_AUDIO and name not in OF_FRAMES]


@pytest.fixture(scope="module")
def hf():
    return hf_whisper()


@pytest.fixture(scope="module")
def model(hf):
    return HookedWhisper.from_hf(hf)


@pytest.fixture(scope="module")
def mel(model):
    return inputs(model)[0]


@pytest.fixture(scope="module")
def tokens(model):
    return inputs(model)[1]


@pytest.fixture(scope="module")
def full(model, mel, tokens):
    """Every activation, lazy ones too."""
    with torch.no_grad():
        return model.run_with_cache(mel, tokens, names_filter=NAMES)[1]


@pytest.fixture(scope="module")
def cache(model, mel, tokens):
    with torch.no_grad():
        return model.run_with_cache(mel, tokens)[1]


def watch(x, hook):
    """Looks, and changes nothing."""


def add_one_in_place(x, hook):
    x += 1


def number(logits):
    """One number of the logits that weighs every logit otherwise."""
    return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()


def assert_same(cache, expected):
    assert list(cache) == list(expected)
    for name, x in expected.items():
        assert torch.equal(cache[name], x), name


class TestWhatIsKept:
    def test_is_all_but_the_lazy_in_the_order_of_the_forward(self, cache):
        assert list(cache) == KEPT

    @pytest.mark.parametrize("names_filter", [None, NAMES], ids=["default", "everything"])
    def test_comes_with_the_plain_forwards_logits_bit_for_bit(
        self, model, mel, tokens, names_filter
    ):
        logits, cache = model.run_with_cache(mel, tokens, names_filter=names_filter)
        assert torch.equal(logits, model(mel, tokens))
        assert torch.equal(cache["unembed.hook_out"], logits)

    def test_is_what_a_hook_function_sees(self, model, mel, tokens, full):
        seen = {}
        with torch.no_grad():
            model.run_with_hooks(
                mel,
                tokens,
                fwd_hooks=[(NAMES, lambda x, hook: seen.update({hook.name: x.clone()}))],
            )
        assert_same(full, seen)

    @pytest.mark.parametrize(
        ("names_filter", "kept"),
        [
            ("hook_embed", ["hook_embed"]),
            ("decoder.1.attn.hook_pattern", ["decoder.1.attn.hook_pattern"]),
            ("encoder.*.hook_attn_out", ["encoder.0.hook_attn_out", "encoder.1.hook_attn_out"]),
            (["unembed.*", "hook_mel"], ["hook_mel", "unembed.hook_out"]),
            (("hook_mel",), ["hook_mel"]),
            (lambda name: "0.cross_attn.hook_r" in name, ["decoder.0.cross_attn.hook_result"]),
            ("*", KEPT),
        ],
        ids=["name", "lazy name", "glob", "list", "tuple", "function", "wildcard"],
    )
    def test_is_what_the_filter_says(self, model, mel, tokens, full, names_filter, kept):
        with torch.no_grad():
            _, cache = model.run_with_cache(mel, tokens, names_filter=names_filter)
        assert_same(cache, {name: full[name] for name in kept})

    def test_is_only_what_the_run_reached(self, model, mel, tokens, full):
        with torch.no_grad():
            _, cache = model.run_with_cache(mel, stop_at="encoder.1")
            assert list(cache) == KEPT[: KEPT.index("encoder.1.hook_resid_pre")]
            _, cache = model.run_with_cache(tokens=tokens, audio=full["hook_encoder_out"])
            assert_same(cache, {n: full[n] for n in KEPT[KEPT.index("hook_decoder_embed") :]})

    def test_a_filter_of_unreached_hooks_alone_is_an_error(self, model, tokens, full):
        with pytest.raises(HookError, match=r"'encoder\.\*' never fired"):
            model.run_with_cache(
                tokens=tokens, audio=full["hook_encoder_out"], names_filter="encoder.*"
            )

    @pytest.mark.parametrize("names_filter", ["decoder.0.hook_zed", ["hook_mel", "*.hook_zed"]])
    def test_a_filter_that_means_nothing_is_an_error(self, model, mel, tokens, names_filter):
        with pytest.raises(UnknownHookError, match="hook_zed"):
            model.run_with_cache(mel, tokens, names_filter=names_filter)
        assert not model.has_hooks

    def test_needs_no_graph(self, model, mel, tokens):
        _, cache = model.run_with_cache(mel, tokens, names_filter=NAMES)
        assert not any(x.requires_grad for x in cache.values())

    def test_is_usable_in_autograd_though_kept_without(self, cache):
        direction = torch.zeros(32, requires_grad=True)
        (cache["decoder.0.hook_mlp_out"] @ direction).sum().backward()
        assert direction.grad is not None


class TestSlices:
    @staticmethod
    def sliced(x, name, where):
        """By hand: queries are the second to last axis of a map, positions the second of others."""
        return x[:, :, where] if name.endswith(MAPS) else x[:, where]

    def check(self, cache, full, which, where):
        expected = {
            name: self.sliced(x, name, where) if name in which else x for name, x in full.items()
        }
        assert_same(cache, expected)

    @pytest.mark.parametrize(
        ("pos_slice", "where"),
        [
            (2, slice(2, 3)),
            (0, slice(0, 1)),
            (-1, slice(6, 7)),
            (-7, slice(0, 1)),
            (slice(1, 4), slice(1, 4)),
            (slice(None, None, 3), slice(0, 7, 3)),
            (slice(-2, None), slice(5, 7)),
        ],
        ids=str,
    )
    def test_of_tokens_cut_token_positions_alone(self, model, mel, tokens, full, pos_slice, where):
        with torch.no_grad():
            _, cache = model.run_with_cache(mel, tokens, names_filter=NAMES, pos_slice=pos_slice)
        self.check(cache, full, OF_TOKENS, where)

    @pytest.mark.parametrize(
        ("audio_slice", "where"),
        [(49, slice(49, 50)), (-1, slice(49, 50)), (slice(10, 30, 5), slice(10, 30, 5))],
        ids=str,
    )
    def test_of_audio_cut_encoder_positions_alone(
        self, model, mel, tokens, full, audio_slice, where
    ):
        with torch.no_grad():
            _, cache = model.run_with_cache(
                mel, tokens, names_filter=NAMES, audio_slice=audio_slice
            )
        self.check(cache, full, OF_AUDIO, where)

    def test_may_be_both(self, model, mel, tokens, full):
        name = "decoder.1.cross_attn.hook_"
        with torch.no_grad():
            _, cache = model.run_with_cache(
                mel, tokens, names_filter=[f"{name}q", f"{name}k"], pos_slice=-1, audio_slice=3
            )
        assert_same(
            cache, {f"{name}k": full[f"{name}k"][:, 3:4], f"{name}q": full[f"{name}q"][:, -1:]}
        )

    @pytest.mark.parametrize("where", [{"pos_slice": 7}, {"pos_slice": -8}, {"audio_slice": 50}])
    def test_beyond_the_end_are_an_error(self, model, mel, tokens, where):
        with pytest.raises(IndexError, match=r"no position -?\d+ to keep of '.*', which has \d+"):
            model.run_with_cache(mel, tokens, **where)
        assert not model.has_hooks

    @pytest.mark.parametrize("dtype", [None, torch.bfloat16])
    @pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
    def test_keep_nothing_else_alive(self, model, mel, tokens, dtype, grad_mode):
        with grad_mode():
            _, cache = model.run_with_cache(
                mel,
                tokens,
                names_filter=[*OF_AUDIO, *OF_TOKENS],
                pos_slice=slice(1, 3),
                audio_slice=-1,
                dtype=dtype,
            )
        for name, x in cache.items():
            assert x.untyped_storage().nbytes() == x.nbytes, name


class TestPlace:
    def test_dtype(self, model, mel, tokens, full):
        with torch.no_grad():
            logits, cache = model.run_with_cache(
                mel, tokens, names_filter=NAMES, dtype=torch.bfloat16
            )
        assert logits.dtype == torch.float32
        assert_same(cache, {name: x.bfloat16() for name, x in full.items()})

    def test_device(self, model, mel, tokens, full):
        logits, cache = model.run_with_cache(mel, tokens, device="meta")
        assert logits.device.type == "cpu"
        assert {x.device.type for x in cache.values()} == {"meta"}
        assert {n: x.shape for n, x in cache.items()} == {n: full[n].shape for n in KEPT}

    def test_remove_batch_dim(self, model, mel, tokens):
        with torch.no_grad():
            _, expected = model.run_with_cache(mel[:1], tokens[:1])
            _, cache = model.run_with_cache(mel[:1], tokens[:1], remove_batch_dim=True)
        assert_same(cache, {name: x[0] for name, x in expected.items()})
        assert cache.model is model

    def test_remove_batch_dim_of_several_clips_is_an_error(self, model, mel, tokens):
        with pytest.raises(ValueError, match="holds 2 clips"):
            model.run_with_cache(mel, tokens, remove_batch_dim=True)

    def test_to(self, cache):
        there = cache.to("meta", torch.float16)
        assert {(x.device.type, x.dtype) for x in there.values()} == {("meta", torch.float16)}
        assert cache["hook_mel"].dtype == torch.float32
        assert there.model is cache.model


class TestBesideHooks:
    def test_keeps_what_flowed_on(self, model, mel, tokens):
        with torch.no_grad():
            _, cache = model.run_with_cache(
                mel, tokens, fwd_hooks=[("decoder.0.hook_mlp_out", lambda x, hook: 0 * x)]
            )
        assert not cache["decoder.0.hook_mlp_out"].any()
        assert torch.equal(
            cache["decoder.0.hook_resid_post"], cache["decoder.0.hook_resid_mid_cross"]
        )

    @pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("how", ["given", "around", "torch"])
    def test_a_later_edit_in_place_does_not_reach_what_was_kept(
        self, model, mel, tokens, cache, how, grad_mode
    ):
        at = "decoder.1.hook_resid_pre"  # the very tensor that left layer 0
        with grad_mode():
            if how == "given":
                _, edited = model.run_with_cache(mel, tokens, fwd_hooks=[(at, add_one_in_place)])
            elif how == "around":
                with model.hooks([(at, add_one_in_place)]):
                    _, edited = model.run_with_cache(mel, tokens)
            else:
                point = model.get_submodule(at)
                with point.register_forward_hook(lambda m, args, out: add_one_in_place(out, m)):
                    _, edited = model.run_with_cache(mel, tokens)
        left = "decoder.0.hook_resid_post"
        assert torch.equal(edited[left], cache[left])
        if how != "torch":  # which runs behind what keeps
            assert torch.equal(edited[at], cache[left] + 1)
        upstream = NAMES[: NAMES.index(at)]
        assert all(torch.equal(edited[name], cache[name]) for name in upstream if name in edited)

    def test_a_patch_from_a_cache_does_not_open_the_cache_to_edits(self, model, mel, tokens, cache):
        at = "decoder.0.hook_resid_post"
        before = cache[at].clone()
        hooks = [
            (at, lambda x, hook: cache[hook.name]),
            (at, add_one_in_place),
            ("decoder.1.hook_resid_pre", add_one_in_place),
        ]
        model.run_with_hooks(mel, tokens, fwd_hooks=hooks, bwd_hooks=[(at, watch)])
        assert torch.equal(cache[at], before)
        assert not cache[at].requires_grad


class TestGradients:
    @staticmethod
    @functools.cache
    def expected(model):
        """By autograd alone, from tensors that hooks caught."""
        caught = {}

        def catch(x, hook):
            caught[hook.name] = x if x.requires_grad else x.requires_grad_()

        logits = model.run_with_hooks(*inputs(model), fwd_hooks=[(NAMES, catch)])
        return dict(zip(NAMES, torch.autograd.grad(number(logits), caught.values()), strict=True))

    def test_stand_beside_the_activations(self, model, mel, tokens, full):
        logits, cache = model.run_with_cache(mel, tokens, names_filter=NAMES, incl_bwd=number)
        assert torch.equal(logits, model(mel, tokens))
        expected = self.expected(model)
        assert list(cache)[: len(NAMES)] == NAMES
        assert set(list(cache)[len(NAMES) :]) == {f"{name}_grad" for name in NAMES}
        for name in NAMES:
            assert torch.equal(cache[name], full[name]), name
            assert_close(cache[f"{name}_grad"], expected[name])

    def test_are_filtered_sliced_and_cast_as_the_activations_are(self, model, mel, tokens):
        names = ["encoder.0.attn.hook_pattern", "decoder.1.cross_attn.hook_z"]
        _, cache = model.run_with_cache(
            mel,
            tokens,
            names_filter=names,
            incl_bwd=number,
            pos_slice=-1,
            audio_slice=slice(0, 5),
            dtype=torch.float64,
        )
        pattern, z = (self.expected(model)[name].double() for name in names)
        assert cache.keys() == {*names, *(f"{name}_grad" for name in names)}
        assert_close(cache[f"{names[0]}_grad"], pattern[:, :, :5], rtol=1e-3, atol=1e-5)
        assert_close(cache["z_grad", 1, "cross_attn"], z[:, -1:], rtol=1e-3, atol=1e-5)
        assert all(x.untyped_storage().nbytes() == x.nbytes for x in cache.values())

    def test_leave_the_weights_gradients_alone(self, model, mel, tokens):
        model.run_with_cache(mel, tokens, incl_bwd=number)
        assert all(weight.grad is None for weight in model.parameters())

    def test_are_of_the_run_as_it_was_hooked(self, model, mel, tokens):
        at = "decoder.1.hook_resid_pre"
        _, cache = model.run_with_cache(
            mel,
            tokens,
            names_filter="decoder.*.hook_resid_p*",
            incl_bwd=number,
            bwd_hooks=[(at, lambda grad, hook: 2 * grad)],
        )
        expected = self.expected(model)
        assert_close(cache["decoder.1.hook_resid_post_grad"], expected["decoder.1.hook_resid_post"])
        assert_close(cache[f"{at}_grad"], 2 * expected[at])
        assert_close(cache["decoder.0.hook_resid_post_grad"], 2 * expected[at])

    def test_reach_functions_before_anything_that_is_kept(self, model, mel, tokens):
        heard = {}
        model.run_with_cache(
            mel,
            tokens,
            names_filter="unembed.hook_out",
            incl_bwd=number,
            bwd_hooks=[("conv1.hook_pre", lambda grad, hook: heard.update({hook.name: grad}))],
        )
        assert_close(heard["conv1.hook_pre"], self.expected(model)["conv1.hook_pre"])

    def test_stop_where_a_function_cut_the_graph(self, model, mel, tokens):
        at = "decoder.1.hook_attn_out"
        names = ["decoder.1.attn.hook_z", at, "decoder.1.attn.hook_v"]
        _, cache = model.run_with_cache(
            mel,
            tokens,
            names_filter=names,
            incl_bwd=number,
            fwd_hooks=[(at, lambda x, hook: torch.ones_like(x))],
        )
        assert cache.keys() == {*names, f"{at}_grad"}

    def test_of_a_stream_on_its_way(self, model, mel):
        _, cache = model.run_with_cache(
            mel, stop_at="encoder.1", incl_bwd=lambda resid: resid[:, 3].sum()
        )
        grad = cache["encoder.0.hook_resid_post_grad"]
        assert (grad[:, 3] == 1).all()
        assert not grad[:, 4:].any()
        assert cache["hook_mel_grad"].any()

    def test_true_where_the_output_is_one_number(self):
        stack = StackConfig(n_layers=1, n_heads=2, d_model=8, d_mlp=8, n_ctx=4)
        model = HookedWhisper(ModelConfig(FrontEndConfig(4), stack, stack, d_vocab=1))
        mel, tokens = torch.randn(1, 4, 8), torch.zeros(1, 1, dtype=torch.long)
        _, cache = model.run_with_cache(mel, tokens, incl_bwd=True)
        assert_close(
            cache["decoder_final_ln.hook_normalized_grad"].flatten(), model.W_U.flatten().detach()
        )

    @pytest.mark.parametrize("incl_bwd", [True, lambda logits: logits[:, -1]])
    def test_of_more_than_one_number_are_refused(self, model, mel, tokens, incl_bwd):
        with pytest.raises(HookError, match=r"gradients are of one number; got .* shape \[2, "):
            model.run_with_cache(mel, tokens, incl_bwd=incl_bwd)

    def test_need_autograd(self, model, mel, tokens):
        with torch.no_grad(), pytest.raises(HookError, match="gradients are off"):
            model.run_with_cache(mel, tokens, incl_bwd=number)


class TestBytes:
    @pytest.mark.parametrize("names_filter", [None, "*.hook_pattern", ["hook_mel", "encoder.*"]])
    @pytest.mark.parametrize("held", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
    def test_are_told_beforehand(self, names_filter, held, dtype):
        model = hooked("unequal_heads", held)
        told = model.cache_bytes(batch=3, n_pos=5, names_filter=names_filter, dtype=dtype)
        with torch.no_grad():
            _, cache = model.run_with_cache(
                *inputs(model, batch=3, n_pos=5), names_filter=names_filter, dtype=dtype
            )
        assert told == sum(x.nbytes for x in cache.values())
        assert cache.nbytes <= told

    def test_of_a_stream_under_two_names_count_once(self, model, mel, tokens):
        names = ["decoder.0.hook_resid_post", "decoder.1.hook_resid_pre"]
        with torch.no_grad():
            _, cache = model.run_with_cache(mel, tokens, names_filter=names)
        assert cache.nbytes == 2 * 7 * 32 * 4
        assert model.cache_bytes(batch=2, n_pos=7, names_filter=names) == 2 * cache.nbytes


class TestMapping:
    def test_short_forms(self, cache):
        assert cache["z", 1, "cross_attn"] is cache["decoder.1.cross_attn.hook_z"]
        assert cache["mel"] is cache["hook_mel"]

    def test_is_a_mapping(self, cache):
        assert dict(cache).keys() == set(KEPT)
        assert len(cache) == len(KEPT)
        assert "hook_mel" in cache
        assert "hook_zed" not in cache
        assert cache.get("hook_zed") is None
        assert cache.get("hook_mel") is cache["hook_mel"]

    def test_says_how_much_it_holds(self, cache):
        assert repr(cache) == f"ActivationCache({len(KEPT)} activations, 0.6 MiB)"

    def test_says_of_a_lazy_hook_that_it_must_be_asked_for(self, cache):
        for key in ("decoder.0.attn.hook_pattern", ("pattern", 0, "attn", "decoder")):
            with pytest.raises(UnknownHookError, match="lazy hook must be asked for") as error:
                cache[key]
            assert "names_filter=['decoder.0.attn.hook_pattern', …]" in str(error.value)

    def test_says_of_another_hook_that_it_was_not_kept(self, model, mel, tokens):
        _, cache = model.run_with_cache(mel, tokens, names_filter="hook_mel")
        with pytest.raises(UnknownHookError, match=r"'hook_embed' was not kept: .* left it out"):
            cache["hook_embed"]

    def test_suggests_what_was_meant(self, cache):
        with pytest.raises(UnknownHookError, match=r"did you mean 'decoder\.1\.hook_resid_post'"):
            cache["decoder.1.hook_residpost"]
        with pytest.raises(UnknownHookError, match="did you mean 'hook_mel'"):
            ActivationCache({"hook_mel": torch.zeros(1)})["hook_mels"]


class TestFile:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "folder" / "activations.safetensors"

    def test_comes_back_as_it_was(self, full, model, path):
        full.save(path)
        assert_same(ActivationCache.load(path, model), full)
        assert list(path.parent.iterdir()) == [path]

    def test_comes_back_without_a_model(self, cache, path):
        cache.save(path)
        loaded = ActivationCache.load(path)
        assert loaded.keys() == cache.keys()
        assert all(torch.equal(loaded[name], x) for name, x in cache.items())

    def test_comes_back_with_gradients_and_other_entries(self, model, mel, tokens, path):
        names = ["hook_embed", "decoder.1.hook_mlp_out"]
        _, cache = model.run_with_cache(mel, tokens, names_filter=names, incl_bwd=number)
        own = ActivationCache({"mine": torch.ones(1), **cache}, model)
        own.save(path)
        loaded = ActivationCache.load(path, model)
        assert list(loaded) == [*names, *(f"{name}_grad" for name in names), "mine"]
        assert all(torch.equal(loaded[name], own[name]) for name in own)

    def test_comes_back_however_the_tensors_lay(self, path):
        base = torch.randn(4, 6)
        lying = {
            "whole": base,
            "again": base,
            "turned": base.T,
            "turned again": base.T,
            "part": base[1:, ::2],
            "spread": base[:1].expand(3, 6),
            "half": base.bfloat16(),
            "empty": base[:, :0],
        }
        ActivationCache(lying).save(path)
        loaded = ActivationCache.load(path)
        assert loaded.keys() == lying.keys()
        assert all(torch.equal(loaded[name], x) for name, x in lying.items())
        assert loaded["half"].dtype == torch.bfloat16

    def test_may_be_empty(self, path):
        ActivationCache({}).save(path)
        assert len(ActivationCache.load(path)) == 0

    def test_takes_a_string_and_a_device(self, cache, path):
        cache.save(str(path))
        loaded = ActivationCache.load(str(path), device=torch.device("cpu"))
        assert loaded["hook_mel"].device.type == "cpu"

    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
    def test_is_the_old_one_when_writing_fails(self, cache, path, monkeypatch, error):
        cache.save(path)
        old = path.read_bytes()

        def fail(tensors, aside, metadata):
            save_file({"half": torch.zeros(1)}, aside)
            raise error

        monkeypatch.setattr("hooked_asr.cache.save_file", fail)
        with pytest.raises(type(error)):
            ActivationCache({"other": torch.zeros(2)}).save(path)
        assert path.read_bytes() == old
        assert list(path.parent.iterdir()) == [path]

    def test_is_not_there_when_the_first_writing_fails(self, cache, path, monkeypatch):
        def fail(*args, **kwargs):
            raise OSError("disk full")

        monkeypatch.setattr("hooked_asr.cache.save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            cache.save(path)
        assert list(path.parent.iterdir()) == []

    def test_is_written_aside_under_its_own_suffix(self, tmp_path):
        with written_aside(tmp_path / "figure.svg") as aside:
            aside.write_text("drawn")
            assert aside.parent == tmp_path
            assert aside.suffix == ".svg"
            assert not (tmp_path / "figure.svg").exists()
        assert (tmp_path / "figure.svg").read_text() == "drawn"
        assert not aside.exists()

    def test_that_is_missing_is_an_error(self, tmp_path):
        for path in (tmp_path / "none.safetensors", tmp_path):
            with pytest.raises(FileNotFoundError, match=f"no saved activations at {path}"):
                ActivationCache.load(path)

    @pytest.mark.parametrize("content", [b"", b"no such thing", b"\xff" * 64])
    def test_that_is_damaged_is_an_error(self, tmp_path, content):
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(content)
        with pytest.raises(HookedASRError, match=f"{path} holds no saved activations"):
            ActivationCache.load(path)

    def test_that_was_cut_short_is_an_error(self, cache, path):
        cache.save(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(HookedASRError, match="holds no saved activations"):
            ActivationCache.load(path)


def hidden_states(hf, mel, tokens):
    """The reference's streams: as each layer gets them, and last behind the final norm."""
    with torch.no_grad():
        out = hf(input_features=mel, decoder_input_ids=tokens, output_hidden_states=True)
    return {"encoder": out.encoder_hidden_states, "decoder": out.decoder_hidden_states}


def final_norm(hf, stack):
    return getattr(hf.model, stack).layer_norm


def assert_relatively_close(actual, expected, tolerance=1e-5):
    assert (actual - expected).norm() <= tolerance * expected.norm()


class TestStackActivation:
    @pytest.mark.parametrize(
        ("name", "where", "template"),
        [
            ("z", ["cross_attn"], "decoder.{}.cross_attn.hook_z"),
            ("z", ["encoder"], "encoder.{}.attn.hook_z"),
            ("hook_z", ["decoder", "attn"], "decoder.{}.attn.hook_z"),
            ("resid_post", ["decoder"], "decoder.{}.hook_resid_post"),
            ("cross_attn_out", [], "decoder.{}.hook_cross_attn_out"),
            ("normalized", ["ln3"], "decoder.{}.ln3.hook_normalized"),
        ],
    )
    def test_is_one_activation_of_every_layer(self, cache, name, where, template):
        expected = torch.stack([cache[template.format(i)] for i in (0, 1)])
        assert torch.equal(cache.stack_activation(name, *where), expected)

    def test_counts_the_layers_of_its_own_stack(self):
        model = hooked("distilled")
        _, cache = model.run_with_cache(*inputs(model))
        assert cache.stack_activation("mlp_out", "encoder").shape == (4, 2, 50, 32)
        assert cache.stack_activation("mlp_out", "decoder").shape == (1, 2, 7, 32)

    def test_needs_to_know_the_stack(self, cache):
        with pytest.raises(ValueError, match="'resid_post' is in both stacks: add 'encoder' or"):
            cache.stack_activation("resid_post")

    def test_needs_an_activation_that_layers_have(self, cache):
        with pytest.raises(UnknownHookError):
            cache.stack_activation("zed", "decoder")
        with pytest.raises(UnknownHookError):
            cache.stack_activation("mel")
        with pytest.raises(UnknownHookError, match="could mean 2 hooks"):
            cache.stack_activation("z", "decoder")


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
class TestAccumulatedResid:
    def test_is_the_references_hidden_states(self, hf, cache, mel, tokens, stack):
        *streams, normed = hidden_states(hf, mel, tokens)[stack]
        resid, labels = cache.accumulated_resid(stack=stack)
        assert labels == ["0_pre", "1_pre", "final"]
        assert torch.equal(resid[:-1], torch.stack(streams[:2]))
        assert torch.equal(final_norm(hf, stack)(resid[-1]), normed)

    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_ends_where_a_layer_begins(self, cache, stack, layer):
        whole, _ = cache.accumulated_resid(stack=stack)
        resid, labels = cache.accumulated_resid(layer, stack)
        assert labels == [f"{i}_pre" for i in range(layer + 1)]
        assert torch.equal(resid, whole[: layer + 1])

    def test_may_show_the_streams_within_layers(self, cache, stack):
        resid, labels = cache.accumulated_resid(1, stack, incl_mid=True)
        parts = ["pre", "mid"] if stack == "encoder" else ["pre", "mid", "mid_cross"]
        assert labels == [*(f"0_{part}" for part in parts), "1_pre"]
        expected = [cache[f"{stack}.0.hook_resid_{part}"] for part in parts]
        assert torch.equal(resid[:-1], torch.stack(expected))
        assert torch.equal(resid[-1], cache[f"{stack}.0.hook_resid_post"])

    def test_may_be_seen_through_the_final_norm(self, hf, cache, mel, tokens, stack):
        normed, _ = cache.accumulated_resid(stack=stack, apply_ln=True)
        bias = final_norm(hf, stack).bias
        assert_close(normed[-1] + bias.detach(), hidden_states(hf, mel, tokens)[stack][-1])


class TestDecomposeResid:
    @pytest.mark.parametrize("per_head", [False, True])
    @pytest.mark.parametrize("separate_bias", [False, True])
    @pytest.mark.parametrize("layer", [0, 1, None])
    @pytest.mark.parametrize("stack", ["encoder", "decoder"])
    @pytest.mark.parametrize("layout", ["base", "unequal_heads", "one_head", "deep_decoder"])
    def test_terms_sum_to_the_stream(self, layout, stack, layer, per_head, separate_bias):
        hf, cache, mel, tokens = self.reference(layout)
        n_layers = cache.model.config.stack(stack).n_layers
        terms, labels = cache.decompose_resid(layer, stack, per_head, separate_bias)
        assert len(set(labels)) == len(labels) == len(terms)
        total = terms.sum(0)
        streams = hidden_states(hf, mel, tokens)[stack]
        if layer is None or layer == n_layers:
            total = final_norm(hf, stack)(total)
        assert_relatively_close(total, streams[-1 if layer is None else layer])

    @staticmethod
    @functools.cache
    def reference(layout):
        hf = hf_whisper(layout)
        model = HookedWhisper.from_hf(hf)
        mel, tokens = inputs(model)
        with torch.no_grad():
            return hf, model.run_with_cache(mel, tokens)[1], mel, tokens

    def test_terms_carry_their_names(self, cache):
        _, labels = cache.decompose_resid(stack="encoder")
        assert labels == [
            "embed",
            "pos_embed",
            "0_attn_out",
            "0_mlp_out",
            "1_attn_out",
            "1_mlp_out",
        ]
        _, labels = cache.decompose_resid(1, separate_bias=True)
        assert labels == [
            "embed", "pos_embed", "0_attn_out", "0_cross_attn_out", "0_mlp_out", "bias",
        ]  # fmt: skip
        _, labels = cache.decompose_resid(1, per_head=True)
        assert labels == [
            "embed", "pos_embed",
            "0_attn_h0", "0_attn_h1", "0_attn_h2", "0_attn_h3",
            "0_cross_attn_h0", "0_cross_attn_h1", "0_cross_attn_h2", "0_cross_attn_h3",
            "0_mlp_out", "bias",
        ]  # fmt: skip

    def test_terms_are_what_each_part_wrote(self, cache):
        terms, labels = cache.decompose_resid()
        named = dict(zip(labels, terms, strict=True))
        assert torch.equal(named["embed"], cache["hook_decoder_embed"])
        assert torch.equal(named["pos_embed"], cache["hook_decoder_pos_embed"])
        assert torch.equal(named["1_cross_attn_out"], cache["decoder.1.hook_cross_attn_out"])

    def test_biases_are_the_references(self, hf, cache):
        expected = sum(
            part.bias.detach()
            for layer in hf.model.decoder.layers
            for part in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2)
        )
        for ways in ({"separate_bias": True}, {"per_head": True}):
            terms, labels = cache.decompose_resid(**ways)
            assert labels[-1] == "bias"
            assert_close(terms[-1], expected.expand_as(terms[-1]))


class TestHeads:
    @pytest.mark.parametrize(
        ("module", "theirs"), [("attn", "self_attn"), ("cross_attn", "encoder_attn")]
    )
    def test_results_are_plain_products_with_the_references_weights(
        self, hf, cache, module, theirs
    ):
        results, labels = cache.stack_head_results(module=module)
        assert labels == [f"{i}_{module}_h{h}" for i in (0, 1) for h in range(4)]
        for label, result in zip(labels, results, strict=True):
            i, h = int(label[0]), int(label[-1])
            weight = getattr(hf.model.decoder.layers[i], theirs).out_proj.weight.detach()
            z = cache[f"decoder.{i}.{module}.hook_z"][:, :, h]
            columns = weight[:, 8 * h : 8 * (h + 1)]
            assert_close(result, torch.einsum("bpe,de->bpd", z, columns))

    def test_results_are_the_lazy_hooks(self, full):
        results, _ = full.stack_head_results(stack="encoder")
        expected = torch.stack([full[f"encoder.{i}.attn.hook_result"] for i in (0, 1)])
        assert_close(results.unflatten(0, (2, 4)), expected.movedim(-2, 1))

    def test_every_attention_is_there_by_default(self, cache):
        _, labels = cache.stack_head_results()
        assert labels == [
            f"{i}_{part}_h{h}" for i in (0, 1) for part in ("attn", "cross_attn") for h in range(4)
        ]
        _, labels = cache.stack_head_results(layer=1, module="attn")
        assert labels == [f"0_attn_h{h}" for h in range(4)]

    def test_no_head_comes_before_layer_0(self, cache):
        with pytest.raises(ValueError, match="before layer 0"):
            cache.stack_head_results(0)


class TestNorms:
    @pytest.mark.parametrize(
        ("stack", "layer", "module", "theirs"),
        [
            ("encoder", None, "ln1", "layer_norm"),
            ("decoder", None, "ln1", "layer_norm"),
            ("encoder", 1, "ln2", "layers.1.final_layer_norm"),
            ("decoder", 0, "ln1", "layers.0.self_attn_layer_norm"),
            ("decoder", 1, "ln2", "layers.1.encoder_attn_layer_norm"),
            ("decoder", 1, "ln3", "layers.1.final_layer_norm"),
        ],
    )
    def test_of_terms_sum_to_the_norm_of_the_stream(self, hf, cache, stack, layer, module, theirs):
        terms, _ = cache.decompose_resid(layer, stack, per_head=True)
        stream = terms.sum(0)
        if module == "ln2" and stack == "encoder":
            added = [cache["encoder.1.hook_attn_out"]]
        else:
            wrote = {"ln1": [], "ln2": ["attn"], "ln3": ["attn", "cross_attn"]}[module]
            added = [cache[f"decoder.{layer}.hook_{part}_out"] for part in wrote]
        terms = torch.stack([*terms, *added])
        stream = stream + sum(added)
        norm = getattr(hf.model, stack).get_submodule(theirs)
        with torch.no_grad():
            expected = norm(stream) - norm.bias
        assert_close(cache.apply_ln_to_stack(terms, stack, layer, module).sum(0), expected)

    def test_are_linear_with_the_runs_own_scale(self, cache):
        terms = torch.randn(3, 2, 7, 32)
        normed = cache.apply_ln_to_stack(terms)
        assert_close(cache.apply_ln_to_stack(5 * terms), 5 * normed)
        assert_close(cache.apply_ln_to_stack(terms[:1] + 3), normed[:1])


class TestLogitAttrs:
    def test_sum_to_the_references_logits(self, hf, cache, mel, tokens):
        with torch.no_grad():
            logits = hf(input_features=mel, decoder_input_ids=tokens).logits
            from_bias = hf.proj_out(final_norm(hf, "decoder").bias)
        for ways in ({}, {"separate_bias": True}, {"per_head": True}):
            terms, _ = cache.decompose_resid(**ways)
            for token in (0, 5, 63):
                total = cache.logit_attrs(terms, token).sum(0) + from_bias[token]
                assert_close(total, logits[..., token], rtol=1e-4, atol=1e-4)

    def test_of_a_token_for_each_position(self, hf, cache, mel, tokens):
        with torch.no_grad():
            logits = hf(input_features=mel, decoder_input_ids=tokens).logits
            from_bias = hf.proj_out(final_norm(hf, "decoder").bias)
        answers = tokens.roll(-1, 1)
        terms, _ = cache.decompose_resid()
        total = cache.logit_attrs(terms, answers).sum(0) + from_bias[answers]
        expected = logits.gather(-1, answers[..., None])[..., 0]
        assert_close(total, expected, rtol=1e-4, atol=1e-4)
        for same_for_all in (answers[:1], answers[0]):
            assert_close(
                cache.logit_attrs(terms, same_for_all)[:, 0],
                cache.logit_attrs(terms, answers)[:, 0],
            )

    def test_of_a_difference_are_the_difference(self, cache, tokens):
        terms, _ = cache.decompose_resid(per_head=True)
        answers = tokens.roll(-1, 1)
        for wrong in (3, answers.roll(1, 1)):
            assert_close(
                cache.logit_attrs(terms, answers, wrong),
                cache.logit_attrs(terms, answers) - cache.logit_attrs(terms, wrong),
                rtol=1e-4,
                atol=1e-5,
            )

    def test_of_an_untied_model_use_its_unembedding(self):
        model = hooked("untied")
        mel, tokens = inputs(model)
        with torch.no_grad():
            logits, cache = model.run_with_cache(mel, tokens)
            terms, _ = cache.decompose_resid()
            bias = F.linear(model.decoder_final_ln.bias, model.unembed.weight)
        total = cache.logit_attrs(terms, 9).sum(0) + bias[9]
        assert_close(total, logits[..., 9], rtol=1e-4, atol=1e-4)

    def test_of_one_clip_without_its_batch_axis(self, cache, model, mel, tokens):
        with torch.no_grad():
            _, one = model.run_with_cache(mel[1:], tokens[1:], remove_batch_dim=True)
        terms, labels = one.decompose_resid(per_head=True)
        assert terms.shape == (len(labels), 7, 32)
        several, _ = cache.decompose_resid(per_head=True)
        assert_close(one.logit_attrs(terms, 4), cache.logit_attrs(several, 4)[:, 1])

    def test_of_a_sliced_cache(self, cache, model, mel, tokens):
        with torch.no_grad():
            _, last = model.run_with_cache(mel, tokens, pos_slice=-1)
        attrs = last.logit_attrs(last.decompose_resid()[0], 4)
        assert_close(attrs, cache.logit_attrs(cache.decompose_resid()[0], 4)[..., -1:])

    def test_of_a_cache_in_another_dtype(self, cache):
        half = cache.to(dtype=torch.bfloat16)
        terms, _ = half.decompose_resid(per_head=True)
        attrs = half.logit_attrs(terms, 4)
        assert attrs.dtype == torch.bfloat16
        expected = cache.logit_attrs(cache.decompose_resid(per_head=True)[0], 4)
        assert_relatively_close(attrs.float(), expected, tolerance=0.05)


METHODS = {
    "accumulated": lambda cache, layer, stack: cache.accumulated_resid(layer, stack),
    "decomposed": lambda cache, layer, stack: cache.decompose_resid(layer, stack),
    "heads": lambda cache, layer, stack: cache.stack_head_results(layer, stack),
}


class TestTakenApart:
    def test_carries_no_gradient_of_the_weights(self, cache):
        terms, _ = cache.decompose_resid(per_head=True)
        for taken in (terms, cache.apply_ln_to_stack(terms), cache.logit_attrs(terms, 1)):
            assert not taken.requires_grad

    def test_carries_gradients_of_what_is_given(self, cache):
        components = torch.randn(1, 2, 7, 32, requires_grad=True)
        cache.logit_attrs(components, 1).sum().backward()
        assert components.grad is not None

    @pytest.mark.parametrize("layer", [-1, 3])
    @pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
    def test_up_to_a_layer_that_does_not_exist_is_an_error(self, cache, method, layer):
        with pytest.raises(ValueError, match=f"encoder has layers 0 to 1; asked for {layer}"):
            method(cache, layer, "encoder")

    @pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
    def test_of_a_stack_that_does_not_exist_is_an_error(self, cache, method):
        with pytest.raises(ValueError, match="no stack 'projector'; there are"):
            method(cache, None, "projector")
        with pytest.raises(ValueError, match="no stack 'projector'; there are"):
            cache.apply_ln_to_stack(torch.zeros(1, 2, 7, 32), "projector")

    def test_by_a_norm_that_does_not_exist_is_an_error(self, cache):
        terms = torch.zeros(1, 2, 7, 32)
        with pytest.raises(UnknownHookError, match=r"layers are 0 to 1"):
            cache.apply_ln_to_stack(terms, layer=2)
        with pytest.raises(UnknownHookError, match=r"did you mean 'decoder\.1\.ln3\.hook_scale'"):
            cache.apply_ln_to_stack(terms, layer=1, module="ln4")

    def test_needs_the_model(self, cache):
        orphan = ActivationCache(cache)
        terms = torch.zeros(1, 2, 7, 32)
        for take in (
            orphan.accumulated_resid,
            orphan.decompose_resid,
            orphan.stack_head_results,
            lambda: orphan.stack_activation("resid_pre", "decoder"),
            lambda: orphan.apply_ln_to_stack(terms),
            lambda: orphan.logit_attrs(terms, 0),
        ):
            with pytest.raises(ValueError, match="knows no model"):
                take()

    def test_needs_the_streams_parts(self, model, mel, tokens):
        _, cache = model.run_with_cache(mel, tokens, names_filter="*.hook_attn_out")
        with pytest.raises(UnknownHookError, match="'hook_decoder_embed' was not kept"):
            cache.decompose_resid()

    def test_works_on_a_file_read_with_its_model(self, cache, model, tmp_path):
        cache.save(tmp_path / "cache.safetensors")
        loaded = ActivationCache.load(tmp_path / "cache.safetensors", model)
        assert torch.equal(loaded.decompose_resid()[0], cache.decompose_resid()[0])


def test_the_lists_above_split_the_table():
    table = hook_table(hooked().config)
    assert sorted([*OF_FRAMES, *OF_AUDIO, *OF_TOKENS]) == sorted(table)
    assert select(None, table) == KEPT
    assert math.prod(table["hook_mel"].shape(hooked().config, 1, 1)) == 800
