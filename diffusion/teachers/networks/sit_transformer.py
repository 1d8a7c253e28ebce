"""SiT (Ma et al. 2024, arXiv 2401.08740): a transformer whose clock runs to the data, told this suite's times.

`diffusers` has its blocks, which are DiT's (Peebles & Xie 2022, arXiv 2212.09748), but not what they are told: its
``DiTTransformer2DModel`` embeds the time by frequencies 10000^(−i/127), where both papers' code has 10000^(−i/128), and
has a copy of time's and classes' embeddings in every block.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, DiTTransformer2DModel, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

_NUM_TIMESTEPS = 1000
_FREQUENCIES = 128


class _Embedded(nn.Module):
    """Stands where a block of `diffusers` embeds time and class, and hands on what is embedded for all blocks."""

    def forward(self, embedded: torch.Tensor, class_labels: None, hidden_dtype: torch.dtype) -> torch.Tensor:
        return embedded


class SiTTransformer(ModelMixin, ConfigMixin):
    """A transformer that is called as `diffusers`' ``UNet2DModel``, with the sign and the times of its flows.

    The authors' network is told t and answers v = x − ε at t x + (1 − t) ε. This one is told 1000 σ and answers
    F = ε − x at (1 − σ) x + σ ε: the same state where t = 1 − σ, and F = −v.

    Args:
        sample_size: height and width of the states, of patches of ``patch_size``.
        num_class_embeds: labels, the one for no class included.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 4,
        out_channels: int = 4,
        patch_size: int = 2,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_class_embeds: int = 1001,
    ) -> None:
        super().__init__()
        width = num_attention_heads * attention_head_dim
        self.time_proj = Timesteps(2 * _FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(2 * _FREQUENCIES, width)
        self.class_embedding = nn.Embedding(num_class_embeds, width)
        self.transformer = DiTTransformer2DModel(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            patch_size=patch_size,
            num_layers=num_layers,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            num_embeds_ada_norm=1,  # of embeddings that are thrown away
            norm_eps=1e-6,
        )
        for block in self.transformer.transformer_blocks:
            block.norm1.emb = _Embedded()
        # The checkpoint has the patches' positions, and here they are kept with the weights.
        patches = self.transformer.pos_embed
        patches.register_buffer("pos_embed", patches.pos_embed, persistent=True)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor,
        return_dict: bool = True,
    ) -> Any:
        """F for the states ``sample``, shape (N, C, H, W).

        Args:
            timestep: 1000 σ, one for all or one a state.
            class_labels: shape (N,).
        """
        told = 1 - torch.as_tensor(timestep, device=sample.device).float().expand(len(sample)) / _NUM_TIMESTEPS
        embedded = self.time_embedding(self.time_proj(told).to(sample.dtype)) + self.class_embedding(class_labels)
        (velocity,) = self.transformer(sample, timestep=embedded, return_dict=False)
        return Transformer2DModelOutput(sample=-velocity) if return_dict else (-velocity,)
