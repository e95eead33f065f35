"""What is promised about the package as a whole: what the wheel holds, who imports what, what a host is asked for."""

import ast
import email.parser
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.archives import files_of_clone, files_of_registry, lay_out

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "invert3d_core"

# A module imports only from its own floor or below; the single modules at the bottom are free to all.
FLOORS = [
    {"splats", "cameras", "metrics"},
    {"rendering"},
    {"mvdream", "tokens"},
    {"inversion"},
    {"lift3d"},
    {"cli"},
]
HEAVY = ("diffusers", "transformers", "PIL", "gsplat", "tyro", "comfy")


def tomllib() -> ModuleType:
    """Python's reader of TOML, which 3.10 does not have yet."""
    return importlib.import_module("tomllib") if sys.version_info >= (3, 11) else pytest.importorskip("tomli")


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports_of(file: Path) -> list[tuple[int, str]]:
    """Every import of a file as (level, dotted name): level 0 is absolute, 1 the file's own package, and so on."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = f"{node.module}." if node.module else ""
            found += [(node.level, base + alias.name) for alias in node.names]
    return found


def packages_of_core_in(file: Path) -> set[str]:
    """The top-level parts of the core that a file of the core imports."""
    package = file.relative_to(CORE).parts[:-1]
    found = set()
    for level, name in imports_of(file):
        if level:
            absolute = [*package[: len(package) - level + 1], *name.split(".")]
            found.add(absolute[0])
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what a clone holds."""
    folder = tmp_path_factory.mktemp("wheel")
    lay_out(files_of_clone(), folder / "clone")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    run = subprocess.run([*build, str(folder / "clone")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_core_and_its_data_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"invert3d_core"}
    expected = {str(file.relative_to(ROOT)) for file in python_files(CORE)}
    expected |= {str(file.relative_to(ROOT)) for file in (CORE / "toy").glob("samples/*")}
    expected |= {str(file.relative_to(ROOT)) for file in (CORE / "toy").glob("*.safetensors")}
    expected |= {"invert3d_core/py.typed"}
    assert expected <= set(names), f"not in the wheel: {sorted(expected - set(names))}"
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_works_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked in an empty folder and isolated from this one, every public part of the core imports."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    parts = [part.name for part in sorted(CORE.iterdir()) if (part / "__init__.py").is_file() and part.name != "cli"]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        f"import invert3d_core\nfrom invert3d_core import {', '.join(parts)}\nprint(invert3d_core.__file__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(tmp_path)


@pytest.mark.skipif(
    not (CORE / "toy" / "model.safetensors").is_file(), reason="the toy's trained weights are not in this checkout"
)
def test_demo_runs_from_the_installed_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """The command that the wheel installs, in an empty folder and far from any checkout."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    short = ["--steps", "2", "--sampling-steps", "2", "--noises", "1"]
    run = subprocess.run(
        [str(site / "bin" / "invert3d"), "demo", "--out", "made", "--device", "cpu", *short],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert {file.name for file in (work / "made").iterdir()} == {
        "contact_sheet.png",
        "token.safetensors",
        "report.json",
    }
    assert json.loads((work / "made" / "report.json").read_text(encoding="utf-8"))["training_steps"] == 2


def test_version_is_one(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.parser.Parser().parsestr(archive.read(name).decode())
    module = ast.parse((CORE / "__init__.py").read_text(encoding="utf-8"))
    (version,) = [node.value for node in module.body if isinstance(node, ast.Assign)]
    assert isinstance(version, ast.Constant)
    assert metadata["Name"] == "invert3d"
    assert metadata["Version"] == version.value
    assert f"## {version.value}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_what_a_registry_is_told() -> None:
    """What `comfy node validate` and the registry's page ask of the metadata, and a version as it takes them."""
    settings = tomllib().loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = settings["project"], settings["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", project["name"]) and "comfy" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert set(project["license"]) == {"text"}
    assert project["description"] and project["requires-python"] == ">=3.10"
    assert [name for name in project["classifiers"] if name.startswith("Operating System ::")]
    assert re.fullmatch(r"[a-z0-9-]+", comfy["PublisherId"])
    assert comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert "web" not in comfy, "WEB_DIRECTORY says it: with both, the page loads every script twice"
    assert all(any(name.startswith(folder) for name in files_of_clone()) for folder in comfy["includes"])


def test_download_from_the_registry_holds_the_pack_and_nothing_of_its_workshop() -> None:
    files = files_of_registry()
    tops = {name.split("/")[0] for name in files}
    expected = {"__init__.py", "nodes", "invert3d_core", "web", "workflows", "locales", "pyproject.toml"}
    expected |= {"requirements.txt", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"}
    assert tops == expected
    for folder in ("nodes", "invert3d_core", "web", "workflows", "locales"):
        assert [name for name in files_of_clone() if name.startswith(f"{folder}/") and name not in files] == []


def test_links_in_the_download_lead_to_what_it_holds() -> None:
    files = set(files_of_registry())
    for name in files:
        if name.endswith(".md"):
            # Pictures of a help page lie beside the folder's first level, for its translations too.
            folder = Path("web/docs") if name.startswith("web/docs/") else Path(name).parent
            for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8")):
                assert (folder / target).as_posix() in files, f"{name} links to {target}"


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    parts = [part.name for part in sorted(CORE.iterdir()) if (part / "__init__.py").is_file() and part.name != "cli"]
    code = (
        f"import sys\nfrom invert3d_core import {', '.join(parts)}\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_core_imports_only_from_its_own_floor_or_below(floor: int) -> None:
    above = set().union(*FLOORS[floor + 1 :]) if floor + 1 < len(FLOORS) else set()
    wrong = {
        str(file.relative_to(ROOT)): sorted(packages_of_core_in(file) & above)
        for part in FLOORS[floor]
        for file in python_files(CORE / part)
        if packages_of_core_in(file) & above
    }
    assert wrong == {}


def test_core_knows_no_host_and_imports_itself_relatively() -> None:
    forbidden = {"invert3d_core", "comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "nodes"}
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in python_files(CORE)
        for level, name in imports_of(file)
        if level == 0 and name.split(".")[0] in forbidden
    ]
    assert wrong == []


def test_only_one_module_of_the_nodes_touches_the_host() -> None:
    """Besides `comfy_api`, which is made for nodes; and no node says where tensors live."""
    forbidden = {"comfy", "comfy_execution", "folder_paths", "server", "execution", "nodes", "comfy_extras"}
    for file in python_files(ROOT / "nodes"):
        if file.name == "host.py":
            continue
        names = {name.split(".")[0] for level, name in imports_of(file) if level == 0}
        assert not names & forbidden, f"{file.name} imports {names & forbidden}"
        assert not re.search(r"\.cuda\(|[\"']cuda|\.cli\b", file.read_text(encoding="utf-8")), file.name


def test_weights_are_never_unpickled() -> None:
    for folder in (CORE, ROOT / "nodes", ROOT / "tools", ROOT / "benchmarks"):
        for file in python_files(folder):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert keywords.get("weights_only") == "True", f"{file.relative_to(ROOT)}:{node.lineno}"


def test_requirements_of_a_host_leave_its_other_packages_alone() -> None:
    """The one requirement beyond the host's own takes a release that fits huggingface-hub 0.36, 1 and 2 alike.

    Installers of packs install line by line: a line must be safe alone. diffusers 0.35 wants huggingface-hub >= 0.34;
    0.36 to 0.39 want < 2, later ones >= 1.23, and a host with transformers 4 has 0.36.
    """
    packaging = pytest.importorskip("packaging.requirements", reason="packaging comes with pytest")
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [packaging.Requirement(line) for line in lines if line and not line.startswith("#")]
    assert [requirement.name for requirement in requirements] == ["diffusers"]
    (diffusers,) = requirements
    assert "0.35.2" in diffusers.specifier
    assert not [version for version in ("0.36.0", "0.39.0", "0.40.0", "0.42.1") if version in diffusers.specifier]


def test_the_root_of_the_pack_is_an_entry_point_and_nothing_else() -> None:
    module = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    kinds = [type(node).__name__ for node in module.body]
    assert kinds == ["Expr", "ImportFrom", "Assign", "AsyncFunctionDef"]
