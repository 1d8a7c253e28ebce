"""Teachers: folders that `diffusers` loads, published checkpoints, networks, and how a teacher is trained."""
