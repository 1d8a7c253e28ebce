"""Stock pipelines of `diffusers` with a few random weights each, as folders; nothing is fetched."""

import json
import string

import torch
import transformers

import diffusers  # isort: skip

TEXT = 16  # width of the small text encoders
_LETTERS = string.ascii_lowercase


def write(folder, name, **options):
    """A pipeline of :data:`PIPELINES` in ``folder``; the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        PIPELINES[name](folder, **options).save_pretrained(folder, safe_serialization=True)
    if name == "flux":  # which takes any size: its user says which
        file = folder / "transformer" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": 8}))
    return folder


# -- text encoders -----------------------------------------------------------------------------------------------------


def _clip(folder, projection=False, length=24):
    """CLIP's text tower, which reads letter by letter, and its tokenizer."""
    pieces = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=length
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=TEXT,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=TEXT,
        bos_token_id=len(pieces) - 2,
        eos_token_id=len(pieces) - 1,
        pad_token_id=len(pieces) - 1,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval(), tokenizer


def _t5(length=10, width=TEXT):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in _LETTERS)]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)
    config = transformers.T5Config(vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config).eval(), tokenizer


def _gemma():
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *_LETTERS]
    tokenizer = transformers.GemmaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
    config = transformers.Gemma2Config(
        vocab_size=len(pieces),
        hidden_size=TEXT,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return transformers.Gemma2Model(config).eval(), tokenizer


# -- autoencoders and networks -----------------------------------------------------------------------------------------


def _vae(channels=4, **config):
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=16,
        **config,
    ).eval()


def deep_compression():
    """Sana's kind of autoencoder: half the side, without a posterior."""
    return diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    ).eval()


def _unet(**config):
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT,
        "attention_head_dim": 2,
    } | config
    return diffusers.UNet2DConditionModel(**config).eval()


def _ddim(prediction_type="epsilon", **config):
    """Stable Diffusion's betas."""
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"} | config
    return diffusers.DDIMScheduler(
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        **config,
    )


# -- pipelines ---------------------------------------------------------------------------------------------------------


def _stable_diffusion(folder, prediction_type="epsilon"):
    encoder, tokenizer = _clip(folder / "made")
    return diffusers.StableDiffusionPipeline(
        vae=_vae(scaling_factor=0.18215),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=_ddim(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl(folder):
    (one, reads), (two, reads_too) = _clip(folder / "made"), _clip(folder / "made2", projection=True)
    network = _unet(
        cross_attention_dim=2 * TEXT,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TEXT + 6 * 8,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=one,
        tokenizer=reads,
        text_encoder_2=two,
        tokenizer_2=reads_too,
        unet=network,
        scheduler=_ddim(),
        add_watermarker=False,
    )


def _deepfloyd_if(_folder, enlarges=False):
    encoder, tokenizer = _t5()
    network = _unet(
        **({"in_channels": 6, "class_embed_type": "timestep", "sample_size": 16} if enlarges else {"in_channels": 3}),
        out_channels=6,
        block_out_channels=(32, 64),
        norm_num_groups=4,
        cross_attention_dim=32,
        encoder_hid_dim=TEXT,
        encoder_hid_dim_type="text_proj",
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        clip_sample=True,
    )
    kind, further = diffusers.IFPipeline, {}
    if enlarges:
        kind = diffusers.IFSuperResolutionPipeline
        further = {"image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")}
    return kind(
        tokenizer=tokenizer,
        text_encoder=encoder,
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
        **further,
    )


def _pixart(kind, folder):
    encoder, tokenizer = _t5(length=12)
    network = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=TEXT,
        norm_num_groups=2,
        use_additional_conditions=False,
    ).eval()
    scheduler = _ddim(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return kind(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=_vae(scaling_factor=0.18215),
        transformer=network,
        scheduler=scheduler,
    )


def _dit(_folder):
    network = diffusers.DiTTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_embeds_ada_norm=10,
    ).eval()
    scheduler = _ddim(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return diffusers.DiTPipeline(transformer=network, vae=_vae(scaling_factor=0.18215), scheduler=scheduler)


def _stable_diffusion_3(folder):
    (one, reads), (two, reads_too) = (_clip(folder / f"made{n}", projection=True) for n in (1, 2))
    three, reads_three = _t5(width=2 * TEXT)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * TEXT,
        caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=8,
    ).eval()
    return diffusers.StableDiffusion3Pipeline(
        transformer=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=one,
        tokenizer=reads,
        text_encoder_2=two,
        tokenizer_2=reads_too,
        text_encoder_3=three,
        tokenizer_3=reads_three,
    )


def _flux(folder, guidance_embeds=True):
    (one, reads), (two, reads_too) = _clip(folder / "made"), _t5()
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return diffusers.FluxPipeline(
        scheduler=scheduler,
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=one,
        tokenizer=reads,
        text_encoder_2=two,
        tokenizer_2=reads_too,
        transformer=network,
    )


def _sana(_folder):
    encoder, tokenizer = _gemma()
    network = diffusers.SanaTransformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=TEXT,
    ).eval()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=deep_compression(), transformer=network, scheduler=scheduler
    )


PIPELINES = {
    "stable-diffusion": _stable_diffusion,
    "stable-diffusion-xl": _stable_diffusion_xl,
    "deepfloyd-if": _deepfloyd_if,
    "deepfloyd-if-2": lambda folder: _deepfloyd_if(folder, enlarges=True),
    "pixart-alpha": lambda folder: _pixart(diffusers.PixArtAlphaPipeline, folder),
    "pixart-sigma": lambda folder: _pixart(diffusers.PixArtSigmaPipeline, folder),
    "dit": _dit,
    "stable-diffusion-3": _stable_diffusion_3,
    "flux": _flux,
    "sana": _sana,
}
