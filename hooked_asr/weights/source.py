"""What must be said of a family of Hugging Face models so that its weights can be used here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from hooked_asr.config import ConfigError, ModelConfig

# Fields of published configs that current transformers has dropped or keeps elsewhere, and that
# change no activation.
HISTORICAL = {
    "_name_or_path",
    "_attn_implementation_autoset",
    "torch_dtype",
    "transformers_version",
    "model_type",
}


def without_model(key: str) -> str:
    """A key without the leading `model.` that some checkpoints have."""
    return key.removeprefix("model.")


@dataclass(frozen=True)
class Source:
    """One family of checkpoints.

    - `model_type`: as its `config.json` says it.
    - `modules`: our module's path -> theirs, `{i}` standing for a layer; parameters inside carry
      the same names.
    - `config_from_hf`: their config's fields -> our config; refuses a field it does not know.
    - `config_to_hf`: our config and the fields that are not about architecture -> their config.
    - `hf_model`: their class: called with a config, a model with fresh weights.
    - `hf_inputs`: our names of a forward's inputs -> theirs.
    - `plain`: a key as a checkpoint has it -> as `modules` writes it: of old and new checkpoints,
      with a head and without, one form.
    """

    model_type: str
    modules: Mapping[str, str]
    config_from_hf: Callable[[Mapping[str, Any]], ModelConfig]
    config_to_hf: Callable[[ModelConfig, Mapping[str, Any]], Any]
    hf_model: Any
    hf_inputs: Mapping[str, str]
    plain: Callable[[str], str] = without_model

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


def refuse_unknown(
    what: str, fields: Mapping[str, Any], known: PreTrainedConfig, historical: Set[str]
) -> None:
    """Raises `ConfigError` for a field that is not among the known: it might change the model."""
    names = known.to_dict().keys() | GenerationConfig().to_dict().keys() | historical | HISTORICAL
    unknown = sorted(fields.keys() - names)
    if unknown:
        raise ConfigError(
            f"the {what} has fields this library does not know: {', '.join(unknown)}. "
            "What they do to the model is unknown too, so it is not loaded; if they do nothing, "
            "remove them from config.json"
        )
