"""Files of cameras made from golden matrices, in each format's own terms, give the golden poses back."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from invert3d_core import cameras

DATA = Path(__file__).parent / "invert3d"


def golden():
    data = safetensors.torch.load_file(DATA / "renderer_cameras.safetensors")
    return {name: value.double().numpy() for name, value in data.items()}


def quaternion(rotation):
    """w,x,y,z of a rotation, from its largest component (Shepperd's method)."""
    m = np.zeros((4, 4))  # q qᵀ · 4, from sums and differences of the entries
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    m[0] = 1 + xx + yy + zz, zy - yz, xz - zx, yx - xy
    m[1] = zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx
    m[2] = xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy
    m[3] = yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz
    row = m[np.argmax(np.diag(m))]
    return row / np.linalg.norm(row)


def colmap(folder, i, w2c, k, width, height):
    folder.mkdir()
    (folder / "cameras.txt").write_text(f"1 PINHOLE {width} {height} {k[0, 0]} {k[1, 1]} {k[0, 2]} {k[1, 2]}\n")
    pose = " ".join(map(repr, map(float, (*quaternion(w2c[:3, :3]), *w2c[:3, 3]))))
    (folder / "images.txt").write_text(f"1 {pose} 1 a.png\n\n")
    return folder


def training(folder, i, w2c, k, width, height):
    folder.mkdir()
    c2w = np.linalg.inv(w2c)
    entry = {"img_name": "a.png", "width": width, "height": height, "fx": k[0, 0], "fy": k[1, 1]}
    entry |= {"rotation": c2w[:3, :3].tolist(), "position": c2w[:3, 3].tolist()}
    (folder / "cameras.json").write_text(json.dumps([entry]))
    return folder


def transforms(folder, i, w2c, k, width, height):
    folder.mkdir()
    c2w = np.linalg.inv(w2c) @ np.diag([1, -1, -1, 1])
    value = {"w": width, "h": height, "fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2]}
    value["frames"] = [{"file_path": "a.png", "transform_matrix": c2w.tolist()}]
    (folder / "transforms.json").write_text(json.dumps(value))
    return folder


def dtu(folder, i, w2c, k, width, height):
    folder.mkdir()
    world = np.vstack([k @ w2c[:3], [0, 0, 0, 1]])
    np.savez(folder / "cameras.npz", world_mat_0=world, scale_mat_0=np.eye(4))
    return folder


@pytest.mark.parametrize("form", [colmap, training, transforms, dtu], ids=lambda form: form.__name__)
def test_files_of_the_golden_cameras(form, tmp_path):
    data = golden()
    for i, (width, height) in enumerate(data["width_height"].astype(int).tolist()):
        w2c, k = data["w2c_opencv_f64"][i], data["K_f64"][i]
        loaded = cameras.load(form(tmp_path / f"{form.__name__}{i}", i, w2c, k, width, height), size=(width, height))
        tolerance = 1e-6 * max(1, np.abs(data["camera_center_f64"][i]).max())
        found, expected = loaded.cameras.c2w[0].double().numpy(), data["c2w_f64"][i]
        assert np.abs(found - expected).max() < tolerance
        assert float(loaded.cameras.fov_y_deg) == pytest.approx(data["fov_y_deg"][i], abs=1e-5)
        assert loaded.remarks == []


def test_turntable_is_the_golden_orbit():
    data = safetensors.torch.load_file(DATA / "orbit_cameras.safetensors")
    for i in range(len(data["radius"])):
        cams = cameras.paths.turntable(
            1,
            float(data["radius"][i]),
            49.1,
            64,
            64,
            elevation_deg=float(data["elevation_above_deg"][i]),
            start_deg=float(data["azimuth_deg"][i]),
            target=data["target"][i],
        )
        torch.testing.assert_close(cams.c2w[0].double(), data["c2w_f64"][i], atol=1e-6, rtol=0)
