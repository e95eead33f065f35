"""Speed and memory of training and sampling at the size of sd-v1.5-4view, ours beside the way of the released loops.

    python benchmarks/mvdream_speed.py [--seconds 220] [--parts step1 draw ...] [--backend torch] [--compile] [--tiny]

Random weights, since speed does not depend on them; 4 views of 256²; a splat of 65,536 Gaussians; captions and tokens
of the preset's length. *Ours* is this package as a user calls it, in bfloat16. *As released* is the same network driven
the way the published code does: training in float32, where each step renders four new views, encodes them, encodes the
text, takes one timestep per view, attends by an explicit softmax and steps torch's AdamW (also told: with PyTorch's own
attention instead); sampling in float16 with PyTorch's own attention, launched kernel by kernel.

The claims, on an H100: a step of `recommended` on one set ≤ 18 ms and on four ≤ 40 ms, 50 guided DDIM steps for four
views ≤ 0.6 s, a training peak ≤ 6 GB, ≥ 10 × per training step with all that it needs, ≥ 2.5 × in sampling, and equal
pictures. Times are medians after warming up; first calls are told apart.

Parts run one by one in a process of their own that goes on with the next when one fails, and the table at the end has
what there is. Exit code 1 when a claim is missed, 2 when a number of a claim is not there.
"""

import argparse
import contextlib
import gc
import itertools
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import in_parts
from benchmarks.in_parts import Row, say

PARTS = ("step1", "step4", "draw", "pictures", "released-step", "released-draw", "eager", "stock", "solver", "float32")
LONGEST = {"compile": 150.0}  # seconds of a part that may take longer than others
PROMPT = "a red chair with blue legs"


# ------------------------------------------------------------------------------------------------------------ networks


def make_model(dtype: Any, tiny: bool) -> Any:
    """An MVDream of the published size with random weights."""
    import tokenizers
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from invert3d_core.mvdream import ModelInfo, MVDream, Tokenizer

    width = 32 if tiny else 320
    unet_config: dict[str, Any] = {
        "sample_size": 32,
        "block_out_channels": (width, 2 * width, 4 * width, 4 * width),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 64 if tiny else 768,
        "attention_head_dim": 8,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 16,
    }
    vae_config: dict[str, Any] = {
        "block_out_channels": (32, 32, 32, 32) if tiny else (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    small: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 64}
    text_config = CLIPTextConfig(
        **(small if tiny else {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12})
    )
    with torch.random.fork_rng(), torch.device(device_name()):
        torch.random.manual_seed(0)
        unet, vae = UNet2DConditionModel(**unet_config), AutoencoderKL(**vae_config)
        text = CLIPTextModel(text_config)
    words = ["<pad>", "<unk>", "<begin>", "<end>", ",", "a", "object", "3d", "asset", *PROMPT.split()]
    vocabulary: dict[str, int] = {word: i for i, word in enumerate(dict.fromkeys(words))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend, max_length=77, bos_id=2, eos_id=3, pad_id=0)
    for network in (unet, vae, text):
        network.eval().requires_grad_(False)
    sizes: dict[str, Any] = {"base": "tiny", "image_size": 32, "latent_size": 4} if tiny else {}
    model = MVDream(unet, vae, text, tokenizer, None, ModelInfo(title="random weights", **sizes))
    return model.to(dtype=torch.float32 if tiny else dtype)  # an old CPU may have no other type


def device_name() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def splat(tiny: bool, backend: Any) -> Any:
    from benchmarks.render import bumpy_ball
    from invert3d_core.cameras import Orientation
    from invert3d_core.inversion import SplatViews

    # On the device once: what a renderer needs of it at every step is its own affair.
    return SplatViews(bumpy_ball(512 if tiny else 65_536, degree=0).to(device_name()), Orientation("+y", "+z"), backend)


def cameras() -> Any:
    from invert3d_core.cameras import orbit

    return orbit([0.0, 90.0, 180.0, 270.0], 15.0, 2.7, 40.0, 256, 256)  # a model draws at its own size


def wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], Any]) -> float:
    wait()
    began = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - began


def median_of(function: Callable[[], Any], repeats: int) -> float:
    return statistics.median(seconds_of(function) for _ in range(repeats))


@contextlib.contextmanager
def stock(model: Any) -> Iterator[None]:
    """Layers and layout of the weights as the libraries make them, which `MVDream` changes where there is a GPU."""
    import torch

    from invert3d_core.mvdream import fused

    model.unet.to(memory_format=torch.contiguous_format)
    fused.unfuse(model.unet)
    fused.unfuse(model.text_encoder)
    try:
        yield
    finally:
        if torch.cuda.is_available():
            model.unet.to(memory_format=torch.channels_last)
            fused.fuse(model.unet)
            fused.fuse(model.text_encoder)


class ExplicitAttention:
    """Attention as the published training code has it: products and a softmax, one after the other."""

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, num_frames: int = 1, **_: Any
    ) -> Any:
        import torch

        batch = hidden_states.shape[0]
        groups = batch // num_frames if encoder_hidden_states is None else batch
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(tokens: Any) -> Any:  # (B,L,heads·d) -> (groups·heads,F·L,d)
            tokens = tokens.reshape(groups, -1, attn.heads, tokens.shape[-1] // attn.heads)
            return tokens.transpose(1, 2).flatten(0, 1)

        query, key, value = (heads(x) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))
        weights = (torch.einsum("bid,bjd->bij", query, key) * query.shape[-1] ** -0.5).softmax(dim=-1)
        joined = torch.einsum("bij,bjd->bid", weights, value).unflatten(0, (groups, attn.heads)).transpose(1, 2)
        return attn.to_out[1](attn.to_out[0](joined.reshape(batch, -1, attn.heads * joined.shape[-1])))


class Peak:
    """Most memory that tensors held, and that was kept for them, since it was made; GB."""

    def __init__(self) -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def gigabytes(self) -> tuple[float, float]:
        import torch

        if not torch.cuda.is_available():
            return float("nan"), float("nan")
        return torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9


# --------------------------------------------------------------------------------------------------------------- parts


class Bench:
    """The parts; each returns its numbers by name."""

    def __init__(self, tiny: bool, backend: str) -> None:
        self.tiny = tiny
        self.splat = splat(tiny, backend)
        self.few = {"steps": 4} if tiny else {}
        self._model: tuple[Any, Any] | None = None

    def model(self, dtype: Any) -> Any:
        if self._model is None or self._model[0] != dtype:
            self._model = None
            gc.collect()
            began = time.perf_counter()
            self._model = dtype, make_model(dtype, self.tiny)
            wait()
            say(f"  (networks with random weights in {dtype}: {time.perf_counter() - began:.1f} s)")
        return self._model[1]

    def ours(self) -> Any:
        import torch

        return self.model(torch.bfloat16)

    def training(self, sets: int, steps: int, model: Any = None, **changes: Any) -> Row:
        """Intervals between the steps of a training, as a progress callback sees them."""
        from invert3d_core import inversion

        model = model or self.ours()
        steps = 8 if self.tiny else steps
        config = inversion.preset(
            "recommended",
            **{
                "steps": steps,
                "sets_per_step": sets,
                "validation_every": steps // 2,
                "preview_every": 0,
                "checkpoint_every": 0,
                "patience": 0,
                "validation_sets": 1 if self.tiny else 8,
                **changes,
            },
        )
        peak = Peak()
        moments: list[float] = []
        notes: list[bool] = []

        def progress(step: int, total: int, *, metrics: Any = None, preview: Any = None) -> None:
            if metrics is not None or not moments:
                moments.append(time.perf_counter())
                notes.append(metrics is not None and "validation_loss" in metrics)
            else:  # still rendering and encoding
                moments[-1] = time.perf_counter()

        began = time.perf_counter()
        result = inversion.train_token(model, self.splat, config, name="thing", progress=progress)
        prepared = moments[0] - began
        steps_s = [b - a for a, b in itertools.pairwise(moments)]
        plain = [s for s, noted in zip(steps_s, notes[1:], strict=True) if not noted]
        warm = plain[len(plain) // 4 :]
        validated = [s for s, noted in zip(steps_s, notes[1:], strict=True) if noted]
        allocated, reserved = peak.gigabytes()
        finite = all(abs(loss) < 1e6 for loss in result.losses)
        return {
            "step_ms": 1e3 * statistics.median(warm),
            "slowest_ms": 1e3 * max(warm),
            "first_steps_ms": 1e3 * sum(plain[:3]),
            "validation_ms": 1e3 * max(0.0, validated[-1] - statistics.median(warm)) if validated else 0.0,
            "bank_s": prepared,
            "peak_gb": allocated,
            "peak_reserved_gb": reserved,
            "finite": float(finite),
        }

    def step1(self) -> Row:
        """Our training step on one set of four views."""
        cold = self.training(1, 8)
        return {**self.training(1, 60), "cold_bank_s": cold["bank_s"], "cold_first_steps_ms": cold["first_steps_ms"]}

    def step4(self) -> Row:
        """Our training step on four sets."""
        return self.training(4, 40)

    def drawn(self, model: Any, **options: Any) -> Any:
        return model.sample(
            PROMPT, cameras(), guidance_scale=7.5, **{"decode": False, "steps": 50, **options, **self.few}
        )

    def draw(self) -> Row:
        """Fifty guided DDIM steps for four views, as `MVDream.sample` takes them."""
        model = self.ours()
        peak = Peak()
        first = seconds_of(lambda: self.drawn(model))
        again = median_of(lambda: self.drawn(model), 5)
        latents = self.drawn(model)
        decode = median_of(lambda: model.decode_latents(latents), 3)
        allocated, reserved = peak.gigabytes()
        return {
            "draw_s": again,
            "first_draw_s": first,
            "decode_s": decode,
            "peak_gb": allocated,
            "peak_reserved_gb": reserved,
        }

    def pictures(self) -> Row:
        """How far pictures are from ordinary runs of ours and from the released loop's, on the scale 0 … 1."""
        import torch

        from invert3d_core.mvdream import graphs

        rows: Row = {}
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("fp16", torch.float16)):
            model = self.model(dtype)
            replayed = [self.drawn(model, steps=20, decode=True) for _ in range(2)][1]
            with graphs.eager():
                ordinary = self.drawn(model, steps=20, decode=True)
                again = self.drawn(model, steps=20, decode=True)
                with stock(model):
                    released = model.decode_latents(self.released_loop(model, 20)()).float()
            rows[f"error_{name}"] = float((replayed - ordinary).abs().max())
            rows[f"error_of_eager_itself_{name}"] = float((again - ordinary).abs().max())
            rows[f"error_from_released_{name}"] = float((replayed - released).abs().max())
            rows[f"spread_{name}"] = float(ordinary.std())
        return rows

    def eager(self) -> Row:
        """Ours without graphs: what they are worth, and the fallback's speed."""
        from invert3d_core.mvdream import graphs

        model = self.ours()
        with graphs.eager():
            row = self.training(1, 24)
            self.drawn(model, steps=5)
            drawn = median_of(lambda: self.drawn(model), 2)
        return {"step_ms": row["step_ms"], "peak_gb": row["peak_gb"], "draw_s": drawn}

    def stock(self) -> Row:
        """Ours with the U-Net as diffusers makes it: its layers, in contiguous memory."""
        model = self.ours()
        with stock(model):
            row, four = self.training(1, 32, model), self.training(4, 24, model)
            self.drawn(model, steps=5)
            drawn = median_of(lambda: self.drawn(model), 3)
        return {"step_ms": row["step_ms"], "step4_ms": four["step_ms"],
                "draw_s": drawn}  # fmt: skip

    def solver(self) -> Row:
        """Twenty-five steps of DPM-Solver++, and of Euler."""
        model = self.ours()
        rows: Row = {}
        for name in ("dpmpp_2m", "euler"):
            self.drawn(model, steps=5, sampler=name)
            rows[f"{name}_25_s"] = median_of(lambda name=name: self.drawn(model, steps=25, sampler=name), 3)
        return rows

    def released_loop(self, model: Any, steps: int) -> Callable[[], Any]:
        """A loop of guided U-Net passes and DDIM formulas, without anything of ours but the text and the cameras."""
        import torch

        from invert3d_core.mvdream import sampling

        alphas = sampling.alphas_cumprod().float().to(device_name())
        vectors = model.camera_vectors(cameras()).to(device_name(), model.dtype)

        @torch.no_grad()
        def loop() -> Any:
            text = model.encode_prompt([PROMPT + ", 3d asset", ""])
            context = torch.cat([text[1:].expand(4, -1, -1), text[:1].expand(4, -1, -1)])
            rows = torch.cat([vectors, vectors])
            x = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(
                device_name(), model.dtype
            )
            timesteps = sampling.ddim_timesteps(self.few.get("steps", steps)).tolist()
            for t, before in zip(timesteps, [*timesteps[1:], 0], strict=True):
                at = torch.full((8,), t, device=x.device)
                noise = model.unet(
                    torch.cat([x, x]),
                    at,
                    context,
                    class_labels=rows,
                    cross_attention_kwargs={"num_frames": 4},
                    return_dict=False,
                )[0]
                negative, positive = noise.chunk(2)
                guided = negative + 7.5 * (positive - negative)
                clean = (x - (1 - alphas[t]).sqrt() * guided) / alphas[t].sqrt()
                x = (alphas[before].sqrt() * clean + (1 - alphas[before]).sqrt() * guided).to(model.dtype)
            return x

        return loop

    def released_draw(self) -> Row:
        """Sampling as released: float16, kernel by kernel."""
        import torch

        from invert3d_core.mvdream import graphs

        model = self.model(torch.float16)
        loop = self.released_loop(model, 50)
        with stock(model), graphs.eager():
            loop()
            peak = Peak()
            row = {"draw_s": median_of(loop, 3)}
            row["peak_gb"] = peak.gigabytes()[0]
            theirs = loop().float()
        mine = self.drawn(model).float()
        row["latents_off_by"] = float((mine - theirs).norm() / theirs.norm())
        return row

    def released_step(self) -> Row:
        """Training as released: float32; each step renders, encodes views and text, and steps torch's AdamW."""
        import torch
        import torch.nn.functional as F

        from invert3d_core.cameras import orbit
        from invert3d_core.mvdream import graphs, sampling
        from invert3d_core.tokens import Token

        model = self.model(torch.float32)
        device = torch.device(device_name())
        views, count, size = self.splat, 32, model.info.image_size
        alphas = sampling.alphas_cumprod().float().to(device)
        start = model.token_rows(torch.tensor([6])).detach().float().expand(count, -1).clone()
        vectors = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([vectors], lr=5e-3)
        generator = torch.Generator().manual_seed(0)
        parts: dict[str, list[float]] = {}

        def step() -> None:
            began = time.perf_counter()
            azimuth = float(torch.randint(360, (1,), generator=generator))
            elevation = float(torch.randint(30, (1,), generator=generator))
            cams = orbit([azimuth + 90.0 * i for i in range(4)], elevation, 2.5, 49.1, size, size)
            with torch.no_grad():
                images, _ = views.render(cams, torch.zeros(3), 1.0)
                wait()
                rendered = time.perf_counter()
                mean, std = model.encode_images(images.to(device))
                latents = mean + std * torch.randn(mean.shape, generator=generator).to(device)
                wait()
            encoded = time.perf_counter()
            known = model.with_token(Token("thing", vectors, start, model.info.base))
            text = known.encode_prompt("<thing>").expand(4, -1, -1)
            t = torch.randint(1000, (4,), generator=generator).to(device)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            noisy = sampling.add_noise(latents, noise, t, alphas)
            rows = model.camera_vectors(cams).to(device)
            predicted = model.predict_noise(noisy, t, text, rows, 4)
            loss = F.mse_loss(predicted, noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            wait()
            ended = time.perf_counter()
            spent = {"render": rendered - began, "encode": encoded - rendered, "network": ended - encoded}
            for name, seconds in {**spent, "step": ended - began}.items():
                parts.setdefault(name, []).append(seconds)

        def measured() -> Row:
            parts.clear()
            peak, until = Peak(), time.monotonic() + 20
            while len(parts.get("step", [])) < 16 and (time.monotonic() < until or len(parts.get("step", [])) < 3):
                step()
            warm = {f"{name}_ms": 1e3 * statistics.median(values[2:] or values) for name, values in parts.items()}
            return {**warm, "peak_gb": peak.gigabytes()[0]}

        processors = model.unet.attn_processors
        with stock(model), graphs.eager():
            with_pytorchs = measured()
            model.unet.set_attn_processor(ExplicitAttention())
            try:
                row = measured()
            finally:
                model.unet.set_attn_processor(processors)
        return {**row, **{f"pytorchs_attention_{name}": number for name, number in with_pytorchs.items()}}

    def float32(self) -> Row:
        """Our step with a float32 model, under autocast."""
        import torch

        row = self.training(1, 32, self.model(torch.float32))
        return {"step_ms": row["step_ms"], "peak_gb": row["peak_gb"]}

    def compile(self) -> Row:
        """Ours with a U-Net compiled first: the seconds that it takes, and what a step then takes."""
        model = self.ours()
        model.unet.compile(dynamic=False)
        began = time.perf_counter()
        row = self.training(1, 32, model, validation_every=0)
        spent = time.perf_counter() - began
        return {"step_ms": row["step_ms"], "compile_s": spent}

    def run(self, part: str) -> Row:
        return getattr(self, part.replace("-", "_"))()


def report(row: Row) -> int:
    """The table of the claims; what the exit code is to be."""

    def value(name: str) -> float | None:
        return row.get(name)

    step, step4 = value("step1.step_ms"), value("step4.step_ms")
    whole = None
    if step is not None:
        from invert3d_core import inversion

        config = inversion.preset("recommended")
        validations = 1 + config.steps // config.validation_every
        whole = step + (1e3 * row["step1.bank_s"] + validations * row["step1.validation_ms"]) / config.steps
        say(f"a step with its share of {validations} validations and the bank in {config.steps} steps: {whole:.2f} ms")
        cold = 1e3 * (row["step1.cold_bank_s"] - row["step1.bank_s"]) / config.steps
        starting = row["step1.cold_first_steps_ms"] / config.steps
        say(f"in a new process the bank adds {cold:.2f} ms to that, and the first three steps {starting:.2f} ms")
    released, drawn, released_draw = value("released-step.step_ms"), value("draw.draw_s"), value("released-draw.draw_s")
    training_ratio = None if whole is None or released is None else released / whole
    drawing_ratio = None if drawn is None or released_draw is None else released_draw / drawn
    if whole is not None and released is not None:
        unrendered = released - row["released-step.render_ms"]
        say(f"the released loop takes {unrendered / whole:.1f} × as long without its rendering")
        say(f"and {row['released-step.network_ms'] / whole:.1f} × without rendering and encoding")
        other = row["released-step.pytorchs_attention_step_ms"]
        say(f"with PyTorch's own attention it takes {other / whole:.1f} × as long, with its rendering and encoding")
    claims: list[tuple[str, float | None, str, float]] = [
        ("training step, one set, ms", step, "≤", 18),
        ("training step, four sets, ms", step4, "≤", 40),
        ("50 guided DDIM steps, four views, s", drawn, "≤", 0.6),
        ("training peak, one set, GB", value("step1.peak_gb"), "≤", 6),
        ("training peak as reserved, GB", value("step1.peak_reserved_gb"), "≤", 6),
        ("released step / our step with all it needs", training_ratio, "≥", 10),
        ("released sampling / ours", drawing_ratio, "≥", 2.5),
        ("replayed pictures, largest difference, bf16", value("pictures.error_bf16"), "≤", 0.05),
        ("replayed pictures, largest difference, fp32", value("pictures.error_fp32"), "≤", 0.005),
        ("from the released loop's pictures, fp16", value("pictures.error_from_released_fp16"), "≤", 0.05),
        ("from the released loop's pictures, fp32", value("pictures.error_from_released_fp32"), "≤", 0.005),
    ]
    say(f"\n{'':46} {'found':>9}   claim")
    missed = absent = False
    for name, found, sign, limit in claims:
        if found is None:
            absent = True
            say(f"{name:46} {'—':>9}   {sign} {limit:g}")
            continue
        met = found <= limit if sign == "≤" else found >= limit
        missed |= not met
        say(f"{name:46} {found:9.3f}   {sign} {limit:g}  {'met' if met else 'MISSED'}")
    return 1 if missed else 2 if absent else 0


def run_here(parts: list[str], arguments: argparse.Namespace, only: in_parts.Child) -> int:
    import torch

    torch.set_num_threads(1 if arguments.tiny else min(8, os.cpu_count() or 1))
    logging.basicConfig(level=logging.WARNING, format="  log: %(message)s")
    logging.getLogger("invert3d").setLevel(logging.DEBUG)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    say(f"{name}, torch {torch.__version__}, splats drawn by the backend {arguments.backend}")
    return only.run(
        Bench(arguments.tiny, arguments.backend).run, parts, dict.fromkeys(PARTS, 600.0) if arguments.tiny else LONGEST
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=220, help="after which no further part begins")
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "compile"), default=list(PARTS))
    parser.add_argument(
        "--backend", choices=("torch", "gsplat", "auto"), default="torch", help="gsplat may compile itself for minutes"
    )
    parser.add_argument("--compile", action="store_true", help="also compile the U-Net: minutes")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the script itself, also on a CPU")
    in_parts.add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.child is not None:
        return run_here(arguments.parts, arguments, in_parts.Child(arguments.child, arguments.until))
    began = time.monotonic()
    import torch

    if not arguments.tiny and not torch.cuda.is_available():
        say("there is no CUDA device here, so there is nothing to measure (--tiny tries the script)")
        return 0
    parts = [*arguments.parts, *(["compile"] if arguments.compile else [])]
    options = ["--backend", arguments.backend, *(["--tiny"] if arguments.tiny else [])]
    row = in_parts.run_all(__file__, parts, options, arguments.seconds)
    code = report(row)
    say(f"{time.monotonic() - began:.0f} s in all")
    return code


if __name__ == "__main__":
    sys.exit(main())
