"""The one kind of error a user can cause, and the one line it prints; also of a mistaken command line."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(ValueError):
    """Something the user gave is wrong: a file, a table, a config, an argument.

    ``str(error)`` is one line, ``FILE: FIELD: reason``; entry points print it after ``error: `` and exit with code 2.

    The torch DataLoader rebuilds an exception of a worker from one argument, its traceback; the line is read from that.
    """

    def __init__(self, file: str | os.PathLike, field: str | None = None, reason: str | None = None) -> None:
        if field is None or reason is None:
            line = str(file).rsplit(f"{type(self).__name__}: ", 1)[-1].strip().splitlines()[0]
            file, field, reason = (*line.split(": ", 2), "", "")[:3]
        self.file, self.field, self.reason = str(file), field, " ".join(str(reason).split())
        super().__init__(f"{self.file}: {self.field}: {self.reason}")

    def __reduce__(self) -> tuple:
        return type(self), (self.file, self.field, self.reason)


def run_tool(main: Callable[[], int | None]) -> None:
    """Run an entry point; an :class:`InputError` becomes one line on stderr and exit code 2."""
    try:
        code = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    raise SystemExit(code or 0)


class ToolParser(argparse.ArgumentParser):
    """A command line whose mistakes are one line, ``error: TOOL: ARGUMENT: reason``, and exit code 2.

    argparse would print the usage first; ``--help`` shows it.
    """

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, with the nearest flag for one that is not known, and leave."""
        named = re.match(r"argument ([^:]+): (.*)", message, re.DOTALL)
        field, reason = named.groups() if named else ("arguments", message)
        unknown = re.match(r"unrecognized arguments: (-[^\s=]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        hint = f"did you mean '{near[0]}'?" if near else "--help shows all"
        print(f"error: {InputError(self.prog, field, f'{reason}; {hint}')}", file=sys.stderr, flush=True)
        raise SystemExit(2)
