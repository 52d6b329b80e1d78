"""`peft-dso train`."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import add_model, add_questions, chosen_questions, say


def add(commands: Any) -> None:
    """Add the command to the parser."""
    train = commands.add_parser(
        "train",
        help="train an adapter",
        description="Train a DSO adapter on questions. Every field of DSOTrainerConfig is an option too, written with "
        "underscores, such as --max_steps 60 --learning_rate 2e-3 --l1_coef 0.2 --training_strength uniform.",
        epilog="example: peft-dso train --model smollm2 --questions pronouns --out adapter --max_steps 40",
    )
    add_model(train)
    add_questions(train, required=True)
    train.add_argument("--retain", help=".json or .jsonl file of rows with a prompt whose continuation is to be kept")
    train.add_argument("--slopes-only", action="store_true", help="learn no shift: such an adapter merges everywhere")
    train.add_argument("--out", required=True, help="folder for the adapter")
    train.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from transformers import HfArgumentParser

    from ..models import load_base
    from ..questions import read_rows
    from ..training import DSOTrainer, DSOTrainerConfig
    from ..tuner import DSOConfig

    arguments = ["--output_dir", options.out, "--report_to", "none", "--save_strategy", "no", *options.fields]
    (settings,) = HfArgumentParser(DSOTrainerConfig).parse_args_into_dataclasses(arguments)
    rows = chosen_questions(options, "train")
    model, processor = load_base(options.model, options.dtype)
    trainer = DSOTrainer(
        model=model,
        args=settings,
        train_dataset=rows,
        retain_dataset=None if options.retain is None else read_rows(options.retain),
        processing_class=processor,
        peft_config=DSOConfig(task_type="CAUSAL_LM", learn_shift=not options.slopes_only),
    )
    trainer.train()
    trainer.save_model(options.out)
    say(f"Saved the adapter in {options.out}, trained on {len(rows)} questions.")
    say(f"Measure it: peft-dso sweep --model {options.model} --adapter {options.out} --questions ... --out ...")
    return 0
