"""`peft-dso card`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import say


def add(commands: Any) -> None:
    """Add the command to the parser."""
    card = commands.add_parser(
        "card",
        help="write the model card of an adapter, and push it",
        description="Write README.md beside an adapter, with what a sweep measured of it; with --push, upload it all.",
        epilog="example: peft-dso card adapter --report report --license apache-2.0 --repo-id user/adapter",
    )
    card.add_argument("adapter", help="folder of the adapter")
    card.add_argument("--report", help="folder that peft-dso sweep wrote")
    card.add_argument("--repo-id", help="USER/NAME on the Hub")
    card.add_argument("--license", help="SPDX name, lower case")
    card.add_argument("--trained-on", help="a sentence on the training questions")
    card.add_argument("--push", action="store_true", help="upload the folder to --repo-id on the Hub")
    card.add_argument("--private", action="store_true", help="with --push: a new repository is private")
    card.add_argument("--revision", help="with --push: the branch")
    card.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..export import push_adapter, save_card

    if options.push and not options.repo_id:
        raise ValueError("--push needs --repo-id USER/NAME.")
    card = Path(options.adapter) / "README.md"
    changes = options.report or options.license or options.trained_on
    if options.push and not changes and card.is_file() and f'"{options.repo_id}"' in card.read_text(encoding="utf-8"):
        say(f"Left {card} as it is")  # it may have been edited
    else:
        save_card(
            options.adapter,
            options.report,
            repo_id=options.repo_id,
            license=options.license,
            trained_on=options.trained_on,
        )
        say(f"Wrote {card}")
    if options.push:
        say(push_adapter(options.adapter, options.repo_id, private=options.private or None, revision=options.revision))
    return 0
