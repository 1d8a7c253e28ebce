"""What every test gets: no display, no network."""

import os

# Both are read when matplotlib and huggingface_hub are first imported.
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
