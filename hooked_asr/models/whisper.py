"""Whisper, hooked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hooked_asr.generation import GenerationError, end_tokens, greedy
from hooked_asr.hooks import Hooks
from hooked_asr.models.recogniser import Recogniser
from hooked_asr.models.whisper_prompt import is_multilingual, prompt_tokens
from hooked_asr.shapes import Audio, Mel, Tokens
from hooked_asr.weights.whisper import WHISPER


class HookedWhisper(Recogniser):
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
    asked_by = ("language", "task")

    # --- Sound and text in ------------------------------------------------------------------------

    def prompt(
        self, language: str | None = None, task: str = "transcribe", timestamps: bool = False
    ) -> list[int]:
        """The token ids that stand before the text: start, language, task, no timestamps.

        Raises `PromptError` for a language or a task that the checkpoint lacks.
        """
        return prompt_tokens(self.generation_config, language, task, timestamps)

    def to_inputs(
        self,
        audio: Any,
        text: str | Sequence[str] | None = None,
        sample_rate: int | None = None,
        **prompt: Any,
    ) -> dict[str, Tensor]:
        """The inputs of a forward, `mel` and `tokens`: the prompt alone, or `text` behind it.

        `prompt`: language, task and timestamps, as `to_tokens` takes them.
        """
        mel = self.to_mel(audio, sample_rate)
        tokens = self.to_tokens([""] * len(mel) if text is None else text, **prompt)
        return {"mel": mel, "tokens": tokens}

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
        with self.decoding_hooks(fwd_hooks):
            encoded = self.encode(mel)
            prompt = self._prompts(encoded, language, task)
            limit = self.token_limit(prompt.shape[1], max_length)
            rows = greedy(self, {"audio": encoded, "tokens": prompt}, limit, progress)
        texts = [self.to_string(row, special=False).strip() for row in rows]
        several = isinstance(audio, list | tuple) or _is_mel(audio)
        return texts if several else texts[0]

    @torch.no_grad()
    def detect_language(self, mel: Mel) -> list[str]:
        """The language of each clip, as a code: the likeliest language behind the start token.

        An English-only checkpoint says "en" to everything.
        """
        return self._languages(self.encode(mel))

    def settled(self, audio: Any, language: str | None = None, **prompt: Any) -> dict[str, Any]:
        """How one clip is asked for: the prompt's options, its language told where it is open."""
        return {"language": language or self.detect_language(self.to_mel(audio))[0], **prompt}

    def token_limit(self, n_prompt: int, max_length: int | None = None) -> int:
        """How many tokens prompt and text may have together; `max_length` counts both.

        Raises `GenerationError` for more than the decoder has positions for.
        """
        n_ctx = self.config.decoder.n_ctx
        if max_length is None:
            # As in the reference, whose own limit does not count the prompt.
            allowed = self.generation_config.max_length or n_ctx
            return min(allowed + min(n_prompt, n_ctx // 2 - 1), n_ctx)
        if not n_prompt < max_length <= n_ctx:
            raise GenerationError(
                f"max_length counts the {n_prompt} tokens of the prompt too, and the decoder has "
                f"{n_ctx} positions; got {max_length}"
            )
        return max_length

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

    # --- What belongs to the checkpoint -----------------------------------------------------------

    @property
    def _end_token(self) -> int:
        ends = end_tokens(self.generation_config)
        return ends[0] if ends else self._tokenizer.eos_token_id

    def _encode(self, text: str) -> list[int]:
        spaced = text if text.startswith((" ", "<|")) or not text else f" {text}"
        return self._tokenizer.encode(spaced, add_special_tokens=False)


def _is_mel(audio: Any) -> bool:
    return isinstance(audio, Tensor) and audio.ndim == 3
