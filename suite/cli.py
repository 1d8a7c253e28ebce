"""The commands that the workflow's rules call: ``python -m suite.cli <command> …``."""

import argparse
import importlib
import sys
from pathlib import Path

from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import user_path
from suite.launch import print_anything

# Of diffusion.teachers.conversion, which is not imported for every command.
KINDS = ("edm", "guided-diffusion", "consistency")
ORDERS = ("heads-first", "qkv-first")
BETAS = ("linear", "cosine")


def _path(text: str) -> Path:
    try:
        return Path(user_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="suite.cli", description="The commands that the workflow's rules call.")
    commands = parser.add_subparsers(required=True)

    def command(name: str, stage: str, summary: str) -> argparse.ArgumentParser:
        """``stage`` is module and function in suite/stages, imported only when the command is called."""
        sub = commands.add_parser(name, help=summary)
        sub.set_defaults(stage=stage)
        sub.add_argument("--job", type=_path, help="JSON: what the workflow asks for; goes into the result's record")
        return sub

    def paths(sub: argparse.ArgumentParser, *names: str) -> None:
        for name in names:
            sub.add_argument(f"--{name}", type=_path, required=True)

    def training(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--settings", required=True, help="JSON")
        paths(sub, "state", "output")
        sub.add_argument("--checkpoint-seconds", type=float, default=30.0, help="between two stored states")

    def under_protocol(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--protocol", required=True, help="JSON")
        sub.add_argument("--batch-size", type=int, default=256)
        sub.add_argument("--weights", default="{}", help="JSON: where extractors' weights lie")

    def guidance(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--guidance-scale", type=float, default=1.0, help="of the teacher; 1 is without")

    def flips(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--flip", action="store_true", help="mirror half of the images that are drawn from --data")

    sub = command("data", "data.prepare_data", "write the two parts of a data set")
    sub.add_argument("--settings", required=True, help="JSON")
    sub.add_argument("--downloads", type=_path, help="the folder with what was fetched for it")
    sub.add_argument("--teacher-classes", type=int, help="how many classes a stored teacher knows")
    sub.add_argument("--state", type=_path, help="where an interrupted preparation is kept; none starts anew")
    paths(sub, "output")

    sub = command("fetch", "data.fetch", "download one file of a data set")
    sub.add_argument("--settings", required=True, help="JSON")
    paths(sub, "output")

    sub = command("teacher", "teacher.train_teacher", "train the teacher")
    training(sub)
    paths(sub, "data")
    flips(sub)

    sub = command("import-teacher", "teacher.import_teacher", "take a stored teacher into the results")
    sub.add_argument("--path", required=True, help="a folder, or a model of the Hub")
    sub.add_argument("--revision", help="of the Hub's model")
    paths(sub, "output")
    sub.add_argument("--num-classes", type=int, help="how many of the network's labels are classes")

    sub = command("convert", "converting.convert", "make a teacher of a checkpoint that its authors publish")
    paths(sub, "checkpoint", "output")
    sub.add_argument("--published", metavar="FILE", help="its authors' name for it, where yours is another")
    sub.add_argument("--kind", choices=KINDS, help="of a checkpoint that docs/teachers.md does not list")
    sub.add_argument("--attention", choices=ORDERS, help="of OpenAI's U-Net; its weights do not tell")
    sub.add_argument("--schedule", choices=BETAS, help="of guided-diffusion; its weights do not tell")
    sub.add_argument("--resolution", type=int, help="of OpenAI's U-Net, where its levels do not tell")
    sub.add_argument("--thresholding", choices=("static", "none"), default="static", help="how x̂ is bounded")

    sub = command("classifier", "classifier.train_classifier", "train the classifier that judges labels")
    training(sub)
    paths(sub, "data")
    sub.add_argument("--batch-size", type=int, default=256, help="of the test images")

    sub = command("distil", "distillation.distil", "train the students of one variant with one seed")
    training(sub)
    guidance(sub)
    paths(sub, "teacher")
    sub.add_argument("--variant", required=True)
    sub.add_argument("--seed", type=int, required=True)
    sub.add_argument("--data", type=_path, help="only for methods that need it")
    flips(sub)
    sub.add_argument("--pairs", type=_path, help="only for methods that train on an offline set")

    sub = command("pairs", "pairs.make_pairs", "make an offline set of noises and samples of the teacher")
    training(sub)
    guidance(sub)
    paths(sub, "teacher")
    sub.add_argument("--batch-size", type=int, default=256)

    sub = command("learning-curve", "learning_curve.measure_learning_curve", "quality at points of the training")
    under_protocol(sub)
    paths(sub, "students", "real", "teacher-samples", "output")
    sub.add_argument("--settings", required=True, help="JSON")
    sub.add_argument("--variant", required=True)
    for name in ("train-seed", "seed", "num-samples"):
        sub.add_argument(f"--{name}", type=int, required=True)

    sub = command("sample", "sampling.sample", "draw the samples of a variant")
    paths(sub, "source", "output")
    sub.add_argument("--state", type=_path, help="where interrupted sampling is kept; none starts anew")
    guidance(sub)
    sub.add_argument("--settings", required=True, help="JSON")
    for name in ("num-samples", "batch-size"):
        sub.add_argument(f"--{name}", type=int, required=True)
    sub.add_argument("--seeds", type=int, nargs="+", required=True)
    sub.add_argument("--nfe", type=int, nargs="*", default=(), help="evaluations to sample with; all the method has")
    sub.add_argument("--quantiser", choices=("round", "truncate"), default="round", help="how samples become uint8")

    sub = command("features", "extraction.extract_features", "features of sets of samples")
    under_protocol(sub)
    sub.add_argument("--sets", required=True, help="JSON: name to samples file")
    paths(sub, "output")

    sub = command("reference", "references.extract_reference", "features of the real pictures under a protocol")
    under_protocol(sub)
    paths(sub, "data", "output")

    sub = command("protocol", "protocols.measure_protocol", "some rows, measured under one protocol")
    under_protocol(sub)
    for name in ("experiment", "name", "rows"):
        sub.add_argument(f"--{name}", required=True)
    sub.add_argument("--seed", type=int, required=True, help="sampling seed of the rows")
    paths(sub, "reference", "output")

    sub = command("measure", "measuring.measure", "quality of a variant, or of your own samples")
    for name in ("experiment", "method", "variant"):
        sub.add_argument(f"--{name}", required=True)
    sub.add_argument("--train-seed", type=int)
    paths(sub, "features", "real", "teacher-features", "teacher-samples", "output")
    sub.add_argument("--samples", type=Path, nargs="+", required=True, help="a variant's folder, or your own files")
    sub.add_argument("--seeds", type=int, nargs="*", default=(), help="of your own files, one each")
    sub.add_argument("--nfe", type=int, help="of your own samples")
    sub.add_argument("--num-samples", type=int, help="to measure your own at too, where they are more")
    sub.add_argument(
        "--follows-teacher", type=int, nargs="*", default=(), help="evaluations at which the samples follow its noise"
    )
    sub.add_argument("--classifier", type=_path, help="judges the labels that the samples were asked for")
    sub.add_argument("--batch-size", type=int, default=256, help="of the classifier")

    sub = command("measure-floor", "measuring.measure_floor", "quality of the real test pictures")
    sub.add_argument("--num-samples", type=int, required=True)
    sub.add_argument("--experiment", required=True)
    paths(sub, "real", "output")
    sub.add_argument("--classifier", type=_path, help="its accuracy on the test pictures is a row")

    sub = command("pictures", "pictures.draw_pictures", "a BOOT student at every time, and between noises")
    paths(sub, "student", "teacher", "output")
    guidance(sub)
    for name in ("seed", "batch-size"):
        sub.add_argument(f"--{name}", type=int, required=True)

    sub = command("trajectory", "trajectory.measure_trajectory", "errors of a BOOT student along the trajectory")
    sub.add_argument("--target", choices=("signal", "state"), default="signal", help="what the student predicts")
    paths(sub, "student", "teacher", "output")
    guidance(sub)
    for name in ("seed", "noises", "batch-size"):
        sub.add_argument(f"--{name}", type=int, required=True)

    sub = command("neighbours", "neighbours.find_neighbours", "the nearest training pictures of samples")
    sub.add_argument("--rows", required=True, help="JSON: label, samples and features of each")
    paths(sub, "real", "data", "output")

    sub = command("speed", "speed.time_sampling", "speed of every sampler, interleaved")
    for name in ("experiment", "units", "settings"):
        sub.add_argument(f"--{name}", required=True)
    guidance(sub)
    paths(sub, "output")

    sub = command("check", "estimating.check", "check configuration files, and say which line is wrong")
    sub.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="YAML; keys of later files replace earlier ones"
    )
    sub = command("push", "pushing.push", "write a student with its model card, and put it on the Hugging Face Hub")
    paths(sub, "experiment-folder")
    sub.add_argument("--variant", required=True)
    for name in ("train-seed", "nfe"):
        sub.add_argument(f"--{name}", type=int, required=True)
    sub.add_argument("--repo", metavar="USER/NAME", help="on the Hub; without it nothing is pushed")
    sub.add_argument("--output", type=Path, metavar="FOLDER", help="a new folder that keeps what is pushed")
    sub.add_argument("--private", action="store_true", help="the repository, where it is made")
    sub.add_argument("--update", action="store_true", help="add a commit to a repository that exists")
    sub.add_argument("--dry-run", action="store_true", help="show the files and the card, push nothing")
    sub.add_argument("--license", default="other", help="of the student, as the Hub names it, such as mit")

    sub = command("estimate", "estimating.print_estimate", "what the experiment will cost")
    sub.add_argument("--config", required=True, help="JSON")

    sub = command("report", "report.write_report", "render the report")
    sub.add_argument("--config", required=True, help="JSON")
    return parser


def main() -> None:
    """Runs one command; an error that the user can mend is printed without a traceback."""
    print_anything(sys.stdout)
    arguments = build_parser().parse_args()
    try:
        module, _, function = arguments.stage.partition(".")
        stage = getattr(importlib.import_module(f"suite.stages.{module}"), function)
        with importlib.import_module("suite.delivery").sole_maker(arguments):
            stage(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
