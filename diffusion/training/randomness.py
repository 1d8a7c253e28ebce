"""Seeds that follow from (seed, stage, step, micro-batch) alone."""

import hashlib

import torch


def seed_of(text: str) -> int:
    """A seed of 63 bits that is another for every text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_dropout(generator: torch.Generator, update: int = 0) -> None:
    """Seeds the global generator, which dropout draws from, for one micro-batch.

    The seed follows from the micro-batch's own, but is another: with the same one a mask would be a function of the
    very numbers that the noise is made of.

    Args:
        generator: of the micro-batch.
        update: which of the updates that draw from this generator; each has a mask of its own.
    """
    torch.manual_seed(seed_of(f"{generator.initial_seed()}/dropout/{update}"))
