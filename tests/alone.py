"""Draws from pipeline folders, as somebody does who has torch and diffusers and nothing of this project.

``python -I -S alone.py SITE_PACKAGES JOB``: JOB is a JSON file, a list of {"source", "load", "call", "latents",
"images"}; the images of each are written as .npy, the pipeline to "resaved" where that is given. A line for each that
could not be loaded goes to the standard output.
"""

import json
import sys
from pathlib import Path

site_packages, job = sys.argv[1:]
sys.path.append(site_packages)
# Not torchvision either: beside a CPU build of torch it may not load.
for name in ("boot", "diffusion", "baselines", "evaluation", "suite", "torchvision"):
    sys.modules[name] = None  # importing it fails, wherever it may be installed

import diffusers.pipelines.ddim.pipeline_ddim as ddim  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import DDIMPipeline, DiffusionPipeline  # noqa: E402

for entry in json.loads(Path(job).read_text(encoding="utf-8")):
    try:
        pipeline = DiffusionPipeline.from_pretrained(entry["source"], **entry["load"])
    except ValueError as error:
        print(entry["source"], str(error).replace("\n", " "))
        continue
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(np.load(entry["latents"]))
    if isinstance(pipeline, DDIMPipeline):  # takes no noise: it is handed ours in place of its draw
        ddim.randn_tensor = lambda *_args, latents=latents, **_kwargs: latents.clone()
        images = pipeline(len(latents), output_type="np", **entry["call"]).images
    else:
        images = pipeline(latents=latents, output_type="pt", **entry["call"]).images.numpy()
    np.save(entry["images"], images)
    if "resaved" in entry:
        pipeline.save_pretrained(entry["resaved"])
assert not any(name.partition(".")[0] in ("boot", "suite", "diffusion") and m for name, m in sys.modules.items())
