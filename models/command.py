"""The parser of a verb of ``overread``: every one says what it does, how it is called, and shows an example that works."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import Any


def command_parser(verb: str, description: str, *examples: str, **options: Any) -> argparse.ArgumentParser:
    r"""Make the parser of a verb.

    Parameters
    ----------
    verb : str
        As in :data:`models.cli.VERBS`.
    description : str
        What it does, in a sentence or two; wrapped to the width of the terminal.
    *examples : str
        At least one command that works as it stands, given the files it names; shown as it is, below the options. A long one
        may go on after a backslash. ``tests/contract/test_help.py`` parses each.
    **options
        Of :class:`argparse.ArgumentParser`.

    Returns
    -------
    argparse.ArgumentParser
    """
    if not examples:
        raise ValueError(f"overread {verb} shows no example")
    width = max(shutil.get_terminal_size().columns - 2, 40)  # as argparse takes it for the options
    return argparse.ArgumentParser(
        prog=f"overread {verb}",
        description=textwrap.fill(description, width),
        epilog="\n".join(
            ["example:" if len(examples) == 1 else "examples:", *(textwrap.indent(example, "  ") for example in examples)]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
