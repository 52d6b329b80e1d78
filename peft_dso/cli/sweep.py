"""`peft-dso sweep`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from .arguments import add_model, add_questions, chosen_questions, say, strength_list


def add(commands: Any) -> None:
    """Add the command to the parser."""
    measure = commands.add_parser(
        "sweep",
        help="measure an adapter over the strengths",
        description="Measure bias and ability over the strengths: a table, report.json, report.csv and pictures.",
        epilog="example: peft-dso sweep --model smollm2 --adapter adapter --questions coreference "
        "--strengths 0,0.2,...,1 --out report",
    )
    add_model(measure)
    measure.add_argument("--adapter", required=True, help="folder or Hub name of the adapter")
    add_questions(measure, required=False)
    measure.add_argument(
        "--strengths", type=strength_list, default=[0.0, 0.2, 0.4, 0.6, 0.8, 1.0], metavar="0,0.2,...,1"
    )
    measure.add_argument(
        "--answers", choices=("probabilities", "text"), default="probabilities", help="how to read them"
    )
    measure.add_argument("--seed", type=int, default=0, help="of the bootstraps")
    measure.add_argument("--tasks", help="tasks of lm-evaluation-harness, such as arc_easy,mmlu (extra: harness)")
    measure.add_argument("--task-limit", type=int, help="documents per task, for a quick look")
    measure.add_argument("--include-path", help="folder with task files of your own")
    measure.add_argument("--out", required=True, help="folder for the report")
    measure.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..evaluation import format_table, save_csv, save_report, sweep
    from ..evaluation.plots import plot_report, plot_sites
    from ..inspect import read_adapter
    from ..models import load_steered

    rows = chosen_questions(options, "test") if options.questions else []
    if not rows and not options.tasks:
        raise ValueError("Nothing to measure: give --questions, or --tasks for general ability.")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    model, processor = load_steered(options.model, options.adapter, options.dtype)
    if rows:
        description = {
            "model": Path(options.model).name if os.path.isdir(options.model) else options.model,
            "adapter": Path(options.adapter).name if os.path.isdir(options.adapter) else options.adapter,
            "questions": ", ".join(Path(source).name for source in options.questions),
            "number of questions": len(rows),
        }
        name = " + ".join(Path(source).name for source in options.questions)
        report = sweep(
            model,
            processor,
            {name: rows},
            options.strengths,
            answers=options.answers,
            seed=options.seed,
            progress=True,
            description=description,
        )
        say(f"\n{name}\n{format_table(report.sets[name])}\n")
        save_report(report, out / "report.json")
        save_csv(report, out / "report.csv")
        written = [out / "report.json", out / "report.csv", *plot_report(report, out)]
        if os.path.isdir(options.adapter):
            plot_sites(read_adapter(options.adapter)[1], out / "sites.png")
            written.append(out / "sites.png")
        say("Wrote " + ", ".join(str(path) for path in written))
    if options.tasks:
        from ..evaluation.harness import evaluate_tasks, format_tasks

        results = evaluate_tasks(
            model,
            getattr(processor, "tokenizer", processor),
            options.tasks.split(","),
            options.strengths,
            limit=options.task_limit,
            include_path=options.include_path,
        )
        say(f"\nGeneral ability\n{format_tasks(results)}\n")
        plain = {
            f"{w:g}": {key: {"value": m.value, "standard_error": m.standard_error, "n": m.n} for key, m in ms.items()}
            for w, ms in results.items()
        }
        (out / "tasks.json").write_text(json.dumps(plain, indent=2) + "\n")
        say(f"Wrote {out / 'tasks.json'}")
    return 0
