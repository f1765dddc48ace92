"""Builds and runs one cocotb bench, as a program of its own: ``python cocotb_job.py JOB.json``.

A child process, because cocotb's runner prints, ends the process on a failure and reads its settings from the
environment. The job file holds the arguments of ``Runner.build`` and ``Runner.test`` by name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cocotb_tools.runner import get_runner


def main() -> None:
    """Run the job named by the first argument."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path[:0] = job["python_path"]  # the runner hands sys.path to the bench
    runner = get_runner(job["simulator"])
    try:
        print("-- build --", flush=True)
        runner.build(**job["build"])
        print("-- run --", flush=True)
        runner.test(**job["test"])
    except RuntimeError as error:  # a command of the simulator ended with a status other than 0
        sys.exit(str(error))


if __name__ == "__main__":
    main()
