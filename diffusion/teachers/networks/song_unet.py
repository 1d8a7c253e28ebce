"""DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456) as Karras et al. 2022 (arXiv 2206.00364) train them.

`diffusers` has no network that these weights fit: the sum of two branches is scaled by √½, the noise level is embedded
in another width and order, and NCSN++ adds the filtered picture to its encoder.
"""

import math
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, scaled_dot_product_attention, silu

_HALF = math.sqrt(0.5)
_MAX_PERIOD = 10_000


class SongUNet(ModelMixin, ConfigMixin):
    """A U-Net that is called as `diffusers`' ``UNet2DModel``; its weights have the names of NVlabs/edm, ``SongUNet``.

    DDPM++ is the default; NCSN++ has ``embedding_type="fourier"``, ``channel_mult_noise=2``,
    ``encoder_type="residual"`` and ``resample_filter=(1, 3, 3, 1)``.

    Args:
        sample_size: height and width of the pictures.
        channel_mult: per level, from the finest, channels in units of ``model_channels``.
        channel_mult_emb, channel_mult_noise: widths, in the same units, of the embedding that blocks are told and of
            the noise level's own.
        num_blocks: residual blocks a level in the encoder; the decoder has one more.
        attention_resolutions: heights in pixels of the levels whose encoder attends; the decoder does after its last
            block there, and at the coarsest level in any case.
        resample_filter: taps of the separable filter by which levels are halved and doubled.
        num_class_embeds: labels of a class-conditional network, the one for no class included.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        channel_mult_noise: int = 1,
        num_blocks: int = 4,
        attention_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.0,
        embedding_type: str = "positional",
        encoder_type: str = "standard",
        resample_filter: tuple[float, ...] = (1, 1),
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        if embedding_type not in ("positional", "fourier"):
            raise ValueError(f"embedding_type: found {embedding_type!r}, expected 'positional' or 'fourier'")
        if encoder_type not in ("standard", "residual"):
            raise ValueError(f"encoder_type: found {encoder_type!r}, expected 'standard' or 'residual'")
        if sample_size % 2 ** (len(channel_mult) - 1):
            raise ValueError(
                f"sample_size: found {sample_size}, expected a multiple of {2 ** (len(channel_mult) - 1)} for "
                f"{len(channel_mult)} levels"
            )
        width, told = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        self.register_buffer("kernel", torch.outer(taps, taps) / taps.sum().square())
        if embedding_type == "fourier":
            self.register_buffer("freqs", 16 * torch.randn(width // 2))
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, width)
        self.map_layer0, self.map_layer1 = nn.Linear(width, told), nn.Linear(told, told)

        def block(inputs: int, outputs: int, attends: bool = False, resample: str | None = None) -> _Block:
            return _Block(inputs, outputs, told, attends, resample, dropout)

        sizes = [sample_size >> level for level in range(len(channel_mult))]
        self.enc, channels, skips = nn.ModuleDict(), model_channels, [model_channels]
        self.enc[f"{sample_size}x{sample_size}_conv"] = nn.Conv2d(in_channels, model_channels, 3, padding=1)
        beside = in_channels
        for size, multiple in zip(sizes, channel_mult, strict=True):
            if size != sample_size:
                self.enc[f"{size}x{size}_down"] = block(channels, channels, resample="down")
                skips.append(channels)
                if encoder_type == "residual":
                    self.enc[f"{size}x{size}_aux_residual"] = nn.Conv2d(beside, channels, 3)
                    beside = channels
            for index in range(num_blocks):
                outputs = model_channels * multiple
                self.enc[f"{size}x{size}_block{index}"] = block(channels, outputs, size in attention_resolutions)
                skips.append(channels := outputs)

        self.dec = nn.ModuleDict()
        for size, multiple in reversed(list(zip(sizes, channel_mult, strict=True))):
            if size == sizes[-1]:
                self.dec[f"{size}x{size}_in0"] = block(channels, channels, attends=True)
                self.dec[f"{size}x{size}_in1"] = block(channels, channels)
            else:
                self.dec[f"{size}x{size}_up"] = block(channels, channels, resample="up")
            for index in range(num_blocks + 1):
                outputs, attends = model_channels * multiple, index == num_blocks and size in attention_resolutions
                self.dec[f"{size}x{size}_block{index}"] = block(channels + skips.pop(), outputs, attends)
                channels = outputs
        self.dec[f"{sample_size}x{sample_size}_aux_norm"] = _group_norm(channels)
        self.dec[f"{sample_size}x{sample_size}_aux_conv"] = nn.Conv2d(channels, out_channels, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """As the authors: Xavier's uniform, branches that end next to zero, attention that starts weak."""
        scales = {"conv1": 1e-5, "proj": 1e-5, "qkv": math.sqrt(0.2)}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                last = name.rpartition(".")[-1]
                nn.init.xavier_uniform_(module.weight, scales.get(last, 1e-5 if last.endswith("aux_conv") else 1.0))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        if self.class_embedding is not None:
            # Their linear map of √labels times a one-hot vector.
            labels, width = self.class_embedding.weight.shape
            bound = math.sqrt(6 * labels / (labels + width))
            nn.init.uniform_(self.class_embedding.weight, -bound, bound)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The network's output F, shape of ``sample``, as ``UNet2DOutput.sample`` or in a tuple.

        Args:
            sample: shape (N, C, H, W).
            timestep: c_noise, shape (N,) or ().
            class_labels: one a picture, shape (N,), of a network that has them.

        Raises:
            ValueError: labels for a network without, or none for one with.
        """
        told = self._told(torch.as_tensor(timestep, device=sample.device).float().expand(len(sample)), class_labels)
        x, beside = sample, sample
        skips: list[torch.Tensor] = []
        for name, module in self.enc.items():
            if name.endswith("aux_residual"):
                beside = x = skips[-1] = (x + self._halved(module, beside)) * _HALF
            else:
                x = module(x, told, self.kernel) if isinstance(module, _Block) else module(x)
                skips.append(x)
        for name, module in self.dec.items():
            if isinstance(module, _Block):
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = module(x, told, self.kernel)
            else:
                x = module(silu(x) if name.endswith("aux_conv") else x)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _told(self, timestep: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """The embedding of noise level and class, shape (N, channels)."""
        if (class_labels is None) != (self.class_embedding is None):
            lacks = "no class_labels" if class_labels is None else "class_labels for a network without classes"
            raise ValueError(f"found {lacks}; expected them where num_class_embeds is set, and only there")
        if self.config.embedding_type == "fourier":
            frequencies = 2 * math.pi * self.freqs.float()
        else:
            half = self.map_layer0.in_features // 2
            exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / (half - 1)
            frequencies = (1 / _MAX_PERIOD) ** exponents
        phases = torch.outer(timestep, frequencies)
        told = torch.cat([phases.sin(), phases.cos()], dim=1).to(self.dtype)
        if self.class_embedding is not None:
            told = told + self.class_embedding(class_labels).to(told.dtype)
        return silu(self.map_layer1(silu(self.map_layer0(told))))

    def _halved(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """A convolution followed by the filter, with all the padding before both."""
        reach = (len(self.kernel) - 1) // 2
        x = conv2d(x, module.weight, padding=1 + reach)
        x = conv2d(x, _per_channel(self.kernel, x), stride=2, groups=x.shape[1])
        return x + module.bias[:, None, None]


class _Block(nn.Module):
    """Two convolutions beside a shortcut, then attention of one head beside another; each sum is scaled by √½."""

    def __init__(
        self, inputs: int, outputs: int, told: int, attends: bool, resample: str | None, dropout: float
    ) -> None:
        super().__init__()
        self.resample, self.attends = resample, attends
        self.norm0, self.conv0 = _group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(told, outputs)
        self.norm1, self.conv1 = _group_norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs or resample else None
        if attends:
            self.norm2 = _group_norm(outputs)
            self.qkv, self.proj = nn.Conv2d(outputs, 3 * outputs, 1), nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: torch.Tensor, told: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        inner = self.conv0(self._resampled(silu(self.norm0(x)), taps))
        inner = silu(self.norm1(inner + self.affine(told)[:, :, None, None]))
        inner = self.conv1(self.dropout(inner))
        x = (inner + (x if self.skip is None else self.skip(self._resampled(x, taps)))) * _HALF
        return (x + self._attention(self.norm2(x))) * _HALF if self.attends else x

    def _resampled(self, x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        if self.resample is None:
            return x
        kernel, padding = _per_channel(taps, x), (len(taps) - 1) // 2
        if self.resample == "down":
            return conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])
        return conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=x.shape[1])

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        # Query, key and value of one channel lie next to each other.
        query, key, value = self.qkv(x).reshape(len(x), x.shape[1], 3, -1).permute(2, 0, 3, 1).unsqueeze(2)
        attended = scaled_dot_product_attention(query, key, value).squeeze(1)
        return self.proj(attended.transpose(1, 2).reshape(x.shape))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


def _per_channel(taps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The filter for a convolution of every channel by itself, shape (C, 1, taps, taps)."""
    return taps.to(x.dtype).expand(x.shape[1], 1, *taps.shape)
