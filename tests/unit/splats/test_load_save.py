import gzip
import io
import os
import socket
import sys
import threading

import pytest
import torch
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.errors import FormatError
from invert3d_core.splats import GaussianSplats, formats


def random_splats(count=6, degree=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return GaussianSplats(
        torch.randn(count, 3, generator=g),
        torch.rand(count, 3, generator=g),
        functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        torch.rand(count, 1, generator=g),
        torch.randn(count, (degree + 1) ** 2, 3, generator=g),
    )


@pytest.fixture
def ply(tmp_path):
    path = tmp_path / "a.ply"
    splats.save(random_splats(), path)
    return path


# ---------------------------------------------------------------------------------------------------------- detection


def test_contents_go_before_the_name(tmp_path, ply):
    for name in ("b.splat", "c.spz", "d", "e.PLY"):
        (tmp_path / name).write_bytes(ply.read_bytes())
        assert len(splats.load(tmp_path / name)) == 6, name


def test_what_a_path_and_bytes_may_be(ply):
    data = ply.read_bytes()
    for given in (str(ply), data, bytearray(data), memoryview(data)):
        assert len(splats.load(given)) == 6


def test_splat_goes_by_its_name_alone(tmp_path):
    splats.save(random_splats(), tmp_path / "a.splat")
    data = (tmp_path / "a.splat").read_bytes()
    (tmp_path / "b.SPLAT").write_bytes(data)
    assert len(splats.load(tmp_path / "b.SPLAT")) == 6
    assert len(splats.load(data, format="splat")) == 6
    (tmp_path / "c.bin").write_bytes(data)
    with pytest.raises(FormatError, match=r"c\.bin' is not a supported Gaussian-splat file\. It starts with b'"):
        splats.load(tmp_path / "c.bin")
    with pytest.raises(FormatError, match="Bytes of a .splat file, which has no header, need format='splat'"):
        splats.load(data)


WRONG_TYPES = {
    "picture.ply": (b"\x89PNG\r\n\x1a\n" + bytes(88), "It is a PNG picture"),
    "page.splat": (b"<!DOCTYPE html><html>" + bytes(75), "It is a web page, often what a failed download leaves"),
    "scene.splat": (b"glTF" + bytes(92), "It is a binary glTF"),
    "scene.sog": (b"PK\x03\x04" + bytes(92), r"It is a zip file \(a \.sog bundle"),
    "pointer.ply": (b"version https://git-lfs.github.com/spec/v1\n", "It is a Git LFS pointer.*git lfs pull"),
    "packed.ply.gz": (gzip.compress(b"ply\n"), "It is a gzip file with something else than an SPZ inside"),
    "broken.spz": (b"\x1f\x8b\x08\xff\xff", "It is a gzip file"),
    "text.ply": (
        b"plywood\n",
        r"It is a text file that starts with 'plywood\\n'; expected a 3DGS \.ply, \.spz or \.splat",
    ),
    "notes.splat": (b"0.5 1.5 2.5 3.5\n" * 600, "It is a text file that starts with '0.5 1.5 2.5 3.5"),
    "zeros.ply": (bytes(1000), r"It starts with b'\\x00"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_types(tmp_path, name):
    data, message = WRONG_TYPES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=message) as error:
        splats.load(tmp_path / name)
    assert name in str(error.value)


def test_a_named_format_must_fit(tmp_path, ply):
    assert len(splats.load(ply, format="ply")) == 6
    with pytest.raises(FormatError, match=r"a\.ply' is a ply file, not splat\. Load it with format='auto'"):
        splats.load(ply, format="splat")
    with pytest.raises(FormatError, match="There is no splat format 'obj'. Expected one of ply, splat, spz"):
        splats.load(ply, format="obj")
    with pytest.raises(FormatError, match="does not start with the line 'ply'"):
        splats.load(b"solid", format="ply")


def test_files_that_cannot_be(tmp_path):
    (tmp_path / "empty.ply").touch()
    for given, message in (
        (tmp_path / "none.ply", r"There is no splat file '.*none\.ply'"),
        (tmp_path / "empty.ply" / "a.ply", r"a\.ply' cannot be read"),
        (tmp_path, "is a folder, not a splat file"),
        (tmp_path / "empty.ply", r"empty\.ply' is empty \(0 bytes\)"),
        (b"", r"The splat data is empty \(0 bytes\)"),
        ("a\0b.ply", "is no path"),
        (None, "from a path or from bytes, not from NoneType"),
        (io.BytesIO(b"ply"), "not from BytesIO"),
        ("x" * 5000, "cannot be read"),
    ):
        with pytest.raises(FormatError, match=message):
            splats.load(given)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in Windows' file system")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.ply")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.ply"))
        for name in ("pipe.ply", "s.ply"):
            result = []

            def attempt(name=name, result=result):
                with pytest.raises(FormatError, match="is no regular file"):
                    splats.load(tmp_path / name)
                result.append(True)

            thread = threading.Thread(target=attempt, daemon=True)
            thread.start()
            thread.join(10)
            assert result == [True]


# ------------------------------------------------------------------------------------------------------------- saving


def test_the_format_goes_by_the_name_or_is_named(tmp_path):
    g = random_splats()
    assert splats.save(g, tmp_path / "a.PLY") == []
    assert splats.save(g, str(tmp_path / "b.bin"), format="ply") == []
    assert (tmp_path / "a.PLY").read_bytes() == (tmp_path / "b.bin").read_bytes()
    splats.save(g, tmp_path / "new" / "folder" / "c.splat")
    assert (tmp_path / "new" / "folder" / "c.splat").stat().st_size == 6 * 32


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        (
            "a.spz",
            None,
            r"cannot be written in a file named 'a\.spz'. Expected \.ply or \.splat, or a format: ply, splat",
        ),
        ("a", None, "cannot be written in a file named 'a'"),
        ("a.ply", "spz", "cannot be written in the format 'spz'"),
        ("a.ply", "obj", "There is no splat format 'obj'"),
    ],
)
def test_formats_that_are_not_written(tmp_path, name, format, message):
    with pytest.raises(FormatError, match=message):
        splats.save(random_splats(), tmp_path / name, format=format)
    assert list(tmp_path.iterdir()) == []


def test_splats_that_cannot_be_written(tmp_path):
    none = random_splats(0)
    with pytest.raises(FormatError, match=r"no splats to write to '.*a\.ply'"):
        splats.save(none, tmp_path / "a.ply")
    broken = random_splats()
    broken.positions[1, 2] = float("nan")
    with pytest.raises(FormatError, match="The positions of 1 of 6 splats hold NaN"):
        splats.save(broken, tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


class Stop(BaseException):
    """What a host raises to cancel."""


@pytest.mark.parametrize("error", [Stop, MemoryError, OSError(28, "No space left on device")])
def test_a_write_that_fails_leaves_the_old_file_alone(ply, monkeypatch, error):
    before = ply.read_bytes()

    def write(splats_, file):
        file.write(b"half of")
        raise error

    form = formats.FORMATS["ply"]
    broken = formats.Format(form.name, form.extensions, form.limits, form.detect, form.read, write)
    monkeypatch.setitem(formats.FORMATS, "ply", broken)
    expected = FormatError if isinstance(error, OSError) else error
    with pytest.raises(expected) as raised:
        splats.save(random_splats(3), ply)
    if expected is FormatError:
        assert "a.ply' ([Errno 28] No space left on device). Check the folder" in str(raised.value)
    assert ply.read_bytes() == before
    assert [p.name for p in ply.parent.iterdir()] == ["a.ply"]


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a.ply").mkdir()
    with pytest.raises(FormatError, match=r"cannot be written to '.*a\.ply'"):
        splats.save(random_splats(), tmp_path / "a.ply")
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match=r"cannot be written to '.*b\.ply'"):
        splats.save(random_splats(), tmp_path / "file" / "b.ply")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ply", "file"]


def test_an_option_a_format_does_not_have(ply):
    before = ply.read_bytes()
    with pytest.raises(TypeError, match="sort"):
        splats.save(random_splats(3), ply, sort=False)
    assert ply.read_bytes() == before
    assert [p.name for p in ply.parent.iterdir()] == ["a.ply"]


def test_splats_with_gradients_are_written(tmp_path):
    g = random_splats()
    g.positions.requires_grad_()
    splats.save(g, tmp_path / "a.ply")
    splats.save(g, tmp_path / "a.splat")
    assert not splats.load(tmp_path / "a.ply").positions.requires_grad


def test_the_same_splats_give_the_same_bytes(tmp_path):
    for name in ("a.ply", "a.splat"):
        splats.save(random_splats(), tmp_path / name)
        splats.save(random_splats(), tmp_path / f"again_{name}")
        assert (tmp_path / name).read_bytes() == (tmp_path / f"again_{name}").read_bytes()


def test_every_format_says_what_it_holds():
    for name, form in formats.FORMATS.items():
        assert form.name == name
        assert form.limits.endswith(".")
        assert all(extension == extension.lower() and extension[0] == "." for extension in form.extensions)
