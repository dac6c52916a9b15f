"""See inside speech recognisers, and change what happens there.

A model is loaded by name, and every activation in it has one too:

    model = HookedWhisper.from_pretrained("openai/whisper-tiny.en")
    mel, tokens = model.to_mel("clip.flac"), model.to_tokens("What was said.")
    logits, cache = model.run_with_cache(mel, tokens)
    cache["decoder.3.cross_attn.hook_z"]
"""

from hooked_asr.audio import AudioError, load_audio
from hooked_asr.cache import ActivationCache
from hooked_asr.components.factored import FactoredMatrix
from hooked_asr.components.kv_cache import KVCache
from hooked_asr.config import ConfigError, FrontEndConfig, ModelConfig, PrefixConfig, StackConfig
from hooked_asr.hooks import HookError, HookPoint
from hooked_asr.models.encoder_decoder import HookedEncoderDecoder
from hooked_asr.models.families import from_pretrained
from hooked_asr.models.inputs import InputError
from hooked_asr.models.qwen2_audio import HookedQwen2Audio
from hooked_asr.models.whisper import HookedWhisper
from hooked_asr.models.whisper_prompt import PromptError
from hooked_asr.names import UnknownHookError, hook_table
from hooked_asr.weights.checkpoint import CheckpointError

__version__ = "0.1.0"

__all__ = [
    "ActivationCache",
    "AudioError",
    "CheckpointError",
    "ConfigError",
    "FactoredMatrix",
    "FrontEndConfig",
    "HookError",
    "HookPoint",
    "HookedEncoderDecoder",
    "HookedQwen2Audio",
    "HookedWhisper",
    "InputError",
    "KVCache",
    "ModelConfig",
    "PrefixConfig",
    "PromptError",
    "StackConfig",
    "UnknownHookError",
    "from_pretrained",
    "hook_table",
    "load_audio",
]
