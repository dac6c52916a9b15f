"""Interventions to JSON and back: exact, self-contained, and never code."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from hooked_asr.interventions.actions import ACTIONS, Action, Custom
from hooked_asr.interventions.intervention import Intervention
from hooked_asr.interventions.site import InterventionError, Site

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
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InterventionError(f"this is no list of interventions: {error!r}") from error


def _to_dict(intervention: Intervention) -> dict[str, Any]:
    site, action = intervention.site, intervention.action
    values = {field.name: getattr(action, field.name) for field in fields(action)}
    return {
        "hook": site.hook,
        "heads": site.heads,
        "positions": site.positions,
        "action": action.kind,
        **{name: _plain(value, site) for name, value in values.items()},
    }


def _plain(value: Any, site: Site) -> Any:
    if isinstance(value, Tensor):
        return _packed({_SINGLE: value})
    if isinstance(value, Mapping):
        read = {name: value[name] for name in value if fnmatchcase(name, site.hook)}
        if not read:
            raise InterventionError(
                f"the source of the intervention at {site} has no {site.hook!r}"
            )
        return _packed(read)
    return value.__qualname__ if callable(value) else value


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return {"safetensors": base64.b64encode(save(plain)).decode("ascii")}


def _from_dict(
    entry: Mapping[str, Any], functions: Mapping[str, Callable[..., Tensor]]
) -> Intervention:
    if entry["action"] not in ACTIONS:
        raise InterventionError(f"no action {entry['action']!r}; there are {', '.join(ACTIONS)}")
    site = Site(entry["hook"], entry["heads"], entry["positions"])
    kind = ACTIONS[entry["action"]]
    if kind is Custom:
        return Intervention(site, Custom(_function(entry["fn"], functions)))
    values = {field.name: _unpacked(entry[field.name]) for field in fields(kind)}
    action: Action = kind(**values)
    return Intervention(site, action)


def _function(name: str, functions: Mapping[str, Callable[..., Tensor]]) -> Callable[..., Tensor]:
    if name not in functions:
        raise InterventionError(
            f"the text names a custom function {name!r}: give it, as in "
            f"from_json(text, functions={{{name!r}: fn}})"
        )
    return functions[name]


def _unpacked(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    tensors = load(base64.b64decode(value["safetensors"]))
    return tensors[_SINGLE] if tensors.keys() == {_SINGLE} else tensors
