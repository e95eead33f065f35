"""The networks: the three that are shipped, in the libraries' own classes, and the asset encoder that is not."""

import torch
from torch import Tensor, nn

from invert3d_core.mvdream.attention import make_multiview
from invert3d_core.toy.primitives import CENTER, COLOR, HALF, KIND, PART, ROTATION, TAPER
from invert3d_core.toy.vocabulary import MAX_LENGTH, words

WIDTH = 128
HEADS = 4
LATENT_CHANNELS = 8
SLOTS = 16  # pseudo-tokens of an asset
WORD_SCALE = 0.5  # every word and pseudo-token vector lies on a sphere of radius WORD_SCALE * sqrt(WIDTH)

UNET_CONFIG = {
    "sample_size": 16,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "block_out_channels": (96, 128, 160),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": HEADS,
    "cross_attention_dim": WIDTH,
    "use_linear_projection": True,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 16,
}
VAE_CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (32, 64, 64, 96),
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 16,
    "sample_size": 128,
    "scaling_factor": 1.0,
}


def make_unet() -> nn.Module:
    """The multi-view U-Net; called with ``class_labels=None`` and ``num_frames=1`` it is a plain 2D one."""
    from diffusers import UNet2DConditionModel

    return make_multiview(UNet2DConditionModel(**UNET_CONFIG))


def make_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**VAE_CONFIG)


def on_sphere(vectors: Tensor) -> Tensor:  # (..., WIDTH)
    """LayerNorm without parameters, times `WORD_SCALE`: all vectors have the same norm and mean 0."""
    return nn.functional.layer_norm(vectors, (WIDTH,)) * WORD_SCALE


def make_text_encoder() -> nn.Module:
    """A CLIP text model with the toy's sizes, its word table drawn near the sphere."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(words()),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = CLIPTextModel(config)
    nn.init.normal_(word_table(model).weight)
    return model


def word_table(text_encoder: nn.Module) -> nn.Embedding:
    return next(m for name, m in text_encoder.named_modules() if name.endswith("token_embedding"))


def encode_text(model: nn.Module, embeddings: Tensor) -> Tensor:  # (B, L, W) -> (B, L, W)
    """What the CLIP text model makes of token embeddings (before positions), without its tokenizer's baggage.

    The same arithmetic as ``CLIPTextModel(ids).last_hidden_state``, in a form that compiles into one graph.
    """
    inner = getattr(model, "text_model", model)
    length = embeddings.shape[1]
    x = embeddings + inner.embeddings.position_embedding.weight[:length]
    for layer in inner.encoder.layers:
        y = layer.layer_norm1(x)
        attention = layer.self_attn
        q, k, v = (
            project(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        y = layer.mlp.fc1(layer.layer_norm2(x))
        x = x + layer.mlp.fc2(y * torch.sigmoid(1.702 * y))
    return inner.final_layer_norm(x)


class AssetEncoder(nn.Module):
    """Primitives of an asset → its pseudo-tokens (B,16,128), the words that the vocabulary lacks.

    A perceiver: learned queries read the primitives. Only training uses it; users learn a token by optimisation,
    which finds its way in the space that this encoder has taught the U-Net.
    """

    FEATURES = 4 + 3 + 3 + 3 + 9 + 1 + 4 + 3 + 3 + 1

    def __init__(self, width: int = 256, layers: int = 4):
        super().__init__()
        self.bands = 3
        self.read = nn.Linear(self.FEATURES + 12 * self.bands, width)
        self.queries = nn.Parameter(torch.randn(SLOTS, width) * 0.5)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 8, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.write = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, WIDTH))

    def features(self, rows: Tensor, stretch: Tensor, sphere: Tensor) -> Tensor:
        """(B,P,21), (B,3), (B,4 centre and radius of the raw asset) -> (B,P,F)."""
        kind = nn.functional.one_hot(rows[..., KIND].clamp_min(0).long(), 4).to(rows)
        part = nn.functional.one_hot(rows[..., PART].long(), 4).to(rows)
        center = (rows[..., CENTER] * stretch[:, None] - sphere[:, None, :3]) / sphere[:, None, 3:]
        half = rows[..., HALF] / sphere[:, None, 3:]
        count = rows.shape[1]
        waves = [
            wave(scale * torch.cat([center, half], -1))
            for scale in (3.0, 6.0, 12.0)[: self.bands]
            for wave in (torch.sin, torch.cos)
        ]
        return torch.cat(
            [
                kind,
                center,
                half,
                half.clamp_min(1e-3).log(),
                rows[..., ROTATION],
                rows[..., TAPER, None],
                part,
                rows[..., COLOR] * 2 - 1,
                stretch.log()[:, None].expand(-1, count, -1) * 4,
                sphere[:, None, 3:].log().expand(-1, count, -1),
                *waves,
            ],
            -1,
        )

    def forward(self, rows: Tensor, stretch: Tensor, sphere: Tensor) -> Tensor:
        features = self.features(rows, stretch, sphere)
        tokens = torch.cat([self.queries.expand(len(rows), -1, -1), self.read(features)], 1)
        empty = torch.cat([rows.new_zeros(len(rows), SLOTS, dtype=torch.bool), rows[..., KIND] < 0], 1)
        mask = torch.zeros_like(empty, dtype=tokens.dtype).masked_fill(empty, float("-inf"))
        for block in self.blocks:
            tokens = block(tokens, src_key_padding_mask=mask)
        return on_sphere(self.write(tokens[:, :SLOTS]))
