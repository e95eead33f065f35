"""`MVDream`: the multi-view diffusion model as one object, with the tokens applied to it."""

import copy
import logging
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..cameras import Cameras, conversions
from ..errors import ModelError, TokenError, first_line
from ..progress import Progress, no_progress
from ..tokens import Token
from ..tokens.prompts import encode_ids, expand
from .attention import make_multiview
from .graphs import graphs_of
from .memory import in_parts
from .metadata import ModelInfo
from .sampling import DdimStep, Schedule, alphas_cumprod, noise_from_velocity, sample_latents
from .tokenizer import Tokenizer

logger = logging.getLogger("invert3d")

_CAMERA_SIZE = 16
_VAE_BATCH = 8  # views that pass the VAE at once: its layers at full size are what fills memory
_PREVIEW_VIEWS = 4
_PLACEHOLDER = re.compile(r"<[^<>]*>|embedding:\S+")


class MVDream:
    """A multi-view text-to-image diffusion model (Shi et al. 2023) and the tokens applied to it.

    unet: a `UNet2DConditionModel` with a projection class embedding of 16 numbers; it gets the multi-view attention
    here and, where there is a CUDA device, channels-last weights and the layers of `fused`.
    vae: an `AutoencoderKL`. text_encoder: a `CLIPTextModel` whose `last_hidden_state` conditions the U-Net.
    tokenizer: its `Tokenizer`. vae, text_encoder and tokenizer may be None where nothing needs them.
    schedule: noise schedule and prediction type; None takes what the info says.
    info: what the weights do not say; None takes the values published for ``sd-v1.5-4view``.

    The networks are plain modules and may live on different devices and in different dtypes: inputs follow each of
    them. A batch of views is view-fastest, object 0's views first. Cameras are given as a `Cameras` in the asset's
    world (azimuth 0 in front), which `camera_vectors` turns to where this model has its front, or as the model's own
    (B,16).
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Tokenizer | None,
        schedule: Schedule | None = None,
        info: ModelInfo | None = None,
    ) -> None:
        if torch.cuda.is_available():
            # The layout NVIDIA's convolutions work in: it saves them turning everything over.
            unet.to(memory_format=torch.channels_last)
            _make_faster(unet, text_encoder)
        self.unet = make_multiview(unet)
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.info = info or ModelInfo()
        self.schedule = schedule or Schedule(
            alphas_cumprod(self.info.beta_start, self.info.beta_end), self.info.prediction_type
        )
        self._tokens: dict[str, tuple[Token, float]] = {}
        self._alphas: dict[torch.device, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """The U-Net's device."""
        return _placement(self.unet)[0]

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's dtype."""
        return _placement(self.unet)[1]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one view's latents."""
        return self.unet.config["in_channels"], self.info.latent_size, self.info.latent_size

    @property
    def tokens(self) -> Mapping[str, tuple[Token, float]]:
        """Applied tokens and their strengths, by the name a prompt writes between ``<`` and ``>``."""
        return MappingProxyType(self._tokens)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "MVDream":
        """Move and cast the networks in place, also for every copy that shares them; returns the model itself."""
        for module in (self.unet, self.vae, self.text_encoder):
            if module is not None:
                # diffusers' own `to` warns at every cast.
                torch.nn.Module.to(module, device=device, dtype=dtype)
        return self

    def with_token(self, token: Token, strength: float = 1.0) -> "MVDream":
        """A copy that knows one more token; networks are shared, so it costs nothing.

        strength: 0 stands for the token's initial words, 1 for the token, see `Token.at_strength`. A token of the same
        name is replaced. Vectors that require gradients get them through `encode_prompt`.

        Raises TokenError if the token was trained for another text encoder, or for other weights, and for a strength
        that is not finite.
        """
        if not math.isfinite(strength):
            raise TokenError(f"The strength of <{token.name}> is {strength}; expected a finite number, such as 1.")
        if token.base != self.info.base:
            raise TokenError(
                f"The token '{token.name}' was trained for the text encoder '{token.base}', but {self.info.title} has "
                f"'{self.info.base}'. Load the model it was trained with."
            )
        if token.model_hash and self.info.model_hash and token.model_hash != self.info.model_hash:
            raise TokenError(
                f"The token '{token.name}' was trained for other weights of '{token.base}' (SHA-256 "
                f"{token.model_hash[:12]}…) than those loaded ({self.info.model_hash[:12]}…). Train it again."
            )
        other = copy.copy(self)
        other._tokens = {**self._tokens, token.name: (token, strength)}
        return other

    # Text

    def encode_prompt(self, prompts: str | Sequence[str]) -> Tensor:  # (B,L,D)
        """What the U-Net is told by each prompt, (B,L,D) with L places of width D.

        A token is written ``<name>`` or ``embedding:name``. Differentiable with respect to the vectors of applied
        tokens.

        Raises TokenError for an unknown placeholder, or when prompt and tokens need more than L places.
        """
        ids, vectors = self.prompt_ids([prompts] if isinstance(prompts, str) else prompts)
        return self.encode_embeddings(expand(ids, self.token_rows(ids), vectors))

    def prompt_ids(self, prompts: Sequence[str]) -> tuple[Tensor, dict[int, Tensor]]:
        """Ids of prompts, (B,L), and the vectors (n,D) of each virtual id in them (one id per placeholder)."""
        tokenizer = _required(self.tokenizer, "tokenizer")
        placeholders = {name: token.vectors.shape[0] for name, (token, _) in self._tokens.items()}
        rows: list[list[int]] = []
        names: dict[int, str] = {}
        for text in prompts:
            unknown = tokenizer.unknown_words(_PLACEHOLDER.sub(" ", text))
            if unknown:
                logger.warning("%s does not know the words %s of the prompt %r.", self.info.title, unknown, text)
            ids, used = encode_ids(text, tokenizer, placeholders)
            rows.append(ids)
            names.update(used)
        applied = {virtual: self._tokens[name] for virtual, name in names.items()}
        return torch.tensor(rows), {virtual: token.at_strength(s) for virtual, (token, s) in applied.items()}

    def token_rows(self, ids: Tensor) -> Tensor:  # (...) -> (...,D)
        """Rows of the text encoder's embedding table, before positions are added; padding's for virtual ids."""
        tokenizer = _required(self.tokenizer, "tokenizer")
        table = _required(self.text_encoder, "text encoder").get_input_embeddings()
        known = torch.where(ids < tokenizer.vocab_size, ids, tokenizer.pad_id)
        return table(known.to(table.weight.device))

    def encode_embeddings(self, embeddings: Tensor) -> Tensor:  # (B,L,D) -> (B,L,D)
        """Run the text encoder on token embeddings to which positions have not been added; differentiable."""
        encoder = _required(self.text_encoder, "text encoder")
        # Every transformers version looks ids up with this module and adds positions after it.
        table = encoder.get_input_embeddings()
        device, dtype = _placement(encoder)
        embeddings = embeddings.to(device, dtype)
        handle = table.register_forward_hook(lambda module, args, output: embeddings)
        try:
            stand_in = torch.zeros(embeddings.shape[:2], dtype=torch.long, device=device)
            return encoder(input_ids=stand_in).last_hidden_state
        finally:
            handle.remove()

    # Cameras

    def camera_vectors(self, cameras: Cameras) -> Tensor:  # (C,16)
        """The 16 numbers per camera that the model reads, for cameras in the asset's world (azimuth 0 in front).

        MVDream's camera-to-world matrices (Blender axes, translation of unit length, row-major), turned about the
        vertical so that the asset's front lies at the model's `front_azimuth_deg`.
        """
        return conversions.to_mvdream(cameras, self.info.front_azimuth_deg)

    # Denoising

    def predict_noise(
        self,
        latents: Tensor,  # (B,C,h,w)
        timesteps: Tensor | int,  # (B,), one for all, or an int
        text_embeddings: Tensor,  # (B,L,D) or (1,L,D)
        cameras: Tensor | Cameras | None = None,  # (B,16), or one per view of an object
        num_frames: int = 4,
    ) -> Tensor:  # (B,C,h,w)
        """The noise in noisy latents, in their dtype and on their device; always noise, whatever the U-Net predicts.

        cameras: None leaves the camera embedding out (it is not fed zeros); with num_frames 1 that is the 2D mode, a
        batch of independent pictures. num_frames: views per object, which see each other in self-attention.
        Without gradients on a CUDA device, passes of equal shapes are replayed as a CUDA graph, see `graphs`.

        Raises ModelError if shapes disagree.
        """
        batch = latents.shape[0]
        if num_frames < 1 or batch % num_frames:
            raise ModelError(
                f"A batch of {batch} views cannot be split into objects of {num_frames} views. Pass num_frames=1 for "
                "single pictures, or a batch of whole objects."
            )
        if text_embeddings.shape[0] not in (1, batch):
            raise ModelError(
                f"There are text embeddings for {text_embeddings.shape[0]} views, but {batch} views; expected one row "
                "for all or one per view."
            )
        device, dtype = _placement(self.unet)
        t = torch.as_tensor(timesteps, device=latents.device).expand(batch)
        inputs = [latents.to(device, dtype), t.to(device), text_embeddings.to(device, dtype).expand(batch, -1, -1)]
        if cameras is not None:
            inputs.append(self._camera_rows(cameras, batch).to(device, dtype))

        def unet_pass(noisy: Tensor, t: Tensor, text: Tensor, rows: Tensor | None = None) -> tuple[Tensor, ...]:
            joined = {"num_frames": num_frames}
            return self.unet(noisy, t, text, class_labels=rows, cross_attention_kwargs=joined, return_dict=False)

        if device.type == "cuda" and not torch.is_grad_enabled():
            graphs = graphs_of(self.unet)
            predicted = graphs.run("The U-Net's pass", unet_pass, inputs, [self.unet], num_frames)[0].to(latents)
        else:
            predicted = unet_pass(*inputs)[0].to(latents)
        if self.schedule.prediction_type == "epsilon":
            return predicted
        return noise_from_velocity(predicted, latents, t, self._alphas_on(latents.device))

    def sample(
        self,
        prompt: str,
        cams: Cameras | Tensor | None,  # (C,16) if a tensor
        *,
        negative: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        eta: float = 0.0,
        sampler: str = "ddim",
        seed: int = 0,
        suffix: str | None = None,
        count: int = 1,
        latents: Tensor | None = None,  # (C,c,h,w)
        decode: bool = True,
        progress: Progress | None = None,
    ) -> Tensor:  # (C,H,W,3)
        """Views of what the prompt says, one per camera, consistent with each other; (C,H,W,3) float32 in [0,1].

        prompt: text with tokens as ``<name>``. cams: any number of cameras of one object (the model was trained for
        four at equal elevation, a quarter turn apart), or None for the 2D mode: `count` independent pictures without
        cameras.
        steps, guidance_scale, guidance_rescale: None takes the model's own values. Some step counts of DDIM run more
        steps, see `ddim_timesteps`. sampler: "ddim" as published, or one that often needs fewer steps, "dpmpp_2m"
        (DPM-Solver++) or "euler", see `sampling.solve`. eta: 0 is deterministic DDIM; above 0 for DDIM alone.
        seed: of the CPU generator that draws the noise, so that every device starts from the same.
        suffix: what is added to a prompt that lacks it; None takes the model's (none in 2D mode), "" adds nothing.
        latents: noise to start from instead of the seed's. decode: False returns the views' latents (C,c,h,w) on the
        U-Net's scale, for `decode_latents`. progress: called after each step, with a preview of up to four views side
        by side.

        Raises TokenError as `encode_prompt` does, and ModelError if shapes disagree and as `sample_latents` does.
        """
        vectors = None if cams is None else self._camera_rows(cams).to(self.device)
        views = count if vectors is None else vectors.shape[0]
        shape = (views, *self.latent_shape)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(shape, generator=generator) if latents is None else latents
        if start.shape != shape:
            raise ModelError(f"The starting latents are {tuple(start.shape)}; expected {shape} for these cameras.")
        if suffix is None:
            suffix = "" if vectors is None else self.info.caption_suffix
        report = progress or no_progress

        def callback(step: DdimStep) -> None:
            report(step.index, step.total, preview=lambda: self._preview(step.clean))

        with torch.no_grad():
            embeddings = self.encode_prompt([_with_suffix(prompt, suffix), negative])
            clean = sample_latents(
                self,
                start.to(self.device, torch.float32),
                embeddings[:1],
                embeddings[1:],
                vectors,
                1 if vectors is None else views,
                self.info.steps if steps is None else steps,
                self.info.guidance_scale if guidance_scale is None else guidance_scale,
                guidance_rescale=self.info.guidance_rescale if guidance_rescale is None else guidance_rescale,
                eta=eta,
                noise=generator if eta > 0 else None,
                sampler=sampler,
                callback=callback,
            )
            return self.decode_latents(clean).float() if decode else clean

    # Pictures

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:  # (B,H,W,3) -> two (B,C,h,w)
        """Mean and standard deviation of the latents of pictures in [0,1], both on the scale that the U-Net works on.

        ``mean + std · noise`` is a draw, as training takes it. Differentiable.
        """
        vae = _required(self.vae, "VAE")
        device, dtype = _placement(vae)
        pixels = images.movedim(-1, 1).to(device, dtype) * 2 - 1
        posteriors = in_parts(lambda part: vae.encode(part).latent_dist, pixels, _VAE_BATCH, "views through the VAE")
        scale = self.info.scaling_factor
        return torch.cat([p.mean for p in posteriors]) * scale, torch.cat([p.std for p in posteriors]) * scale

    def decode_latents(self, latents: Tensor) -> Tensor:  # (B,C,h,w) -> (B,H,W,3)
        """Pictures in [0,1] of latents on the U-Net's scale. Differentiable inside that range."""
        vae = _required(self.vae, "VAE")
        device, dtype = _placement(vae)
        scaled = (latents / self.info.scaling_factor).to(device, dtype)
        pictures = in_parts(
            lambda part: vae.decode(part, return_dict=False)[0], scaled, _VAE_BATCH, "views through the VAE"
        )
        pixels = torch.cat(pictures)
        return ((pixels + 1) / 2).clamp(0, 1).movedim(1, -1)

    def _preview(self, clean: Tensor) -> Tensor:  # (B,C,h,w) -> (H,n·W,3)
        with torch.no_grad():
            return torch.cat(list(self.decode_latents(clean[:_PREVIEW_VIEWS]).float()), dim=1)

    def _camera_rows(self, cameras: Tensor | Cameras, batch: int | None = None) -> Tensor:  # (batch,16)
        rows: Tensor = cameras if isinstance(cameras, Tensor) else self.camera_vectors(cameras)
        shape = tuple(rows.shape)
        if len(shape) != 2 or shape[0] == 0 or shape[1] != _CAMERA_SIZE:
            raise ModelError(f"The cameras are {shape}; expected a Cameras or a tensor (C,{_CAMERA_SIZE}), not empty.")
        if batch is None:
            return rows
        if batch % shape[0]:
            raise ModelError(
                f"There are {shape[0]} cameras for {batch} views; expected one per view, or one per view of an object."
            )
        return rows.repeat(batch // shape[0], 1)

    def _alphas_on(self, device: torch.device) -> Tensor:
        if device not in self._alphas:
            # float32 because some devices have no wider type.
            self._alphas[device] = self.schedule.alphas_cumprod.float().to(device)
        return self._alphas[device]


def _make_faster(*networks: Any) -> None:
    try:
        from .fused import fuse  # it brings diffusers
    except ImportError as error:  # a release of the libraries that has moved its layers
        logger.info("The networks' layers stay as they are: %s", first_line(error))
        return
    for network in networks:
        if network is not None:
            fuse(network)


def _placement(module: Any) -> tuple[torch.device, torch.dtype]:
    parameter = next(module.parameters())
    return parameter.device, parameter.dtype


def _required(part: Any, what: str) -> Any:
    if part is None:
        raise ModelError(f"This model was made without a {what}, which this needs. Load it from a checkpoint.")
    return part


def _with_suffix(prompt: str, suffix: str) -> str:
    return prompt if not prompt.strip() or suffix.strip(" ,") in prompt else prompt + suffix
