"""What a denoiser is told beside the noisy image and the time: nothing, a class, or what a subclass has."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn.functional import one_hot

# By this suite's names, for instance {"class_labels": labels} or {"text": …, "text_mask": …}, each with one entry an
# image; the network's family knows what its forward call names them. None is an unconditional network.
Condition = Mapping[str, torch.Tensor] | None


def join(*conditions: Condition) -> Condition:
    """The condition of several batches of one denoiser, one after the other."""
    first, *others = conditions
    if first is None:
        return None
    return {key: torch.cat([value, *(other[key] for other in others if other)]) for key, value in first.items()}


def first_of(condition: Condition, count: int) -> Condition:
    """The condition of a batch's first ``count`` pictures."""
    return None if condition is None else {key: value[:count] for key, value in condition.items()}


class Conditions(ABC):
    """The conditions that a denoiser can be given.

    Attributes:
        num_classes: of images; None where the denoiser is told no class.
        told: what the denoiser is told beside the time.
    """

    told: ClassVar[Literal["nothing", "class", "text"]]

    num_classes: int | None

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Condition:
        """``count`` conditions for distillation, drawn without any data, on the generator's device."""

    @abstractmethod
    def of_samples(self, indices: Iterable[int], device: torch.device | str) -> Condition:
        """The conditions of the samples with these indices: the same for every method and sampling seed."""

    @abstractmethod
    def labels(self, condition: Condition) -> torch.Tensor | None:
        """What is stored with samples of this condition and judged: an integer each, shape (N,), or nothing."""

    @abstractmethod
    def of_labels(self, labels: torch.Tensor) -> Condition:
        """The conditions of real images with these labels, int64, shape (N,)."""

    @abstractmethod
    def without(self, condition: Condition) -> Condition:
        """``condition`` with ∅ in the place of what guidance strengthens; all else of it stays.

        Raises:
            ValueError: the denoiser has no unconditional input.
        """

    @abstractmethod
    def between(self, first: Condition, second: Condition, share: torch.Tensor) -> Condition:
        """What lies between two conditions, on the straight line between their embeddings.

        A network reads it within :meth:`between_read_by`.

        Args:
            share: how far from the first to the second, in [0, 1], shape (N,).
        """

    @contextmanager
    def between_read_by(self, network: nn.Module) -> Iterator[None]:
        """Within it, ``network`` takes what :meth:`between` gives, and no other condition."""
        yield

    def dropped(self, condition: Condition, share: float, generator: torch.Generator) -> Condition:
        """``condition`` :meth:`without` itself for a random ``share`` of the images (Ho & Salimans 2022, algorithm 1).

        Nothing is drawn where the share is 0.
        """
        if condition is None or share == 0:
            return condition
        count = len(next(iter(condition.values())))
        dropped = torch.rand(count, generator=generator, device=generator.device) < share
        none = self.without(condition)
        assert none is not None
        return {
            key: torch.where(dropped.to(value.device).reshape(-1, *[1] * (value.ndim - 1)), none[key], value)
            for key, value in condition.items()
        }

    @property
    @abstractmethod
    def can_be_guided(self) -> bool:
        """Whether there are both a condition and an unconditional input."""


class Unconditional(Conditions):
    """No condition at all."""

    told: ClassVar[Literal["nothing", "class", "text"]] = "nothing"
    num_classes = None
    can_be_guided = False

    def draw(self, count: int, generator: torch.Generator) -> Condition:
        return None

    def of_samples(self, indices: Iterable[int], device: torch.device | str) -> Condition:
        return None

    def labels(self, condition: Condition) -> torch.Tensor | None:
        return None

    def of_labels(self, labels: torch.Tensor) -> Condition:
        return None

    def without(self, condition: Condition) -> Condition:
        return None

    def between(self, first: Condition, second: Condition, share: torch.Tensor) -> Condition:
        return None


@dataclass(frozen=True)
class ClassLabels(Conditions):
    """One of ``num_classes`` classes, as the ``class_labels`` of a `diffusers` network.

    Attributes:
        num_classes: labels 0 … num_classes − 1.
        has_null: whether the network has one more label, ``num_classes``, that stands for no class.
    """

    told = "class"
    num_classes: int
    has_null: bool

    @property
    def can_be_guided(self) -> bool:
        return self.has_null

    @property
    def null(self) -> int:
        """The label of no class."""
        return self.num_classes

    def labels(self, condition: Condition) -> torch.Tensor | None:
        return condition["class_labels"] if condition else None

    def of_labels(self, labels: torch.Tensor) -> Condition:
        return {"class_labels": labels}

    def draw(self, count: int, generator: torch.Generator) -> Condition:
        """Uniform over the classes."""
        labels = torch.randint(self.num_classes, (count,), generator=generator, device=generator.device)
        return {"class_labels": labels}

    def of_samples(self, indices: Iterable[int], device: torch.device | str) -> Condition:
        """Sample i is of class i mod num_classes, so that the classes are as even as the count allows."""
        return {"class_labels": torch.tensor([int(i) % self.num_classes for i in indices], device=device)}

    def without(self, condition: Condition) -> Condition:
        if not self.has_null:
            raise ValueError("the network has no label for no class")
        assert condition is not None
        return {**condition, "class_labels": torch.full_like(condition["class_labels"], self.null)}

    def between(self, first: Condition, second: Condition, share: torch.Tensor) -> Condition:
        """Weights over the labels, float32, shape (N, labels), in place of one label an image."""
        assert first is not None
        assert second is not None
        count = self.num_classes + self.has_null
        start, end = (one_hot(condition["class_labels"], count).float() for condition in (first, second))
        return {"class_labels": torch.lerp(start, end, share[:, None])}

    @contextmanager
    def between_read_by(self, network: nn.Module) -> Iterator[None]:
        embedding = network.class_embedding
        assert isinstance(embedding, nn.Embedding)
        network.class_embedding = MixedClasses(embedding)
        try:
            yield
        finally:
            network.class_embedding = embedding


class MixedClasses(nn.Module):
    """A class embedding that takes weights over the labels, shape (N, labels), in place of one label a picture.

    What lies between two classes is not defined by the network; a straight line between their embeddings is the usual
    answer.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        return weights.to(self.embedding.weight.dtype) @ self.embedding.weight
