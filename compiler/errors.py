"""The one error a user's own input can raise, and the one for a bug of ours that a check has caught."""

from __future__ import annotations


class CompileError(Exception):
    """Something in the user's model, data or options cannot be compiled.

    ``source`` says where ("net.toml: layer 3 'edges'"), ``message`` says what, ``hint`` says how to fix it.
    The command line prints the three lines and exits with status 2; nothing else is shown to the user.
    """

    def __init__(self, source: str, message: str, hint: str = "") -> None:
        super().__init__(source, message, hint)
        self.source = source
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.source}: {self.message}"
        return f"{text}\n  fix: {self.hint}" if self.hint else text


class InternalError(Exception):
    """convfold itself broke a rule: a bug of ours, whatever the user's model is.

    ``stage`` is the step whose result is wrong, ``node`` where in it, ``rule`` what is broken, ``excerpt``
    the graph around the node.
    """

    def __init__(self, stage: str, node: str, rule: str, excerpt: str = "") -> None:
        super().__init__(stage, node, rule, excerpt)
        self.stage = stage
        self.node = node
        self.rule = rule
        self.excerpt = excerpt

    def __str__(self) -> str:
        text = f"bug in convfold: after {self.stage}: {self.node}: {self.rule}"
        return f"{text}\n{self.excerpt}" if self.excerpt else text


def quote(value: object) -> str:
    """``repr`` for an error line: at most 60 characters, printable, and it never fails."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list a thousand deep
        return f"something of type {type(value).__name__} too long to print"
    return text if len(text) <= 60 else f"{text[:44]} … {text[-13:]}"
