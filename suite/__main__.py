"""Runs one job, which the workflow's rules describe in one JSON: ``python -m suite '{"asked": …}'``."""

import sys

from suite.cli import run
from suite.job import read_job


def main() -> None:
    run(lambda: read_job(sys.argv[1]))


if __name__ == "__main__":
    main()
