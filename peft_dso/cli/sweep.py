"""`peft-dso sweep`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from .arguments import (
    add_device,
    add_model,
    add_questions,
    chosen_questions,
    say,
    shown_name,
    shown_names,
    strength_list,
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    measure = commands.add_parser(
        "sweep",
        help="measure a model, or an adapter over the strengths",
        description="Measure bias and ability: of a model as it is, or with an adapter over its strengths (DSO's "
        "strength, a LoRA's scaling, any other adapter of PEFT off and on). A table, report.json, report.csv and "
        "pictures.",
        epilog="example: peft-dso sweep --model smollm2 --adapter adapter --questions coreference "
        "--strengths 0,0.2,...,1 --out report",
    )
    add_model(measure)
    add_device(measure)
    measure.add_argument("--adapter", help="folder or Hub name of an adapter; default the model as it is")
    add_questions(measure, required=False)
    measure.add_argument(
        "--strengths",
        type=strength_list,
        metavar="0,0.2,...,1",
        help="default 0,0.2,...,1; 0,1 of an adapter that is on or off; 0 without an adapter",
    )
    measure.add_argument(
        "--answers", choices=("probabilities", "text"), default="probabilities", help="how to read them"
    )
    measure.add_argument(
        "--neutral",
        help="file of neutral texts of your own, of which one in five is read: those that no training with it sees; "
        "default the package's",
    )
    measure.add_argument("--columns", choices=("main", "all"), default="main", help="of the table; all is wide")
    measure.add_argument("--seed", type=int, default=0, help="of the bootstraps")
    measure.add_argument("--tasks", help="tasks of lm-evaluation-harness, such as arc_easy,mmlu (extra: harness)")
    measure.add_argument("--task-limit", type=int, help="documents per task, for a quick look")
    measure.add_argument("--num-fewshot", type=int, help="examples before each document; default the task's own")
    measure.add_argument("--apply-chat-template", action="store_true", help="ask the tasks as a chat")
    measure.add_argument("--include-path", help="folder with task files of your own")
    measure.add_argument("--out", required=True, help="folder for the report")
    measure.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..models import load_adapted, load_base

    rows = chosen_questions(options, "test") if options.questions else []
    if not rows and not options.tasks:
        raise ValueError("Nothing to measure: give --questions, or --tasks for general ability.")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if options.adapter is None:
        model, processor = load_base(options.model, options.dtype, device=options.device)
    else:
        model, processor = load_adapted(options.model, options.adapter, options.dtype, device=options.device)
    if rows:
        _questions(options, model, processor, rows, out)
    if options.tasks:
        _tasks(options, model, processor, out)
    return 0


def _questions(options: argparse.Namespace, model: Any, processor: Any, rows: list[Any], out: Path) -> None:
    from ..evaluation import DSOStrength, format_table, knob_of, save_csv, save_report, sweep, warnings_of
    from ..evaluation.plots import plot_report, plot_sites
    from ..inspect import VECTORS, read_adapter
    from ..questions import neutral_texts

    description = {
        "model": shown_name(options.model),
        **({} if options.adapter is None else {"adapter": shown_name(options.adapter)}),
        "questions": shown_names(options.questions),
        "number of questions": len(rows),
    }
    name = " + ".join(Path(source).name for source in options.questions)
    steered = options.adapter is not None and isinstance(knob_of(model), DSOStrength)
    if steered:
        description[VECTORS] = getattr(model.peft_config[model.active_adapter], VECTORS)
    report = sweep(
        model,
        processor,
        {name: rows},
        options.strengths,
        neutral=neutral_texts("test", options.neutral),
        answers=options.answers,
        seed=options.seed,
        progress=True,
        description=description,
    )
    say(f"\n{name}\n{format_table(report.sets[name], options.columns)}\n")
    for warning in warnings_of(report):
        say(warning)
    save_report(report, out / "report.json")
    save_csv(report, out / "report.csv")
    written = [out / "report.json", out / "report.csv", *plot_report(report, out)]
    (out / "sites.png").unlink(missing_ok=True)  # of an adapter that was measured before
    if steered and os.path.isdir(options.adapter):
        plot_sites(read_adapter(options.adapter)[1], out / "sites.png")
        written.append(out / "sites.png")
    say("Wrote " + ", ".join(str(path) for path in written))


def _tasks(options: argparse.Namespace, model: Any, processor: Any, out: Path) -> None:
    from ..evaluation.harness import evaluate_tasks, format_tasks
    from ..evaluation.records import plain

    results = evaluate_tasks(
        model,
        processor,
        [task.strip() for task in options.tasks.split(",")],
        options.strengths,
        limit=options.task_limit,
        include_path=options.include_path,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
    )
    say(f"\nGeneral ability\n{format_tasks(results)}\n")
    values = {
        f"{w:g}": {key: {"value": m.value, "standard_error": m.standard_error, "n": m.n} for key, m in ms.items()}
        for w, ms in results.items()
    }
    (out / "tasks.json").write_text(json.dumps(plain(values), indent=2, allow_nan=False) + "\n")
    say(f"Wrote {out / 'tasks.json'}")
