"""The network of a stored pipeline: its family, its configuration, its weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.runtime.errors import CheckpointError, UserError, brief
from diffusion.runtime.files import canonical_json, read_json_object, sha256_file
from diffusion.runtime.packages import version_of
from diffusion.teachers.families import TeacherFamily, families, family_of
from diffusion.teachers.weights import check_fit, described_weights, fill, load_weights, weights_files

# What `diffusers` calls the network among a pipeline's parts.
NETWORK_PARTS = ("unet", "transformer")
UNNAMED = "UNet2DModel"  # the Hub's oldest folders do not say


@dataclass(frozen=True)
class StoredNetwork:
    """A network in a folder of its own, or in its pipeline's.

    Attributes:
        config: what config.json holds.
        name: its class.
    """

    folder: Path
    family: TeacherFamily
    config: dict[str, Any]
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the states that it is fed."""
        return self.family.shape(self.config)

    def build(self) -> nn.Module:
        """The network with random weights.

        Raises:
            UserError: its class refuses the configuration.
        """
        try:
            network: nn.Module = self.family.network_class(self.name).from_config(self.config)
        except Exception as error:  # of a class that is not ours, at what a user's file says
            raise UserError(
                f"{self.folder / 'config.json'}: no network can be built from it ({brief(error)})."
            ) from error
        return network

    def load(self) -> nn.Module:
        """The network with its weights, read strictly from safetensors, on the CPU.

        Raises:
            CheckpointError: the weights are missing, truncated, not finite, or belong to another network.
            UserError: as :meth:`build`.
        """
        network, weights = self.build(), load_weights(self.folder)
        with self._weights_of_another():
            fill(network, weights)
        broken = [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
        if broken:
            raise CheckpointError(
                f"{weights_files(self.folder)[0]}: {len(broken)} tensors contain NaN or infinity, e.g. {broken[0]}."
            )
        return network

    def check(self) -> None:
        """Raises UserError where the configuration is not a teacher's."""
        if problems := self.family.problems(self.config):
            raise UserError("\n".join(f"{self.folder / 'config.json'}: {problem}" for problem in problems))

    def check_weights(self) -> None:
        """Raises CheckpointError where the weights' headers do not fit the network, and :meth:`build`'s UserError."""
        own = self.name in self.family.own_networks
        code = (
            [sha256_file(file) for file in sorted(Path(__file__).with_name("networks").glob("*.py"))] if own else None
        )
        key = canonical_json([version_of("diffusers"), code, self.config])
        weights = described_weights(self.folder)
        with self._weights_of_another():
            check_fit(self.build, weights, key)

    @contextmanager
    def _weights_of_another(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise CheckpointError(
                f"{weights_files(self.folder)[0]}: weights of another network than {self.folder / 'config.json'} "
                f"({brief(error)})."
            ) from error


def stored_network(pipeline: Path) -> StoredNetwork:
    """The network of a pipeline's folder; its weights are not looked at.

    Raises:
        UserError: it is a network of no known family.
    """
    folder = network_folder(pipeline)
    config = read_json_object(folder / "config.json")
    name = config.get("_class_name") or UNNAMED
    index = pipeline / "model_index.json"
    if family := family_of(pipeline_class(read_json_object(index)) if index.exists() else None, name):
        return StoredNetwork(folder, family, config, name)
    known = ", ".join(name for family in families().values() if not family.pipelines for name in family.networks)
    stock = ", ".join(name for family in families().values() for name in family.pipelines)
    raise UserError(
        f"{folder / 'config.json'}: found the network {name!r} (_class_name), expected one of {known}, or that of a "
        f"pipeline of the class {stock}. Name a folder with one of these, or convert the checkpoint "
        f"(docs/teachers.md)."
    )


def pipeline_class(index: Mapping[str, Any]) -> str:
    """The name of a pipeline's class, from its model_index.json."""
    name = index.get("_class_name")
    return str(name[-1] if isinstance(name, list) and name else name)


def network_folder(pipeline: Path) -> Path:
    """Where a pipeline's network is."""
    return next((pipeline / part for part in NETWORK_PARTS if (pipeline / part).is_dir()), pipeline)
