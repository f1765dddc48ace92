"""Runs one Yosys script through pyosys, as a program of its own: ``python pyosys_job.py SCRIPT``.

A child process, because Yosys writes its log to standard output and ends the process on an error.
"""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """Run the script named by the first argument in the current folder."""
    libyosys = import_module("pyosys.libyosys")
    libyosys.run_pass(f"script {sys.argv[1]}", libyosys.Design())


if __name__ == "__main__":
    main()
