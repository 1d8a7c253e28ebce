"""Published teachers."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from diffusion.denoiser import Denoiser
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.teachers.conversion.adm import Betas, Order, load_consistency_teacher, load_guided_diffusion
from diffusion.teachers.conversion.edm import load_edm
from diffusion.teachers.conversion.published import PUBLISHED, UNUSABLE, Kind, Published
from diffusion.teachers.conversion.sit import load_sit
from diffusion.teachers.folder import save_denoiser
from diffusion.thresholding import NO_THRESHOLD, STATIC
from suite.job import GivenPath, Job
from suite.provenance import checked

_PAGE = "docs/teachers.md"
# The options of a kind beside those that all have; those that must be known are first.
_NEEDED = {"edm": (), "guided-diffusion": ("attention", "schedule"), "consistency": ("attention",), "sit": ()}
_OPTIONAL = {"edm": (), "guided-diffusion": ("resolution",), "consistency": ("resolution",), "sit": ()}


class Convert(Job):
    """Make a teacher of a checkpoint that its authors publish; nothing in it is executed."""

    checkpoint: GivenPath
    output: GivenPath = Field(description="a new folder, which teacher.path can name")
    published: str | None = Field(None, description="its authors' name for it, where yours is another")
    kind: Kind | None = Field(None, description="of a checkpoint that docs/teachers.md does not list")
    attention: Order | None = Field(None, description="of OpenAI's U-Net; its weights do not tell")
    schedule: Betas | None = Field(None, description="of guided-diffusion; its weights do not tell")
    resolution: int | None = Field(None, description="of OpenAI's U-Net, where its levels do not tell")
    thresholding: Literal["static", "none"] | None = Field(None, description="of x̂; static unless it is of latents")
    autoencoder: GivenPath | None = Field(None, description="of SiT, a folder of `diffusers`: what makes its latents")

    def run(self) -> None:
        """Writes the folder.

        Raises:
            UserError: the file is missing or not what it is said to be, an option is missing or of another kind, or the
                output exists.
        """
        file, output = self.checkpoint, self.output
        if not file.is_file():
            raise UserError(f"--checkpoint: {file} is no file. {_PAGE} says where the published ones are fetched.")
        if output.exists():
            raise UserError(f"--output: {output} exists; expected a new folder. Remove it, or name another.")
        published = self._published()
        settings = self._settings(published)
        denoiser = _load(file, settings, self.autoencoder)
        if published is not None:
            _check(denoiser, published, file)
        given = {"checkpoint": file}
        if self.autoencoder is not None:
            parts = [*self.autoencoder.glob("*.json"), *self.autoencoder.glob("*.safetensors")]
            given |= {f"autoencoder, {part.name}": part for part in sorted(parts)}
        inputs = checked(given)
        with self.result_folder() as folder:
            save_denoiser(folder, denoiser)
            self.write_record(folder, inputs, conversion=settings | {"network": type(denoiser.network).__name__})
        print(f"{output}: {_described(denoiser)}. In the YAML:\n\nteacher: {{path: {output}}}")

    def _published(self) -> Published | None:
        name = self.published or self.checkpoint.name
        if name in UNUSABLE:
            raise UserError(
                f"{self.checkpoint}: cannot be a teacher here: {UNUSABLE[name]}. {_PAGE} lists those that can."
            )
        if self.published is not None and name not in PUBLISHED:
            raise UserError(f"--published: found {name!r}, expected one of: {', '.join(PUBLISHED)}.")
        return PUBLISHED.get(name)

    def _settings(self, published: Published | None) -> dict[str, str | int | None]:
        """Kind and options, those that are not given taken from what is published."""
        kind = self.kind or (published.kind if published else None)
        if kind is None:
            raise UserError(
                f"--kind: not given, and {_PAGE} lists no {self.checkpoint.name}; expected {', '.join(_NEEDED)}, or "
                f"--published with the name of a listed one."
            )
        self._check_latents(kind)
        bounded = self.thresholding or ("none" if kind == "sit" else "static")
        settings: dict[str, str | int | None] = {"kind": kind, "thresholding": bounded}
        for option in ("attention", "schedule", "resolution"):
            value = getattr(self, option)
            if option not in _NEEDED[kind] + _OPTIONAL[kind]:
                if value is not None:
                    raise UserError(f"--{option}: not an option of --kind {kind}; remove it.")
                continue
            if value is None and published is not None and published.kind == kind:
                value = getattr(published, option)
            if value is None and option in _NEEDED[kind]:
                raise UserError(
                    f"--{option}: not given, and the weights do not tell; say how the network was trained, or name the "
                    f"listed checkpoint that this is (--published)."
                )
            settings[option] = value
        return settings

    def _check_latents(self, kind: Kind) -> None:
        if kind != "sit":
            if self.autoencoder is not None:
                raise UserError(f"--autoencoder: not an option of --kind {kind}, whose states are pictures; remove it.")
        elif self.autoencoder is None:
            raise UserError(
                f"--autoencoder: not given, and the checkpoint has none, though its network makes latents; expected "
                f"the folder of the one that decodes them. {_PAGE} says where it is fetched."
            )
        elif self.thresholding == "static":
            raise UserError("--thresholding: found static, expected none: latents have no bounds.")


def _load(file: Path, settings: dict[str, str | int | None], autoencoder: Path | None) -> Denoiser:
    options: dict[str, Any] = {key: value for key, value in settings.items() if key not in ("kind", "thresholding")}
    bounded = STATIC if settings["thresholding"] == "static" else NO_THRESHOLD
    if autoencoder is not None:
        return load_sit(file, autoencoder)
    if settings["kind"] == "edm":
        return load_edm(file, bounded)
    order, resolution = options["attention"], options["resolution"]
    if settings["kind"] == "consistency":
        return load_consistency_teacher(file, order, bounded, resolution)
    return load_guided_diffusion(file, order, options["schedule"], bounded, resolution)


def _check(denoiser: Denoiser, published: Published, file: Path) -> None:
    for what, found, expected in (
        ("classes", denoiser.conditions.num_classes or "no", published.classes or "no"),
        ("pixels a side", denoiser.space.image_shape(denoiser.shape)[1], published.resolution),
    ):
        if found != expected:
            raise CheckpointError(
                f"{file}: found {found} {what}, expected {expected}, as {published.address} has. It is another "
                f"checkpoint: rename it and say its --kind, or fetch that one."
            )


def _described(denoiser: Denoiser) -> str:
    network: Any = denoiser.network
    shape = "×".join(map(str, denoiser.shape))
    weights = sum(weight.numel() for weight in network.parameters()) / 1e6
    told = f"{denoiser.conditions.num_classes or 'no'} classes"
    return f"{type(network).__name__}, {weights:.1f} M weights, {shape}, {told}, {denoiser.prediction_type}"
