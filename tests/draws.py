"""Random draws, watched, or made on the host whatever the device."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Draws(TorchDispatchMode):
    """Notes every draw of a given generator within it.

    Attributes:
        made: the shape of each, and the type of the device that it was drawn on.
        copied: how many numbers each copy from the host to another device had.
    """

    def __init__(self):
        super().__init__()
        self.made, self.copied = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(isinstance(value, torch.Generator) for value in (*args, *(kwargs or {}).values())):
            self.made.append((tuple(result.shape), result.device.type))
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if function is torch.ops.aten._to_copy.default else args[1]
            if source.device.type == "cpu" and result.device.type != "cpu":
                self.copied.append(source.numel())
        return result


class HostGenerator(torch.Generator):
    """A generator on the host that says it is on another device; to be used within :class:`DrawnOnHost`."""

    def __new__(cls, device):
        generator = super().__new__(cls, "cpu")
        generator.device_told = device
        return generator

    @property
    def device(self):
        return self.device_told


class DrawnOnHost(TorchFunctionMode):
    """Within it what is drawn by a :class:`HostGenerator` is drawn on the host and moved to the device asked for: the
    same numbers on every device."""

    DRAWS = (torch.randn, torch.rand, torch.randint)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if not isinstance(kwargs.get("generator"), HostGenerator):
            return function(*args, **kwargs)
        assert function in self.DRAWS, f"{function} draws; teach the tests to draw it on the host"
        device = kwargs.pop("device", "cpu")
        return function(*args, **kwargs).to(device)
