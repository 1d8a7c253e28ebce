"""A text encoder of a few random weights, and a small teacher that is told texts by it; nothing is fetched."""

import string

import torch

from diffusion.denoiser import Denoiser
from diffusion.schedule import CosineSchedule
from diffusion.teachers.families.unet2d_condition import FAMILY
from diffusion.teachers.networks.unet import NetworkSettings, build_network
from diffusion.teachers.prompts import TextEncoder, encode
from diffusion.thresholding import NO_THRESHOLD

WIDTH, MAX_TOKENS = 16, 14
TEXTS = ("two on six", "six on two", "nine")
INDICES = (4, 7, 1)
NETWORK = {
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_resolutions": [4],
}
SHAPE = (1, 8, 16)


def write_encoder(folder, seed=0):
    """BERT of two layers, 16 wide, that reads words letter by letter, as a folder of `transformers`."""
    from transformers import BertConfig, BertModel, BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    pieces += [f"##{letter}" for letter in string.ascii_lowercase]
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def write_clip(folder, seed=0, max_tokens=16):
    """A CLIP of two layers that reads words letter by letter, with tokenizer and processor, as a folder of
    `transformers`; its images have 16 pixels a side."""
    import transformers

    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    pieces = {piece: number for number, piece in enumerate([*letters, "on</w>", "<|startoftext|>", "<|endoftext|>"])}
    start, end = len(pieces) - 2, len(pieces) - 1
    tokenizer = transformers.CLIPTokenizer(vocab=pieces, merges=[("o", "n</w>")], model_max_length=max_tokens)
    half = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = half | {"vocab_size": len(pieces), "max_position_embeddings": max_tokens}
    text |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    vision = half | {"image_size": 16, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        )
    model.save_pretrained(folder, safe_serialization=True)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    images = transformers.CLIPImageProcessor(**size)
    transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def tiny_prompts(place, texts=TEXTS, indices=INDICES, knows_empty=True):
    """Texts that the encoder has read; ``place`` gets the encoder as a pipeline has it."""
    flat = write_encoder(place / "flat")
    encoder = TextEncoder(flat, flat, MAX_TOKENS)
    (place / "pipeline").mkdir()
    encoder.save(place / "pipeline")
    return encode(encoder, texts, indices, knows_empty, place / "pipeline")


def tiny_text_denoiser(prompts, prediction_type="v_prediction", seed=0):
    """A U-Net of random weights for images of 8×16 pixels that attends to those texts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(NetworkSettings.model_validate(NETWORK), SHAPE, text_width=WIDTH)
    schedule = CosineSchedule(num_timesteps=200)
    denoiser = Denoiser(network, schedule, prediction_type, NO_THRESHOLD, prompts, FAMILY)
    return denoiser.eval().requires_grad_(False)
