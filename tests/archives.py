"""What a clone holds, and what a download from ComfyUI's registry holds of it."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def files_of_clone() -> list[str]:
    """The files that git knows, or would add: paths from the root of the repository."""
    listed = _git("ls-files", "--cached", "--others", "--exclude-standard")
    return sorted(name for name in set(listed) if (ROOT / name).is_file())


def files_of_registry() -> list[str]:
    """The files that publishing packs: those of a clone that `.comfyignore`, in the syntax of git, does not name."""
    files = files_of_clone()
    ignored = _git(
        "-c", f"core.excludesFile={ROOT / '.comfyignore'}", "check-ignore", "--no-index", "--stdin", given=files
    )
    return sorted(set(files) - set(ignored))


def lay_out(files: list[str], folder: Path) -> Path:
    """Put copies of files of the repository into a folder, as hard links where the file system has them; the folder."""
    for name in files:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return folder


def _git(*arguments: str, given: list[str] | None = None) -> list[str]:
    run = subprocess.run(
        ["git", *arguments, "-z"],
        cwd=ROOT,
        input=None if given is None else "\0".join(given).encode(),
        capture_output=True,
    )
    if run.returncode not in (0, 1):  # check-ignore exits with 1 when nothing is ignored
        raise RuntimeError(run.stderr.decode())
    return [name for name in run.stdout.decode().split("\0") if name]
