"""SAELens, which trains sparse autoencoders and defines their files; it is loaded when needed."""

from __future__ import annotations

import os
import warnings
from functools import cache
from types import ModuleType

from hooked_asr.sae.errors import SAEError


@cache
def saelens() -> ModuleType:
    """The package.

    Raises `SAEError` where it is not installed.
    """
    # It brings Weights & Biases along, which is asked for nothing here.
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages that it imports
            import sae_lens
    except ImportError as cause:
        raise SAEError("sparse autoencoders need SAELens: pip install 'hooked_asr[sae]'") from cause
    return sae_lens
