"""What evaluations of a network take: floating-point operations and memory, counted without computing any."""

import functools
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from diffusion.conditions import Conditions
from diffusion.distillation.distances import LpipsSettings, build_lpips
from diffusion.family import UNET, Family


class Kept(NamedTuple):
    """What an evaluation with a gradient keeps for its backward pass, in bytes.

    Attributes:
        per_image: of each image.
        copies: of the weights, which autocast makes anew in every evaluation, however many images.
    """

    per_image: float
    copies: float


def network_operations(
    build: Callable[[], nn.Module], shape: tuple[int, int, int], conditions: Conditions, family: Family = UNET
) -> float:
    """The floating-point operations of one evaluation of the network that ``build`` makes, without computing any.

    Args:
        shape: (C, H, W) of the pictures.
    """
    with torch.device("meta"):
        network = build()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        evaluate(family, network, torch.empty(1, *shape, device="meta"), conditions)
    return float(counter.get_total_flops())


class _AutocastOfGpus(TorchFunctionMode):
    """Computes in float32 what autocast does so on a GPU, and on a processor does not: normalisation and resizing."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (functional.group_norm, functional.layer_norm, functional.interpolate):
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


@contextmanager
def _bf16_of_gpus() -> Iterator[None]:
    """bfloat16 autocast of the training loop, with a GPU's choice of operations, for tensors of the CPU."""
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), _AutocastOfGpus():
        yield


@contextmanager
def _kept_for_backward() -> Iterator[dict[int, torch.UntypedStorage]]:
    """The storages that autograd keeps of what is computed in the block, each once: views may share one."""
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def network_activations(
    build: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    conditions: Conditions,
    bf16: bool = False,
    family: Family = UNET,
    recomputed: bool = False,
) -> Kept:
    """What an evaluation with a gradient keeps for its backward pass, without computing any.

    Args:
        shape: (C, H, W) of the pictures.
        bf16: under bfloat16 autocast, as on a GPU; else in float32.
        recomputed: where the blocks' activations are computed again: what the blocks are given stays, and in addition
            all of the block that keeps most.
    """
    counts, sizes = (2, 3), []  # of one image alone some tensors are views that are copies of several
    with FakeTensorMode(allow_non_fake_inputs=True):  # embeddings of texts are real
        network: Any = build().train()
        weights = {weight.untyped_storage()._cdata for weight in network.parameters()}

        def size(kept: dict[int, torch.UntypedStorage]) -> int:
            return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)

        for count in counts:
            blocks = [0]
            with _kept_for_backward() as kept, _bf16_of_gpus() if bf16 else nullcontext():

                def within(block: Callable[..., Any], *given: Any, kept: Any = kept, blocks: Any = blocks) -> Any:
                    storages = [part.untyped_storage() for part in tree_leaves(given) if torch.is_tensor(part)]
                    kept.update({storage._cdata: storage for storage in storages})
                    with _kept_for_backward() as inside:
                        made = block(*given)
                    blocks.append(size({key: value for key, value in inside.items() if key not in kept}))
                    return made

                if recomputed:
                    network.enable_gradient_checkpointing(within)
                evaluate(family, network, torch.empty(count, *shape), conditions)
            sizes.append(size(kept) + max(blocks))
    return Kept(float(sizes[1] - sizes[0]), float(sizes[0] - counts[0] * (sizes[1] - sizes[0])))


def evaluate(family: Family, network: nn.Module, x: torch.Tensor, conditions: Conditions) -> None:
    """One evaluation for each of the states ``x``, shape (N, C, H, W), all with the first sample's condition."""
    told = torch.zeros(len(x), device=x.device)
    condition = conditions.of_samples([0] * len(x), x.device)
    if family.embeds_scale(getattr(network, "config", {})):
        condition = {**(condition or {}), "guidance": torch.ones(len(x), device=x.device)}
    family.call(network, x, told, condition)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made within it.

    Attributes:
        now: of those that are alive.
        most: of those that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {part.untyped_storage()._cdata for part in tree_leaves((args, kwargs)) if torch.is_tensor(part)}
        for part in tree_leaves(made):
            if torch.is_tensor(part) and (storage := part.untyped_storage())._cdata not in self._known | given:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def network_passing(
    build: Callable[[], nn.Module], shape: tuple[int, int, int], conditions: Conditions, family: Family = UNET
) -> float:
    """The most bytes that an evaluation without a gradient holds beside the weights, of each image, in float32.

    Args:
        shape: (C, H, W) of the images.
    """
    counts, most = (2, 3), []
    with FakeTensorMode(allow_non_fake_inputs=True):  # embeddings of texts are real
        network = build().eval()
        for count in counts:
            with torch.no_grad(), LiveBytes() as live:
                evaluate(family, network, torch.empty(count, *shape), conditions)
            most.append(live.most)
    return float(most[1] - most[0])


class Coding(NamedTuple):
    """What an autoencoder takes.

    Attributes:
        encoder, decoder: floating-point operations of one image.
        weights: bytes.
    """

    encoder: float
    decoder: float
    weights: float


NO_CODING = Coding(0.0, 0.0, 0.0)


def coding_cost(build: Callable[[], Any], images: tuple[int, int, int], latents: tuple[int, int, int]) -> Coding:
    """Of the autoencoder that ``build`` makes, without computing any.

    Args:
        images, latents: (C, H, W).
    """
    with torch.device("meta"):
        autoencoder = build()
    counted: dict[str, float] = {}
    for part, code, shape in (("encoder", autoencoder.encode, images), ("decoder", autoencoder.decode, latents)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            code(torch.empty(1, *shape, device="meta"))
        counted[part] = float(counter.get_total_flops())
    return Coding(**counted, weights=4.0 * sum(weight.numel() for weight in autoencoder.parameters()))


class Comparison(NamedTuple):
    """What LPIPS takes to compare one pair of images, one of which has a gradient.

    Attributes:
        operations: floating-point operations, forward for both and backward for the one.
        kept: bytes that are kept for its backward pass.
        weights: bytes of the backbone, however many pairs.
    """

    operations: float
    kept: float
    weights: float


NO_COMPARISON = Comparison(0.0, 0.0, 0.0)


@functools.cache
def lpips_comparison(settings: LpipsSettings, shape: tuple[int, int, int]) -> Comparison:
    """Of the network that the settings describe, without computing any, and without its weights.

    Args:
        shape: (C, H, W) of the images.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights that come with the package have no place on this device
        distance = build_lpips(settings).to("meta")
        one, other = torch.empty(1, *shape, requires_grad=True), torch.empty(1, *shape)
    own = {part.untyped_storage()._cdata: part.nbytes for part in (*distance.parameters(), *distance.buffers())}
    with FlopCounterMode(display=False) as counter:
        with _kept_for_backward() as kept:
            value = distance(one, other).sum()
        size = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
        value.backward()
    return Comparison(float(counter.get_total_flops()), float(size), float(sum(own.values())))
