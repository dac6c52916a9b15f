"""Interventions to JSON and back: exact, self-contained, and never code."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hooked_asr.generation.lockstep import Lockstep
from hooked_asr.interventions.actions import ACTIONS, Action, Custom, Mean
from hooked_asr.interventions.intervention import Intervention, as_steps
from hooked_asr.interventions.site import InterventionError, Site, parse_positions
from hooked_asr.interventions.span import Span

_SINGLE = "tensor"  # the name of a tensor that is no mapping's


def to_json(interventions: Iterable[Intervention], indent: int | None = 2) -> str:
    """Interventions as JSON text.

    Tensors are kept exactly, as base64 of safetensors; of a cache, only what the site reads. A
    custom function is kept by its name alone.
    """
    return json.dumps([_to_dict(one) for one in interventions], indent=indent)


def from_json(
    text: str, functions: Mapping[str, Callable[..., Tensor]] | None = None
) -> list[Intervention]:
    """What `to_json` wrote; `functions` gives the custom ones by name (text never runs code).

    Raises `InterventionError` for what is no such text, or names a function that was not given.
    """
    try:
        return [_from_dict(one, functions or {}) for one in json.loads(text)]
    except InterventionError:  # a ValueError too, but it has said already what is wrong
        raise
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise InterventionError(f"this is no list of interventions: {error!r}") from error


def _to_dict(intervention: Intervention) -> dict[str, Any]:
    site, action = intervention.site, intervention.action
    values = {field.name: getattr(action, field.name) for field in fields(action)}
    return {
        "hook": site.hook,
        "heads": site.heads,
        "positions": str(site.positions) if isinstance(site.positions, Span) else site.positions,
        **_said(intervention),
        "action": action.kind,
        **{name: _plain(value, site) for name, value in values.items()},
    }


def _said(intervention: Intervention) -> dict[str, Any]:
    """Seconds, neurons and steps, where they are said."""
    steps = intervention.steps
    said = {
        "seconds": intervention.site.seconds,
        "neurons": intervention.site.neurons,
        "steps": None if steps is None else (steps.start, steps.stop),
    }
    return {name: value for name, value in said.items() if value is not None}


def _plain(value: Any, site: Site) -> Any:
    if isinstance(value, Lockstep):
        raise InterventionError(
            f"the source of the intervention at {site} is a Lockstep, whose recording is not kept: "
            "make the intervention anew where it is needed"
        )
    if isinstance(value, Tensor):
        return _packed({_SINGLE: value})
    if isinstance(value, Mapping):
        read = {name: value[name] for name in value if fnmatchcase(name, site.hook)}
        if not read:
            raise InterventionError(
                f"the source of the intervention at {site} has no {site.hook!r}"
            )
        return _packed(read)
    return _name(value, site) if callable(value) else value


def _name(fn: Callable[..., Any], site: Site) -> str:
    name: str | None = getattr(fn, "__qualname__", None)
    if name is None:
        raise InterventionError(
            f"the custom function at {site} has no name to keep it by: use a plain def"
        )
    return name


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return {"safetensors": base64.b64encode(save(plain)).decode("ascii")}


def _from_dict(
    entry: Mapping[str, Any], functions: Mapping[str, Callable[..., Tensor]]
) -> Intervention:
    if entry["action"] not in ACTIONS:
        raise InterventionError(f"no action {entry['action']!r}; there are {', '.join(ACTIONS)}")
    if not isinstance(entry["hook"], str):
        raise InterventionError(f"a hook is a name or a glob; got {entry['hook']!r}")
    positions = entry["positions"]
    if isinstance(positions, str):
        positions = parse_positions(positions)
    site = Site(
        entry["hook"], entry["heads"], positions, entry.get("seconds"), entry.get("neurons")
    )
    steps = as_steps(*entry["steps"]) if "steps" in entry else None
    return Intervention(site, _action(entry, functions), steps)


def _action(entry: Mapping[str, Any], functions: Mapping[str, Callable[..., Tensor]]) -> Action:
    kind = ACTIONS[entry["action"]]
    if kind is Custom:
        return Custom(_function(entry["fn"], functions))
    values = {field.name: _unpacked(kind, field.name, entry[field.name]) for field in fields(kind)}
    action: Action = kind(**values)
    return action


def _function(name: str, functions: Mapping[str, Callable[..., Tensor]]) -> Callable[..., Tensor]:
    if name not in functions:
        raise InterventionError(
            f"the text names a custom function {name!r}: give it, as in "
            f"from_json(text, functions={{{name!r}: fn}})"
        )
    return functions[name]


def _unpacked(kind: type[Action], name: str, value: Any) -> Any:
    if name in ("alpha", "scale"):
        return float(value)
    if kind is Mean and value is None:
        return None
    tensors = load(base64.b64decode(value["safetensors"]))
    single = name == "direction" or tensors.keys() == {_SINGLE}
    return tensors[_SINGLE] if single else tensors
