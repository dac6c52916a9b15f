"""The papers' experiments: tutorials that are run, read and changed, and what came of them.

reproduce("08", model_name="openai/whisper-large-v3", manifest="clips.csv", out="run")
Results.load("run/results.json").to_pandas()
"""

from hooked_asr.reproduce.data import data_hash
from hooked_asr.reproduce.errors import ResultsError, TutorialError
from hooked_asr.reproduce.notebooks import Tutorial, tutorial, tutorials
from hooked_asr.reproduce.results import Number, Results
from hooked_asr.reproduce.run import reproduce

__all__ = [
    "Number",
    "Results",
    "ResultsError",
    "Tutorial",
    "TutorialError",
    "data_hash",
    "reproduce",
    "tutorial",
    "tutorials",
]
