"""The hook table: every hook's name, its axes, and whether it is lazy. Strings only.

Documentation, `hooked-asr hooks`, cache estimates, error hints and the tests all read this one
table. A *lazy* hook (what heads and MLPs read, attention scores and pattern, per-head result) is
computed only while something is attached to it, and no wildcard reaches it unless its own name is
spelt out: `"*"` leaves out `hook_pattern`, `"decoder.*.hook_pattern"` asks for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from hooked_asr.config import STACKS, ModelConfig, StackConfig
from hooked_asr.errors import HookedASRError

Selector = str | Sequence[str] | Callable[[str], bool] | None
ShortName = str | tuple[str | int, ...]

_POSITION_AXES = ("frame", "audio", "pooled", "pos", "query")
_HEAD_AXES = ("head", "kv_head")


class UnknownHookError(HookedASRError, KeyError):
    """A hook was asked for that the model (or the cache) does not have."""

    __str__ = Exception.__str__  # KeyError would show the message as a quoted string


@dataclass(frozen=True)
class HookSpec:
    """One row of the hook table.

    `axes` are names from `hooked_asr.shapes`, first to last.
    """

    name: str
    axes: tuple[str, ...]
    lazy: bool = False

    @property
    def leaf(self) -> str:
        """The last part of the name: `hook_z` of `decoder.0.attn.hook_z`."""
        return self.name.rpartition(".")[2]

    @cached_property
    def position_axis(self) -> int:
        """Which axis counts positions; the queries, in an attention map."""
        return next(i for i, axis in enumerate(self.axes) if axis in _POSITION_AXES)

    @property
    def head_axis(self) -> int | None:
        """Which axis counts heads, if any does."""
        return next((i for i, axis in enumerate(self.axes) if axis in _HEAD_AXES), None)

    @cached_property
    def clock(self) -> str:
        """What its positions are: log-mel "frame", encoder "audio", "pooled" or token "pos"."""
        axis = self.axes[self.position_axis]
        if axis != "query":
            return axis
        return "pos" if self.name.startswith("decoder.") else "audio"

    def shape(
        self, config: ModelConfig, batch: int, n_pos: int, n_clips: int | None = None
    ) -> tuple[int, ...]:
        """The tensor's shape for `batch` rows of `n_pos` tokens, and as many clips if not said."""
        own = config.encoder if self.clock != "pos" else config.decoder
        if "cross_attn" in self.name:  # its keys and values are the decoder's heads over audio
            own = config.decoder
        positions = config.encoder.n_ctx if self.clock == "audio" else n_pos
        sizes = {
            "batch": batch,
            "clip": batch if n_clips is None else n_clips,
            "frame": config.n_frames,
            "n_mels": config.front_end.n_mels,
            "audio": config.encoder.n_ctx,
            "pooled": config.n_pooled,
            "pos": n_pos,
            "query": positions,
            "key": positions,
            "head": own.n_heads,
            "kv_head": own.n_kv_heads,
            "d_head": own.d_head,
            "d_enc": config.encoder.d_model,
            "d_model": config.decoder.d_model,
            "d_mlp": own.d_mlp,
            "d_vocab": config.d_vocab,
            "1": 1,
        }
        return tuple(sizes[axis] for axis in self.axes)


# --- The table, from its parts --------------------------------------------------------------------
# `{b}` is what a stack takes a batch of, `{w}` its position axis, `{d}` its width, `{kv}` its heads
# of keys and values.

_Rows = list[tuple[str, str]]

_RESID = "{b} {w} {d}"
_NORM = [("hook_scale", "{b} {w} 1"), ("hook_normalized", _RESID)]
_LAZY = (
    *("hook_q_input", "hook_k_input", "hook_v_input", "hook_in"),
    *("hook_attn_scores", "hook_pattern", "hook_result"),
)


def _under(prefix: str, rows: Iterable[tuple[str, str]]) -> _Rows:
    return [(f"{prefix}.{name}", axes) for name, axes in rows]


def _attention(keys: str, d_source: str, maps: str, rotary: bool = False) -> _Rows:
    """`keys`: the axes of keys and values but the last; `maps`: those of a map's two sides.

    `d_source`: the width of what is attended to.
    """
    source, keys, queries = f"{keys} {d_source}", f"{keys} d_head", "{b} {w} head d_head"
    # What is attended to comes first: in cached decoding it is there before the query is.
    return [
        *(("hook_k_input", source), ("hook_k", keys), ("hook_v_input", source), ("hook_v", keys)),
        *([("hook_rot_k", keys)] if rotary else []),
        *(("hook_q_input", "{b} {w} head {d}"), ("hook_q", queries)),
        *([("hook_rot_q", queries)] if rotary else []),
        ("hook_attn_scores", f"{{b}} head {maps}"),
        ("hook_pattern", f"{{b}} head {maps}"),
        ("hook_z", queries),
        ("hook_result", "{b} {w} head {d}"),
    ]


def _self_attention(stack: StackConfig) -> _Rows:
    rotary = stack.rotary_base is not None
    return _attention("{b} {w} {kv}", "{d}", "query key", rotary)


def _mlp(stack: StackConfig) -> _Rows:
    linear = ["hook_pre_linear"] if stack.gated_mlp else []
    inside = [(name, "{b} {w} d_mlp") for name in ("hook_pre", *linear, "hook_post")]
    return [("hook_in", _RESID), *inside]


def _step(norm: str, part: str, rows: _Rows, behind: str) -> _Rows:
    """A norm, the part that reads it, what that writes, and the stream behind it."""
    streams = [(f"hook_{part}_out", _RESID), (behind, _RESID)]
    return [*_under(norm, _NORM), *_under(part, rows), *streams]


def _block(stack: StackConfig) -> _Rows:
    return [
        ("hook_resid_pre", _RESID),
        *_step("ln1", "attn", _self_attention(stack), "hook_resid_mid"),
        *_step("ln2", "mlp", _mlp(stack), "hook_resid_post"),
    ]


def _cross_block(stack: StackConfig) -> _Rows:
    cross_attention = _attention("{b} audio {kv}", "d_enc", "pos audio")
    return [
        ("hook_resid_pre", _RESID),
        *_step("ln1", "attn", _self_attention(stack), "hook_resid_mid"),
        *_step("ln2", "cross_attn", cross_attention, "hook_resid_mid_cross"),
        *_step("ln3", "mlp", _mlp(stack), "hook_resid_post"),
    ]


_FRONT_END = [
    ("hook_mel", "{b} frame n_mels"),
    ("conv1.hook_pre", "{b} frame {d}"),
    ("conv1.hook_post", "{b} frame {d}"),
    ("conv2.hook_pre", _RESID),
    ("hook_embed", _RESID),
    ("hook_pos_embed", _RESID),
]
_ENCODER_TAIL = [*_under("encoder_final_ln", _NORM), ("hook_encoder_out", _RESID)]
_DECODER_TAIL = [*_under("decoder_final_ln", _NORM), ("unembed.hook_out", "{b} pos d_vocab")]


def hook_table(config: ModelConfig) -> dict[str, HookSpec]:
    """Every hook of a model, in the order in which a forward fires them."""
    encoder, decoder = config.encoder, config.decoder
    # A prompt may hold several clips or none, where audio is a prefix.
    clips = "clip" if config.prefix else "batch"
    specs = _specs(
        _FRONT_END + _layers("encoder", encoder, _block), encoder, b=clips, w="audio", d="d_enc"
    )
    if config.prefix:
        pooled = [("hook_encoder_pool", _RESID), *_ENCODER_TAIL]
        specs += _specs(pooled, encoder, b=clips, w="pooled", d="d_enc")
        projected = [("projector.hook_out", _RESID)]
        specs += _specs(projected, encoder, b=clips, w="pooled", d="d_model")
        rows = [("hook_decoder_embed", _RESID), *_layers("decoder", decoder, _block)]
    else:
        specs += _specs(_ENCODER_TAIL, encoder, b=clips, w="audio", d="d_enc")
        embeddings = [("hook_decoder_embed", _RESID), ("hook_decoder_pos_embed", _RESID)]
        rows = embeddings + _layers("decoder", decoder, _cross_block)
    specs += _specs(rows + _DECODER_TAIL, decoder, b="batch", w="pos", d="d_model")
    return {spec.name: spec for spec in specs}


def _layers(name: str, stack: StackConfig, block: Callable[[StackConfig], _Rows]) -> _Rows:
    return [row for i in range(stack.n_layers) for row in _under(f"{name}.{i}", block(stack))]


def _specs(rows: _Rows, stack: StackConfig, **axes: str) -> list[HookSpec]:
    kv = "head" if stack.group_size == 1 else "kv_head"
    return [
        HookSpec(name, tuple(row.format(kv=kv, **axes).split()), name.endswith(_LAZY))
        for name, row in rows
    ]


# --- Choosing hooks -------------------------------------------------------------------------------


def select(selector: Selector, table: Mapping[str, HookSpec]) -> list[str]:
    """The hooks that `selector` means, in table order.

    `selector` is None (every hook that is not lazy), a name, a shell-style glob (`*` also crosses
    dots), a list of names and globs, or a function of the name.

    Raises `UnknownHookError` where a name, a glob or a function matches nothing.
    """
    if selector is None:
        return [name for name, spec in table.items() if not spec.lazy]
    if callable(selector):
        matches = [name for name in table if selector(name)]
        if not matches:
            raise UnknownHookError(f"the function {selector!r} matches no hook")
        return matches
    globs = [selector] if isinstance(selector, str) else list(selector)
    if not globs:
        raise UnknownHookError("the list of hooks is empty")
    chosen = {name for glob in globs for name in _match(glob, table)}
    return [name for name in table if name in chosen]


def _match(glob: str, table: Mapping[str, HookSpec]) -> list[str]:
    if glob in table:
        return [glob]
    matches = [
        name
        for name, spec in table.items()
        if fnmatchcase(name, glob) and (not spec.lazy or glob.endswith(spec.leaf))
    ]
    if not matches:
        raise UnknownHookError(_no_such_hook(glob, table))
    return matches


def _no_such_hook(asked: str, names: Iterable[str]) -> str:
    names = list(names)
    layer_hint = _layer_hint(asked, names)
    if layer_hint:
        return f"no hook {asked!r}: {layer_hint}"
    if any(wildcard in asked for wildcard in "*?["):
        return (
            f"the glob {asked!r} matches no hook. `*` also crosses dots, and a lazy hook "
            f"({', '.join(_LAZY)}) is matched only where its own name is spelt out, as in "
            "'decoder.*.hook_pattern'. `hooked-asr hooks` lists every name"
        )
    nearest = difflib.get_close_matches(asked, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
    return f"no hook {asked!r}; {hint}`hooked-asr hooks` lists every name"


def _layer_hint(asked: str, names: list[str]) -> str | None:
    """What to say of a name that is right but for its layer."""
    stack, _, rest = asked.partition(".")
    layer, _, rest = rest.partition(".")
    if stack not in STACKS:
        return None
    layers = [int(name.split(".")[1]) for name in names if name.startswith(f"{stack}.")]
    if layers and layer.isdigit() and f"{stack}.{layers[0]}.{rest}" in names:
        return f"the {stack}'s layers are {min(layers)} to {max(layers)}"
    return None


def resolve(key: ShortName, names: Iterable[str]) -> str:
    """The one of `names` that a full name or a short form means.

    A short form is the last part of the name (with or without `hook_`), a layer, and as many words
    of the path as make it unique.

    >>> resolve(("z", 1, "cross_attn"), ["decoder.1.attn.hook_z", "decoder.1.cross_attn.hook_z"])
    'decoder.1.cross_attn.hook_z'

    Raises `UnknownHookError` where nothing fits, or more than one does.
    """
    names = list(names)
    if isinstance(key, str) and key in names:
        return key
    leaf, *words = (key,) if isinstance(key, str) else key
    found = fitting(leaf, words, names)
    if not found:
        raise UnknownHookError(_no_such_hook(".".join(map(str, [*words, leaf])), names))
    if len(found) > 1:
        shown = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
        raise UnknownHookError(
            f"{key!r} could mean {len(found)} hooks ({shown}): add a layer, a stack or a module, "
            "as in ('z', 3, 'cross_attn') or ('resid_post', 3, 'encoder')"
        )
    return found[0]


def fitting(leaf: str | int, words: Iterable[str | int], names: Iterable[str]) -> list[str]:
    """The names that end in `leaf` (with or without `hook_`) and have all of `words` in them."""
    words = {str(word) for word in words}
    return [
        name
        for name in names
        if name.rpartition(".")[2] in (leaf, f"hook_{leaf}") and words <= set(name.split("."))
    ]
