"""The command line: `peft-dso quickstart | inspect`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Optional


def _quickstart(options: argparse.Namespace) -> int:
    from .quickstart import run

    changes = {} if options.steps is None else {"max_steps": options.steps}
    run(options.out, lambda line: print(line, flush=True), **changes)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from .inspect import describe

    print(describe(options.adapter))
    return 0


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="peft-dso",
        description="Debias a frozen language model and turn the strength while it is in use (DSO, arXiv 2512.15926).",
    )
    parser.add_argument("--version", action="version", version=f"peft-dso {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    quickstart = commands.add_parser(
        "quickstart",
        help="debias SmolLM2-135M-Instruct from PyPI and report it",
        description="Debias SmolLM2-135M-Instruct on the pronoun task: measure, train, save, load, sweep and report. "
        "About four minutes on two cores.",
        epilog="example: peft-dso quickstart --out quickstart-out",
    )
    quickstart.add_argument("--out", default="quickstart-out", help="folder for the adapter and the report")
    quickstart.add_argument("--steps", type=int, default=None, help="training steps, for a quick look")
    quickstart.set_defaults(run=_quickstart)

    inspect = commands.add_parser(
        "inspect",
        help="say what an adapter changes",
        description="Say what a saved adapter changes: its sites, how many neurons, how strongly.",
        epilog="example: peft-dso inspect quickstart-out/adapter",
    )
    inspect.add_argument("adapter", help="folder of the adapter")
    inspect.set_defaults(run=_inspect)
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
    options = _parser().parse_args(arguments)
    # TRL's trainers report to a server otherwise; a command that needs no network uses none.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return int(options.run(options))
    except (ValueError, TypeError, KeyError, ImportError, OSError, FloatingPointError, RuntimeError) as error:
        print(f"peft-dso: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("peft-dso: interrupted", file=sys.stderr)
        return 130
