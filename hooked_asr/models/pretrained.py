"""Models from and to Hugging Face: a folder, the hub, or a model in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from transformers import (
    AutoFeatureExtractor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    SequenceFeatureExtractor,
)

from hooked_asr.config import ConfigError, ModelConfig
from hooked_asr.files import folder_written_aside
from hooked_asr.models.encoder_decoder import HookedEncoderDecoder
from hooked_asr.weights.checkpoint import Checkpoint, CheckpointError
from hooked_asr.weights.loading import load_weights, to_hf_weights
from hooked_asr.weights.source import Source

Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(HookedEncoderDecoder):
    """A hooked model of a family that `source` describes, with what belongs to its checkpoint.

    Attributes: `feature_extractor`, `tokenizer` (None where the checkpoint has none),
    `generation_config`, and `name`, where it came from.
    """

    source: ClassVar[Source]

    def __init__(
        self,
        config: ModelConfig,
        *,
        feature_extractor: SequenceFeatureExtractor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generation_config: GenerationConfig | None = None,
        hf_fields: Mapping[str, Any] | None = None,
        name: str = "untrained",
    ) -> None:
        super().__init__(config)
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer
        self.generation_config = generation_config or GenerationConfig()
        self.hf_fields = dict(hf_fields or {})
        self.name = name

    @classmethod
    def from_pretrained(
        cls: type[Model],
        name: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> Model:
        """Load a checkpoint: a folder, a hub id, or "whisper-nano", which comes with the package.

        Weights go straight to `device`. `dtype`: the type to hold them in; by default the one they
        are stored in. `hub` goes to `huggingface_hub` (`revision`, `cache_dir`, `token`, …).

        Raises `CheckpointError` where it cannot be found, read or fitted; `ConfigError` where its
        config is of another family or says something unknown.
        """
        checkpoint = Checkpoint(name, **hub)
        fields = checkpoint.config()
        model = cls._on_meta(
            fields,
            feature_extractor=_belonging(AutoFeatureExtractor, checkpoint),
            tokenizer=_belonging(AutoTokenizer, checkpoint),
            generation_config=_belonging(GenerationConfig, checkpoint) or _from_fields(fields),
            name=checkpoint.name,
        )
        load_weights(model, cls.source, checkpoint.tensors(device), dtype)
        return model.eval()

    @classmethod
    def config_of(cls, name: str | os.PathLike[str], **hub: Any) -> ModelConfig:
        """A checkpoint's configuration, without its weights."""
        return cls.source.config_from_hf(
            cls._family_checked(Checkpoint(name, **hub).config(), name)
        )

    @classmethod
    def from_hf(cls: type[Model], hf_model: Any, processor: Any = None) -> Model:
        """A hooked model over the weights of a Hugging Face model in memory: shared, not copied.

        Raises `CheckpointError` for adapters that are not merged yet, `ConfigError` for a model of
        another family.
        """
        if hasattr(hf_model, "peft_config"):
            raise CheckpointError("merge the adapter first: hf_model = hf_model.merge_and_unload()")
        model = cls._on_meta(
            hf_model.config.to_dict(),
            feature_extractor=getattr(processor, "feature_extractor", None),
            tokenizer=getattr(processor, "tokenizer", None),
            generation_config=getattr(hf_model, "generation_config", None),
            name=hf_model.config.name_or_path or type(hf_model).__name__,
        )
        load_weights(model, cls.source, hf_model.state_dict().items(), dtype=None)
        return model.train(hf_model.training)

    def to_hf(self) -> Any:
        """The Hugging Face model with these weights: shared, not copied."""
        with torch.device("meta"):
            hf_model = self.source.hf_model(self.source.config_to_hf(self.config, self.hf_fields))
        to_hf_weights(self, self.source, hf_model)
        hf_model.generation_config = self.generation_config
        return hf_model.train(self.training)

    def save_pretrained(
        self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None
    ) -> None:
        """Write an ordinary Hugging Face checkpoint: weights, configs, tokenizer, preprocessor.

        `dtype`: the float type to store; by default the one the weights have. Files are written
        aside, and take the place of older ones only when all of them are there.
        """
        with folder_written_aside(folder) as aside:
            self.to_hf().to(dtype or self.dtype).save_pretrained(aside)
            for belonging in (self.feature_extractor, self.tokenizer):
                if belonging is not None:
                    belonging.save_pretrained(aside)

    @classmethod
    def _on_meta(cls: type[Model], fields: Mapping[str, Any], **belongings: Any) -> Model:
        fields = cls._family_checked(fields, belongings["name"])
        with torch.device("meta"):
            return cls(cls.source.config_from_hf(fields), hf_fields=fields, **belongings)

    @classmethod
    def _family_checked(cls, fields: Mapping[str, Any], name: Any) -> Mapping[str, Any]:
        family = fields.get("model_type")
        if family != cls.source.model_type:
            raise ConfigError(
                f"{cls.__name__} loads models of type {cls.source.model_type!r}; "
                f"{os.fspath(name)} is of type {family!r}"
            )
        return fields


# Any of these files means that a checkpoint brings one.
_FILES = {
    AutoFeatureExtractor: ("preprocessor_config.json", "processor_config.json"),
    AutoTokenizer: ("tokenizer.json", "vocab.json"),
    GenerationConfig: ("generation_config.json",),
}


def _belonging(kind: Any, checkpoint: Checkpoint) -> Any:
    """What a checkpoint may bring, or None: a model without a tokenizer still has activations."""
    if not any(checkpoint.file(filename) for filename in _FILES[kind]):
        return None
    try:
        return kind.from_pretrained(checkpoint.location, **checkpoint.hub)
    except Exception as error:  # whatever the many classes behind an Auto class raise
        raise CheckpointError(
            f"the {kind.__name__} files of {checkpoint.name} cannot be read: {error}"
        ) from error


def _from_fields(fields: Mapping[str, Any]) -> GenerationConfig:
    """Decoding rules as older checkpoints keep them, in the config itself."""
    known = GenerationConfig().to_dict().keys() - {"transformers_version"} | {"forced_decoder_ids"}
    return GenerationConfig(**{key: fields[key] for key in known & fields.keys()})
