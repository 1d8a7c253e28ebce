"""Runs one job, which the workflow's rules describe in one JSON: ``python -m suite '{"asked": …}'``."""

import sys

from diffusion.runtime.errors import UserError
from suite.job import read_job
from suite.launch import print_anything


def main() -> None:
    """An error that the user can mend is printed without a traceback."""
    print_anything(sys.stdout)
    try:
        job = read_job(sys.argv[1])
        with job.sole_maker():
            job.run()
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
