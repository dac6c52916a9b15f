"""What must be said of a family of Hugging Face models so that its weights can be used here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hooked_asr.config import ModelConfig


@dataclass(frozen=True)
class Source:
    """One family of checkpoints.

    - `model_type`: as its `config.json` says it.
    - `modules`: our module's path -> theirs, `{i}` standing for a layer; parameters inside carry
      the same names. Theirs are written without the leading `model.` that some checkpoints have.
    - `config_from_hf`: their config's fields -> our config; refuses a field it does not know.
    - `config_to_hf`: our config and the fields that are not about architecture -> their config.
    - `hf_model`: their class: called with a config, a model with fresh weights.
    """

    model_type: str
    modules: Mapping[str, str]
    config_from_hf: Callable[[Mapping[str, Any]], ModelConfig]
    config_to_hf: Callable[[ModelConfig, Mapping[str, Any]], Any]
    hf_model: Any

    def key(self, parameter: str) -> str:
        """Their name of one of our parameters.

        Raises `KeyError` for a parameter the table does not have.
        """
        path, _, leaf = parameter.rpartition(".")
        for ours, theirs in self.modules.items():
            layer = _layer(ours, path)
            if layer is not None:
                return f"{theirs.format(i=layer)}.{leaf}"
        raise KeyError(f"the key table of {self.model_type!r} has no place for {parameter!r}")


def _layer(template: str, path: str) -> str | None:
    """The layer that makes `template` into `path`; "" where it has none, None where it cannot."""
    before, has_layer, after = template.partition("{i}")
    if not has_layer:
        return "" if template == path else None
    if not (path.startswith(before) and path.endswith(after)):
        return None
    layer = path[len(before) : len(path) - len(after)]
    return layer if layer.isdigit() else None
