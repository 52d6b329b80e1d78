"""`peft-dso card`."""

from __future__ import annotations

import argparse
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

    path = save_card(
        options.adapter,
        options.report,
        repo_id=options.repo_id,
        license=options.license,
        trained_on=options.trained_on,
    )
    say(f"Wrote {path}")
    if options.push:
        if not options.repo_id:
            raise ValueError("--push needs --repo-id USER/NAME.")
        say(push_adapter(options.adapter, options.repo_id, private=options.private or None, revision=options.revision))
    return 0
