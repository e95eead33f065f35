import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from invert3d_core.mvdream import weights
from invert3d_core.mvdream.weights import Weights, read_state_dict, write_safetensors

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor([1, 2**40]),
    "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
    "brain": torch.tensor([[3.0]], dtype=torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "odd": torch.tensor([True, False, True]),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    done: list[int] = []
    write_safetensors(path, TENSORS, {"k": "v"}, between=lambda: done.append(1))
    read = safetensors.torch.load_file(path)
    assert read.keys() == TENSORS.keys() and len(done) == len(TENSORS)
    for key, value in TENSORS.items():
        assert read[key].dtype == value.dtype and torch.equal(read[key], value), key
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"k": "v"}
    first = path.read_bytes()
    write_safetensors(path, dict(reversed(TENSORS.items())), {"k": "v"})
    assert path.read_bytes() == first
    length = int.from_bytes(first[:8], "little")
    assert length % 8 == 0
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "BOOL": 1}
    header = json.loads(first[8 : 8 + length])
    assert all(e["data_offsets"][0] % sizes[e["dtype"]] == 0 for k, e in header.items() if k != "__metadata__")


def test_floating_tensors_are_cast_but_for_those_to_keep(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {}, torch.float16, keep={"scalar"})
    read = safetensors.torch.load_file(path)
    assert {k: str(v.dtype)[6:] for k, v in read.items() if k in ("a", "b", "brain", "odd", "scalar")} == {
        "a": "int64",
        "b": "float16",
        "brain": "float16",
        "odd": "bool",
        "scalar": "float32",
    }
    assert torch.equal(read["b"], TENSORS["b"].half())


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "old.pt"])
@pytest.mark.parametrize("group", [1, 30, 1 << 30])
def test_weights_are_cast_in_groups_or_stay_mapped(
    name: str, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_GROUP_BYTES", group)
    path, other = tmp_path / name, tmp_path / "camera.safetensors"
    state = {k: v.contiguous() for k, v in TENSORS.items()}
    if path.suffix == ".pt":
        torch.save(state, path, _use_new_zipfile_serialization=name == "x.pt")
    else:
        safetensors.torch.save_file(state, path)
    safetensors.torch.save_file({"w": torch.ones(3)}, other)
    tensors, _ = read_state_dict(path)
    chosen = {k: v for k, v in tensors.items() if k != "empty"} | {"camera.w": read_state_dict(other)[0]["w"]}
    opened = Weights(chosen, ((path, ""), (other, "camera.")))
    same = opened.to("cpu")
    assert all(same[key] is chosen[key] for key in chosen) and same.keys() == chosen.keys()
    cast = opened.to("cpu", torch.bfloat16)
    assert cast.keys() == chosen.keys()
    for key, value in chosen.items():
        expected = value.to(torch.bfloat16) if value.is_floating_point() else value
        assert cast[key].dtype == expected.dtype and torch.equal(cast[key], expected), key
