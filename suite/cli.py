"""The commands that people type: ``python -m suite.cli check config/mine.yaml``, ``convert …``, ``push …``."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import problems_of
from suite.job import Task
from suite.launch import print_anything

# Command to module and task in suite/jobs, which is imported only when the command is called.
COMMANDS = {"check": ("estimating", "Check"), "convert": ("converting", "Convert"), "push": ("pushing", "Push")}


def parser_of(command: str, task: type[Task]) -> argparse.ArgumentParser:
    """The options of a command: a field each; a tuple stands without a name."""
    parser = argparse.ArgumentParser(prog=f"python -m suite.cli {command}", description=task.__doc__)
    for name, field in task.model_fields.items():
        if name != "asked":
            option = f"--{name.replace('_', '-')}"
            if get_origin(field.annotation) is tuple:
                parser.add_argument(name, nargs="+", metavar="FILE", help=field.description)
            elif field.annotation is bool:
                parser.add_argument(option, action="store_true", help=field.description)
            else:
                required = field.is_required()
                parser.add_argument(option, required=required, choices=_choices(field), help=field.description)
    return parser


def _choices(field: FieldInfo) -> list[str] | None:
    kinds = get_args(field.annotation) if get_origin(field.annotation) is UnionType else (field.annotation,)
    return [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)] or None


def parse(arguments: Sequence[str]) -> Task:
    """The task that a command line asks for.

    Raises:
        UserError: an option's value is not what it must be.
    """
    commands = argparse.ArgumentParser(prog="python -m suite.cli", description=__doc__)
    commands.add_argument("command", choices=COMMANDS)
    command = commands.parse_args(arguments[:1]).command
    module, name = COMMANDS[command]
    task: type[Task] = getattr(importlib.import_module(f"suite.jobs.{module}"), name)
    given = {key: value for key, value in vars(parser_of(command, task).parse_args(arguments[1:])).items() if value}
    try:
        return task.model_validate(given)
    except ValidationError as error:
        raise UserError(
            "\n".join(f"--{problem.replace('_', '-', 1)}" for problem in problems_of(error, task))
        ) from error


def run(read: Callable[[], Task]) -> None:
    """Runs the task that ``read`` gives; an error that the user can mend is printed without a traceback."""
    print_anything(sys.stdout)
    try:
        task = read()
        with task.sole_maker():
            task.run()
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run(lambda: parse(sys.argv[1:]))
