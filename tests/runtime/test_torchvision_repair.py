"""The repair of torchvision acts where, and only where, its compiled operators do not load."""

import subprocess
import sys
import textwrap


def run(program: str) -> str:
    """Runs a program in an interpreter of its own: the repair happens once a process, on import."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_imports_after_the_package() -> None:
    assert run("import diffusion, torchvision; print(torchvision.__version__)")


def test_nothing_is_declared_where_the_operators_load() -> None:
    program = """
        import torch

        loaded = []
        torch.ops.load_library = loaded.append
        from diffusion.runtime import torchvision_repair

        assert len(loaded) == 1, loaded
        assert torchvision_repair.repair_torchvision() is False
        assert torchvision_repair._declared == []
        assert not hasattr(torch.ops.torchvision, "nms")
    """
    run(program)


def test_both_schemas_are_declared_where_the_operators_do_not_load() -> None:
    program = """
        import torch

        def refuse(path):
            raise OSError(path)

        torch.ops.load_library = refuse
        from diffusion.runtime import torchvision_repair

        assert torchvision_repair.repair_torchvision() is True
        assert torch.ops.torchvision.nms.default._schema.arguments[2].name == "iou_threshold"
        assert hasattr(torch.ops.torchvision, "qnms")
        import torchvision
    """
    run(program)


def test_nothing_is_declared_without_torchvision() -> None:
    program = """
        import importlib.util

        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else find_spec(name)
        from diffusion.runtime import torchvision_repair

        assert torchvision_repair.repair_torchvision() is False
        assert torchvision_repair._declared == []
    """
    run(program)
