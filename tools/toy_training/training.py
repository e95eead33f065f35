"""The training loops: the VAE, then the U-Net with text encoder and asset encoder; on any number of GPUs."""

import gc
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from invert3d_core.mvdream.sampling import alphas_cumprod

from .networks import (
    LATENT_CHANNELS,
    SLOTS,
    WIDTH,
    WORD_SCALE,
    AssetEncoder,
    encode_text,
    make_text_encoder,
    make_unet,
    make_vae,
    on_sphere,
    word_table,
)
from .pool import Pool, camera_vectors
from .prompts import SLOT, Vocabulary, make_prompts
from .start import load_start

log = logging.getLogger("toy_training")
FLAT_SHARE = 0.1  # of the steps: single views without cameras, so that the model also draws in 2D
FOREGROUND = 3.0
NOISE_ON_SLOTS = 0.22
EMA = 0.9995
SAVE_EVERY = 120.0  # seconds of training


@dataclass
class Run:
    """Where a run lives and which part of it this process does."""

    folder: Path
    device: torch.device
    rank: int = 0
    world: int = 1

    @classmethod
    def start(cls, folder: Path) -> "Run":
        folder.mkdir(parents=True, exist_ok=True)
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if world > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(folder, device, rank, world)

    def average(self, tensors: list[Tensor]) -> None:
        """Average tensors over the processes, in place."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def every(self, condition: bool) -> bool:
        """Whether it holds in all processes: what decides about a stage that they do together."""
        if self.world == 1:
            return condition
        tensor = torch.tensor([int(condition)], device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return bool(tensor)

    def same_start(self, module: nn.Module) -> None:
        if self.world > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, 0)

    def agree(self, value: float) -> float:
        """The first process's value, so that all of them stop at the same step."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor)


class Schedule:
    """Learning rate by the share of the planned seconds that is spent: warm-up, then a cosine to zero."""

    def __init__(self, peak: float, warm_up_steps: int):
        self.peak, self.warm_up_steps = peak, warm_up_steps

    def __call__(self, step: int, share: float) -> float:
        return self.peak * min(1.0, (step + 1) / self.warm_up_steps) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def flat_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """Gradients of zero that lie in the returned tensor one after the other, so that one call averages all of them.

    Each has its parameter's strides, as autograd's own would, and starts on a border of 256 bytes.
    """
    starts = [0]
    for parameter in parameters:
        starts.append(starts[-1] + -(-parameter.numel() // 64) * 64)
    flat = torch.zeros(starts.pop(), device=parameters[0].device)
    for parameter, start in zip(parameters, starts, strict=True):
        parameter.grad = flat.as_strided(parameter.shape, parameter.stride(), start).data  # no view to the compiler
    return flat


class Gradients:
    """A loss with its gradients, ready to be taken again and again on inputs of the same shapes.

    On a GPU the loss is compiled, and forward and backward are captured as one CUDA graph: a step costs the CPU a few
    copies and one launch, where the launches of its kernels would take longer than the kernels. From then on the
    parameters' ``grad`` tensors must stay the same ones.
    """

    def __init__(
        self,
        loss_of: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        parameters: list[nn.Parameter],
        example: tuple[Tensor, ...],
    ):
        self.loss_of, self.parameters = loss_of, parameters
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.graph = None
        if example[0].device.type != "cuda":
            return
        began = time.monotonic()
        self.inputs = [tensor.clone(memory_format=torch.preserve_format) for tensor in example]
        self.loss_of = torch.compile(loss_of, dynamic=False)
        usual, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(usual)
        with torch.cuda.stream(side):  # compiles, and lets libraries allocate what a capture may not
            for _ in range(3):
                expected = self._fill(*self.inputs)["loss"]
        usual.wait_stream(side)
        expected = torch.stack([expected, self._norm()])
        gc.collect()  # nothing of an earlier step or graph may be freed while this one is recorded
        graph = torch.cuda.CUDAGraph()
        try:
            # On the stream of the warm-up; other threads (of NCCL, of the compiler) may do as they like meanwhile.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                self.metrics = self._fill(*self.inputs)
            graph.replay()
            found = torch.stack([self.metrics["loss"], self._norm()])
            if not torch.allclose(found, expected, rtol=0.05):
                raise RuntimeError(f"loss and gradient are {found.tolist()} in replay, but {expected.tolist()} before")
            self.graph = graph
        except RuntimeError:
            torch.cuda.set_stream(usual)  # a capture that fails leaves its own
            log.warning("the step could not be captured, launches will cost time", exc_info=True)
        log.info("compiled%s in %.0f s", " and captured" if self.graph else "", time.monotonic() - began)

    def _norm(self) -> Tensor:
        return nn.utils.get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])

    def _fill(self, *inputs: Tensor) -> dict[str, Tensor]:
        torch._foreach_zero_([p.grad for p in self.parameters])
        device = inputs[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
            loss, metrics = self.loss_of(*inputs)
        loss.backward()
        return {"loss": loss.detach()} | {key: value.detach() for key, value in metrics.items()}

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        if self.graph is None:
            return self._fill(*inputs)
        torch._foreach_copy_(self.inputs, inputs)
        self.graph.replay()
        return dict(self.metrics)


class Trainer:
    """A loop that stops in time and goes on later: parameters, averages, optimiser and clock live in one file."""

    def __init__(self, run: Run, name: str, networks: nn.ModuleDict, schedule: Schedule, seconds: float, decay: float):
        self.run, self.name, self.networks, self.schedule, self.seconds = run, name, networks, schedule, seconds
        run.same_start(networks)
        self.parameters = [p for p in networks.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=schedule.peak, betas=(0.9, 0.99), weight_decay=decay, fused=run.device.type == "cuda"
        )
        self.step, self.spent = 0, 0.0
        self.path = run.folder / f"{name}.pt"
        if self.path.exists():
            state = torch.load(self.path, map_location=run.device, weights_only=True)
            networks.load_state_dict(state["networks"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent = state["step"], state["spent"]
            for mine, saved in zip(self.average, state["average"], strict=True):
                mine.copy_(saved)
        self.gradients = flat_gradients(self.parameters)

    @property
    def done(self) -> bool:
        return self.spent >= self.seconds

    def loop(self, fill_gradients: Callable[[], dict[str, Tensor]], stop_at: float, report_every: int) -> None:
        """Train until ``seconds`` are spent in all or `time.monotonic` passes ``stop_at``; then save.

        fill_gradients: puts the gradients of a new batch into the parameters' ``grad`` tensors, in place, and returns
        what to report.
        """
        sums: dict[str, Tensor] = {}
        summed = 0
        began, spent_before = time.monotonic(), self.spent
        saved = self.spent
        stop = False
        while not stop:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule(self.step, self.spent / self.seconds)
            metrics = fill_gradients()
            self.run.average([self.gradients])
            self.gradients.nan_to_num_(0.0, 0.0, 0.0)  # one bad sample costs a step, not the training
            metrics["norm"] = nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1 - min(EMA, (self.step + 1) / (self.step + 10)))
            self.step += 1
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0) + value
            summed += 1
            if self.step % 20 == 0:
                now = self.run.agree(time.monotonic())
                self.spent = self.run.agree(spent_before + now - began)
                stop = bool(self.run.agree(float(self.done or now >= stop_at)))
                if self.spent - saved > SAVE_EVERY and not stop:
                    self.save()
                    saved = self.spent
            if self.step % report_every == 0 and self.run.rank == 0:
                text = "  ".join(f"{key} {float(value) / summed:.4f}" for key, value in sums.items())
                log.info("%s %6d  %5.0f s  %s", self.name, self.step, self.spent, text)
                sums, summed = {}, 0
        self.save()

    def save(self) -> None:
        if self.run.rank == 0:
            state = {
                "networks": self.networks.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "step": self.step,
                "spent": self.spent,
            }
            partial = self.path.with_suffix(".partial")
            torch.save(state, partial)
            os.replace(partial, self.path)
        if self.run.world > 1:
            dist.barrier()

    def averaged(self) -> nn.ModuleDict:
        """The networks with their averaged parameters, in place."""
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.average, strict=True):
                parameter.copy_(mean)
        return self.networks


def train_vae(
    run: Run, images: Tensor, seconds: float, stop_at: float, batch: int = 192, start: Path | None = None
) -> Trainer:
    """images: (M,V,H,W,3) uint8 on the device. start: see `load_start`."""
    torch.manual_seed(1)
    vae = make_vae()
    networks = nn.ModuleDict({"vae": vae})
    if start:
        load_start(start, networks)
    vae.to(run.device, memory_format=torch.channels_last)
    trainer = Trainer(run, "vae", networks, Schedule(2e-3, 200), seconds, 1e-4)
    rng = torch.Generator(run.device).manual_seed(11 + 77 * trainer.step + run.rank)
    flat = images.flatten(0, 1)

    def loss_of(pictures: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        posterior = vae.encode(pictures).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        drawn = vae.decode(mean + torch.exp(0.5 * logvar) * noise).sample.float()
        weight = 1 + 4 * (pictures.amin(1, keepdim=True) < 0.88).float()
        weight = weight / weight.mean()
        error = drawn - pictures
        across, down = error.diff(dim=-1), error.diff(dim=-2)
        loss = (weight * (error.abs() + 2 * error**2)).mean() + 0.5 * (
            (weight[..., 1:] * across.abs()).mean() + (weight[..., 1:, :] * down.abs()).mean()
        )
        divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return loss + 2e-4 * divergence, {"error": (weight * error**2).mean(), "kl": divergence}

    def draw_batch() -> tuple[Tensor, Tensor]:
        index = torch.randint(len(flat), (batch,), generator=rng, device=run.device)
        pictures = (flat[index].movedim(-1, 1).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return pictures, torch.randn(batch, LATENT_CHANNELS, 16, 16, generator=rng, device=run.device)

    if not trainer.done:
        gradients = Gradients(loss_of, trainer.parameters, draw_batch())
        trainer.loop(lambda: gradients(*draw_batch()), stop_at, report_every=200)
    return trainer


@torch.no_grad()
def encode_pool(vae: nn.Module, images: Tensor, batch: int = 512) -> Tensor:
    """Latent means of all pictures, (M,V,8,16,16) bfloat16."""
    flat = images.flatten(0, 1)
    parts = []
    for start in range(0, len(flat), batch):
        pictures = flat[start : start + batch].movedim(-1, 1).float() / 127.5 - 1
        with torch.autocast(flat.device.type, torch.bfloat16, enabled=flat.device.type == "cuda"):
            mean = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        parts.append(mean.to(torch.bfloat16))
    return torch.cat(parts).unflatten(0, images.shape[:2]).contiguous()


class Diffusion(nn.Module):
    """The loss of one batch: v-prediction, weighted by the clamped signal-to-noise ratio and by the foreground."""

    def __init__(self):
        super().__init__()
        self.unet, self.text, self.assets = make_unet(), make_text_encoder(), AssetEncoder()
        self.register_buffer("alphas", alphas_cumprod(0.00085, 0.012).float(), persistent=False)

    def context(self, prompts_ids: Tensor, pseudo: Tensor) -> Tensor:
        """Text states of ids whose slots take pseudo-tokens."""
        is_slot = prompts_ids >= SLOT
        rows = on_sphere(word_table(self.text).weight)[prompts_ids.masked_fill(is_slot, 0)]
        index = (prompts_ids - SLOT).clamp_min(0)
        slots = pseudo.gather(1, index[..., None].expand(-1, -1, pseudo.shape[-1]))
        return encode_text(self.text, torch.where(is_slot[..., None], slots.to(rows.dtype), rows))

    def forward(
        self,
        latents: Tensor,  # (B, V, C, h, w)
        foreground: Tensor,  # (B, V, h, w) bool
        cameras: Tensor,  # (B, V, 16)
        ids: Tensor,  # (B, L)
        rows: Tensor,
        stretch: Tensor,
        sphere: Tensor,
        noise: Tensor,
        timesteps: Tensor,  # (B,)
        slot_noise: Tensor,  # (B, S, W)
        flat: bool,
    ) -> Tensor:
        """The weighted v error of each set (B,)."""
        pseudo = on_sphere(self.assets(rows, stretch, sphere) + slot_noise)
        context = self.context(ids, pseudo)
        views = latents.shape[1]
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        predicted = self.unet(
            noisy.flatten(0, 1).contiguous(memory_format=torch.channels_last),
            timesteps.repeat_interleave(views),
            context.repeat_interleave(views, 0),
            class_labels=None if flat else cameras.flatten(0, 1),
            cross_attention_kwargs={"num_frames": 1 if flat else views},
        ).sample
        error = (predicted.float().unflatten(0, latents.shape[:2]) - target) ** 2
        weight = 1 + (FOREGROUND - 1) * foreground[:, :, None].float()
        ratio = alpha / (1 - alpha)
        scale = (ratio.clamp(1, 5) / (ratio + 1))[:, 0, 0, 0, 0]
        return scale * (error * weight).mean((1, 2, 3, 4)) / weight.mean((1, 2, 3, 4))


def train_unet(
    run: Run,
    pool: Pool,
    latents: Tensor,  # (M, V, C, h, w) standardised
    alphas: Tensor,  # (M, V, h, w) uint8
    spheres: Tensor,  # (M, 4)
    seconds: float,
    stop_at: float,
    batch: int = 128,
    peak: float = 1.1e-3,
    kinds: tuple[bool, ...] = (False, True),
    start: Path | None = None,
) -> Trainer:
    """kinds: of steps, whether on single views without cameras; of two, the second has a share of `FLAT_SHARE`.

    start: see `load_start`.
    """
    torch.manual_seed(2)
    diffusion = Diffusion()
    networks = nn.ModuleDict({"unet": diffusion.unet, "text": diffusion.text, "assets": diffusion.assets})
    if start:
        load_start(start, networks)
    diffusion.to(run.device)
    diffusion.unet.to(memory_format=torch.channels_last)
    trainer = Trainer(run, "unet", networks, Schedule(peak, 400), seconds, 0.01)
    cameras = camera_vectors(pool.azimuth, pool.elevation)
    vocabulary = Vocabulary.on(run.device)
    rng = torch.Generator(run.device).manual_seed(1000 + 77 * trainer.step + run.rank)
    mode = torch.Generator().manual_seed(5000 + trainer.step)  # the same on every process

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=run.device)

    def draw_batch() -> tuple[Tensor, ...]:
        index = torch.randint(len(pool), (batch,), generator=rng, device=run.device)
        part = pool.map(lambda tensor: tensor[index])
        prompts = make_prompts(part, vocabulary, rng)
        clean = latents[index].float()
        level = torch.rand(batch, 1, 1, generator=rng, device=run.device) * NOISE_ON_SLOTS
        kinds = torch.stack(
            [(part.family >= 0) & ~prompts.instance, (part.family >= 0) & prompts.instance, part.family < 0]
        ).float()
        return (
            clean,
            alphas[index] > 12,
            cameras[index],
            prompts.ids,
            prompts.rows,
            part.stretch,
            spheres[index],
            normal(*clean.shape),
            torch.randint(1000, (batch,), generator=rng, device=run.device),
            level * normal(batch, SLOTS, WIDTH) * WORD_SCALE,
            kinds / kinds.sum(1, keepdim=True).clamp_min(1),
        )

    def loss_of(flat: bool) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
        def loss(*inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            losses = diffusion(*inputs[:-1], flat)
            names = ("captions", "tokens", "nameless")
            return losses.mean(), dict(zip(names, (inputs[-1] * losses.detach()).sum(1), strict=True))

        return loss

    if not trainer.done:
        steps = [Gradients(loss_of(flat), trainer.parameters, draw_batch()) for flat in kinds]

        def fill_gradients() -> dict[str, Tensor]:
            rare = bool(torch.rand(1, generator=mode) < FLAT_SHARE)
            return (steps[-1] if rare else steps[0])(*draw_batch())

        trainer.loop(fill_gradients, stop_at, report_every=500)
    return trainer
