"""Hook points, and the module that runs with functions attached to them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hooked_asr.cache import ActivationCache, CacheRecorder
from hooked_asr.errors import HookedASRError
from hooked_asr.names import HookSpec, Selector, select

HookFunction = Callable[..., Tensor | None]
# What unpacks as a selector and a function: pairs, and interventions.
Hooks = Iterable[tuple[Selector, HookFunction] | Iterable[Any]]


class HookError(HookedASRError):
    """A hook function that cannot be attached, or returned what cannot flow on."""


@dataclass
class _Attached:
    """One function attached to one hook point, and what has come by it.

    `n_steps`: of a decoding; `positions`: those of the steps in which it acts. Of a function that
    acts in all (one without an intervention's `acts_in` and `unmet`) only the first counts.
    """

    fn: HookFunction
    n_steps: int = 0
    positions: range = range(0)

    def __post_init__(self) -> None:
        self._acts_in = getattr(self.fn, "acts_in", None)
        self.in_time = self._acts_in is not None or hasattr(self.fn, "unmet")
        self.brings_rows = getattr(self.fn, "brings_rows", False)

    def meet(self, positions: range, step: int) -> None:
        if step >= self.n_steps:
            self.n_steps = step + 1
        if self._acts_in is None or self._acts_in(step):
            before = self.positions
            if not before:
                self.positions = positions
            elif positions.start < before.start or positions.stop > before.stop:
                self.positions = range(
                    min(before.start, positions.start), max(before.stop, positions.stop)
                )


@dataclass
class _Item:
    """One entry of a list of hooks, and the places where it was attached."""

    selector: Selector
    fn: HookFunction
    places: list[tuple[list[_Attached], _Attached]] = field(default_factory=list)

    def attach(self, fns: list[_Attached]) -> None:
        attached = _Attached(self.fn)
        self.places.append((fns, attached))  # before it acts: an interrupt may come in between
        fns.append(attached)

    def detach(self) -> None:
        for fns, attached in self.places:
            # By identity: nested contexts may hold an equal function on the same point.
            fns[:] = [other for other in fns if other is not attached]

    @property
    def idle(self) -> str | None:
        """What to say of a hook that had nothing to do, though it was meant to do something."""
        who = f"hook function {_fn_name(self.fn)!r} on {self.selector!r}"
        passed = [attached for _, attached in self.places if attached.n_steps]
        if not passed:
            return (
                f"{who} never fired: this run did not pass there (see start_at, stop_at and audio)"
            )
        most = max(passed, key=lambda attached: attached.positions.stop)
        unmet = getattr(self.fn, "unmet", None)  # an intervention's
        missed = unmet(most.positions, most.n_steps) if unmet else None
        return f"{who} never met {missed}" if missed else None


@dataclass
class Clock:
    """Where in the token sequence the running forward stands; shared by a model's hook points.

    `changes` counts how often functions came or went at any of them.
    """

    offset: int = 0
    step: int = 0  # of a decoding: 0 for the prompt (and the encoder), then one for each token
    changes: int = 0

    @contextmanager
    def stepping(self, step: int) -> Iterator[None]:
        """Be at this step of a decoding."""
        before, self.step = self.step, step
        try:
            yield
        finally:
            self.step = before

    @contextmanager
    def at(self, offset: int) -> Iterator[None]:
        """Stand at `offset` for a forward: a hook function may run another one meanwhile."""
        before, self.offset = self.offset, offset
        try:
            yield
        finally:
            self.offset = before


class HookPoint(nn.Module):
    """The identity, through which one named tensor flows.

    A function attached to it is called as `fn(tensor, hook=self)` and returns None (the tensor
    flows on as it is, with any edit made in place) or a tensor of the same shape, dtype and device
    that takes its place.

    Attributes: `name`, `spec` (axes, laziness), and while a function runs `positions`, the absolute
    positions along its position axis, also in a decoding step that sees only the newest token.
    """

    spec: HookSpec
    clock: Clock

    def __init__(self) -> None:
        super().__init__()
        self.fwd_fns: list[_Attached] = []
        self.bwd_fns: list[_Attached] = []
        self.positions = range(0)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def active(self) -> bool:
        """Whether anything listens here; a lazy tensor is computed only then."""
        return bool(self.fwd_fns or self.bwd_fns or self._forward_hooks)

    def __call__(self, x: Tensor, own: bool = False) -> Tensor:
        # Before the machinery of nn.Module, which costs more than most of a decoding step's work.
        if self._forward_hooks:
            out: Tensor = super().__call__(x, own)
            return out
        return self.forward(x, own) if self.fwd_fns or self.bwd_fns else x

    def forward(self, x: Tensor, own: bool = False) -> Tensor:
        """`own`: nothing else needs this very tensor, so functions may edit it in place."""
        # With gradients on, an operation may keep its output for the backward pass, and a stream
        # that leaves one layer and enters the next is one tensor at two hooks.
        return self._run(x if own or not x.requires_grad else x.clone())

    def watch(self, x: Tensor) -> tuple[Tensor, bool]:
        """Show a tensor computed *beside* the fused path; also say whether a function changed it.

        An edit in place counts. Inference tensors keep no version to tell it by, so there the
        functions get an ordinary copy.
        """
        if not self.active:
            return x, False
        if x.is_inference():
            with torch.inference_mode(False):
                x = x.clone()
        elif x.requires_grad:
            x = x.clone()
        version = x._version
        out = self(x, own=True)
        return out, out is not x or out._version != version

    def _run(self, x: Tensor) -> Tensor:
        start = self.clock.offset if self.spec.clock == "pos" else 0
        positions = range(start, start + x.shape[self.spec.position_axis])
        # Past the slow `nn.Module.__setattr__`.
        self.__dict__["positions"] = positions
        for attached in self.fwd_fns:
            if attached.in_time or not attached.n_steps:
                attached.meet(positions, self.clock.step)
            out = attached.fn(x, hook=self)
            if attached.brings_rows:  # a new tensor, and it may be longer
                x = x if out is None else out
            elif out is not None and out is not x:
                # The function may still hold what it gave: the next one edits a copy.
                x = self.checked(out, x, attached.fn).clone()
        if self.bwd_fns:
            self._listen_for_gradient(x)
        return x

    def _listen_for_gradient(self, x: Tensor) -> None:
        if not torch.is_grad_enabled():
            raise HookError(
                f"no gradient will reach {self.name!r}: gradients are off. Run outside "
                "torch.no_grad() and torch.inference_mode()"
            )
        if not x.requires_grad:  # the input, fixed positions, and what only frozen weights made
            x.requires_grad_()
        for attached in self.bwd_fns:
            attached.meet(self.positions, self.clock.step)
            x.register_hook(lambda grad, fn=attached.fn: self._gradient(grad, fn))

    def _gradient(self, grad: Tensor, fn: HookFunction) -> Tensor:
        grad = grad.clone()  # the same memory may be on its way to other branches
        out = fn(grad, hook=self)
        return grad if out is None else self.checked(out, grad, fn)

    def checked(self, out: Any, x: Tensor, fn: HookFunction) -> Tensor:
        """What a function gave in place of `x`; raises `HookError` where it cannot flow on."""
        who = f"hook function {_fn_name(fn)!r} on {self.name!r}"
        if not isinstance(out, Tensor):
            raise HookError(f"{who} returned {type(out).__name__}; return a tensor, or None")
        for what in ("shape", "dtype", "device"):
            if getattr(out, what) != getattr(x, what):
                axes = f" ({' '.join(self.spec.axes)})" if what == "shape" else ""
                raise HookError(
                    f"{who} returned a tensor of {what} {_brief(getattr(out, what))}; "
                    f"expected {_brief(getattr(x, what))}{axes}"
                )
        return out

    def extra_repr(self) -> str:
        return " ".join(self.spec.axes) if hasattr(self, "spec") else ""


class _ValueOf(torch.autograd.Function):
    """The value of one tensor with the gradient path of another that equals it but for rounding."""

    @staticmethod
    def forward(ctx: Any, fused: Tensor, explicit: Tensor) -> Tensor:
        return fused.view_as(fused)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def fused_unless_edited(
    watched: Tensor, edited: bool, fused: Callable[[], Tensor], explicit: Callable[[], Tensor]
) -> Tensor:
    """What follows from a tensor that was shown beside the fused path (see `HookPoint.watch`).

    The explicit result where a function edited it. Otherwise the fused one, bit for bit; with
    gradients on, those of the explicit one, so that they reach what was watched.
    """
    if edited:
        return explicit()
    if not watched.requires_grad:
        return fused()
    out: Tensor = _ValueOf.apply(fused().detach(), explicit())
    return out


class HookedModule(nn.Module):
    """A module whose hook points can be listed, hooked, run with hooks and cached."""

    hook_table: dict[str, HookSpec]
    hook_points: dict[str, HookPoint]

    def _name_hook_points(self, table: Mapping[str, HookSpec]) -> None:
        """Give each hook point its row of the table; the two must agree name for name."""
        found = {n: m for n, m in self.named_modules() if isinstance(m, HookPoint)}
        if found.keys() != table.keys():
            odd = sorted(found.keys() ^ table.keys())
            raise RuntimeError(f"hook points and hook table differ: {', '.join(odd)}")
        self.hook_table = dict(table)
        self.hook_points = {name: found[name] for name in table}
        self.clock = Clock()
        for name, point in self.hook_points.items():
            point.spec, point.clock = table[name], self.clock
        for module in self.modules():
            # Found at once, not by nn.Module's search, which a decoding step would do 300 times.
            module.__dict__.update(module._modules)

    @property
    def has_hooks(self) -> bool:
        """Whether any function is attached anywhere."""
        return any(point.active for point in self.hook_points.values())

    @contextmanager
    def hooks(self, fwd_hooks: Hooks = (), bwd_hooks: Hooks = ()) -> Iterator[Any]:
        """Attach functions for the length of a `with` block; contexts nest.

        Each item is `(selector, fn)` (see `names.select`) or an intervention. `fn(tensor, hook)`
        gets the activation, or in `bwd_hooks` the gradient.

        Raises `UnknownHookError` for a name that does not exist, `HookError` for a function that
        does not take `hook`.
        """
        with self._attach(fwd_hooks, bwd_hooks):
            yield self

    @contextmanager
    def unhooked(self) -> Iterator[None]:
        """Let none of the functions attached by now act for the length of a `with` block.

        For a run beside another: it neither shows itself to the other's hooks, nor is it changed.
        """
        points = [point for point in self.hook_points.values() if point.fwd_fns or point.bwd_fns]
        kept = [(point.fwd_fns, point.bwd_fns) for point in points]
        for point in points:
            point.fwd_fns, point.bwd_fns = [], []
        self.clock.changes += 1
        try:
            yield
        finally:
            for point, (fwd_fns, bwd_fns) in zip(points, kept, strict=True):
                point.fwd_fns, point.bwd_fns = fwd_fns, bwd_fns
            self.clock.changes += 1

    @contextmanager
    def _attach(self, fwd_hooks: Hooks, bwd_hooks: Hooks = ()) -> Iterator[list[_Item]]:
        items: list[_Item] = []
        try:
            for hooks, kind in ((fwd_hooks, "fwd_fns"), (bwd_hooks, "bwd_fns")):
                for selector, fn in hooks:
                    _check_signature(fn)
                    item = _Item(selector, fn)
                    items.append(item)
                    for name in select(selector, self.hook_table):
                        item.attach(getattr(self.hook_points[name], kind))
            self.clock.changes += 1
            yield items
        finally:
            for item in items:
                item.detach()
            self.clock.changes += 1

    def run_with_hooks(
        self, *args: Any, fwd_hooks: Hooks = (), bwd_hooks: Hooks = (), **kwargs: Any
    ) -> Any:
        """One forward with functions attached, and detached again whatever happens.

        With `bwd_hooks` they stay attached for the forward only; what they registered on its
        tensors then acts in the backward pass that the caller runs.

        Raises `HookError` if one of the hooks lies in a part that this run did not reach.
        """
        with self._attach(fwd_hooks, bwd_hooks) as items:
            out = self(*args, **kwargs)
        for item in items:
            if item.idle:
                raise HookError(item.idle)
        return out

    def run_with_cache(
        self,
        *args: Any,
        names_filter: Selector = None,
        pos_slice: int | slice | None = None,
        audio_slice: int | slice | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        incl_bwd: bool | Callable[[Any], Tensor] = False,
        remove_batch_dim: bool = False,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache]:
        """One forward, and the activations it passed through.

        - `names_filter`: which hooks to keep (see `names.select`); by default all but lazy ones.
        - `pos_slice`, `audio_slice`: keep only these token positions, or encoder positions.
        - `device`, `dtype`: where and as what to keep them.
        - `incl_bwd`: also keep gradients, under the name with `_grad` behind it: a function of the
          output that gives the scalar to differentiate, or True where the output is that scalar.
          Activations that no gradient reaches have none, and weights get none.

        Watching changes nothing: the output equals the plain forward's, bit for bit.
        """
        recorder = CacheRecorder(
            {"pos": pos_slice, "audio": audio_slice},
            device=device,
            dtype=dtype,
            # A function that edits in place must not reach what was already kept.
            copy=self.has_hooks or bool(fwd_hooks),
        )
        # Last in line, so what is kept is what flowed on.
        fwd_hooks = [*fwd_hooks, (names_filter, recorder.keep)]
        listened: list[Tensor] = []
        if incl_bwd is not False:
            bwd_hooks = [*bwd_hooks, (names_filter, recorder.keep_gradient)]
            fwd_hooks += [(at, lambda x, hook: listened.append(x)) for at, _ in bwd_hooks]
        out = self.run_with_hooks(*args, fwd_hooks=fwd_hooks, bwd_hooks=bwd_hooks, **kwargs)
        if incl_bwd is not False:
            # Not backward(): that would add to the weights' own gradients, and pay for them.
            scalar = _one_number(incl_bwd(out) if callable(incl_bwd) else out)
            torch.autograd.grad(scalar, listened, allow_unused=True)
        cache = ActivationCache(recorder.tensors, self)
        return out, cache.remove_batch_dim() if remove_batch_dim else cache


def _check_signature(fn: HookFunction) -> None:
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # builtins and the like tell nothing: let them run
        return
    try:
        signature.bind(None, hook=None)
    except TypeError:
        raise HookError(
            f"hook function {_fn_name(fn)!r} takes {signature}; a hook function is called as "
            "fn(tensor, hook=hook_point)"
        ) from None


def _one_number(out: Tensor) -> Tensor:
    if out.numel() != 1:
        raise HookError(
            f"gradients are of one number; got a tensor of shape {_brief(out.shape)}. Give a "
            "function of the output, as in incl_bwd=lambda logits: model.loss(logits, tokens)"
        )
    return out


def _fn_name(fn: HookFunction) -> str:
    fn = getattr(fn, "func", fn)  # a partial's own function
    return getattr(fn, "__name__", None) or repr(fn)


def _brief(value: Any) -> str:
    return str(list(value)) if isinstance(value, torch.Size) else str(value)
