"""Files that outlive accidents: written whole or not at all, and held against other processes while one works."""

import contextlib
import errno
import glob
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import StorageError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed, which serves as well
    fcntl = None

logger = logging.getLogger("invert3d")

POLL_INTERVAL_S = 0.2
_ATTEMPTS = 10
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# Some network file systems have no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file so that a reader, or a machine that loses power, sees the old bytes or the new, never a mixture.

    durable: False does not wait for the disk, for what can be made again; then it is only readers who see no mixture.
    The folder is made where it is missing. Raises StorageError when that cannot be done; the old bytes are still there.
    """
    for attempt in range(_ATTEMPTS):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                _hold(file.fileno())  # says to `remove_abandoned` that someone is still writing
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            return
        except FileNotFoundError as error:  # removed as abandoned in the moment without a hold
            if attempt == _ATTEMPTS - 1:
                raise storage_error(path, error) from error
        except OSError as error:
            raise storage_error(path, error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raises StorageError when a file cannot be written there, so that it is known before the work, not after."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b"\0")
    except OSError as error:
        raise storage_error(path, error) from error


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of `write_atomically`, of one file or of all in a folder."""
    for left in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.tmp"):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            held_by_nobody = _hold(file.fileno())
            if fcntl is not None and held_by_nobody:
                left.unlink()
        if fcntl is None:
            with contextlib.suppress(OSError):
                left.unlink()


class FileLock:
    """A claim on a file that ends with its process, however that ends; it says nothing about the file's content.

    A hidden empty file beside it carries the claim, and is removed with it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.lock")
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Whether the claim is ours now; False when another one has it. Raises StorageError if nobody can have it."""
        while True:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise storage_error(self._path, error) from error
            if not _hold(descriptor):
                os.close(descriptor)
                return False
            if self._is_current(descriptor):
                self._descriptor = descriptor
                return True
            os.close(descriptor)  # its holder removed the file between our opening and our claim

    def release(self) -> None:
        """Give the claim up."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if fcntl is None:
            os.close(descriptor)
        with contextlib.suppress(OSError):  # removed while held, so that no one can claim the removed file
            self._path.unlink()
        if fcntl is not None:
            os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(descriptor))
        except FileNotFoundError:
            return False


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[float], None] | None = None) -> Iterator[None]:
    """Inside, no other process (nor thread) is inside for the same path; where the file system has locks.

    waiting: called with the seconds waited so far, 0 first, several times a second, while another one is inside; what
    it raises ends the wait. None does not wait.

    Raises StorageError if another one is inside and there is no waiting, and if the folder cannot be written.
    """
    lock = FileLock(path)
    waited = 0.0
    while not lock.acquire():
        if waiting is None:
            raise StorageError(
                f"'{path}' is in use by another process. Wait until that has ended and run this again, or name another "
                "file."
            )
        waiting(waited)
        time.sleep(POLL_INTERVAL_S)
        waited += POLL_INTERVAL_S
    try:
        yield
    finally:
        lock.release()


def _hold(descriptor: int) -> bool:
    """Lock an open file until it is closed; False when another one holds it."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            # Far behind the content, which others may go on reading.
            os.lseek(descriptor, 1 << 30, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
            os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


def storage_error(path: Path, error: OSError) -> StorageError:
    """What happened to a file that could not be written, in words, and what became of the one that was there."""
    reason = error.strerror or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "there is a file where its folder should be"
    kept = " What was there before is unchanged." if os.path.exists(path) else ""
    if error.errno in _FULL:
        with contextlib.suppress(OSError):
            reason += f", {shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free"
        hint = "Make room on that disk, and run this again."
    elif error.errno in _FORBIDDEN:
        hint = "Allow writing there, or choose another folder."
    elif error.errno == errno.ENAMETOOLONG:
        hint = "Choose a shorter name."
    else:
        hint = "Check that folder, or choose another."
    return StorageError(f"'{path}' cannot be written: {reason}.{kept} {hint}")
