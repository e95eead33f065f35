import io
import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from invert3d_core import splats
from invert3d_core.errors import FormatError
from invert3d_core.progress import Cancelled
from invert3d_core.splats import GaussianSplats
from invert3d_core.splats.formats import sog
from tests.unit.splats.formats.damage import assert_refused_when_cut, damaged, load_or_refuse
from tests.unit.storage_faults import full_disk


def random_splats(count=50, degree=1, seed=0, comment=""):
    g = torch.Generator().manual_seed(seed)
    return GaussianSplats(
        3 * torch.randn(count, 3, generator=g),
        torch.exp(torch.randn(count, 3, generator=g) - 2),
        functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        torch.rand(count, 1, generator=g),
        0.3 * torch.randn(count, (degree + 1) ** 2, 3, generator=g),
        comment,
    )


def picture(texels, width, **options):
    """A lossless WebP of texels (N,C), row after row."""
    texels = np.asarray(texels, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(texels.reshape(-1, width, texels.shape[1])).save(
        buffer, "WEBP", **({"lossless": True, "exact": True} | options)
    )
    return buffer.getvalue()


LINE = [i / 16 - 8 for i in range(256)]  # a codebook


def parts_of_two():
    """An unbundled SOG of two splats of degree 1, version 2, by hand: the picture of each file, and what it means."""
    meta = {
        "version": 2,
        "count": 2,
        "means": {"mins": [-1, 0, 2], "maxs": [1, 0, 3], "files": ["l.webp", "u.webp"]},
        "scales": {"codebook": LINE, "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": LINE, "files": ["sh0.webp"]},
        "shN": {"count": 1, "bands": 1, "codebook": LINE, "files": ["centroids.webp", "labels.webp"]},
    }
    centroids = np.full((64, 9), 128)
    centroids[0] = np.arange(9) * 16
    files = {
        "l.webp": picture([[0, 0, 0], [255, 9, 255]], 2),
        "u.webp": picture([[0, 0, 128], [255, 9, 255]], 2),
        "quats.webp": picture([[255, 0, 255, 253], [1, 2, 3, 7]], 2),
        "scales.webp": picture([[128, 112, 96], [0, 0, 255]], 2),
        "sh0.webp": picture([[128, 0, 255, 0], [144, 112, 128, 51]], 2),
        "centroids.webp": picture(centroids.reshape(-1, 3), 192),
        "labels.webp": picture([[0, 0, 0], [1, 0, 0]], 2),
    }
    return meta, files


def bundle(meta, files, folder="", method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(f"{folder}meta.json", meta if isinstance(meta, bytes) else json.dumps(meta))
        for name, data in files.items():
            archive.writestr(folder + name, data)
    return buffer.getvalue()


def unbundle(folder, meta, files):
    folder.mkdir()
    for name, data in {"meta.json": json.dumps(meta).encode(), **files}.items():
        (folder / name).write_bytes(data)
    return folder


# ------------------------------------------------------------------------------------------------------------- reading


def test_two_splats_by_hand():
    g = splats.load(bundle(*parts_of_two()))
    e = np.e
    # Logarithms −1, 0 (no span), 2 + 128·256/65535; then 1, 0, 3.
    middle = 2 + 128 * 256 / 65535
    np.testing.assert_allclose(g.positions[0], [1 - e, 0, np.exp(middle) - 1], rtol=1e-6)
    np.testing.assert_allclose(g.positions[1], [e - 1, np.expm1((9 + 9 * 256) / 65535), np.exp(3) - 1], rtol=1e-6)
    np.testing.assert_allclose(g.scales, np.exp([[0, -1, -2], [-8, -8, 7.9375]]), rtol=1e-6)
    # Tag 253: x is left out. w, y, z are ±√½ at the ends of a byte; three of them leave nothing for x.
    np.testing.assert_allclose(g.rotations[0], np.array([1, 0, -1, 1]) / 3**0.5, atol=1e-6)
    assert g.rotations[1].tolist() == [1, 0, 0, 0]  # tag 7 means none
    assert g.sh[:, 0].tolist() == [[0, -8, 7.9375], [1, -1, 0]]  # colour under opacity 0 is kept
    np.testing.assert_allclose(g.opacities[:, 0], [0, 0.2], rtol=1e-6)
    assert g.sh[0, 1:].flatten().tolist() == list(range(-8, 1))
    assert not g.sh[1, 1:].any()  # label 1 of 1 entry


def test_version_1_by_hand(tmp_path):
    meta, files = parts_of_two()
    meta = {
        "means": {**meta["means"], "shape": [2, 3], "dtype": "float32"},
        "scales": {"mins": [-2, -2, -2], "maxs": [0, 0, 0], "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"mins": [0, 0, 0, -2], "maxs": [1, 1, 1, 4], "files": ["sh0.webp"]},
        "shN": {"mins": -1, "maxs": 1, "shape": [2, 9], "files": ["centroids.webp", "labels.webp"]},
    }
    for g in (splats.load(bundle(meta, files)), splats.load(unbundle(tmp_path / "scene", meta, files))):
        assert g.degree == 1
        np.testing.assert_allclose(g.scales[1], np.exp([-2, -2, 0]), rtol=1e-6)
        np.testing.assert_allclose(g.sh[0, 0], [128 / 255, 0, 1], rtol=1e-6)
        np.testing.assert_allclose(g.opacities[:, 0], 1 / (1 + np.exp([2, 2 - 6 * 0.2])), rtol=1e-6)
        np.testing.assert_allclose(g.sh[0, 1:].flatten(), np.arange(9) * 16 / 255 * 2 - 1, atol=1e-6)
        np.testing.assert_allclose(g.sh[1, 1:].flatten(), np.full(9, 128 / 255 * 2 - 1), atol=1e-6)


def test_bundles_of_other_shapes_are_the_same(tmp_path):
    meta, files = parts_of_two()
    expected = splats.load(bundle(meta, files)).sh
    scene = unbundle(tmp_path / "scene", meta, files)
    for given in (
        bundle(meta, files, "scene/"),
        bundle(meta, files, method=zipfile.ZIP_DEFLATED),
        scene,
        str(scene),
        scene / "meta.json",
    ):
        assert torch.equal(splats.load(given).sh, expected)
    padded = dict(files, **{"scales.webp": picture([[0] * 3] * 12, 4)})
    assert len(splats.load(bundle(meta, padded))) == 2  # texels to spare


def test_no_view_dependent_colour():
    meta, files = parts_of_two()
    del meta["shN"]
    assert splats.load(bundle(meta, files)).degree == 0


# -------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 3, "is a .sog of version 3; 1 and 2 are supported"),
        (("count",), 0, "'count' of meta.json is 0; expected a whole number from 1"),
        (("count",), 3, r"picture 'l.webp' has 2 by 1 pixels, and the .sog says that it holds 3 splats"),
        (("count",), None, "'count' of meta.json is missing"),
        (("means", "mins"), [0, 0], "'mins' of 'means' of meta.json is a list of 2; expected 3 numbers"),
        (("means", "files"), ["l.webp"], "'files' of 'means' of meta.json is a list of 1; expected 2 names"),
        (("means", "files"), ["l.webp", "l.webp"], "expected 2 names"),
        (("scales", "codebook"), LINE[:255], "is a list of 255; expected 256 numbers"),
        (("scales", "codebook"), [*LINE[:255], "a"], "expected 256 numbers"),
        (("scales", "files"), ["none.webp"], "names 'none.webp', which is not in the zip"),
        (("quats",), 5, "'quats' of meta.json is 5; expected a JSON object"),
        (("shN", "bands"), 4, "expected a whole number from 1 to 3"),
        (("shN", "bands"), 2, "has 192 by 1 pixels; expected a width of 512, and rows for 1 entries"),
        (("shN", "count"), 65, "expected a width of 192, and rows for 65 entries, 64 a row"),
    ],
)
def test_what_is_wrong_is_named(path, value, message):
    meta, files = parts_of_two()
    place = meta
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(FormatError, match=message) as error:
        splats.load(bundle(meta, files))
    assert str(error.value).startswith("The splat data (")


def lossy(texels, width):
    return picture(texels, width, lossless=False, exact=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no lossless WebP"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "picture 'sh0.webp' is no lossless WebP .it starts with b'.x89PNG"),
        (lossy([[1, 2, 3]] * 4, 2), r"is no lossless WebP \(a lossy WebP, which keeps no numbers\)"),
        (picture([[1, 2, 3, 4]] * 2, 2)[:30], "picture 'sh0.webp' is damaged"),
        (picture([[1, 2, 3, 4]], 1), "has 1 by 1 pixels, and the .sog says that it holds 2 splats"),
        (picture([[1, 2, 3, 4]] * 90_000, 300), "has 300 by 300 pixels, and the .sog says that it holds 2 splats"),
    ],
)
def test_pictures_that_are_none(data, message):
    meta, files = parts_of_two()
    with pytest.raises(FormatError, match=message):
        splats.load(bundle(meta, {**files, "sh0.webp": data}))


def test_folders_that_lack_something(tmp_path):
    meta, files = parts_of_two()
    scene = unbundle(tmp_path / "scene", meta, files)
    (scene / "sh0.webp").unlink()
    with pytest.raises(FormatError, match=r"meta.json' needs the file 'sh0.webp' beside it\. There is no splat file"):
        splats.load(scene)
    with pytest.raises(FormatError, match="meta.json of an unbundled .sog, without the pictures beside it. Load it by"):
        splats.load(json.dumps(meta).encode())
    with pytest.raises(FormatError, match="is a folder, not a splat file"):
        splats.load(tmp_path)


@pytest.mark.parametrize("name", ["../secret.webp", "/etc/hostname", "a\\b", "..", "", "c:x"])
def test_a_folder_does_not_reach_outside_itself(tmp_path, name):
    meta, files = parts_of_two()
    meta["quats"]["files"] = [name]
    (tmp_path / "secret.webp").write_bytes(files["quats.webp"])
    with pytest.raises(FormatError, match="expected a plain name of a file beside it"):
        splats.load(unbundle(tmp_path / "scene", meta, files))


def test_zips_that_are_no_bundle():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.webp", b"x")
    with pytest.raises(FormatError, match=r"a zip file without meta\.json, so no \.sog \(it holds a\.webp\)"):
        splats.load(buffer.getvalue())
    data = bundle(*parts_of_two())
    with pytest.raises(FormatError, match="without the directory of a zip: it was cut short"):
        splats.load(data[:-30])
    at = data.index(b"RIFF")
    with pytest.raises(FormatError, match="the zip is damaged .*CRC"):
        splats.load(data[: at + 25] + b"?" + data[at + 26 :])


def test_damage(tmp_path):
    """Anywhere in a bundle, and inside its parts with checksums that fit, so that the damage reaches their readers."""
    splats.save(random_splats(200, 1), tmp_path / "a.sog", palette=64)
    data = (tmp_path / "a.sog").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(files.pop("meta.json"))
    loaded = [load_or_refuse(changed, "auto") for changed in damaged(data, 150, 0, 60)]
    text = json.dumps(meta).encode()
    loaded += [load_or_refuse(bundle(changed, files), "sog") for changed in damaged(text, 250, 1, 300)]
    for index, name in enumerate(files):
        for changed in damaged(files[name], 40, index, 40):
            loaded.append(load_or_refuse(bundle(meta, {**files, name: changed}), "sog"))
    assert 10 < sum(g is not None for g in loaded) < 400
    assert_refused_when_cut(data, "sog")


def traced(data, message):
    """The most memory that Python takes while the data is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message):
            splats.load(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_take_no_memory():
    meta, files = parts_of_two()
    zeros = bundle(meta, {**files, "sh0.webp": bytes(200 << 20)}, method=zipfile.ZIP_DEFLATED)
    assert traced(zeros, "'sh0.webp' claims 209715200 bytes in a file of") < 4 << 20
    # A WebP of one colour has some bytes for 268 million pixels: here it only says so.
    sides = 16383
    header = b"\x2f" + struct.pack("<I", sides - 1 | (sides - 1) << 14)
    huge = b"RIFF" + struct.pack("<I", 24) + b"WEBPVP8L" + struct.pack("<I", 12) + header + bytes(7)
    meta["count"] = sides**2
    pictures = dict.fromkeys(("l.webp", "u.webp", "quats.webp", "scales.webp", "sh0.webp", "labels.webp"), huge)
    bomb = bundle(meta, files | pictures)
    assert traced(bomb, "claims 268402689 splats in .* bytes. No .sog is that small") < 4 << 20
    wide = bundle(meta, files)
    directory = struct.pack("<I", 2 << 20)
    assert traced(wide[:-10] + directory + wide[-6:], "directory of 2097152 bytes") < 4 << 20


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("degree", range(4))
def test_what_is_written_is_read_within_what_is_said(tmp_path, degree):
    g = random_splats(400, degree, comment='ü, up="+z" front="-y"')
    lost = splats.save(g, tmp_path / "a.sog", sort=False)
    found = splats.load(tmp_path / "a.sog")
    assert (len(found), found.degree, found.comment) == (400, degree, g.comment)
    span = torch.log1p(g.positions.abs()).max() * 2
    torch.testing.assert_close(
        found.positions, g.positions, rtol=0, atol=float(span / 65535 * (1 + g.positions.abs().max()))
    )
    assert (found.scales.log() - g.scales.log()).abs().max() < 0.06
    assert ((found.rotations * g.rotations).sum(1).abs() > 1 - 1e-4).all()
    assert (found.opacities - g.opacities).abs().max() <= 0.5 / 255 + 1e-6
    assert (found.sh - g.sh).abs().max() < 0.03
    kinds = [words.split(" precision")[0] for words in lost]
    assert kinds == [
        "position",
        "scale",
        "rotation",
        "opacity",
        "colour",
        *(["view-dependent colour"] if degree else []),
    ]
    assert splats.save(found, tmp_path / "b.sog", sort=False) == []
    again = splats.load(tmp_path / "b.sog")
    for name in ("positions", "scales", "rotations", "opacities", "sh"):
        torch.testing.assert_close(getattr(again, name), getattr(found, name), rtol=1e-6, atol=1e-6)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_unbundled_one_is_the_same(tmp_path):
    g = random_splats(100, 1)
    splats.save(g, tmp_path / "a.sog")
    lost = splats.save(g, tmp_path / "new" / "scene" / "meta.json")
    assert len(lost) == 7
    assert len(contents(tmp_path / "new" / "scene")) == 8
    bundled, unbundled = splats.load(tmp_path / "a.sog"), splats.load(tmp_path / "new" / "scene")
    for name in ("positions", "scales", "rotations", "opacities", "sh"):
        assert torch.equal(getattr(bundled, name), getattr(unbundled, name))


def test_an_unbundled_one_replaces_another_as_a_whole_or_not_at_all(tmp_path):
    first, second = random_splats(100, 1), random_splats(100, 1, seed=1)
    splats.save(first, tmp_path / "scene" / "meta.json")
    splats.save(second, tmp_path / "other" / "meta.json")
    before = contents(tmp_path / "scene")
    largest = max(len(data) for name, data in contents(tmp_path / "other").items() if name != "meta.json")
    with full_disk(largest - 1), pytest.raises(FormatError, match="cannot be written"):
        splats.save(second, tmp_path / "scene" / "meta.json")
    assert contents(tmp_path / "scene") == before
    splats.save(second, tmp_path / "scene" / "meta.json")
    assert torch.equal(splats.load(tmp_path / "scene").sh, splats.load(tmp_path / "other").sh)


def test_neighbours_come_together_unless_the_order_is_kept(tmp_path):
    g = random_splats(300, 0)
    assert "the order of the splats (along a Morton curve)" in splats.save(g, tmp_path / "a.sog")
    found = splats.load(tmp_path / "a.sog")
    nearest = torch.cdist(g.positions.double(), found.positions.double()).min(0)
    assert nearest.values.max() < 1e-3
    assert sorted(nearest.indices.tolist()) == list(range(300))
    steps = [float(p.diff(dim=0).norm(dim=1).mean()) for p in (g.positions, found.positions)]
    assert steps[1] < 0.5 * steps[0]


def test_a_palette_smaller_than_the_splats(tmp_path):
    g = random_splats(500, 2)
    small, large = (splats.save(g, tmp_path / f"{n}.sog", palette=n, sort=False) for n in (16, 256))
    errors = [(splats.load(tmp_path / f"{n}.sog").sh - g.sh).square().mean() for n in (16, 256)]
    assert errors[0] > 1.5 * errors[1]
    assert small[-1].startswith("view-dependent colour precision") and large[-1].startswith(
        "view-dependent colour prec"
    )
    with zipfile.ZipFile(tmp_path / "16.sog") as archive:
        meta = json.loads(archive.read("meta.json"))
        assert meta["shN"]["count"] == 16
        assert Image.open(io.BytesIO(archive.read("shN_centroids.webp"))).size == (64 * 8, 1)


def test_extremes_are_kept(tmp_path):
    g = GaussianSplats(
        torch.tensor([[0.0, 0, 0], [1e6, -1e-6, 5], [-1e6, 7, 5]]),
        torch.tensor([[0.0, 1, 1e-9], [1e9, 0, 1], [1, 1, 1]]),
        torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, -0.5, -0.5], [0, 0, 0, -1]]),
        torch.tensor([0.0, 1, 0.5]),
        torch.tensor([[[4.0, -4, 0]], [[0, 0, 0]], [[-9, 9, 0.1]]]),
    )
    splats.save(g, tmp_path / "a.sog", sort=False)
    found = splats.load(tmp_path / "a.sog")
    torch.testing.assert_close(found.scales, g.scales)
    assert torch.equal(found.sh, g.sh)
    assert ((found.rotations * g.rotations).sum(1).abs() > 1 - 1e-4).all()
    torch.testing.assert_close(found.positions, g.positions, rtol=1e-3, atol=1e-3)
    assert found.opacities[:2, 0].tolist() == [0, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 65])
def test_few_splats(tmp_path, count):
    g = random_splats(count, 3)
    splats.save(g, tmp_path / "a.sog", sort=False)
    assert (splats.load(tmp_path / "a.sog").sh - g.sh).abs().max() < 0.03


def test_the_same_splats_give_the_same_bytes(tmp_path):
    for name in "ab":
        splats.save(random_splats(300, 2), tmp_path / f"{name}.sog", palette=64)
    assert (tmp_path / "a.sog").read_bytes() == (tmp_path / "b.sog").read_bytes()
    splats.save(random_splats(300, 2), tmp_path / "b.sog", palette=64, seed=1)
    assert (tmp_path / "a.sog").read_bytes() != (tmp_path / "b.sog").read_bytes()


def test_degree_4_is_lost_with_a_word(tmp_path):
    g = random_splats(degree=4)
    assert "view-dependent colour (SH degree 4)" in splats.save(g, tmp_path / "a.sog")
    assert splats.load(tmp_path / "a.sog").degree == 3


def test_a_search_that_is_stopped_leaves_no_file(tmp_path):
    def stop(step, total, **_):
        raise Cancelled

    with pytest.raises(Cancelled):
        splats.save(random_splats(500, 1), tmp_path / "a.sog", palette=64, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_options_that_cannot_be(tmp_path):
    for options in ({"palette": 0}, {"palette": 65537}, {"iterations": 0}):
        with pytest.raises(ValueError, match="expected 1 to 65536, at least 1"):
            splats.save(random_splats(), tmp_path / "a.sog", **options)
    with pytest.raises(FormatError, match="comment of the splats has 2000000 characters; a .sog may have 65536"):
        splats.save(random_splats(comment="x" * 2_000_000), tmp_path / "a.sog")
    assert list(tmp_path.iterdir()) == []


def test_a_pillow_without_webp_is_named(tmp_path, monkeypatch):
    data = bundle(*parts_of_two())
    monkeypatch.setattr("PIL.features.check", lambda feature: feature != "webp")
    with pytest.raises(
        FormatError, match=r"The splat data .* has WebP pictures, and this Pillow was built without WebP"
    ):
        splats.load(data)
    with pytest.raises(FormatError, match=r"A \.sog has WebP pictures"):
        splats.save(random_splats(), tmp_path / "a.sog")


def test_detection():
    meta, files = parts_of_two()
    assert sog.detect(bundle(meta, files))
    assert sog.detect(json.dumps(meta, indent=1).encode())
    assert not sog.detect(b'{"means": 1}')
    assert not sog.detect(b"PK\x03\x04" + bytes(40))
