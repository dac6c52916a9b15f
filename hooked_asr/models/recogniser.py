"""What every recogniser does with sound and text, whatever it is built of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor

from hooked_asr.audio import log_mel
from hooked_asr.hooks import Hooks
from hooked_asr.models.inputs import InputError
from hooked_asr.models.pretrained import PretrainedModel
from hooked_asr.shapes import Logits, Mel, Tokens


class Recogniser(PretrainedModel):
    """A pretrained model with its tokenizer and feature extractor at work.

    `asked_by`: the options by which `to_inputs` and `transcribe` are told what to do.
    """

    asked_by: ClassVar[tuple[str, ...]] = ()
    to_inputs: Callable[..., dict[str, Tensor]]
    transcribe: Callable[..., Any]
    settled: Callable[..., dict[str, Any]]

    def to_mel(self, audio: Any, sample_rate: int | None = None) -> Mel:
        """Log-mel frames `[batch n_mels frame]`, by the checkpoint's own feature extractor.

        `audio` is a path, an array or tensor of samples (with its `sample_rate` in Hz, 16 kHz if
        not said), or a list of these; a window (30 s) long at most, shorter clips are padded.

        Raises `AudioError` for what cannot be read or is too long.
        """
        mel = log_mel(audio, self.working_extractor, sample_rate)
        return mel.to(self.device, self.dtype)

    def to_string(self, tokens: Sequence[int] | Tensor, special: bool = True) -> str:
        """The text of one row of token ids; `special=False` leaves special tokens out."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        return str(self._tokenizer.decode(ids, skip_special_tokens=not special))

    def text_of(self, tokens: Sequence[int]) -> str:
        """The words of one row of token ids; "" where the model has no tokenizer."""
        return "" if self.tokenizer is None else self.to_string(tokens, special=False).strip()

    def to_str_tokens(self, tokens: Tokens | Sequence[int]) -> list[str]:
        """The text of each token of one row, for labels."""
        ids = tokens.flatten().tolist() if isinstance(tokens, Tensor) else list(tokens)
        return [str(self._tokenizer.decode([token])) for token in ids]

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token, such as " ask" or "<|endoftext|>".

        Raises `InputError` for a text that is several.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise InputError(f"{text!r} is {len(ids)} tokens: {self.to_str_tokens(ids)}")
        return int(ids[0])

    def loss(self, logits: Logits, tokens: Tokens, from_position: int = 1) -> Tensor:
        """Mean cross-entropy (nats) of each token given those before it, from `from_position` on.

        For training, and as the scalar to differentiate: `incl_bwd=lambda logits: model.loss(…)`.
        Mind the padding of rows of unequal length: set it to -100 to leave it out.
        """
        return F.cross_entropy(
            logits[:, from_position - 1 : -1].flatten(0, 1), tokens[:, from_position:].flatten()
        )

    @contextmanager
    def decoding_hooks(self, fwd_hooks: Hooks) -> Iterator[None]:
        """Hooks for the length of a decoding; one that had nothing to do warns at its end."""
        with self._attach(fwd_hooks) as hooks:
            yield
        for hook in hooks:
            if hook.idle:  # where a transcript ends is not known before
                warnings.warn(hook.idle, stacklevel=5)  # past contextlib's and no_grad's wrappers

    @property
    def working_extractor(self) -> Any:
        """The checkpoint's feature extractor, or one that fits the model where it brought none.

        Raises `InputError` where none fits.
        """
        if self.feature_extractor is not None:
            return self.feature_extractor
        seconds, rest = divmod(self.config.n_frames, 100)
        if rest:
            raise InputError(
                f"a window of {self.config.n_frames} frames is no whole number of seconds: "
                "give the model a feature extractor"
            )
        return WhisperFeatureExtractor(self.config.front_end.n_mels, chunk_length=seconds)

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise InputError(
                f"{self.name} came without a tokenizer: give one, as in "
                "from_hf(hf_model, processor), or use token ids"
            )
        return self.tokenizer
