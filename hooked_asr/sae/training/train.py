"""Training a sparse autoencoder of one site, on stored rows or on clips as they are heard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hooked_asr.features import FeatureStore
from hooked_asr.manifests import Clips
from hooked_asr.names import ShortName
from hooked_asr.patching.engine.memory import as_bytes
from hooked_asr.records import open_records
from hooked_asr.sae.autoencoder import SparseAutoencoder
from hooked_asr.sae.errors import SAEError
from hooked_asr.sae.saelens import saelens
from hooked_asr.sae.training.architectures import n_features_of, options_of
from hooked_asr.sae.training.checkpoints import remove_checkpoints
from hooked_asr.sae.training.rows import Live, Origin, stored
from hooked_asr.sae.training.steps import (
    Settings,
    Training,
    explained,
    make_trainer,
    n_dead,
    settle_threshold,
)
from hooked_asr.sae.training.stream import Stream, shuffled

_DONE = "done"
_BUFFER = "buffer"
_MEASURED, _AT_ONCE = 16384, 1024  # rows that the end is measured on


def train_sae(
    source: Any,
    clips: Clips | None = None,
    site: ShortName | None = None,
    *,
    out: str | os.PathLike[str],
    architecture: str = "batchtopk",
    width: int | str = "8x",
    k: int | float | None = None,
    frames: int = 1_000_000,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    sparsity: float | None = None,
    levels: Sequence[float] | None = None,
    aux: float | None = None,
    bandwidth: float | None = None,
    threshold: float | None = None,
    memory: int | str = "512 MiB",
    buffer: int | str = "16 GiB",
    passes: int = 4,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str | None = None,
    save_every: float = 60.0,
    progress: bool = True,
    **harvest: Any,
) -> SparseAutoencoder:
    """Train a sparse autoencoder, and keep it in a folder.

        sae = train_sae(model, "recordings/", "encoder.3.hook_resid_post", out="sae", k=32)
        sae = train_sae(FeatureStore.open("features"), out="sae", k=64)

    - `source`: a model, whose activations on `clips` (see `read_clips`) are harvested as they are
      needed; or a `FeatureStore` of all frames or tokens. Of an encoder's site all frames are taken
      that hear any of a clip; of a decoder's, the tokens of its text.
    - `site`: a hook's name or short form; may be left out for a store of one site.
    - `out`: the folder: SAELens's files, the curve of the training (see `records`), and until
      it is done its state. Run again, the training goes on where it was, however it ended,
      and gives the weights of an uninterrupted one; a finished one is read.
    - `architecture`: "batchtopk", "topk", "matryoshka", "jumprelu", "gated" or "standard".
    - `width`: how many features, or as a multiple of the site's width ("8x").
    - `k`: how many features are active in a frame: in each ("topk"), on average over a batch
      ("batchtopk", "matryoshka"), or what is aimed at ("jumprelu"); 32 if not said.
    - `frames`: rows to train on in all, in steps of `batch_size`; epochs follow from it.
    - `learning_rate`: of Adam, at its peak; it is warmed up, and falls to 0 in the last quarter.
    - `sparsity`: the weight of what keeps features few ("jumprelu", "gated", "standard").
      `levels`: "matryoshka"'s smaller dictionaries, as shares of the whole. `aux`: the weight of
      the loss that brings dead features back ("batchtopk", "topk", "matryoshka", "jumprelu").
      `bandwidth`, `threshold`: of "jumprelu"'s gradient, and at the start, in units of the scaled
      rows (mean square 1 about their mean).
    - `memory`: bytes that rows on their way from the disk may take; batches do not depend on it.
    - `buffer`: bytes of harvested rows on the disk. What fits is harvested once, and mixed as a
      whole; of more, half of the buffer is trained on, `passes` times, while the next half is
      harvested in a thread.
    - `dtype`: of harvested rows; the model's own if not said.
    - `device`: where to train; by default the model's, for a store the CPU.
    - `save_every`: seconds between checkpoints.
    - `harvest`: what `harvest` takes beside: `batch_size` as `clips_at_once`, `skip_errors`,
      `texts`, `language`, `task`, `prompt`.

    The directions have norm 1, so a feature's value is what it adds. What it came to is in
    `sae.sae.cfg.metadata`: `explained_variance` and `l0` on rows of the training, and
    `num_dead_features`, which none of its last 250,000 rows had.

    Raises `SAEError` for options that do not fit; `RecordsError` for an `out` that holds another
    training, and what differs; and as `harvest`.
    """
    options = {"k": k, "sparsity": sparsity, "levels": levels, "aux": aux}
    options = options_of(architecture, options | {"bandwidth": bandwidth, "threshold": threshold})
    if passes < 1:
        raise SAEError(f"a block has at least 1 pass; got passes={passes}")
    folder, cpu = Path(out), torch.device("cpu")
    if isinstance(source, FeatureStore):
        rows = stored(source, clips, site, harvest)
    else:
        live = Live(source, clips, site, dtype, harvest)
        rows = live.origin(folder / _BUFFER, as_bytes(buffer, cpu), passes, seed, progress)
    settings = Settings(
        architecture=architecture,
        options=options,
        n_features=n_features_of(width, rows.d_in),
        frames=frames,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    stream = Stream(rows.blocks, batch_size=batch_size, memory=as_bytes(memory, cpu), seed=seed)
    trainer = make_trainer(settings, rows.d_in, device or rows.device)
    asked = asdict(settings)
    asked |= asked.pop("options")
    with open_records(folder, {**asked, **rows.asked}) as records:
        if _DONE not in records.read()[0]:
            training = Training(trainer, stream, settings, folder, records)
            last = training.run(save_every, progress)
            sample = shuffled(len(last), seed, "end")[:_MEASURED]
            x = torch.from_numpy(last[sample].astype("float32")).to(trainer.sae.device)
            settle_threshold(trainer, x, batch_size)
            made = _finished(trainer, rows)
            said = _measured(made, trainer, x)
            made.save(folder)
            records.append(_DONE, said)
        remove_checkpoints(folder)
        shutil.rmtree(folder / _BUFFER, ignore_errors=True)
    return SparseAutoencoder.load(folder, device=device or rows.device)


# --- The end --------------------------------------------------------------------------------------


def _finished(trainer: Any, rows: Origin) -> SparseAutoencoder:
    """What was trained, as it is used: for activations as they come, with directions of norm 1."""
    sae, lens = trainer.sae, saelens()
    sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    with TemporaryDirectory() as aside:
        sae.save_inference_model(aside)
        made = lens.SAE.load_from_disk(aside, device=str(sae.device))
    if not getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        made.fold_W_dec_norm()
    made.cfg.metadata["model_name"] = rows.model
    found = SparseAutoencoder(made, rows.site)
    found.model, found.weights = rows.model, rows.weights
    return found


def _measured(sae: SparseAutoencoder, trainer: Any, x: Tensor) -> dict[str, float]:
    """On rows of the last block, and noted in what is saved."""
    features = [sae.encode(own) for own in torch.split(x, _AT_ONCE)]
    made = torch.cat([sae.decode(own) for own in features])
    active = sum(int(own.bool().sum()) for own in features)
    said = {
        "explained_variance": explained(x, made),
        "l0": active / len(x),
        "num_dead_features": n_dead(trainer),
    }
    for name, value in said.items():
        sae.sae.cfg.metadata[name] = value
    return said
