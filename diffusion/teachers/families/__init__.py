"""Teacher families: every module of this folder is one, as its ``FAMILY``.

A family says which networks it has, how they are called and configured, and what they can be told. Its import must be
cheap, because the workflow imports it to check a configuration: heavy packages are imported inside its functions.
"""

import functools
import importlib
import pkgutil
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from diffusion.conditions import Conditions
from diffusion.family import Family


class TeacherFamily(Family):
    """A family whose pipelines are read from folders.

    Attributes:
        networks: the names of its classes.
        own_networks: those of them that are this suite's, whose code travels with their weights.
        enlarges: whether they are told an image of a lower resolution.
    """

    networks: ClassVar[tuple[str, ...]]
    own_networks: ClassVar[tuple[str, ...]] = ()
    enlarges: ClassVar[bool] = False

    @abstractmethod
    def network_class(self, name: str) -> Any:
        """The class of that name, one of ``networks``."""

    @abstractmethod
    def conditions(self, config: Mapping[str, Any], num_classes: int | None = None) -> Conditions:
        """What a network of this configuration can be told.

        Args:
            num_classes: how many of its labels are classes; None takes all.

        Raises:
            ValueError: it has conditions of another kind, or they do not fit ``num_classes``.
        """

    @abstractmethod
    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """What keeps a network of this configuration from being a teacher, a line each; none where nothing does."""


def family_of(pipeline: str | None, network: str) -> TeacherFamily | None:
    """The family of a network, by the classes of its pipeline and its own; None where it is not known."""
    known = [family for family in families().values() if network in family.networks]
    of_pipeline = (family for family in known if pipeline in family.pipelines)
    return next(of_pipeline, next((family for family in known if not family.pipelines), None))


@functools.cache
def families() -> dict[str, TeacherFamily]:
    """The registered families: name to family, sorted by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").FAMILY for name in names}
