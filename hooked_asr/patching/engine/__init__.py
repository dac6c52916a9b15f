"""Many interventions on one input, each computed from where it first makes a difference."""

from hooked_asr.patching.engine.memory import MemoryLimitError
from hooked_asr.patching.engine.run import RowValues, run_rows

__all__ = ["MemoryLimitError", "RowValues", "run_rows"]
