import os
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

from invert3d_core import tokens
from invert3d_core.errors import TokenError
from tests.unit.tokens.some_tokens import make, same_bits

ROWS = torch.randn(3, 768, generator=torch.Generator().manual_seed(4))


def a1111(rows=ROWS, **others):
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "cat", "step": 12, **others}


def released(rows=ROWS):
    param = torch.nn.ParameterDict({"*": torch.nn.Parameter(rows.clone())})
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": param}


@pytest.mark.parametrize(
    ("content", "format", "name"),
    [
        (a1111(), "a1111", "cat"),
        (a1111(torch.nn.Parameter(ROWS.clone())), "a1111", "cat"),
        (released(), "release", "my_file"),
        ({"<dog>": ROWS}, "diffusers-bin", "dog"),
        ({"a dog": ROWS}, "diffusers-bin", "my_file"),
        ({"emb_params": ROWS}, "kohya", "my_file"),
        ({"clip_l": ROWS}, "encoders", "my_file"),
    ],
)
def test_files_of_others(tmp_path, content, format, name):
    path = tmp_path / "my file.anything"
    torch.save(content, path)
    file = tokens.inspect(path)
    assert (file.format, file.name, file.entry) == (format, name, None)
    token = tokens.load(path)
    assert same_bits(token.vectors, ROWS)
    assert (token.name, token.base, token.model_hash) == (name, "clip_l", None)
    assert not token.initial.any(), "from which words it started is not in the file"
    imported = token.provenance["imported"]
    assert (imported["format"], imported["file"]) == (format, path.name)
    assert len(imported["sha256"]) == 64
    assert imported.get("step") == (12 if format == "a1111" else None)


@pytest.mark.parametrize(("key", "format"), [("<dog>", "diffusers"), ("emb_params", "kohya"), ("clip_l", "encoders")])
def test_safetensors_of_others(tmp_path, key, format):
    safetensors.torch.save_file({key: ROWS}, tmp_path / "dog.safetensors", metadata={"format": "pt"})
    assert tokens.inspect(tmp_path / "dog.safetensors").format == format
    token = tokens.load(tmp_path / "dog.safetensors")
    assert (token.name, token.base) == ("dog", "clip_l")
    assert same_bits(token.vectors, ROWS)


def test_files_from_before_torch_1_6(tmp_path):
    torch.save(a1111(), tmp_path / "cat.pt", _use_new_zipfile_serialization=False)
    assert same_bits(tokens.load(tmp_path / "cat.pt").vectors, ROWS)
    torch.save(released(), tmp_path / "cat.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(TokenError, match="asks for a module, which could run code"):
        tokens.load(tmp_path / "cat.pt")


def test_one_vector_half_precision_and_the_width_of_sd2(tmp_path):
    row = torch.randn(1024, generator=torch.Generator().manual_seed(5)).half()
    torch.save(a1111(row), tmp_path / "cat.pt")
    token = tokens.load(tmp_path / "cat.pt")
    assert token.base == "clip_h"
    assert same_bits(token.vectors, row.float()[None])


def test_what_a_file_says_of_its_making_is_kept_when_it_is_plain(tmp_path):
    torch.save(a1111(sd_checkpoint_name="x" * 1000, sd_checkpoint=None), tmp_path / "cat.pt")
    assert tokens.load(tmp_path / "cat.pt").provenance["imported"]["checkpoint"] == "x" * 200
    torch.save(a1111(sd_checkpoint_name=["x"], step="many") | {"name": 7}, tmp_path / "cat.pt")
    token = tokens.load(tmp_path / "cat.pt")
    assert token.name == "cat"
    assert set(token.provenance["imported"]) == {"format", "file", "sha256"}


def test_a_token_of_sdxl_is_a_choice(tmp_path):
    path = tmp_path / "xl.safetensors"
    for names in (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")):
        safetensors.torch.save_file({names[0]: ROWS, names[1]: torch.ones(3, 1280)}, path)
        with pytest.raises(TokenError, match="as SDXL .*choose encoder clip_l to take that part alone"):
            tokens.load(path)
        token = tokens.load(path, "clip_l")
        assert same_bits(token.vectors, ROWS)
        assert token.provenance["imported"]["encoders"] == ["clip_g", "clip_l"]
        with pytest.raises(TokenError, match="No MVDream model has the text encoder 'clip_g'"):
            tokens.load(path, "clip_g")
        with pytest.raises(TokenError, match="no vectors for the text encoder 'clip_h'. It has clip_g"):
            tokens.load(path, "clip_h")
    safetensors.torch.save_file({"clip_g": torch.ones(3, 1280)}, path)
    with pytest.raises(TokenError, match="SDXL's second encoder .* no MVDream model has"):
        tokens.load(path)
    assert list(tokens.inspect(path).vectors) == ["clip_g"]


class Danger:
    """What an unsafe reader runs."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_no_code_of_a_file_runs(tmp_path):
    trace = tmp_path / "ran"
    allowed = set(torch.serialization.get_safe_globals())
    bad = Danger(trace)
    contents = [bad, {"<x>": bad}, a1111(bad), {**released(), "hook": bad}, [bad]]
    for number, content in enumerate(contents):
        for old in (False, True):
            path = tmp_path / f"{number}{old}.pt"
            torch.save(content, path, _use_new_zipfile_serialization=not old)
            with pytest.raises(TokenError, match="(mkdir|module), which could run code, and is not loaded"):
                tokens.load(path)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(bad, 2))
    with pytest.raises(TokenError, match="could run code"):
        tokens.load(tmp_path / "bare.pt")
    assert not trace.exists()
    assert set(torch.serialization.get_safe_globals()) == allowed, "allowed for one file, not for the next"


def test_other_content_is_explained(tmp_path):
    path = tmp_path / "x.pt"
    wide = torch.zeros(1, 768).expand(10**6, 768)  # a few kilobytes of a file
    contents = {
        r"\(1000000, 768\) .* at most 1024 rows": {"<x>": wide},
        r"\(1, 400000000\)": {"<x>": torch.zeros(1).expand(1, 400_000_000)},
        "int64": {"<x>": torch.zeros(2, 768).long()},
        r"\(2, 3, 768\)": {"<x>": torch.zeros(2, 3, 768)},
        "probably no token": {"<x>": torch.zeros(2, 768, device="meta")},
        "NaN": {"<x>": torch.full((2, 768), torch.nan)},
        "holds 2 tensors": {"a": ROWS, "b": ROWS},
        "holds no tensor": {"a": 5},
        "holds a list": [ROWS],
        r"2 placeholders \(\*, \+\)": {"string_to_param": {"*": ROWS, "+": ROWS}},
        "0 placeholders": {"string_to_param": torch.nn.ParameterDict()},
        r"list at '\*'": {"string_to_param": {"*": [1]}},
        "clip_g of width 768, which it does not have": {"clip_l": ROWS, "clip_g": ROWS},
        "no text encoder that is known has width 5": {"<x>": torch.zeros(2, 5)},
        "'invert3d' entry .* is damaged": a1111(invert3d="{"),
    }
    for message, content in contents.items():
        torch.save(content, path)
        with pytest.raises(TokenError, match=message):
            tokens.load(path)


def test_damaged_and_enormous_files_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(a1111(), path)
    whole = path.read_bytes()
    for cut in (whole[:-20], whole[: len(whole) // 2], whole[:4], b"PK\x03\x04nothing", b"\x80\x02nothing"):
        path.write_bytes(cut)
        with pytest.raises(TokenError, match="damaged"):
            tokens.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(TokenError, match="unpacks to 105 MB"):
        tokens.load(path)
    with path.open("wb") as file:
        file.truncate(5 << 30)  # a hole, not read
    with pytest.raises(TokenError, match="5,369 MB, too much for a token"):
        tokens.load(path)


def test_unreadable_files_are_explained(tmp_path):
    path = tmp_path / "cup.safetensors"
    with pytest.raises(TokenError, match="no token file"):
        tokens.load(path)
    path.write_bytes(b"")
    with pytest.raises(TokenError, match="not a readable safetensors"):
        tokens.load(path)
    tokens.save(make(), path, overwrite=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(TokenError, match="not a readable safetensors"):
        tokens.load(path)
    safetensors.torch.save_file({"toy": torch.zeros(2, 8)}, path)
    with pytest.raises(TokenError, match="no 'invert3d' entry, and no text encoder that is known has width 8"):
        tokens.load(path)
    safetensors.torch.save_file({"a": torch.zeros(2, 8), "b": torch.zeros(2, 8)}, path)
    with pytest.raises(TokenError, match="holds 2 tensors"):
        tokens.load(path)
    safetensors.torch.save_file({"toy": torch.zeros(2, 8).half()}, path, metadata={"invert3d": "{}"})
    with pytest.raises(TokenError, match="float16"):
        tokens.load(path)
