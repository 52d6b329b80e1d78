"""The command line: a module per command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Optional

from . import app, card, compare, demo, export, inspect, quickstart, sweep, train
from .arguments import joined_lists, strength_list
from .libraries import add_log_level, libraries_at


__all__ = ["main", "strength_list"]


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="peft-dso",
        description="Debias a frozen language model and turn the strength while it is in use (DSO, arXiv 2512.15926).",
    )
    parser.add_argument("--version", action="version", version=f"peft-dso {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, app, quickstart, train, sweep, compare, export, card, inspect):
        command.add(commands)
    for command_parser in commands.choices.values():
        add_log_level(command_parser)
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """
    Run the command line.

    Args:
        arguments (`Sequence[str]`, *optional*): default `sys.argv[1:]`.

    Returns:
        `int`: 0 on success, 1 for an error that the user can mend (its message is on standard error), 2 for a wrong
        call, 130 for an interruption.
    """
    parser = _parser()
    options, options_left = parser.parse_known_args(joined_lists(sys.argv[1:] if arguments is None else arguments))
    options.fields = options_left
    if options_left and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(options_left)}")
    # TRL's trainers report to a server otherwise; a command that needs no network uses none.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        with libraries_at(options.log_level):
            return int(options.run(options))
    except (ValueError, TypeError, KeyError, ImportError, OSError, FloatingPointError, RuntimeError) as error:
        print(f"peft-dso: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("peft-dso: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2"):  # what the Hub's client talks with
            raise
        print(f"peft-dso: the Hub cannot be reached: {error}", file=sys.stderr)
        return 1
