"""Jobs of a stock pipeline's student one after the other, without Snakemake."""

from diffusion.data.samples import load_samples
from suite.jobs.distillation import Distil
from suite.jobs.sampling import Sample


def distilled_and_sampled(folder, variant, teacher, prompts, guidance_scale, sampled_scale=1.0, **data):
    """Four samples of a student, uint8; the jobs' results are in ``folder``.

    Args:
        variant: its name and settings, as jobs take them.
        prompts: the folder with the texts of both parts.
        data: of a method that needs some.
    """
    Distil(
        **variant,
        **data,
        teacher=teacher,
        prompts=prompts / "train",
        guidance_scale=guidance_scale,
        train_seed=0,
        state=folder / "state",
        output=folder / "students",
    ).run()
    Sample(
        **variant,
        guidance_scale=sampled_scale,
        source=folder / "students",
        prompts=prompts / "evaluation",
        num_samples=4,
        batch_size=4,
        seeds=(0,),
        output=folder / "samples",
    ).run()
    return load_samples(folder / "samples" / "nfe-1" / "seed-0.npz")
