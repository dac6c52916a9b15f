"""The hook table against the model, and the ways to choose from it."""

import pytest
import torch
from tiny import LAYOUTS, hooked, inputs

from hooked_asr import FrontEndConfig, HookedWhisper, ModelConfig, StackConfig, UnknownHookError
from hooked_asr.names import hook_table, resolve, select

# Written by hand from the documented table, for one layer in each stack.
EXPECTED = """
hook_mel                                batch frame n_mels
conv1.hook_pre                          batch frame d_enc
conv1.hook_post                         batch frame d_enc
conv2.hook_pre                          batch audio d_enc
hook_embed                              batch audio d_enc
hook_pos_embed                          batch audio d_enc
encoder.0.hook_resid_pre                batch audio d_enc
encoder.0.ln1.hook_scale                batch audio 1
encoder.0.ln1.hook_normalized           batch audio d_enc
encoder.0.attn.hook_k_input             batch audio enc_head d_enc        lazy
encoder.0.attn.hook_k                   batch audio enc_head d_enc_head
encoder.0.attn.hook_v_input             batch audio enc_head d_enc        lazy
encoder.0.attn.hook_v                   batch audio enc_head d_enc_head
encoder.0.attn.hook_q_input             batch audio enc_head d_enc        lazy
encoder.0.attn.hook_q                   batch audio enc_head d_enc_head
encoder.0.attn.hook_attn_scores         batch enc_head audio audio        lazy
encoder.0.attn.hook_pattern             batch enc_head audio audio        lazy
encoder.0.attn.hook_z                   batch audio enc_head d_enc_head
encoder.0.attn.hook_result              batch audio enc_head d_enc        lazy
encoder.0.hook_attn_out                 batch audio d_enc
encoder.0.hook_resid_mid                batch audio d_enc
encoder.0.ln2.hook_scale                batch audio 1
encoder.0.ln2.hook_normalized           batch audio d_enc
encoder.0.mlp.hook_in                   batch audio d_enc                 lazy
encoder.0.mlp.hook_pre                  batch audio d_enc_mlp
encoder.0.mlp.hook_post                 batch audio d_enc_mlp
encoder.0.hook_mlp_out                  batch audio d_enc
encoder.0.hook_resid_post               batch audio d_enc
encoder_final_ln.hook_scale             batch audio 1
encoder_final_ln.hook_normalized        batch audio d_enc
hook_encoder_out                        batch audio d_enc
hook_decoder_embed                      batch pos d_model
hook_decoder_pos_embed                  batch pos d_model
decoder.0.hook_resid_pre                batch pos d_model
decoder.0.ln1.hook_scale                batch pos 1
decoder.0.ln1.hook_normalized           batch pos d_model
decoder.0.attn.hook_k_input             batch pos dec_head d_model        lazy
decoder.0.attn.hook_k                   batch pos dec_head d_dec_head
decoder.0.attn.hook_v_input             batch pos dec_head d_model        lazy
decoder.0.attn.hook_v                   batch pos dec_head d_dec_head
decoder.0.attn.hook_q_input             batch pos dec_head d_model        lazy
decoder.0.attn.hook_q                   batch pos dec_head d_dec_head
decoder.0.attn.hook_attn_scores         batch dec_head pos pos            lazy
decoder.0.attn.hook_pattern             batch dec_head pos pos            lazy
decoder.0.attn.hook_z                   batch pos dec_head d_dec_head
decoder.0.attn.hook_result              batch pos dec_head d_model        lazy
decoder.0.hook_attn_out                 batch pos d_model
decoder.0.hook_resid_mid                batch pos d_model
decoder.0.ln2.hook_scale                batch pos 1
decoder.0.ln2.hook_normalized           batch pos d_model
decoder.0.cross_attn.hook_k_input       batch audio dec_head d_enc        lazy
decoder.0.cross_attn.hook_k             batch audio dec_head d_dec_head
decoder.0.cross_attn.hook_v_input       batch audio dec_head d_enc        lazy
decoder.0.cross_attn.hook_v             batch audio dec_head d_dec_head
decoder.0.cross_attn.hook_q_input       batch pos dec_head d_model        lazy
decoder.0.cross_attn.hook_q             batch pos dec_head d_dec_head
decoder.0.cross_attn.hook_attn_scores   batch dec_head pos audio          lazy
decoder.0.cross_attn.hook_pattern       batch dec_head pos audio          lazy
decoder.0.cross_attn.hook_z             batch pos dec_head d_dec_head
decoder.0.cross_attn.hook_result        batch pos dec_head d_model        lazy
decoder.0.hook_cross_attn_out           batch pos d_model
decoder.0.hook_resid_mid_cross          batch pos d_model
decoder.0.ln3.hook_scale                batch pos 1
decoder.0.ln3.hook_normalized           batch pos d_model
decoder.0.mlp.hook_in                   batch pos d_model                 lazy
decoder.0.mlp.hook_pre                  batch pos d_dec_mlp
decoder.0.mlp.hook_post                 batch pos d_dec_mlp
decoder.0.hook_mlp_out                  batch pos d_model
decoder.0.hook_resid_post               batch pos d_model
decoder_final_ln.hook_scale             batch pos 1
decoder_final_ln.hook_normalized        batch pos d_model
unembed.hook_out                        batch pos d_vocab
"""
# No two alike, but for the width that Whisper's stacks share.
SIZES = {
    "batch": 2,
    "frame": 14,
    "n_mels": 5,
    "audio": 7,
    "pos": 3,
    "d_enc": 24,
    "d_model": 24,
    "enc_head": 4,
    "d_enc_head": 6,
    "dec_head": 12,
    "d_dec_head": 2,
    "d_enc_mlp": 10,
    "d_dec_mlp": 11,
    "d_vocab": 13,
    "1": 1,
}
SMALL = ModelConfig(
    FrontEndConfig(n_mels=5),
    encoder=StackConfig(n_layers=1, n_heads=4, d_model=24, d_mlp=10, n_ctx=7),
    decoder=StackConfig(n_layers=1, n_heads=12, d_model=24, d_mlp=11, n_ctx=9),
    d_vocab=13,
)

# All but the first are an attention's.
LAZY = (
    *("hook_in", "hook_q_input", "hook_k_input", "hook_v_input"),
    *("hook_attn_scores", "hook_pattern", "hook_result"),
)


def expected_rows():
    """Each expected name, with its axes and whether it is lazy."""
    for line in EXPECTED.strip().splitlines():
        name, *axes = line.split()
        lazy = axes[-1] == "lazy"
        yield name, axes[:-1] if lazy else axes, lazy


def firings(model, mel, tokens, names):
    """(name, shape) of every hook that fires, in the order in which they do."""
    seen = []

    def see(x, hook):
        seen.append((hook.name, tuple(x.shape)))

    with torch.no_grad():
        model.run_with_hooks(mel, tokens, fwd_hooks=[(name, see) for name in names])
    return seen


class TestTable:
    def test_has_the_documented_names_and_lazy_ones(self):
        expected = {name: lazy for name, _, lazy in expected_rows()}
        assert {name: spec.lazy for name, spec in hook_table(SMALL).items()} == expected

    def test_declares_the_documented_shapes(self):
        expected = {name: tuple(SIZES[a] for a in axes) for name, axes, _ in expected_rows()}
        declared = {n: spec.shape(SMALL, batch=2, n_pos=3) for n, spec in hook_table(SMALL).items()}
        assert declared == expected

    def test_is_what_a_small_model_fires_in_the_documented_order(self):
        model = HookedWhisper(SMALL)
        mel, tokens = torch.randn(2, 5, 14), torch.randint(0, 13, (2, 3))
        expected = [(name, tuple(SIZES[a] for a in axes)) for name, axes, _ in expected_rows()]
        assert firings(model, mel, tokens, model.hook_table) == expected

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_name_fires_once_in_order_with_its_shape(self, layout):
        model = hooked(layout)
        shapes = [(n, s.shape(model.config, 2, 7)) for n, s in model.hook_table.items()]
        assert firings(model, *inputs(model), model.hook_table) == shapes

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_names_every_layer(self, layout):
        config = hooked(layout).config
        for stack in ("encoder", "decoder"):
            layers = {n.split(".")[1] for n in hook_table(config) if n.startswith(f"{stack}.")}
            assert layers == set(map(str, range(config.stack(stack).n_layers)))

    def test_model_and_table_list_the_same_hooks_in_the_same_order(self):
        model = hooked()
        assert list(model.hook_points) == list(model.hook_table) == list(hook_table(model.config))

    def test_a_model_that_lacks_a_hook_of_its_table_is_refused(self):
        model, other = HookedWhisper(SMALL), hooked()
        with pytest.raises(RuntimeError, match=r"differ: .*decoder\.1\.hook_resid_pre"):
            model._name_hook_points(other.hook_table)

    @pytest.mark.parametrize(
        ("name", "clock", "position_axis", "head_axis"),
        [
            ("hook_mel", "frame", 1, None),
            ("conv1.hook_post", "frame", 1, None),
            ("conv2.hook_pre", "audio", 1, None),
            ("encoder.0.attn.hook_q", "audio", 1, 2),
            ("encoder.0.attn.hook_pattern", "audio", 2, 1),
            ("hook_encoder_out", "audio", 1, None),
            ("decoder.0.hook_resid_pre", "pos", 1, None),
            ("decoder.0.attn.hook_result", "pos", 1, 2),
            ("decoder.0.attn.hook_attn_scores", "pos", 2, 1),
            ("decoder.0.cross_attn.hook_k", "audio", 1, 2),
            ("decoder.0.cross_attn.hook_z", "pos", 1, 2),
            ("decoder.0.cross_attn.hook_pattern", "pos", 2, 1),
            ("unembed.hook_out", "pos", 1, None),
        ],
    )
    def test_says_where_positions_and_heads_are(self, name, clock, position_axis, head_axis):
        spec = hook_table(SMALL)[name]
        assert (spec.clock, spec.position_axis, spec.head_axis) == (clock, position_axis, head_axis)


class TestSelect:
    table = hook_table(hooked("base").config)

    def test_none_is_every_hook_that_is_not_lazy(self):
        chosen = select(None, self.table)
        assert chosen == [name for name in self.table if not self.is_lazy(name)]
        assert 0 < len(chosen) < len(self.table)

    def test_a_name_is_itself_lazy_or_not(self):
        for name in self.table:
            assert select(name, self.table) == [name]

    def test_a_glob_crosses_dots(self):
        assert select("*.cross_attn.hook_z", self.table) == [
            "decoder.0.cross_attn.hook_z",
            "decoder.1.cross_attn.hook_z",
        ]
        assert select("encoder*hook_resid_p*t", self.table) == [
            "encoder.0.hook_resid_post",
            "encoder.1.hook_resid_post",
        ]
        assert select("decoder.?.ln[13].hook_scale", self.table) == [
            f"decoder.{layer}.ln{norm}.hook_scale" for layer in (0, 1) for norm in (1, 3)
        ]

    @pytest.mark.parametrize("glob", ["*", "*hook*", "decoder.*", "*.attn.*", "*.hook_?*"])
    def test_a_glob_reaches_no_lazy_hook_by_accident(self, glob):
        assert not any(self.is_lazy(name) for name in select(glob, self.table))

    def test_everything_by_wildcard_is_everything_by_default(self):
        assert select("*", self.table) == select(None, self.table)

    @pytest.mark.parametrize("leaf", LAZY[1:])
    def test_a_glob_that_spells_a_lazy_name_out_reaches_it(self, leaf):
        assert select(f"*.{leaf}", self.table) == [n for n in self.table if n.endswith(f".{leaf}")]
        assert select(f"decoder.1.*{leaf}", self.table) == [
            f"decoder.1.attn.{leaf}",
            f"decoder.1.cross_attn.{leaf}",
        ]

    def test_a_list_is_the_union_in_table_order_without_repeats(self):
        asked = ["unembed.hook_out", "*.cross_attn.hook_k", "hook_mel", "decoder.0.*.hook_k"]
        assert select(asked, self.table) == [
            "hook_mel",
            "decoder.0.attn.hook_k",
            "decoder.0.cross_attn.hook_k",
            "decoder.1.cross_attn.hook_k",
            "unembed.hook_out",
        ]
        assert select(tuple(asked), self.table) == select(asked, self.table)

    def test_a_function_is_asked_about_every_name_lazy_ones_too(self):
        assert select(lambda name: name.endswith(".hook_pattern"), self.table) == [
            "encoder.0.attn.hook_pattern",
            "encoder.1.attn.hook_pattern",
            "decoder.0.attn.hook_pattern",
            "decoder.0.cross_attn.hook_pattern",
            "decoder.1.attn.hook_pattern",
            "decoder.1.cross_attn.hook_pattern",
        ]

    def test_a_function_that_chooses_nothing_is_an_error(self):
        with pytest.raises(UnknownHookError, match="matches no hook"):
            select(lambda name: name == "hook_zed", self.table)

    @pytest.mark.parametrize(
        ("misspelt", "meant"),
        [
            ("decoder.0.cross_attn.hook_zz", "decoder.0.cross_attn.hook_z"),
            ("decoder.0.crossattn.hook_pattern", "decoder.0.cross_attn.hook_pattern"),
            ("encoder.1.hook_residpost", "encoder.1.hook_resid_post"),
            ("hook_mels", "hook_mel"),
            ("unembed.hook_logits", "unembed.hook_out"),
        ],
    )
    def test_a_misspelt_name_suggests_the_nearest(self, misspelt, meant):
        with pytest.raises(UnknownHookError) as error:
            select(misspelt, self.table)
        assert str(error.value).startswith(f"no hook {misspelt!r}; did you mean ")
        assert repr(meant) in str(error.value)

    @pytest.mark.parametrize("asked", ["decoder.2.attn.hook_z", "decoder.17.hook_resid_pre"])
    def test_a_layer_too_far_is_told_which_layers_there_are(self, asked):
        with pytest.raises(UnknownHookError, match=r"the decoder's layers are 0 to 1$"):
            select(asked, self.table)

    def test_one_wrong_item_spoils_a_list(self):
        with pytest.raises(UnknownHookError, match=r"encoder\.2\.attn"):
            select(["hook_mel", "encoder.2.attn.hook_z"], self.table)

    @pytest.mark.parametrize("glob", ["decoder.*.hook_zed", "*pattern", "decoder.9.*"])
    def test_a_glob_that_matches_nothing_says_so_and_explains_lazy_hooks(self, glob):
        with pytest.raises(UnknownHookError) as error:
            select(glob, self.table)
        assert repr(glob) in str(error.value)
        assert "spelt out" in str(error.value)

    def test_errors_are_value_errors_and_key_errors_that_read_as_written(self):
        with pytest.raises(ValueError, match=r"^no hook 'x'"):
            select("x", self.table)
        with pytest.raises(KeyError, match=r"^no hook 'x'"):
            select("x", self.table)

    @staticmethod
    def is_lazy(name):
        return name.endswith(LAZY)


class TestResolve:
    names = tuple(hook_table(hooked("base").config))

    @pytest.mark.parametrize(
        ("key", "name"),
        [
            ("decoder.1.cross_attn.hook_z", "decoder.1.cross_attn.hook_z"),
            ("hook_mel", "hook_mel"),
            ("mel", "hook_mel"),
            (("mel",), "hook_mel"),
            (("z", 1, "cross_attn"), "decoder.1.cross_attn.hook_z"),
            (("hook_z", "cross_attn", 1), "decoder.1.cross_attn.hook_z"),
            (("z", "1", "attn", "encoder"), "encoder.1.attn.hook_z"),
            (("resid_post", 0, "decoder"), "decoder.0.hook_resid_post"),
            (("resid_mid_cross", 1), "decoder.1.hook_resid_mid_cross"),
            (("scale", "decoder_final_ln"), "decoder_final_ln.hook_scale"),
            (("normalized", 0, "ln3"), "decoder.0.ln3.hook_normalized"),
            (("pre", "conv2"), "conv2.hook_pre"),
            (("out", "unembed"), "unembed.hook_out"),
            ("out", "unembed.hook_out"),
            (("pattern", 0, "cross_attn"), "decoder.0.cross_attn.hook_pattern"),
        ],
    )
    def test_full_and_short_forms(self, key, name):
        assert resolve(key, self.names) == name

    @pytest.mark.parametrize("name", names)
    def test_every_full_name_is_itself_and_so_are_its_parts(self, name):
        *path, leaf = name.split(".")
        assert resolve(name, self.names) == name
        assert resolve((leaf, *path), self.names) == name

    def test_a_gradient_has_a_short_form_too(self):
        assert resolve(("z_grad", 0), ["decoder.0.attn.hook_z_grad"]) == (
            "decoder.0.attn.hook_z_grad"
        )

    @pytest.mark.parametrize("key", ["z", ("z", 1), ("resid_post", 0), ("scale", "decoder", 0)])
    def test_an_ambiguous_form_is_refused_with_what_it_could_mean(self, key):
        with pytest.raises(UnknownHookError, match=r"could mean \d+ hooks \(.*\): add a layer"):
            resolve(key, self.names)

    def test_an_ambiguous_form_shows_a_few_of_many(self):
        with pytest.raises(UnknownHookError, match=r"could mean 6 hooks .*, …\)"):
            resolve("z", self.names)

    @pytest.mark.parametrize("key", ["zed", ("z", 7, "attn"), ("z", 0, "mlp"), ("mel", 0)])
    def test_an_unknown_form_is_refused(self, key):
        with pytest.raises(UnknownHookError, match="no hook"):
            resolve(key, self.names)

    def test_unknown_forms_suggest_what_is_near(self):
        with pytest.raises(UnknownHookError, match=r"did you mean .*'decoder\.1\.cross_attn"):
            resolve(("zz", 1, "cross_attn", "decoder"), self.names)

    def test_words_are_whole_parts_of_the_path(self):
        assert resolve(("z", 0, "attn", "decoder"), self.names) == "decoder.0.attn.hook_z"
