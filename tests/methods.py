"""Every registered method, built with settings that take no time."""

from diffusion.distillation.registry import method_class, method_modules

METHODS = list(method_modules())
TRAINED = [name for name in METHODS if method_class(name).trains]


def build(name, guidance=None, **training):
    kind = method_class(name)
    raw = {"method": name, **kind.TINY}
    if training:
        raw["training"] = raw["training"] | training
    return kind(kind.Settings.model_validate(raw), guidance)
