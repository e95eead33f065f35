"""Trainings kept on disk and found again by their inputs and settings, finished or interrupted.

A host forgets a node's result as soon as another prompt runs, and a process may die; the same training, asked for
again, then goes on from here, or is already done.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .. import __version__
from ..files import FileLock, locked, remove_abandoned
from . import checkpoint as checkpoints
from .presets import InversionConfig
from .views import Views, fingerprint

logger = logging.getLogger("invert3d")

KEPT_BYTES = 512 << 20
"""How much a store holds by default; a training is a megabyte or less."""

_LABEL_LENGTH = 40
_NEW = ".new"  # ends the name of a training that will take the place of a finished one


@dataclass(frozen=True)
class KeptTraining:
    """One training of a store.

    checkpoint: the file for `train_token`. step: steps done that the store has, 0 for none. finished: whether there is
    nothing left to do.
    """

    checkpoint: Path
    step: int
    finished: bool

    @property
    def picture(self) -> Path:
        """Where a picture of the result is kept; it leaves the store together with the checkpoint."""
        return self.checkpoint.with_suffix(".png")


def training_key(config: InversionConfig, name: str, views: Views, model_digest: str, dtype: str) -> str:
    """A digest of everything that decides what is learned: settings, name, views, weights, their type, our version.

    model_digest: of the model's weights. dtype: in which they are loaded.
    """
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in checkpoints.FREE_SETTINGS}
    parts = [__version__, settings, name, fingerprint(views), model_digest, dtype]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class TrainingStore:
    """A folder of trainings; several processes may use it at once.

    limit_bytes: what it may hold; beyond that the longest unused ones go, never one that is being worked on.
    peek: how many steps a checkpoint holds and whether it is finished, None for a damaged one; `checkpoint.peek` of
    the kind of training that the store is for.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int = KEPT_BYTES,
        peek: Callable[[Path], tuple[int, bool] | None] = checkpoints.peek,
    ) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._peek = peek

    @contextlib.contextmanager
    def training(
        self, name: str, key: str, waiting: Callable[[float], None] | None = None, anew: bool = False
    ) -> Iterator[KeptTraining]:
        """The training of a key, ours alone inside; marked as used now. name: what its file's name begins with.

        waiting: as in `files.locked`, called while another process trains the same; then its result is here.
        anew: what is kept will not be used. One that is finished stays until the new one is, too.

        Raises StorageError if the folder cannot be written, or another process trains the same and there is no waiting.
        """
        label = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_LABEL_LENGTH]
        checkpoint = self.folder / f"{label}-{key}.safetensors"
        with locked(checkpoint, waiting):
            try:
                kept = self._find(checkpoint)
                if anew and kept.finished:
                    new = replace(kept, checkpoint=checkpoint.with_stem(checkpoint.stem + _NEW))
                    try:
                        yield new
                    finally:  # a finished training counts, whatever happened to its picture
                        self._take_over(new, kept)
                else:
                    yield kept
            finally:
                self._make_room(checkpoint)

    def _find(self, checkpoint: Path) -> KeptTraining:
        if not checkpoint.exists():
            return KeptTraining(checkpoint, 0, False)
        found = self._peek(checkpoint)
        if found is None:
            logger.warning("The kept training '%s' is damaged; it is removed and done again.", checkpoint)
            checkpoint.unlink(missing_ok=True)
            return KeptTraining(checkpoint, 0, False)
        with contextlib.suppress(OSError):
            os.utime(checkpoint)
        return KeptTraining(checkpoint, *found)

    def _make_room(self, keep: Path) -> None:
        """Remove the longest unused trainings beyond the limit, and what killed processes left."""
        remove_abandoned(self.folder)
        # One training's files, and when the youngest of them was written or used.
        sizes: dict[str, int] = {}
        used: dict[str, int] = {}
        for file in (*self.folder.glob("*.safetensors"), *self.folder.glob("*.png")):
            with contextlib.suppress(FileNotFoundError):  # another process makes room, too
                status = file.stat()
                stem = file.stem.removesuffix(_NEW)
                sizes[stem] = sizes.get(stem, 0) + status.st_size
                used[stem] = max(used.get(stem, 0), status.st_mtime_ns)
        total = sum(sizes.values())
        for stem in sorted(used, key=lambda stem: used[stem]):
            if total <= self.limit_bytes:
                return
            if stem != keep.stem and self._remove(stem):
                total -= sizes[stem]

    def _remove(self, stem: str) -> bool:
        """Whether a training could be removed; one that another process works on stays."""
        checkpoint = self.folder / f"{stem}.safetensors"
        lock = FileLock(checkpoint)
        try:
            if not lock.acquire():
                return False
            try:
                for file in (stem, stem + _NEW):
                    for ending in (".safetensors", ".png"):
                        (self.folder / (file + ending)).unlink(missing_ok=True)
            finally:
                lock.release()
        except OSError as error:
            logger.warning("The kept training '%s' cannot be removed to make room: %s", checkpoint, error)
            return False
        return True

    def _take_over(self, new: KeptTraining, old: KeptTraining) -> None:
        """Put a finished training in the place of the one before; nothing happens while it is not finished."""
        if new.checkpoint.exists() and (self._peek(new.checkpoint) or (0, False))[1]:
            old.picture.unlink(missing_ok=True)  # it shows the training before
            os.replace(new.checkpoint, old.checkpoint)
            with contextlib.suppress(FileNotFoundError):
                os.replace(new.picture, old.picture)
