"""What is fuzzed: for each format files to start from, ways to damage them, and the reader with what it promises."""

import gzip
import io
import json
import math
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from invert3d_core import cameras, splats
from invert3d_core.cameras import Cameras
from invert3d_core.errors import CameraError, FormatError, Invert3DError

from . import containers
from .mutations import damaged, damaged_json, damaged_text, near, number

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "invert3d"
CORPUS = Path(__file__).resolve().parent / "corpus"

Mutate = Callable[[Random, bytes], bytes]
Load = Callable[[bytes], str]


@dataclass(frozen=True)
class Target:
    """A format under test.

    start: whole files. ways: damage, drawn in turn; a way that needs a readable file may raise whatever it likes on
    another, which then gets bytes changed. load: reads one file, checks what comes out with `assert`, and says in a
    word what it was. error: the only exception that a reader may raise.
    """

    name: str
    start: Callable[[], list[bytes]]
    ways: tuple[Mutate, ...]
    load: Load
    error: type[Invert3DError]

    def mutate(self, chance: Random, parents: list[bytes]) -> bytes:
        """A damaged copy of one of the parents, as often as not of a whole file."""
        data = chance.choice(self.start() if chance.random() < 0.5 else parents)
        way = chance.choice(self.ways)
        with suppress(Exception):  # the parent is damaged already, and cannot be taken apart
            return way(chance, data)
        return damaged(chance, data, 200)

    @property
    def parents(self) -> list[bytes]:
        """What mutations start from: whole files, and the kept ones, each of which ends in a way of its own."""
        return [*self.start(), *kept(self.name)]


@cache
def kept(name: str) -> tuple[bytes, ...]:
    """The small interesting files that earlier runs found for a format."""
    path = CORPUS / f"{name}.zip"
    return tuple(containers.unpack_zip(path.read_bytes()).values()) if path.is_file() else ()


@cache
def _base() -> "tempfile.TemporaryDirectory[str]":
    """A folder for files that are read by their path, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None)


@cache
def _place(process: int) -> Path:
    """The folder of one process."""
    place = Path(_base().name) / str(process)
    place.mkdir()
    return place


# -------------------------------------------------------------------------------------------------------------- splats


def scene(count: int, degree: int, seed: int = 0) -> splats.GaussianSplats:
    """A few splats with values as a training leaves them."""
    g = torch.Generator().manual_seed(seed)
    return splats.GaussianSplats(
        torch.randn(count, 3, generator=g),
        torch.exp(torch.randn(count, 3, generator=g) - 4),
        torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        torch.rand(count, 1, generator=g),
        0.3 * torch.randn(count, (degree + 1) ** 2, 3, generator=g).clamp(-3, 3),
        comment="made by a test" if degree % 2 else "",
    )


def written(ending: str, *options: dict[str, Any], count: int = 6) -> list[bytes]:
    """Files of our own writer: one a set of options, which may hold ``degree`` and ``count`` of the scene."""
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for rest in options or ({},):
            chosen = dict(rest)
            g = scene(chosen.pop("count", count), chosen.pop("degree", 1))
            path = Path(folder) / f"a{ending}"
            splats.save(g, path, **chosen)
            files.append(path.read_bytes())
    return files


@lru_cache
def golden(name: str) -> dict[str, bytes]:
    """The byte streams of other programs' writers."""
    tensors = safetensors.torch.load_file(GOLDEN / f"{name}.safetensors")
    return {key.removesuffix("bytes"): t.numpy().tobytes() for key, t in tensors.items() if key.endswith("bytes")}


def load_splats(format: str) -> Load:
    """The reader of splats, with what it promises of them."""

    def load(data: bytes) -> str:
        return promised(splats.load(data, format=format))

    return load


def load_sog(data: bytes) -> str:
    """The reader of bundles; every fourth whose entries have plain names is read as a folder."""
    folder = _unbundled(data) if zlib.crc32(data) % 4 == 0 else None
    return promised(splats.load(folder or data))


def _unbundled(data: bytes) -> Path | None:
    try:
        parts = containers.unpack_zip(data)
    except Exception:
        return None
    if "meta.json" not in parts or not all(re.fullmatch(r"[\w.]{1,40}", name) for name in parts):
        return None
    folder = _place(os.getpid()) / "scene"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    return folder


def promised(g: splats.GaussianSplats) -> str:
    """What every reader promises of its splats: some, finite, with scales ≥ 0 and unit rotations; their SH degree."""
    g.validate()
    assert len(g) > 0
    assert bool(((g.rotations.norm(dim=1) - 1).abs() < 1e-5).all())
    return f"degree {g.degree}"


def bytes_of(headers: int) -> Mutate:
    """Damage anywhere, half of it in the first bytes."""
    return lambda chance, data: damaged(chance, data, headers)


def _ply_header(chance: Random, data: bytes) -> bytes:
    """Words and lines of the header changed; sometimes the rows are made to fit a wrong count."""
    end = data.index(b"end_header")
    end = data.index(b"\n", end) + 1
    head = damaged_text(chance, data[:end].decode("latin-1")).encode("utf-8", "replace")
    rows = data[end:]
    if chance.random() < 0.15:
        rows = (rows * 3)[: chance.randrange(3 * len(rows) + 1)]
    return head + rows


def _ply_rows(chance: Random, data: bytes) -> bytes:
    """Values of the rows changed, their number kept."""
    end = data.index(b"\n", data.index(b"end_header")) + 1
    if b"format ascii" in data[:end]:
        return data[:end] + damaged_text(chance, data[end:].decode("latin-1"), 6).encode("utf-8", "replace")
    return data[:end] + _values(chance, data[end:])


def _values(chance: Random, data: bytes) -> bytes:
    """Numbers overwritten, so that the length stays."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 12)):
        code = chance.choice("ffffdeBHI")
        width = struct.calcsize("<" + code)
        at = chance.randrange(max(1, len(data) // width - 1)) * width
        value = number(chance)
        if code in "fde":
            with suppress(OverflowError, struct.error):
                struct.pack_into("<" + code, changed, at, value)
        elif math.isfinite(value):
            struct.pack_into("<" + code, changed, at, int(value) % (1 << 8 * width))
    return bytes(changed[: len(data)])


def _records(size: int) -> Mutate:
    """Records of one size repeated, dropped and changed, so that the file stays one of whole records."""

    def way(chance: Random, data: bytes) -> bytes:
        count = len(data) // size
        chosen = [chance.randrange(count) for _ in range(chance.choice((1, 2, count, 3 * count)))]
        return _values(chance, b"".join(data[size * i : size * (i + 1)] for i in chosen))

    return way


def _spz_inside(chance: Random, data: bytes) -> bytes:
    return containers.pack_gzip(damaged(chance, gzip.decompress(data), 16))


def _spz_claims(chance: Random, data: bytes) -> bytes:
    """Header fields changed and the payload made as long as they say, give or take a byte; values changed too."""
    inside = gzip.decompress(data)
    magic, version, count, degree, bits, flags, _ = struct.unpack_from("<4sIIBBBB", inside)
    if chance.random() < 0.5:
        version = chance.choice((1, 2, 3, 3, 3, version + 1))
    if chance.random() < 0.5:
        degree = chance.choice((0, 1, 2, 3, 4, 5, 255))
    if chance.random() < 0.5:
        bits = chance.choice((0, 12, 23, 24, 31, 32, 63, 64, 255))
    if chance.random() < 0.5:
        count = max(0, chance.choice((0, 1, count - 1, count + 1, 2000)))
    flags = chance.choice((flags, 0, 1, 2, 3, 255))
    size = count * ((6 if version == 1 else 9) + 7 + (4 if version >= 3 else 3) + 3 * ((degree + 1) ** 2 - 1))
    payload = _values(chance, inside[16:] or b"\0" * 64)
    payload = (payload * (1 + min(size, 1 << 20) // len(payload)))[: max(0, size + chance.choice((0, 0, 0, 0, -1, 1)))]
    if flags & 2:
        kind, length = chance.choice((0xADBE0003, 7)), chance.choice((4, 4, 0, 99))
        payload += struct.pack("<III", kind, length, chance.choice((0, 1, 8, 9, 2**32 - 1)))
    return containers.pack_gzip(
        struct.pack("<4sIIBBBB", magic, version % 2**32, count, degree, bits, flags, 0) + payload
    )


def _spz4(chance: Random, data: bytes) -> bytes:
    """Header and streams changed, the table made to fit them; sometimes it claims other lengths."""
    fields, extensions, streams = containers.unpack_spz4(data)
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(streams) + 2)
        if at < len(streams):
            change = _values if chance.random() < 0.7 else bytes_of(32)
            streams[at] = change(chance, streams[at])
        elif at == len(streams):
            at = chance.randrange(1, len(fields))
            fields[at] = int(near(chance, fields[at])) % (2**32 if at < 3 else 256)
        else:
            fields[5] |= 2
            extensions = damaged(chance, extensions or struct.pack("<III", 0xADBE0003, 4, 1 + chance.randrange(9)), 12)
    whole = containers.pack_spz4(fields, extensions, streams, chance.random() < 0.5)
    return whole if chance.random() < 0.8 else damaged(chance, whole, 140)


def _spz_seeds() -> list[bytes]:
    ours = written(".spz", *({"version": v, "degree": d} for v, d in ((1, 1), (2, 2), (3, 3), (3, 4), (4, 1))))
    # What is all zeros shrinks a thousandfold: claims of more than the file's length are believed up to there.
    zeros = struct.pack("<4sIIBBBB", b"NGSP", 2, 20_000, 0, 12, 0, 0) + bytes(20_000 * 19)
    others = golden("spz")
    return [*ours, containers.pack_gzip(zeros), *(others[f"{key}."] for key in ("v1_deg1", "v4_deg0", "v4_deg4_ext"))]


def _ksplat_headers(chance: Random, data: bytes) -> bytes:
    """Fields of the two headers changed, and sometimes several of them together."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place = chance.choice((0, 1, 4, 8, 12, 16, 20, 24, 36, 40, *range(4096, 4140, 2)))
        code = "<H" if place in (20, 4116, 4136) else "<B" if place < 2 else "<f" if place in (36, 40, 4112) else "<I"
        (value,) = struct.unpack_from(code, changed, place)
        value = near(chance, value) if chance.random() < 0.5 else number(chance)
        if code == "<f":
            with suppress(OverflowError):
                struct.pack_into(code, changed, place, value)
        elif math.isfinite(value):
            struct.pack_into(code, changed, place, int(value) % (1 << 8 * struct.calcsize(code)))
    return bytes(changed)


def _ksplat_body(chance: Random, data: bytes) -> bytes:
    return data[:5120] + _values(chance, data[5120:])


def _sog_meta(chance: Random, data: bytes) -> bytes:
    """Members of the header changed."""
    parts = containers.unpack_zip(data)
    name = next(name for name in parts if name.endswith("meta.json"))
    if chance.random() < 0.15:
        parts[name] = damaged(chance, parts[name], len(parts[name]))
    else:
        parts[name] = damaged_json(chance, json.loads(parts[name]))
    return containers.pack_zip(parts.items())


def _sog_pictures(chance: Random, data: bytes) -> bytes:
    """A picture's bytes, pixels or size changed, a part taken out, repeated, renamed or exchanged."""
    parts = containers.unpack_zip(data)
    names = [name for name in parts if name.endswith(".webp")]
    name, kind = chance.choice(names), chance.randrange(6)
    if kind <= 1:
        parts[name] = damaged(chance, parts[name], 40)
    elif kind == 2:
        parts[name] = parts[chance.choice(names)]
    elif kind == 3:
        width, height = chance.choice((1, 2, 3, 4, 64, 192, 512)), chance.choice((1, 2, 3))
        parts[name] = _webp(width, height, chance.randbytes(4 * width * height), chance.random() < 0.9)
    elif kind == 4:
        with Image.open(io.BytesIO(parts[name])) as picture:
            (width, height), pixels = picture.size, picture.convert("RGBA").tobytes()
        parts[name] = _webp(width, height, _values(chance, pixels))
    else:
        moved = parts.pop(name)
        parts[chance.choice((name + "x", "a/" + name, "meta.json", chance.choice(names)))] = moved
    entries = list(parts.items())
    if chance.random() < 0.1:
        entries.append(chance.choice(entries))
    if chance.random() < 0.1:
        entries = [("a/" + entry, content) for entry, content in entries]
    return containers.pack_zip(entries, zipfile.ZIP_DEFLATED if chance.random() < 0.2 else zipfile.ZIP_STORED)


def _webp(width: int, height: int, pixels: bytes, lossless: bool = True) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGBA", (width, height), pixels).save(buffer, "WEBP", lossless=lossless, exact=True, method=0)
    return buffer.getvalue()


def _sog_seeds() -> list[bytes]:
    seeds = []
    for data in written(".sog", {"degree": 0}, {"degree": 1, "palette": 4}, count=4):
        parts = containers.unpack_zip(data)
        meta = json.loads(parts["meta.json"])
        seeds.append(data)
        # Version 1 has ranges where version 2 has codebooks.
        meta.pop("version")
        meta["means"]["shape"] = [meta.pop("count"), 3]
        for name, low, high in (("scales", [-6.0] * 3, [0.0] * 3), ("sh0", [-1.0] * 4, [2.0] * 4), ("shN", -1.0, 1.0)):
            if name in meta:
                meta[name] = {"mins": low, "maxs": high, "files": meta[name]["files"]}
        seeds.append(containers.pack_zip({**parts, "meta.json": json.dumps(meta).encode()}.items()))
    return seeds


def _gltf_scene(chance: Random, data: bytes) -> bytes:
    """Members of the JSON changed."""
    document, binary = containers.unpack_glb(data)
    text = damaged_json(chance, document)
    return containers.pack_glb(damaged(chance, text, len(text)) if chance.random() < 0.1 else text, binary)


def _gltf_nodes(chance: Random, data: bytes) -> bytes:
    """A tree of nodes with transforms, several of which show the splats."""
    document, binary = containers.unpack_glb(data)
    count = chance.choice((1, 2, 3, 10, 600))
    nodes: list[dict[str, Any]] = [{} for _ in range(count)]
    for index, node in enumerate(nodes):
        if index:
            above = nodes[chance.randrange(index) if chance.random() < 0.97 else chance.randrange(count)]
            above.setdefault("children", []).append(index)
        if index == 0 or chance.random() < 0.5:
            node["mesh"] = 0
        kind = chance.randrange(5)
        if kind == 0:
            node["scale"] = [chance.choice((1, 2, -1, 1e-7, 1e20, 0))] * 3
        elif kind == 1:
            node["rotation"] = chance.choice(([0, 0, 0, 1], [1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0], [9] * 4))
        elif kind == 2:
            node["matrix"] = [near(chance, value) if chance.random() < 0.05 else value for value in np.eye(4).flat]
        elif kind == 3:
            node["translation"] = [chance.choice((0, 1, -3.4e38, 1e30, 0.1)) for _ in range(3)]
    document["nodes"] = nodes
    return containers.pack_glb(json.dumps(document).encode(), binary)


def _gltf_binary(chance: Random, data: bytes) -> bytes:
    document, binary = containers.unpack_glb(data)
    change = _values if chance.random() < 0.8 else bytes_of(64)
    return containers.pack_glb(json.dumps(document).encode(), change(chance, binary))


# ------------------------------------------------------------------------------------------------------------- cameras


def _saved(form: str, name: str) -> bytes:
    """A file of three cameras, of our own writer; for a folder a zip of its files."""
    c2w = cameras.orbit([10.0, 130.0, 250.0], [-40.0, 10.0, 70.0], 3.0, 40.0, 64, 48).c2w
    cams = Cameras(c2w, torch.tensor([30.0, 45.0, 60.0]), 64, 48, "splat")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        files = cameras.save(cams, path, form)
        if files == [path]:
            return path.read_bytes()
        return containers.pack_zip((file.name, file.read_bytes()) for file in files if "points" not in file.name)


def _camera_seeds(form: str) -> list[bytes]:
    if form == "colmap":
        return [_saved("colmap", "model"), _saved("colmap-text", "model")]
    if form == "dtu":
        return [_saved("dtu", "a.npz")]
    if form == "transforms":
        pose = [[1, 0, 0, 0], [0, 0, -1, -4], [0, 1, 0, 0], [0, 0, 0, 1]]
        lens = {"w": 64, "h": 48, "fl_x": 50.0, "fl_y": 50.5, "cx": 31.5, "cy": 24.2, "k1": 0.0}
        frames = [
            {"file_path": "./r_0", "transform_matrix": pose},
            {"file_path": "b", "transform_matrix": pose, **lens},
        ]
        values = (
            {"camera_angle_x": 1.5, "frames": frames[:1]},
            {"camera_angle_y": 1.2, "w": 64, "h": 48, "frames": frames},
        )
        return [_saved("transforms", "a.json"), *(json.dumps(value).encode() for value in values)]
    entry = {"width": 8, "height": 6, "fx": 9, "fy": 9, "position": [0, 0, 1], "rotation": np.eye(3).tolist()}
    named = {"id": 1, "img_name": "b", **entry, "position": [1.5, 0, -1]}
    return [json.dumps([entry]).encode(), json.dumps([named, entry, named]).encode()]


_COLMAP_FILES = ("cameras.bin", "images.bin", "cameras.txt", "images.txt")


def load_cameras(name: str) -> Load:
    """The reader of cameras, with what it promises of them; every other zip is read as a folder."""

    def load(data: bytes) -> str:
        folder = _place(os.getpid())
        path = folder / name
        path.write_bytes(data)
        if name.endswith(".zip") and zlib.crc32(data) & 1:
            with suppress(Exception):
                parts = containers.unpack_zip(data)
                for file in _COLMAP_FILES:
                    (folder / file).unlink(missing_ok=True)
                    if file in parts:
                        (folder / file).write_bytes(parts[file])
                path = folder / next(file for file in ("images.bin", "images.txt") if file in parts)
        loaded = cameras.load(path, size=(64, 48))
        cams = loaded.cameras
        assert len(cams) == len(loaded.names) > 0
        assert bool(torch.isfinite(cams.c2w).all())
        axes = cams.c2w[:, :3, :3].double()
        assert bool(((axes @ axes.mT - torch.eye(3, dtype=torch.float64)).abs() < 1e-4).all())
        assert bool(((cams.fov_y_deg > 0) & (cams.fov_y_deg < 180)).all())
        return f"{loaded.format}, {len(loaded.remarks)} remarks"

    return load


def _entries(chance: Random, data: bytes) -> bytes:
    """What is inside an archive changed, by words where it is text; or an entry taken out, renamed or exchanged."""
    parts = containers.unpack_zip(data)
    names = list(parts)
    name, kind = chance.choice(names), chance.random()
    if kind < 0.03:
        del parts[name]
    elif kind < 0.06:
        parts[chance.choice(("a/", "sparse/0/", "../", "/")) + name] = parts.pop(name)
    elif kind < 0.1:
        parts[name] = parts[chance.choice(names)]
    elif name.endswith(".txt"):
        parts[name] = damaged_text(chance, parts[name].decode("utf-8", "replace")).encode("utf-8", "replace")
    else:
        change = bytes_of(100) if kind < 0.6 else _values
        parts[name] = change(chance, parts[name])
    return containers.pack_zip(parts.items(), zipfile.ZIP_DEFLATED if chance.random() < 0.3 else zipfile.ZIP_STORED)


def _json_members(chance: Random, data: bytes) -> bytes:
    return damaged_json(chance, json.loads(data))


# ------------------------------------------------------------------------------------------------------------- targets


def _ply_seeds() -> list[bytes]:
    others = golden("ply_variants")
    small = ("ascii_crlf.", "binary_big_endian.", "dc_only.", "extra_elements.", "shuffled_mixed_types.")
    flat = b"ply\nformat ascii 1.0\nelement vertex 2\n" + b"".join(
        b"property float %s\n" % name
        for name in (*b"x y z red green blue opacity scale_0 rot_0 rot_1 rot_2 rot_3 filter_3D".split(),)
    )
    return [
        *written(".ply", {"degree": 0}, {"degree": 1}, {"degree": 4, "count": 2}),
        *(others[key] for key in small),
        flat + b"end_header\n" + b"1 2 3 0.5 0.1 0.9 0 -3 1 0 0 0 0.01\n" * 2,
    ]


def _compressed_seeds() -> list[bytes]:
    return [
        *written(".compressed.ply", {"degree": 0}, {"degree": 1}, {"degree": 3}),
        *golden("compressed_ply").values(),
    ]


def _ksplat_seeds() -> list[bytes]:
    ours = written(".ksplat", *({"level": level, "degree": level} for level in (0, 1, 2)))
    return [*ours, golden("ksplat")["k1_sections."], golden("ksplat")["k2_deg2."]]


def _splats(name: str, start: Callable[[], list[bytes]], *ways: Mutate, load: str | Load = "auto") -> Target:
    """load: the name of the format to ask for, or a reader."""
    return Target(name, cache(start), ways, load_splats(load) if isinstance(load, str) else load, FormatError)


def _cameras(name: str, file: str, *ways: Mutate) -> Target:
    return Target(f"cameras-{name}", cache(lambda: _camera_seeds(name)), ways, load_cameras(file), CameraError)


TARGETS = {
    target.name: target
    for target in (
        _splats("ply", _ply_seeds, bytes_of(600), _ply_header, _ply_header, _ply_rows),
        _splats("compressed_ply", _compressed_seeds, bytes_of(1100), _ply_header, _ply_header, _ply_rows),
        _splats(
            "splat",
            lambda: [*written(".splat", {"count": 3}, {"count": 40}), golden("splat")[""]],
            bytes_of(64),
            _records(32),
            _records(32),
            load="splat",
        ),
        _splats("spz", _spz_seeds, bytes_of(140), _spz_inside, _spz_claims, _spz4),
        _splats("ksplat", _ksplat_seeds, bytes_of(5120), _ksplat_headers, _ksplat_headers, _ksplat_body, load="ksplat"),
        _splats("sog", _sog_seeds, bytes_of(60), _sog_meta, _sog_pictures, _sog_pictures, load=load_sog),
        _splats(
            "gltf",
            lambda: written(".glb", {"degree": 0}, {"degree": 1}),
            bytes_of(200),
            _gltf_scene,
            _gltf_scene,
            _gltf_nodes,
            _gltf_binary,
        ),
        _cameras("colmap", "a.zip", bytes_of(60), _entries, _entries, _entries),
        _cameras("transforms", "a.json", bytes_of(200), _json_members, _json_members),
        _cameras("training", "a.json", bytes_of(200), _json_members, _json_members),
        _cameras("dtu", "a.npz", bytes_of(60), _entries, _entries),
    )
}
