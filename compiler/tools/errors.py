"""The one error an outside tool can raise."""

from __future__ import annotations

from pathlib import Path


class ToolError(Exception):
    """An outside tool is missing, too old, or stopped with an error.

    ``tool`` is its name ("yosys"), ``message`` says what happened, with the last lines of the tool's own
    output where there are any; ``log`` is the file that holds the rest, and ``hint`` the fix (a ``pip
    install`` line for a missing tool).
    """

    def __init__(self, tool: str, message: str, log: Path | None = None, hint: str = "") -> None:
        super().__init__(tool, message, log, hint)
        self.tool = tool
        self.message = message
        self.log = log
        self.hint = hint

    def __str__(self) -> str:
        lines = [f"{self.tool}: {self.message}"]
        if self.log is not None:
            lines.append(f"  log: {self.log}")
        if self.hint:
            lines.append(f"  fix: {self.hint}")
        return "\n".join(lines)
