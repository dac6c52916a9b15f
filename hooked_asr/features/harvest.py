"""Activations of a corpus, onto the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from hooked_asr.features.batch import Kept, Work, run_batch
from hooked_asr.features.disk import INDEX, begin, sweep_up, write_json
from hooked_asr.features.errors import FeatureError
from hooked_asr.features.forcing import TEXTS, Asking
from hooked_asr.features.index import index_of
from hooked_asr.features.loading import Heard, Unusable, heard, made_ahead
from hooked_asr.features.plan import Shard, asked_of, check_labels, shards_of
from hooked_asr.features.pools import Pool, check_pool
from hooked_asr.features.shard_file import clip_rows, write_shard
from hooked_asr.features.sites import SitesAsked, chosen_sites
from hooked_asr.features.store import FeatureStore
from hooked_asr.manifests import Clip, Clips, read_clips
from hooked_asr.processes import Process, this_process

_POLL = 0.2  # seconds between looks at what other processes have done
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def harvest(
    model: Any,
    clips: Clips,
    sites: SitesAsked,
    *,
    pool: Pool = "mean",
    out: str | os.PathLike[str],
    texts: str = "heard",
    language: str | None = None,
    batch_size: int = 8,
    dtype: torch.dtype | None = None,
    memory: int | str | None = None,
    skip_errors: bool = False,
    process: Process | None = None,
    progress: bool = True,
    **prompt: Any,
) -> FeatureStore:
    """Keep activations of every clip in a folder: rows `[row d]` for each site.

        store = harvest(model, "manifest.csv", "encoder.*.hook_resid_post", out="features")
        x, y = store["encoder.3.hook_resid_post"][:], store.table()["sex"]

    - `clips`: a folder, a manifest or a list, see `read_clips`; each one window (30 s) at most.
    - `sites`: hook names, globs and short forms, of either model. Heads are laid side by side:
      `[head d_head]` becomes `[head * d_head]`. The model runs as far as the deepest of them: of a
      site in the encoder, the encoder alone.
    - `pool`: what is kept of a clip's real positions: "mean", "max" or "last", in one row; "frames"
      or "tokens", a row for each; or a function of `(activations [pos d], hook spec)` that gives
      one vector. In the encoder all positions are real that hear any of the clip, and not of the
      padding up to a window. In the decoder, those where tokens of its text are read in; special
      tokens are none, nor is the end. "last" is the prompt's last where nothing is said.
    - `out`: the folder. Run again, the harvest goes on where it was, however it ended, and leaves
      the very bytes of an uninterrupted one; what is done already is opened.
    - `texts`: what the decoder is forced with: "heard", the model's own transcript, greedily
      decoded by the checkpoint's rules; or "text", what the clip's row says.
    - `language`: of clips that name none; otherwise Whisper tells it from the sound.
    - `batch_size`: clips at a time; together with the clips' order it settles all roundings.
    - `dtype`: of what is kept; by default the model's own, and for means float32 at least.
    - `memory`: how much may wait to be written: bytes, or as "2 GiB"; 256 MiB if not said. A shard
      is no larger, and holds 16 batches at most: what a kill can cost.
    - `skip_errors`: note clips that nothing can be kept of, and go on; the first one ends it
      otherwise.
    - `process`: under torchrun, and wherever `RANK` and `WORLD_SIZE` are set, processes share the
      shards, and each gives the whole store; they need the same `out`. One that ends early is
      waited for without end: torchrun ends all of them.
    - `prompt`: how the model is asked: `task` for Whisper, `prompt` for Qwen2-Audio.

    Hooks that are attached to the model act here too; a store does not know of them.

    Raises `FeatureError` for options that do not fit, a clip that cannot be used (or where none
    can), or an `out` that holds other work; `UnknownHookError`; `ManifestError` as `read_clips`.
    """
    read = read_clips(clips)
    work = _work(model, sites, pool, Asking(texts, language, prompt), dtype)
    _check(model, read, work, batch_size, skip_errors)
    shards = shards_of(model, read, work, batch_size, memory)
    asked = asked_of(model, read, work, batch_size, shards)
    folder = Path(out)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    begun = begin(folder, {"model": model.name, "asked": asked, "versions": versions})
    own = process or this_process()
    if not (folder / INDEX).exists():
        _Harvest(model, work, folder, shards, skip_errors, own, progress).run()
        if own.rank == 0:
            sweep_up(folder)
            said = {name: begun[name] for name in ("model", "asked", "versions")}
            write_json(folder / INDEX, index_of(folder, shards, work.sites, said))
        _wait(lambda: int((folder / INDEX).exists()), 1, "index", progress and own.rank == 0)
    return _usable(FeatureStore.open(folder), skip_errors)


@dataclass(frozen=True)
class _Harvest:
    """The shards that fall to one process, and the wait for the others."""

    model: Any
    work: Work
    folder: Path
    shards: Sequence[Shard]
    skip_errors: bool
    process: Process
    progress: bool

    def run(self) -> None:
        mine = self.process.share(self.shards)
        left = [shard for shard in mine if not self._done(shard)]
        shown = self.progress and self.process.rank == 0
        n_clips = sum(len(shard.clips) for shard in mine)
        with tqdm(total=n_clips, desc="features", unit="clip", disable=not shown) as bar:
            bar.update(n_clips - sum(len(shard.clips) for shard in left))
            bar.unpause()  # the time left is that of what is left
            read = made_ahead(self._read, (batch for one in left for batch in one.batches))
            for shard in left:
                self._keep(shard, read, bar)
        _wait(lambda: sum(map(self._done, self.shards)), len(self.shards), "all processes", shown)

    def _done(self, shard: Shard) -> bool:
        return (self.folder / shard.file).exists()

    def _read(self, batch: Sequence[Clip]) -> list[Heard | Unusable]:
        prompt = self.work.asking.prompt
        return [heard(self.model, clip, self.work.forces, prompt) for clip in batch]

    def _keep(self, shard: Shard, read: Iterator[list[Heard | Unusable]], bar: Any) -> None:
        """Run a shard's batches, and write what came of them."""
        every_token = self.work.pool == "tokens"
        known, rows = [], []
        for _ in shard.batches:
            for one in self._run(next(read)):
                if isinstance(one, Kept):
                    rows.append(one.rows)
                elif not self.skip_errors:
                    raise FeatureError(one.reason) from one.error
                known.append(clip_rows(self.model, one, every_token))
                bar.update()
        write_shard(self.folder / shard.file, self.work.sites.names, known, rows)

    def _run(self, batch: list[Heard | Unusable]) -> list[Kept | Unusable]:
        """A batch with what could be read of it, in its order."""
        usable = [one for one in batch if isinstance(one, Heard)]
        done = iter(run_batch(self.model, usable, self.work) if usable else [])
        return [next(done) if isinstance(one, Heard) else one for one in batch]


def _wait(done: Callable[[], int], total: int, name: str, shown: bool) -> None:
    """Until other processes have done all."""
    with tqdm(desc=name, total=total, disable=not shown, leave=False, delay=1) as bar:
        while (there := done()) < total:
            bar.update(there - bar.n)
            time.sleep(_POLL)


# --- What is asked --------------------------------------------------------------------------------


def _work(
    model: Any, sites: SitesAsked, pool: Pool, asking: Asking, dtype: torch.dtype | None
) -> Work:
    if asking.texts not in TEXTS:
        raise FeatureError(f"texts is {' or '.join(TEXTS)}; got {asking.texts!r}")
    wrong = [name for name in asking.prompt if name not in model.asked_by]
    if wrong:
        raise FeatureError(
            f"{type(model).__name__} is asked by {' and '.join(model.asked_by)}; got "
            f"{', '.join(wrong)}"
        )
    if dtype not in (None, *_DTYPES):
        raise FeatureError(f"features are floats ({', '.join(map(str, _DTYPES))}); got {dtype}")
    chosen = chosen_sites(model, sites)
    check_pool(pool, chosen)
    return Work(chosen, pool, asking, dtype)


def _check(
    model: Any, clips: Sequence[Clip], work: Work, batch_size: int, skip_errors: bool
) -> None:
    """Raises `FeatureError` for what can be told before any work."""
    if batch_size < 1:
        raise FeatureError(f"at least 1 clip is run at a time; got batch_size={batch_size}")
    check_labels(clips)
    asking = work.asking
    if not work.forces:
        return
    if asking.language is not None and "language" in model.asked_by:
        model.prompt(asking.language, **asking.prompt)
    without = [clip.id for clip in clips if clip.text is None]
    if asking.texts == "text" and without and not skip_errors:
        raise FeatureError(
            f"clip {without[0]!r} has no text to force: give the manifest a column of them, or "
            "texts='heard'"
        )


def _usable(store: FeatureStore, skip_errors: bool) -> FeatureStore:
    """Raises `FeatureError` for a store without a clip, or without some that may not be missing."""
    if not store.index["clips"]:
        first = next(iter(store.failed.values()))
        raise FeatureError(f"none of {len(store.failed)} clips can be used; the first: {first}")
    if store.failed and not skip_errors:
        raise FeatureError(
            f"{len(store.failed)} clips were left out of {store.folder} by an earlier harvest with "
            f"skip_errors=True; the first: {next(iter(store.failed.values()))}. Give "
            "skip_errors=True, or remove the folder"
        )
    return store
