"""Everything that decides what whisper-nano becomes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from hooked_asr.config import FrontEndConfig, ModelConfig, StackConfig


@dataclass(frozen=True)
class Phase:
    """A part of the training: `steps` batches of clips that fit a window of `seconds`."""

    steps: int
    seconds: int


@dataclass(frozen=True)
class Recipe:
    """Corpus, model and training. The same recipe gives the same corpus and, on the same machine
    and versions, the same weights.

    Shares are of all clips of a batch or of the corpus; `phone_weight` is that of the encoder's own
    loss, the phone at each position, at first (it falls to 0 by the middle of the training).
    """

    seed: int = 1
    # Corpus
    shards: int = 40
    clips_per_shard: int = 1000
    chants: float = 0.04
    pairs_of_sentences: float = 0.15
    code_switches: float = 0.01
    learners: float = 0.35  # of the clips whose sentence has a minimal pair
    # Model
    d_model: int = 192
    n_layers: int = 4
    n_heads: int = 6
    seconds: int = 6
    n_tokens: int = 128
    text_vocabulary: int = 1000
    # Training
    phases: tuple[Phase, ...] = (Phase(2600, 3), Phase(1400, 4), Phase(2000, 6))
    batch: int = 32
    peak_rate: float = 1.5e-3
    warmup: int = 150
    weight_decay: float = 0.05
    phone_weight: float = 1.0
    noisy: float = 0.5
    quiet_steps: int = 1500  # over which noise comes in
    nonspeech: float = 0.06
    translations: float = 0.12
    timestamps: float = 0.25
    prompted: float = 0.08

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def hash(self) -> str:
        """Tells recipes apart: a training begun with another one is not continued."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def model_config(self, d_vocab: int) -> ModelConfig:
        def stack(n_ctx: int) -> StackConfig:
            return StackConfig(self.n_layers, self.n_heads, self.d_model, 4 * self.d_model, n_ctx)

        return ModelConfig(
            FrontEndConfig(), stack(50 * self.seconds), stack(self.n_tokens), d_vocab
        )
