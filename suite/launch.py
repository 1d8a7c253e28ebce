"""Starts one command as several processes that train together: ``python -m suite.launch 4 suite.cli teacher …``.

Where the machine has GPUs, each process gets one of its own, and no other job of this user gets any of them. A single
process takes this one's place.
"""

import os
import sys


def visible(cards: list[int]) -> str:
    """``CUDA_VISIBLE_DEVICES`` for processes that shall see these of the cards that this process sees."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = own.split(",") if own else [str(card) for card in range(max(cards) + 1)]
    return ",".join(names[card] for card in cards)


def main() -> None:
    """Claims the cards, which stay claimed as long as this process lives, and starts the processes."""
    processes, command = int(sys.argv[1]), sys.argv[2:]
    if processes == 1:
        os.execv(sys.executable, [sys.executable, "-m", *command])
    # Not before: they take seconds to load, which the single process takes for itself.
    import torch
    from torch.distributed.run import main as run_distributed

    from diffusion.cards import CLAIMED_BY_STARTER, claim_cards
    from diffusion.device import wanted_device
    from diffusion.errors import UserError

    try:
        if wanted_device() == torch.device("cuda"):
            cards = claim_cards(processes)
            os.environ.update({"CUDA_VISIBLE_DEVICES": visible(cards), CLAIMED_BY_STARTER: "1"})
    except UserError as error:
        sys.exit(f"error: {error}")
    run_distributed(["--standalone", "--nproc_per_node", str(processes), "-m", *command])


if __name__ == "__main__":
    main()
