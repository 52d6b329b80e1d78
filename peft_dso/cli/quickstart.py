"""`peft-dso quickstart`."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import say


def add(commands: Any) -> None:
    """Add the command to the parser."""
    quickstart = commands.add_parser(
        "quickstart",
        help="debias SmolLM2-135M-Instruct from PyPI and report it",
        description="Debias SmolLM2-135M-Instruct on the pronoun task: measure, train, save, load, sweep and report. "
        "About five minutes on two cores.",
        epilog="example: peft-dso quickstart --out quickstart-out",
    )
    quickstart.add_argument("--out", default="quickstart-out", help="folder for the adapter and the report")
    quickstart.add_argument("--steps", type=int, default=None, help="training steps, for a quick look")
    quickstart.add_argument("--limit", type=int, help="questions to measure on in each set, for a quick look")
    quickstart.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..demo.quickstart import run as start

    changes = {} if options.steps is None else {"max_steps": options.steps}
    start(options.out, say, options.limit, **changes)
    return 0
