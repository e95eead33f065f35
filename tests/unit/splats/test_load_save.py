import gzip
import io
import os
import re
import socket
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.errors import FormatError
from invert3d_core.splats import GaussianSplats, formats
from invert3d_core.splats.formats.source import open_source


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


def test_a_splat_without_a_header_goes_by_its_values(tmp_path):
    splats.save(random_splats(), tmp_path / "a.splat")
    data = (tmp_path / "a.splat").read_bytes()
    for name in ("b.SPLAT", "c.bin", "d.ply"):
        (tmp_path / name).write_bytes(data)
        assert len(splats.load(tmp_path / name)) == 6, name
    assert len(splats.load(data)) == len(splats.load(data, format="splat")) == 6
    many = random_splats(4000)
    many.positions[5] = 0  # and a few odd ones do not change what most are
    many.scales[6] = 1e-30
    splats.save(many, tmp_path / "many.splat")
    assert len(splats.load((tmp_path / "many.splat").read_bytes())) == 4000


def test_odd_values_go_by_the_name_of_a_splat(tmp_path):
    data = np.zeros((4, 8), "<f4")
    data[:, :6] = [1e-20, 2, 3, 0.1, 0.2, 0.3]
    (tmp_path / "a.splat").write_bytes(data.tobytes())
    assert len(splats.load(tmp_path / "a.splat")) == 4
    (tmp_path / "a.bin").write_bytes(data.tobytes())
    message = r"a\.bin' is not a supported .*If it is a \.splat, which has no header, load it with format='splat'"
    with pytest.raises(FormatError, match=message):
        splats.load(tmp_path / "a.bin")


def test_random_bytes_are_not_taken_for_a_splat():
    rng = np.random.default_rng(0)
    for count in (4, 64, 3000):
        for _ in range(20):
            with pytest.raises(FormatError, match="is not a supported Gaussian-splat file"):
                splats.load(rng.integers(0, 256, 32 * count).astype(np.uint8).tobytes())


@pytest.mark.parametrize("written", [name for name, form in formats.FORMATS.items() if form.write])
def test_every_format_is_known_by_its_contents_under_any_name(tmp_path, written):
    splats.save(random_splats(40), tmp_path / "file", format=written)
    data = (tmp_path / "file").read_bytes()
    (tmp_path / "file.ply").write_bytes(data)
    (tmp_path / "file.splat").write_bytes(data)
    for given in (data, tmp_path / "file", tmp_path / "file.ply", tmp_path / "file.splat"):
        with open_source(given) as source:
            assert formats.for_reading(source, "auto").name == written
        assert len(splats.load(given)) == 40
    for other in set(formats.FORMATS) - {written, "splat"}:
        with pytest.raises(FormatError):
            splats.load(data, format=other)


WRONG_TYPES = {
    "picture.ply": (b"\x89PNG\r\n\x1a\n" + bytes(88), "It is a PNG picture"),
    "page.splat": (b"<!DOCTYPE html><html>" + bytes(75), "It is a web page, often what a failed download leaves"),
    "scene.splat": (b"glTF" + bytes(92), "is a binary glTF of version 0; expected 2"),
    "scene.sog": (b"PK\x03\x04" + bytes(92), r"It is a zip file that does not start as a \.sog: unpack it"),
    "scene.gltf": (b' {"asset": {}, "bufferViews": []}', r"It is a text \.gltf.*: export it as one \.glb"),
    "lod-meta.json": (
        b'{"lodLevels": 3, "tree": {}}',
        r"index of a streamed \.sog .lod-meta\.json.: load the meta.json",
    ),
    "notes.json": (b'{"a": 1}', "It is a text file that starts with '{"),
    "means_l.webp": (b"RIFF\x10\0\0\0WEBPVP8L", "the pictures of an unbundled .sog are loaded by their meta.json"),
    "pointer.ply": (b"version https://git-lfs.github.com/spec/v1\n", "It is a Git LFS pointer.*git lfs pull"),
    "packed.ply.gz": (gzip.compress(b"ply\n"), "It is a gzip file with something else than an SPZ inside"),
    "broken.spz": (b"\x1f\x8b\x08\xff\xff", "It is a gzip file"),
    "text.ply": (
        b"plywood\n",
        r"It is a text file that starts with 'plywood\\n'; expected a 3DGS \.ply, .*\.sog or \.glb\.",
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
            "a.obj",
            None,
            r"cannot be written in a file named 'a\.obj'. Expected \.ply or .*, or a format: ply, splat, ",
        ),
        ("a", None, "cannot be written in a file named 'a'"),
        (".ply", None, "cannot be written in a file named '.ply'"),
        ("a.ply", "obj", "There is no splat format 'obj'"),
    ],
)
def test_formats_that_are_not_written(tmp_path, name, format, message):
    with pytest.raises(FormatError, match=message):
        splats.save(random_splats(), tmp_path / name, format=format)
    assert list(tmp_path.iterdir()) == []


def test_a_longer_extension_goes_first(tmp_path):
    for name in ("a.compressed.ply", "b.COMPRESSED.PLY"):
        assert formats.for_writing(tmp_path / name, None).name == "compressed_ply"
    assert formats.for_writing(tmp_path / "compressed.ply", None).name == "ply"
    assert formats.for_writing(tmp_path / "a.compressed.ply", "ply").name == "ply"


# What a writer may say: what, and how much or of how many. The same things are called the same in every format.
LOSSES = re.compile(
    r"view-dependent colour \(SH degree \d( to \d)?\)"
    r"|(position|scale|rotation|opacity|colour|view-dependent colour) precision \(.*by up to \S+( degrees)?\)"
    r"|(colours|positions|scales|view-dependent colour coefficients) .* of \d+ splats, clipped"
    r"|the order of the splats \(.+\)"
    r"|the comment, and what it states about the axes"
    r"|characters of the comment outside ASCII, written as escapes"
)


@pytest.mark.parametrize("written", [name for name, form in formats.FORMATS.items() if form.write])
def test_losses_have_the_same_words_everywhere_and_are_logged_once(tmp_path, caplog, written):
    g = replace(random_splats(60, 4), comment="é")
    g.sh[:, 0] *= 4
    lost = splats.save(g, tmp_path / "a", format=written)
    assert lost or written == "ply"
    assert [words for words in lost if not LOSSES.fullmatch(words)] == []
    warnings = [record.getMessage() for record in caplog.records if "not kept" in record.getMessage()]
    assert warnings == ([f"'{tmp_path / 'a'}': not kept by the format {written}: {'; '.join(lost)}."] if lost else [])


def test_nothing_is_logged_where_nothing_is_lost(tmp_path, caplog):
    assert splats.save(random_splats(), tmp_path / "a.ply") == []
    assert splats.save(random_splats(), tmp_path / "a.glb") == []
    assert caplog.records == []


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
        assert "a.ply' cannot be written: No space left on device" in str(raised.value)
        assert "What was there before is unchanged" in str(raised.value)
    assert ply.read_bytes() == before
    assert [p.name for p in ply.parent.iterdir()] == ["a.ply"]


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a.ply").mkdir()
    with pytest.raises(FormatError, match=r"a\.ply' cannot be written"):
        splats.save(random_splats(), tmp_path / "a.ply")
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match=r"b\.ply' cannot be written"):
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
