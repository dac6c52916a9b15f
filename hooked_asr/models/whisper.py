"""Whisper, hooked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor

from hooked_asr.audio import log_mel
from hooked_asr.generation import end_tokens, greedy
from hooked_asr.hooks import Hooks
from hooked_asr.models.encoder_decoder import InputError
from hooked_asr.models.pretrained import PretrainedModel
from hooked_asr.models.whisper_prompt import is_multilingual, prompt_tokens
from hooked_asr.shapes import Audio, Logits, Mel, Tokens
from hooked_asr.weights.whisper import WHISPER


class HookedWhisper(PretrainedModel):
    """Any Whisper, from its config alone: tiny to large-v3, English-only, turbo, distilled.

    What a config says of regularisation in training (dropout, layer drop, SpecAugment) is kept for
    `to_hf`, and not applied here.

    >>> from hooked_asr import HookedWhisper, ModelConfig, FrontEndConfig, StackConfig
    >>> stack = StackConfig(n_layers=2, n_heads=2, d_model=16, d_mlp=32, n_ctx=50)
    >>> model = HookedWhisper(ModelConfig(FrontEndConfig(n_mels=8), stack, stack, d_vocab=10))
    >>> logits, cache = model.run_with_cache(torch.zeros(1, 8, 100), torch.tensor([[1, 2, 3]]))
    >>> logits.shape, cache["z", 1, "cross_attn"].shape
    (torch.Size([1, 3, 10]), torch.Size([1, 3, 2, 8]))
    """

    source = WHISPER

    # --- Sound and text in ------------------------------------------------------------------------

    def to_mel(self, audio: Any, sample_rate: int | None = None) -> Mel:
        """Log-mel frames `[batch n_mels frame]`, by the checkpoint's own feature extractor.

        `audio` is a path, an array or tensor of samples (with its `sample_rate` in Hz, 16 kHz if
        not said), or a list of these; a window (30 s) long at most, shorter clips are padded.

        Raises `AudioError` for what cannot be read or is too long.
        """
        mel = log_mel(audio, self._feature_extractor, sample_rate)
        return mel.to(self.device, self.dtype)

    def prompt(
        self, language: str | None = None, task: str = "transcribe", timestamps: bool = False
    ) -> list[int]:
        """The token ids that stand before the text: start, language, task, no timestamps.

        Raises `PromptError` for a language or a task that the checkpoint lacks.
        """
        return prompt_tokens(self.generation_config, language, task, timestamps)

    def to_tokens(
        self,
        text: str | Sequence[str],
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        append_eot: bool = False,
    ) -> Tokens:
        """Token ids `[batch pos]` of a transcript behind Whisper's prompt, for teacher forcing.

        A leading space is put in front of the text, as the model writes it. Several texts are
        padded on the right with the end token, which changes nothing before it.

        Raises `PromptError` for a language or a task that the checkpoint lacks.
        """
        texts = [text] if isinstance(text, str) else list(text)
        prompt = self.prompt(language, task, timestamps)
        end = self._end_token
        rows = [[*prompt, *self._encode(one), *([end] if append_eot else [])] for one in texts]
        longest = max(map(len, rows))
        padded = [row + [end] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, device=self.device)

    def to_string(self, tokens: Sequence[int] | Tensor, special: bool = True) -> str:
        """The text of one row of token ids; `special=False` leaves Whisper's own tokens out."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        return str(self._tokenizer.decode(ids, skip_special_tokens=not special))

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

    # --- Text out ---------------------------------------------------------------------------------

    @torch.no_grad()
    def transcribe(
        self,
        audio: Any,
        language: str | None = None,
        task: str = "transcribe",
        sample_rate: int | None = None,
        max_length: int | None = None,
        fwd_hooks: Hooks = (),
        progress: bool = False,
    ) -> Any:
        """The transcript of a clip (a list of them, for a list of clips), decoded greedily.

        Hooks live through the encoder and every cached step of the decoder; one that had nothing
        to do (a position that the transcript never reached) warns. `audio` is anything `to_mel`
        takes, or its log-mel frames. A multilingual model without `language` tells it from each
        clip.
        """
        mel = audio if _is_mel(audio) else self.to_mel(audio, sample_rate)
        with self._attach(fwd_hooks) as hooks:
            encoded = self.encode(mel)
            prompt = self._prompts(encoded, language, task)
            rows = greedy(self, encoded, prompt, max_length, progress)
        for hook in hooks:
            if hook.idle:  # where a transcript ends is not known before
                warnings.warn(hook.idle, stacklevel=3)  # past no_grad's wrapper
        texts = [self.to_string(row, special=False).strip() for row in rows]
        several = isinstance(audio, list | tuple) or _is_mel(audio)
        return texts if several else texts[0]

    @torch.no_grad()
    def detect_language(self, mel: Mel) -> list[str]:
        """The language of each clip, as a code: the likeliest language behind the start token.

        An English-only checkpoint says "en" to everything.
        """
        return self._languages(self.encode(mel))

    def _prompts(self, encoded: Audio, language: str | None, task: str) -> Tokens:
        languages = [language] * len(encoded) if language else self._languages(encoded)
        prompts = [self.prompt(spoken, task) for spoken in languages]
        return torch.tensor(prompts, device=self.device)

    def _languages(self, encoded: Audio) -> list[str]:
        rules: Any = self.generation_config
        if not is_multilingual(rules):
            return ["en"] * len(encoded)
        start = torch.full((len(encoded), 1), rules.decoder_start_token_id, device=self.device)
        logits = self.decode(start, encoded)[:, -1]
        names = list(rules.lang_to_id)
        best = logits[:, list(rules.lang_to_id.values())].argmax(-1)
        return [names[i].strip("<|>") for i in best.tolist()]

    def loss(self, logits: Logits, tokens: Tokens, from_position: int = 1) -> Tensor:
        """Mean cross-entropy (nats) of each token given those before it, from `from_position` on.

        For training, and as the scalar to differentiate: `incl_bwd=lambda logits: model.loss(…)`.
        Mind the padding of rows of unequal length: set it to -100 to leave it out.
        """
        return F.cross_entropy(
            logits[:, from_position - 1 : -1].flatten(0, 1), tokens[:, from_position:].flatten()
        )

    # --- What belongs to the checkpoint -----------------------------------------------------------

    @property
    def _feature_extractor(self) -> Any:
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
                "HookedWhisper.from_hf(hf_model, processor), or use token ids"
            )
        return self.tokenizer

    @property
    def _end_token(self) -> int:
        ends = end_tokens(self.generation_config)
        return ends[0] if ends else self._tokenizer.eos_token_id

    def _encode(self, text: str) -> list[int]:
        spaced = text if text.startswith((" ", "<|")) or not text else f" {text}"
        return self._tokenizer.encode(spaced, add_special_tokens=False)


def _is_mel(audio: Any) -> bool:
    return isinstance(audio, Tensor) and audio.ndim == 3
