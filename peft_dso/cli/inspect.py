"""`peft-dso inspect`."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import say


def add(commands: Any) -> None:
    """Add the command to the parser."""
    inspect = commands.add_parser(
        "inspect",
        help="say what an adapter changes",
        description="Say what a saved adapter changes: its sites, how many neurons, how strongly; what was measured.",
        epilog="example: peft-dso inspect quickstart-out/adapter",
    )
    inspect.add_argument("adapter", help="folder of the adapter")
    inspect.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..inspect import describe

    say(describe(options.adapter))
    return 0
