"""Nodes of the host tests only: they make visible what no node of the host shows. Copied into the test host's packs."""

import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import folder_paths
import psutil
import torch
from comfy_api.latest import ComfyExtension, Types, io
from safetensors.torch import save_file


class ProbeModules(io.ComfyNode):
    """Shows the names of all imported modules, one a line, once its input is there."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Invert3DProbeModules",
            category="tests",
            inputs=[io.AnyType.Input("after")],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        return float("nan")

    @classmethod
    def execute(cls, after):
        return io.NodeOutput(ui={"text": ["\n".join(sorted(sys.modules))]})


class ProbeTensors(io.ComfyNode):
    """Saves a tensor, or the tensors of an object, a dict or a conditioning, to output/<name>.safetensors."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Invert3DProbeTensors",
            category="tests",
            inputs=[io.AnyType.Input("value"), io.String.Input("name")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, value, name):
        if isinstance(value, list):  # a conditioning: [[tensor, options]]
            value = value[0][0]
        fields = {"tensor": value} if hasattr(value, "shape") else value if isinstance(value, dict) else vars(value)
        tensors = {
            key: item.detach().cpu().contiguous().clone() for key, item in fields.items() if hasattr(item, "shape")
        }
        other = {key: repr(item) for key, item in fields.items() if key not in tensors}
        other["type"] = type(value).__name__
        other["inference"] = repr({key: item.is_inference() for key, item in fields.items() if key in tensors})
        save_file(tensors, Path(folder_paths.get_output_directory()) / f"{name}.safetensors", metadata=other)
        return io.NodeOutput(ui={"text": [name]})


class ProbeBatch(io.ComfyNode):
    """Two splats as one batch of two, padded with zeros and counted, as a node that makes several would return it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Invert3DProbeBatch",
            category="tests",
            inputs=[io.Splat.Input("first"), io.Splat.Input("second")],
            outputs=[io.Splat.Output()],
        )

    @classmethod
    def execute(cls, first, second):
        rows = max(first.positions.shape[1], second.positions.shape[1])
        fields = {}
        for name in ("positions", "scales", "rotations", "opacities", "sh"):
            padded = []
            for value in (getattr(first, name), getattr(second, name)):
                padded.append(torch.cat([value, value.new_zeros(1, rows - value.shape[1], *value.shape[2:])], dim=1))
            fields[name] = torch.cat(padded)
        counts = torch.tensor([first.positions.shape[1], second.positions.shape[1]])
        return io.NodeOutput(Types.SPLAT(**fields, counts=counts))


class ProbeClip(io.ComfyNode):
    """A CLIP of the host with its true tokenizer, one small layer and random weights; and its table's row of a word."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Invert3DProbeClip",
            category="tests",
            inputs=[io.String.Input("word")],
            outputs=[io.Clip.Output(), io.AnyType.Output("row")],
        )

    @classmethod
    def execute(cls, word):
        clip = comfy.sd.CLIP(
            SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer),
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            model_options={"clip_l_model_config": {"num_hidden_layers": 1, "intermediate_size": 64}},
        )
        generator = torch.Generator().manual_seed(3)
        for parameter in clip.cond_stage_model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).mul(0.05)
        (ids,) = clip.tokenize(word)["l"]
        table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
        return io.NodeOutput(clip, table[ids[1][0]].reshape(1, -1))


class ProbeMemory(io.ComfyNode):
    """Shows as JSON what the host has loaded and how much memory its process holds, once its input is there."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Invert3DProbeMemory",
            category="tests",
            inputs=[io.AnyType.Input("after")],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        return float("nan")

    @classmethod
    def execute(cls, after):
        gc.collect()
        device = comfy.model_management.get_torch_device()
        loaded = [entry for entry in comfy.model_management.current_loaded_models if entry.model is not None]
        state = {
            "device": str(device),
            "loaded": [
                {"class": type(entry.model.model).__name__, "bytes": entry.model_loaded_memory()} for entry in loaded
            ],
            "used": sum(entry.model_loaded_memory() for entry in loaded if entry.device == device),
            "networks": sum(type(item).__name__ == "MVDreamNetwork" for item in gc.get_objects()),
            "tensors": sum(type(item) is torch.Tensor for item in gc.get_objects()),
            "resident_bytes": psutil.Process().memory_info().rss,
        }
        return io.NodeOutput(ui={"text": [json.dumps(state)]})


class ProbeExtension(ComfyExtension):
    async def get_node_list(self):
        return [ProbeModules, ProbeTensors, ProbeBatch, ProbeClip, ProbeMemory]


async def comfy_entrypoint():
    return ProbeExtension()
