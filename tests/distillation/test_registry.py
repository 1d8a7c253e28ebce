"""Methods of one's own: which classes are found, what is said of those that are not, and which files make a method."""

import itertools
import sys

import pytest

from boot.distillation import Boot, BootSettings
from diffusion.distillation import registry
from diffusion.distillation.registry import method_class, method_modules
from diffusion.runtime.errors import UserError

NUMBER = itertools.count()
FOUND = 'name = "mine"\n    title = "Mine"\n'


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes modules into a package beside boot/ and baselines/, called as ``{own}`` in them; returns its name."""
    package = f"own_methods_{next(NUMBER)}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "PACKAGES", ("boot", "baselines", package))

    def write(**modules):
        for name, text in modules.items():
            content = text if isinstance(text, bytes) else text.replace("{own}", package).encode()
            (tmp_path / package / f"{name}.py").write_bytes(content)
        registry._scan.cache_clear()
        return package

    yield write
    registry._scan.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def mine(imports, base, body=FOUND):
    return f"{imports}\n\nclass Mine({base}):\n    {body}"


DERIVED = {
    "a method of the suite": mine("from boot.distillation import Boot", "Boot"),
    "as an attribute": mine("import boot.distillation", "boot.distillation.Boot"),
    "of a module under another name": mine("import boot.distillation as paper", "paper.Boot"),
    "of a module from its package": mine("from boot import distillation", "distillation.Boot"),
    "under another name": mine("from boot.distillation import Boot as Paper", "Paper"),
    "under its own name": mine("from boot.distillation import Boot as Mine", "Mine"),
    "by a star": mine("from boot.distillation import *", "Boot"),
    "by an alias": mine("from boot.distillation import Boot\nBase = Boot", "Base"),
    "beside a mixin": mine("from boot.distillation import Boot\nclass Mixin: pass", "Mixin, Boot"),
    "through a base without a name": mine("from boot.distillation import Boot\nclass Base(Boot):\n    pass", "Base"),
    "with an annotated name": mine(
        "from typing import ClassVar\nfrom boot.distillation import Boot",
        "Boot",
        'name: ClassVar[str] = "mine"\n    title = "Mine"\n',
    ),
    "under a condition": "try:\n    import nowhere\nexcept ImportError:\n    from boot.distillation import Boot\n"
    'if True:\n    class Mine(Boot):\n        name = "mine"\n        title = "Mine"\n',
}


@pytest.mark.parametrize("text", DERIVED.values(), ids=DERIVED)
def test_a_class_with_a_name_whose_base_is_a_method_is_one(text, own):
    package = own(mine=text)
    assert method_modules()["mine"] == f"{package}.mine"
    kind = method_class("mine")
    assert issubclass(kind, Boot)
    assert method_class("boot") is Boot
    # Its settings are the base's, under its own name.
    assert issubclass(kind.Settings, BootSettings)
    assert kind.Settings().method == "mine"
    given = {"method": "mine", **kind.TINY}
    assert kind.Settings.model_validate(given).model_dump() == BootSettings.model_validate(
        given | {"method": "boot"}
    ).model_dump() | {"method": "mine"}
    for settings, other in ((kind.Settings, "boot"), (BootSettings, "mine")):
        with pytest.raises(ValueError, match="method"):
            settings.model_validate({"method": other})


def test_bases_are_followed_through_files(own):
    own(
        shared="from baselines.samplers import Ddim\nclass Base(Ddim):\n    title = 'Base'\n",
        door="from .shared import Base\n",
        mine="from . import door\nclass Mine(door.Base):\n    name = 'mine'\n",
        other="from diffusion.distillation.sampler import TeacherSampler as T\nclass Other(T):\n    name = 'other'\n",
    )
    assert {"mine", "other"} <= set(method_modules())


UNKNOWN = {
    "no base": ("class Mine:\n    name = 'mine'\n", "holds no method: its class Mine has no base that is a method"),
    "a base from elsewhere": (
        mine("from torch.nn import Module", "Module"),
        "holds no method: its class Mine has no base that is a method",
    ),
    "a base in a circle": (
        "class A(B):\n    name = 'a'\nclass B(A):\n    pass\n",
        "holds no method: its class A has no base that is a method, its class B has no base that is a method",
    ),
    "no name": (
        mine("from boot.distillation import Boot", "Boot", 'title = "Mine"\n'),
        'holds no method: its class Mine has no name = "…"',
    ),
    "a name that is computed": (
        mine("from boot.distillation import Boot", "Boot", 'name = "mi" + "ne"\n'),
        "holds no method: its class Mine has a name that is not a text in quotes",
    ),
    "a name of the report's": (
        mine("from boot.distillation import Boot", "Boot", 'name = "external"\n'),
        'holds no method: its class Mine has name = "external", which means something else',
    ),
    "no class": ("def mine(): pass\n", "holds no method: it has no class"),
    "a syntax error": ("class Mine(Boot:\n    pass\n", "cannot be read: line 1: "),
    "an indent": ("x = 1\n  y = 2\n", "cannot be read: line 2: unexpected indent"),
    "another encoding": (b'name = "\xff"', "cannot be read: "),
    "a zero byte": (b"name = 1\0", "cannot be read: "),
}


@pytest.mark.parametrize(("text", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_file_without_a_method_is_named_where_an_unknown_one_is_asked_for_and_stops_no_other(text, reason, own):
    package = own(mine=text)
    with pytest.raises(UserError) as caught:
        method_class("mine")
    message = str(caught.value)
    assert message.startswith("found 'mine', expected one of: boot, ")
    assert f"; {package}/mine.py {reason}" in message
    assert "\n" not in message
    assert method_class("boot") is Boot
    # Helpers are meant to hold none.
    assert "boot/losses.py" not in message
    assert "consistency_pipeline.py" not in message


@pytest.mark.parametrize("asked", [None, 7, ["boot"], {"boot": 1}])
def test_a_method_that_is_no_text_is_unknown(asked):
    with pytest.raises(UserError, match=r"expected one of: boot, .*unipc\.$"):
        method_class(asked)


def test_a_taken_name_is_refused_naming_both_files_where_it_is_asked_for(own):
    package = own(
        one=DERIVED["a method of the suite"],
        two=DERIVED["as an attribute"],
        copied=mine("from boot.distillation import Boot", "Boot", 'name = "boot"\n'),
    )
    both = rf"{package}/one.py \(class Mine\) and {package}/two.py \(class Mine\); rename"
    with pytest.raises(UserError, match=both):
        method_class("mine")
    with pytest.raises(UserError, match=rf"boot/distillation.py \(class Boot\) and {package}/copied.py \(class Mine\)"):
        method_class("boot")
    assert method_class("ddim").name == "ddim"


WRONG = {
    "an import that fails": (
        mine("from boot.distillation import Boot\nimport nowhere_at_all", "Boot"),
        r"mine.py cannot be imported: ModuleNotFoundError in line 2: No module named 'nowhere_at_all'\.$",
    ),
    "an error of its own": (
        mine("from boot.distillation import Boot", "Boot") + "    steps = 1 / 0\n",
        r"mine.py cannot be imported: ZeroDivisionError in line 6: division by zero\.$",
    ),
    "no settings": (
        mine("from diffusion.distillation.method import Method", "Method"),
        r"class Mine in \S+mine.py lacks: Settings, evaluations, sampler\.$",
    ),
    "a training of its own under the base of samplers": (
        mine("from diffusion.distillation.method import Method", "Method", FOUND + "    def distil(self): ...\n"),
        r"class Mine in \S+mine.py trains, and its base is no Distiller; derive it from ",
    ),
    "no title": (
        mine("from diffusion.distillation.sampler import TeacherSampler", "TeacherSampler", 'name = "mine"\n'),
        r"class Mine in \S+mine.py lacks: Settings, draw, title\.$",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_method_that_cannot_be_used_is_named_in_one_line(text, message, own):
    own(mine=text)
    with pytest.raises(UserError, match=message):
        method_class("mine")
    assert method_class("boot") is Boot


def test_what_editors_leave_is_no_method(tmp_path, own):
    package = own()
    (tmp_path / package / ".#mine.py").symlink_to("nobody@nowhere.1")
    registry._scan.cache_clear()
    assert "boot" in method_modules()
    with pytest.raises(UserError, match=r"unipc\.$"):
        method_class("unknown")


def test_settings_that_take_the_name_already_are_left_as_they_are():
    for name in method_modules():
        kind = method_class(name)
        assert kind.Settings is getattr(sys.modules[kind.__module__], kind.Settings.__name__)
