"""What a data set cannot be made of."""

from hooked_asr.errors import HookedASRError
from hooked_asr.records import RecordsError


class DatasetError(HookedASRError):
    """A data set that cannot be built as asked, or a voice that failed, and why."""


class OtherDatasetError(DatasetError, RecordsError):
    """A folder that holds a data set made by other arguments."""
