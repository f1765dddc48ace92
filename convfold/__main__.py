"""``python -m convfold`` is the command ``convfold``."""

from convfold.cli import main

main(prog_name="convfold")
