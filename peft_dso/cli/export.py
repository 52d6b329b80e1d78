"""`peft-dso export`."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import add_device, add_model, say


def add(commands: Any) -> None:
    """Add the command to the parser."""
    export = commands.add_parser(
        "export",
        help="write a plain transformers checkpoint at one strength",
        description="Fold the steering at one strength into a stock checkpoint that needs no peft_dso, and compare it "
        "with the steered model.",
        epilog="example: peft-dso export --model smollm2 --adapter adapter --strength 0.4 --out exported",
    )
    add_model(export)
    add_device(export)
    export.add_argument("--adapter", required=True, help="folder or Hub name of the adapter")
    export.add_argument("--strength", type=float, help="default: the one that the adapter is published with")
    export.add_argument(
        "--drop-shift", action="store_true", help="leave out shifts that have no home, and say the cost"
    )
    export.add_argument("--prompt", action="append", help="to compare on; may be given several times")
    export.add_argument("--max-shard-size", default="5GB", help="largest file of weights (default 5GB)")
    export.add_argument("--out", required=True, help="new or empty folder")
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..export import export_checkpoint
    from ..models import load_steered

    model, processor = load_steered(options.model, options.adapter, options.dtype, device=options.device)
    if options.strength is not None:
        model.set_steering_strength(options.strength)
    prompts = {} if not options.prompt else {"prompts": options.prompt}
    report = export_checkpoint(
        model,
        processor,
        options.out,
        drop_shift=options.drop_shift,
        max_shard_size=options.max_shard_size,
        **prompts,
    )
    for line in report.lines():
        say(line)
    say(f"Wrote {options.out}: load it with {report.loader}.from_pretrained({options.out!r})")
    return 0
