"""The weights that a training starts from: those that an earlier run has exported."""

from pathlib import Path

import torch
from torch import nn

from invert3d_core import mvdream

from .networks import WORD_SCALE, word_table


def load_start(folder: Path, networks: nn.ModuleDict) -> None:
    """Fill the networks named vae, unet, text and assets, those of them that are there, from an export folder.

    The exported VAE gives standardised latents, so its latents' statistics are measured anew as of any other; the word
    table, exported on its sphere, gets the size back that the learning rate suits.
    """
    model = mvdream.load(folder / "model.safetensors", device="cpu", dtype=torch.float32)
    exported = {"vae": model.vae, "unet": model.unet, "text": model.text_encoder}
    for name, network in networks.items():
        if name == "assets":
            state = torch.load(folder / "asset_encoder.pt", map_location="cpu", weights_only=True)
        else:
            state = exported[name].state_dict()
        network.load_state_dict(state)
        if name == "text":
            with torch.no_grad():
                word_table(network).weight /= WORD_SCALE
