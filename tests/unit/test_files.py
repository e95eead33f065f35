import errno
import multiprocessing
import os
import signal
import subprocess
import threading
import time

import pytest

from invert3d_core import files
from invert3d_core.errors import StorageError
from tests.unit.storage_faults import full_disk, read_only


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"only root can mount a small disk here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_bytes_are_written_whole_into_a_new_folder_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    files.write_atomically(path, b"one")
    files.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]


def test_a_full_disk_keeps_the_file_before_and_says_how_much_is_free(small_disk):
    path = small_disk / "file"
    files.write_atomically(path, b"before" * 1000)
    message = r"file' cannot be written: No space left on device, 0\.\d MB are free\. What was there before is "
    with pytest.raises(StorageError, match=message + r"unchanged\. Make room on that disk"):
        files.write_atomically(path, b"after!" * 10_000)
    assert path.read_bytes() == b"before" * 1000
    assert os.listdir(small_disk) == ["file"]
    files.write_atomically(path, b"smaller")
    assert path.read_bytes() == b"smaller"


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path):
    path = tmp_path / "file"
    with full_disk(100):
        files.write_atomically(path, b"x" * 100)
        with pytest.raises(StorageError, match="File too large.*Make room"):
            files.write_atomically(path, b"y" * 101)
    assert path.read_bytes() == b"x" * 100
    assert os.listdir(tmp_path) == ["file"]


def test_a_read_only_folder_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "folder" / "file"
    files.write_atomically(path, b"before")
    with read_only(path.parent):
        for attempt in (
            lambda: files.write_atomically(path, b"after"),
            lambda: files.check_writable(path),
            lambda: files.FileLock(path).acquire(),
        ):
            with pytest.raises(StorageError, match=r"file.*cannot be written: Permission denied.*Allow writing there"):
                attempt()
    assert path.read_bytes() == b"before"
    files.check_writable(path)
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stone/file", "there is a file where its folder should be"),
        ("stone/deep/file", "there is a file where its folder should be"),
        ("x" * 300, "File name too long. Choose a shorter name"),
        ("folder", "Is a directory"),
    ],
)
def test_places_where_no_file_can_be(tmp_path, name, message):
    (tmp_path / "stone").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=message):
        files.write_atomically(tmp_path / name, b"data")
    assert sorted(os.listdir(tmp_path)) == ["folder", "stone"]


def test_a_storage_error_is_an_os_error():
    with pytest.raises(OSError, match="^'a' cannot be written"):
        raise files.storage_error(files.Path("a"), OSError(errno.EIO, "Input/output error"))


def test_only_what_nobody_writes_is_removed_as_abandoned(tmp_path, monkeypatch):
    path = tmp_path / "fi[l]e"
    (tmp_path / ".fi[l]e.1.tmp").write_bytes(b"half")
    (tmp_path / ".other.1.tmp").write_bytes(b"half")
    seen = []

    def clean_while_writing(descriptor):
        files.remove_abandoned(tmp_path, path.name)
        seen.append(sorted(os.listdir(tmp_path)))

    monkeypatch.setattr(os, "fsync", clean_while_writing)
    files.write_atomically(path, b"data")
    ours = [name for name in seen[0] if name.startswith(".fi[l]e.")]
    assert len(ours) == 1 and ours != [".fi[l]e.1.tmp"], seen
    assert path.read_bytes() == b"data"
    files.remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == [path.name]


def test_writers_and_cleaners_at_once_never_lose_a_write(tmp_path):
    path = tmp_path / "file"
    stop = threading.Event()

    def clean():
        while not stop.is_set():
            files.remove_abandoned(tmp_path)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for i in range(200):
            files.write_atomically(path, b"%d" % i)
            assert path.read_bytes() == b"%d" % i
    finally:
        stop.set()
        cleaner.join()


def test_one_claim_at_a_time_and_nothing_is_left(tmp_path):
    path = tmp_path / "file"
    first, second = files.FileLock(path), files.FileLock(path)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    first.release()
    assert second.acquire()
    second.release()
    assert os.listdir(tmp_path) == []


def test_a_claim_without_waiting_says_that_another_process_has_it(tmp_path):
    used = pytest.raises(StorageError, match="file' is in use by another process. Wait until")
    with files.locked(tmp_path / "file"), used, files.locked(tmp_path / "file"):
        pass
    with files.locked(tmp_path / "file"):
        pass


def test_a_wait_counts_from_nought_and_can_be_given_up(tmp_path):
    waited = []

    def waiting(seconds):
        waited.append(seconds)
        if seconds > 0.3:
            raise TimeoutError

    with files.locked(tmp_path / "file"), pytest.raises(TimeoutError), files.locked(tmp_path / "file", waiting):
        pass
    assert waited == pytest.approx([0.0, 0.2, 0.4])


def hold_for_ever(folder, held):
    with files.locked(files.Path(folder) / "file"):
        held.set()
        time.sleep(600)


def test_a_killed_process_holds_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold_for_ever, args=(str(tmp_path), held))
    process.start()
    assert held.wait(60)
    lock = files.FileLock(tmp_path / "file")
    assert not lock.acquire()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert lock.acquire()
    lock.release()
    assert os.listdir(tmp_path) == []


def count_up(folder, times):
    for _ in range(times):
        with files.locked(files.Path(folder) / "number", lambda seconds: None):
            path = files.Path(folder) / "number"
            number = int(path.read_text()) if path.exists() else 0
            files.write_atomically(path, b"%d" % (number + 1))


def test_threads_that_claim_and_release_never_meet_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "POLL_INTERVAL_S", 0.0005)
    threads = [threading.Thread(target=count_up, args=(tmp_path, 50)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "number").read_text() == "200"
    assert os.listdir(tmp_path) == ["number"]
