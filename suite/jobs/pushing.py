"""A student with its model card, as a folder and on the Hugging Face Hub."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from diffusion.distillation.registry import method_class
from diffusion.runtime.errors import UserError, first_line
from diffusion.runtime.files import atomic_path, read_json, sha256_file
from diffusion.teachers.folder import load_conditions, sampling_facts
from diffusion.teachers.prompts import Prompts
from diffusion.teachers.stored_network import network_folder, stored_network
from diffusion.teachers.weights import weights_files
from suite.job import GivenPath, Task
from suite.model_card import CardFacts, model_card
from suite.provenance import RECORD, checked, checked_folder, read_record

_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


class Push(Task):
    """Write a student with its model card, and put it on the Hugging Face Hub."""

    experiment_folder: GivenPath
    variant: str
    train_seed: int
    nfe: int
    repo: str | None = Field(None, description="USER/NAME on the Hub; without it nothing is pushed")
    output: GivenPath | None = Field(None, description="a new folder that keeps what is pushed")
    private: bool = Field(False, description="the repository, where it is made")
    update: bool = Field(False, description="add a commit to a repository that exists")
    dry_run: bool = Field(False, description="show the files and the card, push nothing")
    license: str = Field("other", description="of the student, as the Hub names it, such as mit")

    def run(self) -> None:
        """Writes the folder to ``output``, and pushes it to ``repo``.

        Raises:
            UserError: there is no such student, a file of it was changed, or the Hub does not take it.
        """
        repo, output = self.repo, self.output
        if repo is None and output is None:
            raise UserError("--repo: missing; expected a name on the Hub (user/name), or --output with a new folder.")
        if repo is not None and not _NAME.fullmatch(repo):
            raise UserError(f"--repo: found {repo!r}, expected user/name.")
        if output is not None and output.exists():
            raise UserError(f"--output: {output} exists; expected a new folder. Remove it, or name another.")
        token = None if repo is None or self.dry_run else _token()
        with tempfile.TemporaryDirectory(prefix="student-") as passing:
            folder = output or Path(passing, "student")
            with atomic_path(folder) as temporary:
                temporary.mkdir()
                self.export(temporary)
            for file in sorted(file for file in folder.rglob("*") if file.is_file()):
                print(f"{file.relative_to(folder)}: {file.stat().st_size:,} bytes")
            if self.dry_run:
                print(f"\n{(folder / 'README.md').read_text(encoding='utf-8')}")
            elif repo is not None and token is not None:
                print(_upload(folder, repo, token, self.private, self.update))

    def export(self, folder: Path) -> None:
        """Writes student and card to ``folder``, which exists and is empty. The weights stay bit for bit."""
        root, variant, seed, nfe = self.experiment_folder, self.variant, self.train_seed, self.nfe
        if not (root / "students").is_dir():
            raise UserError(f"--experiment-folder: {root} holds no students; expected a folder of results.")
        trained = root / "students" / variant / f"train-{seed}"
        if not trained.is_dir():
            there = sorted(str(path.relative_to(root / "students")) for path in root.glob("students/*/train-*"))
            raise UserError(f"--variant, --train-seed: {trained} not found; there are: {', '.join(there) or 'none'}.")
        record = read_record(trained / RECORD)
        kind = method_class(record["settings"]["method"])
        method = kind(kind.Settings.model_validate(record["settings"]))
        if nfe not in method.evaluations():
            raise UserError(f"--nfe: found {nfe}, expected one of {', '.join(map(str, method.evaluations()))}.")
        name = f"nfe-{method.student_for(nfe)}"
        inputs = checked_folder("student", trained, name)
        checked({"cost": trained / "cost.json", "manifest": root / "data" / "manifest.json"})
        for one in inputs.values():
            copy = folder / one.path.relative_to(trained / name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one.path, copy)
        stored, conditions = stored_network(trained / name), load_conditions(trained / name)
        index, of_diffusers = read_json(folder / "model_index.json"), bool(stored.family.pipelines)
        if not of_diffusers and index["_class_name"] != "DDIMPipeline" and not (folder / "pipeline.py").exists():
            from diffusion.teachers.local_pipeline import bring_up_to_date  # of `diffusers`, 3 seconds

            bring_up_to_date(folder)
            index = read_json(folder / "model_index.json")
        sampled = sampling_facts(folder)
        costs = read_json(trained / "cost.json")["students"]
        measures, definitions = _measures(root / "measures" / variant / f"train-{seed}.csv", nfe)
        facts = CardFacts(
            repo=self.repo or str(self.output),
            method=method,
            variant=variant,
            train_seed=seed,
            nfe=nfe,
            index=index | sampled,
            told=conditions.told,
            prompt=conditions.texts[0] if isinstance(conditions, Prompts) else "a red fox in the snow",
            of_diffusers=of_diffusers,
            own_code=any(folder.rglob("*.py")),
            guidance_scale=sampled.get("guidance_range") or record["guidance_scale"],
            teacher=read_record(root / "teacher" / RECORD),
            data=read_json(root / "data" / "manifest.json"),
            cost=next(cost for cost in costs if cost["nfe"] == method.student_for(nfe)),
            record=record,
            measures=measures,
            definitions=definitions,
            sha256=sha256_file(weights_files(network_folder(folder))[0]),
            licence=self.license,
        )
        (folder / "README.md").write_text(model_card(facts), encoding="utf-8")


def _measures(file: Path, nfe: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows that were measured of the student, and what the measures are; none where it was not measured."""
    if not file.exists():
        return pd.DataFrame(columns=["metric"]), {}
    checked({"measures": file})
    table = pd.read_csv(file)
    return table[table.nfe == nfe], read_record(file.with_suffix(".json"))["definitions"]


def _token() -> str:
    import huggingface_hub  # a second, for those who want it

    token = huggingface_hub.get_token()
    if token is None:
        raise UserError("--repo: no token of the Hub was found; log in with `hf auth login`, or set HF_TOKEN.")
    return str(token)


def _upload(folder: Path, repo: str, token: str, private: bool, update: bool) -> Any:
    """Makes the repository and uploads the folder in one commit; the commit's address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private or None, exist_ok=update)
        return api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A student and its model card")
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 409:
            raise UserError(
                f"--repo: {repo} exists at {api.endpoint}; expected a new name, or --update, which adds a commit to it."
            ) from error
        if status in (401, 403):
            raise UserError(
                f"--repo: {api.endpoint} does not let this token write {repo} ({status}); expected a token with write "
                f"access to it: `hf auth login`, or HF_TOKEN."
            ) from error
        raise UserError(f"--repo: {api.endpoint} answers {status} ({first_line(error)}); try again later.") from error
    except (OSError, HTTPError) as error:
        raise UserError(
            f"--repo: {api.endpoint} cannot be reached ({type(error).__name__}: {first_line(error)}). Check the "
            f"network; with --output the folder is kept."
        ) from error
