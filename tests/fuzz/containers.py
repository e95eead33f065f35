"""Files taken apart and put together again, with lengths and checksums that fit: damage then reaches what is inside."""

import gzip
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Iterable
from typing import Any

GLB = struct.Struct("<4sII")
GLB_CHUNK = struct.Struct("<I4s")
SPZ_4 = struct.Struct("<4sIIBBBBI12x")


def pack_gzip(data: bytes) -> bytes:
    """One gzip member."""
    return gzip.compress(data, 1, mtime=0)


def unpack_zip(data: bytes) -> dict[str, bytes]:
    """The entries of a zip by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack_zip(entries: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with these entries; names may come twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method, 1)
    return buffer.getvalue()


def unpack_glb(data: bytes) -> tuple[Any, bytes]:
    """The JSON and the binary chunk of a binary glTF."""
    length, _ = GLB_CHUNK.unpack_from(data, GLB.size)
    start = GLB.size + GLB_CHUNK.size
    return json.loads(data[start : start + length]), data[start + length + GLB_CHUNK.size :]


def pack_glb(text: bytes, binary: bytes) -> bytes:
    """A binary glTF of JSON text and a binary chunk."""
    text += b" " * (-len(text) % 4)
    binary += bytes(-len(binary) % 4)
    total = GLB.size + 2 * GLB_CHUNK.size + len(text) + len(binary)
    parts = (GLB_CHUNK.pack(len(text), b"JSON"), text, GLB_CHUNK.pack(len(binary), b"BIN\0"), binary)
    return GLB.pack(b"glTF", 2, total) + b"".join(parts)


def unpack_spz4(data: bytes) -> tuple[list[Any], bytes, list[bytes]]:
    """Header fields, extension records and unpacked streams of an SPZ of version 4."""
    import zstandard

    *fields, streams, table = SPZ_4.unpack_from(data)
    at, unpacked = table + 16 * streams, []
    for index in range(streams):
        size, inside = struct.unpack_from("<QQ", data, table + 16 * index)
        unpacked.append(zstandard.ZstdDecompressor().decompress(data[at : at + size], max_output_size=inside))
        at += size
    return fields, data[SPZ_4.size : table], unpacked


def pack_spz4(
    fields: list[Any], extensions: bytes, streams: list[bytes], checksum: bool = True, frames: list[bytes] | None = None
) -> bytes:
    """An SPZ of version 4 whose table fits its streams. frames: the streams packed already."""
    import zstandard

    packer = zstandard.ZstdCompressor(1, write_checksum=checksum)
    frames = frames or [packer.compress(stream) for stream in streams]
    table = b"".join(struct.pack("<QQ", len(f), len(s)) for f, s in zip(frames, streams, strict=True))
    return SPZ_4.pack(*fields, len(frames), SPZ_4.size + len(extensions)) + extensions + table + b"".join(frames)
