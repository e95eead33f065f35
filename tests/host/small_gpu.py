"""For one host test, copied into its packs: the host believes that it computes on a GPU with little memory.

The device is the CPU under another name ("cpu:0"), so the host does all of its bookkeeping, which it leaves out for
"cpu"; what counts as used is what it has loaded there.
"""

import os

import comfy.model_management as management
import torch

LIMIT = int(os.environ["INVERT3D_TEST_GPU_BYTES"])
DEVICE = torch.device("cpu", 0)
real_free_memory = management.get_free_memory


def used() -> int:
    """Bytes of weights that the host has on the device."""
    loaded = management.current_loaded_models
    return sum(entry.model_loaded_memory() for entry in loaded if entry.device == DEVICE and entry.model is not None)


def get_free_memory(dev=None, torch_free_too=False):
    if dev is not None and dev != DEVICE:
        return real_free_memory(dev, torch_free_too)
    free = LIMIT - used()
    return (free, free) if torch_free_too else free


for name in ("get_torch_device", "vae_device", "text_encoder_device"):
    setattr(management, name, lambda: DEVICE)
management.get_free_memory = get_free_memory
management.minimum_inference_memory = lambda: 0
management.extra_reserved_memory = lambda: 0

NODE_CLASS_MAPPINGS = {}
