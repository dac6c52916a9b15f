"""A name for recordings, wherever they lie."""

from __future__ import annotations

import hashlib
import json

from hooked_asr.manifests import Clips, read_clips


def data_hash(clips: Clips) -> str:
    """A hash of the recordings' bytes and of what is said of each, in their order.

    Folders and file names do not count: a copy elsewhere has the same.

    Raises `ManifestError` as `read_clips`.
    """
    made = hashlib.sha256()
    for clip in read_clips(clips):
        said = [clip.text, clip.language, clip.group, dict(sorted(clip.labels.items()))]
        made.update(json.dumps(said).encode())
        made.update(hashlib.sha256(clip.audio_path.read_bytes()).digest())
    return made.hexdigest()
