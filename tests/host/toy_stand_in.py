"""A pack with a toy model of random weights, for checkouts that do not hold the trained ones.

What the host tests ask of the model (that pictures come out, follow the seed, change with the token) holds for any
weights of the toy's layout; what only trained weights can do is scored by ``benchmarks/``.
"""

import shutil
from pathlib import Path

import torch

SHIPPED = ("nodes", "invert3d_core", "web", "workflows", "locales", "__init__.py", "pyproject.toml")


def pack_with_weights(pack: Path, folder: Path) -> Path:
    """The pack itself when it holds the toy's weights, else a copy of it in ``folder`` with random ones."""
    if (pack / "invert3d_core" / "toy" / "model.safetensors").is_file():
        return pack
    if not folder.exists():
        folder.mkdir(parents=True)
        for name in SHIPPED:
            source = pack / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy(source, folder / name)
        _export_random_weights(folder / "invert3d_core" / "toy")
    return folder


def _export_random_weights(folder: Path) -> None:
    from tools.toy_training.export import export
    from tools.toy_training.networks import make_vae
    from tools.toy_training.training import Diffusion

    with torch.random.fork_rng():
        torch.manual_seed(0)
        diffusion, vae = Diffusion(), make_vae()
    export(folder, diffusion.unet, diffusion.text, vae, torch.zeros(8), torch.ones(8))
