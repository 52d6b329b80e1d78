"""`peft-dso compare`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from .arguments import (
    CPU,
    add_device,
    add_model,
    add_questions,
    check_device,
    chosen_questions,
    say,
    shown_name,
    shown_names,
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    compare = commands.add_parser(
        "compare",
        help="fit DSO and the methods it is compared with, and measure all on the same questions",
        description="Fit each method on the same training questions, choose what is free on the validation part, "
        "measure all on the same held-out questions over each method's own strengths. Writes an adapter per method, a "
        "table, flat records as JSON and CSV, pictures, and a section for a model card. What is done already in the "
        "folder is not done again.",
        epilog="example: peft-dso compare --model smollm2 --questions pronouns --methods dso,caa,iti --out compared",
    )
    add_model(compare)
    add_device(compare)
    add_questions(compare, required=True)
    compare.add_argument(
        "--methods",
        help="of dso, caa, caa-residual, iti, linear-act, lineas, counterfactual, counterfactual-pairs, prompting; "
        "default all",
    )
    compare.add_argument("--seeds", type=int, default=1, help="fits per method (default 1); several show their spread")
    compare.add_argument(
        "--measure-on", type=int, default=900, help="about how many held-out questions (default 900; 0 for all)"
    )
    compare.add_argument(
        "--neutral-texts", type=int, default=40, help="how many texts for the KL on neutral text (default 40; 0: none)"
    )
    compare.add_argument("--out", required=True, help="folder for the adapters and the report")
    compare.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import torch

    from ..baselines.claims import claimed
    from ..baselines.comparison import compare
    from ..baselines.methods import chosen_methods
    from ..baselines.outcome import format_comparison, warning_lines
    from ..baselines.outcome_card import save_comparison
    from ..baselines.parts import parts_of
    from ..models import load_base
    from ..questions import OCCUPATIONS, load_occupations, neutral_texts
    from ..scoring.keys import digest
    from ..training import DSOTrainerConfig

    for option in ("measure_on", "neutral_texts"):
        if getattr(options, option) < 0:
            raise ValueError(f"--{option.replace('_', '-')} {getattr(options, option)}: give 0 or more.")
    methods = [m.name for m in chosen_methods(None if options.methods is None else options.methods.split(","))]
    if "dso" in methods and options.device not in (None, *CPU) and torch.accelerator.is_available():
        check_device(options.device, DSOTrainerConfig("unused", report_to=[]).device)
    measured = options.measure_on or None
    divided = partial(
        parts_of,
        *(chosen_questions(options, split) for split in ("train", "validation", "test")),
        measured=measured,
        validated=measured and max(1, measured // 2),
        occupations=options.held_out_occupations,
    )
    parts, noted = divided(), claimed(options.out).get("validation")
    if noted not in (None, digest(parts.validation)):
        # A comparison that version 0.1.0 began goes on with its own questions, unless they overlap.
        earlier = divided(halves=False)
        if noted == digest(earlier.validation):
            parts = earlier
    texts = neutral_texts("test")[: options.neutral_texts]
    name = shown_name(options.model)
    try:
        found = compare(
            lambda: load_base(options.model, options.dtype, device=options.device),
            parts,
            options.out,
            methods,
            seeds=options.seeds,
            neutral=texts or None,
            occupations=OCCUPATIONS if options.occupations is None else load_occupations(options.occupations),
            description={"model": name, "questions": shown_names(options.questions)},
            say=say,
            progress=True,
        )
    except KeyboardInterrupt:
        say(f"\nWhat is fitted and measured stays in {options.out}: the same command goes on from there.")
        raise
    if found.reports:
        say(f"\n{format_comparison(found)}\n")
        for line in warning_lines(found):
            say(line)
    written = save_comparison(found, options.out)
    say("Wrote " + ", ".join(str(path) for path in written))
    return 1 if found.failures else 0
