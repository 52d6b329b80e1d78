"""The command line: `peft-dso quickstart | train | sweep | export | card | inspect`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional


def _say(line: str) -> None:
    print(line, flush=True)


def _quickstart(options: argparse.Namespace) -> int:
    from .quickstart import run

    changes = {} if options.steps is None else {"max_steps": options.steps}
    run(options.out, _say, **changes)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from .inspect import describe

    _say(describe(options.adapter))
    return 0


def _questions(options: argparse.Namespace, split: str) -> list[dict[str, Any]]:
    from .questions import OCCUPATIONS, load_occupations, load_questions

    table = list(OCCUPATIONS) if options.occupations is None else load_occupations(options.occupations)
    rows = [
        row
        for source in options.questions
        for row in load_questions(
            source,
            split,
            occupations=table,
            held_out_occupations=options.held_out_occupations,
            chat=options.chat,
        )
    ]
    return rows if options.limit is None else rows[:: max(1, len(rows) // options.limit)]


def _train(options: argparse.Namespace) -> int:
    from transformers import HfArgumentParser

    from .models import load_base
    from .questions.sources import read_rows
    from .training import DSOTrainer, DSOTrainerConfig
    from .tuner import DSOConfig

    arguments = ["--output_dir", options.out, "--report_to", "none", "--save_strategy", "no", *options.fields]
    (settings,) = HfArgumentParser(DSOTrainerConfig).parse_args_into_dataclasses(arguments)
    rows = _questions(options, "train")
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
    _say(f"Saved the adapter in {options.out}, trained on {len(rows)} questions.")
    _say(f"Measure it: peft-dso sweep --model {options.model} --adapter {options.out} --questions ... --out ...")
    return 0


def strength_list(text: str) -> list[float]:
    """
    Strengths from `"0,0.5,1"`, or from `"0,0.2,...,1"` with the steps in between filled in.

    Raises:
        argparse.ArgumentTypeError: the text is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        if "..." not in parts:
            return [float(part) for part in parts]
        place = parts.index("...")
        first, second, last = float(parts[place - 2]), float(parts[place - 1]), float(parts[place + 1])
        steps = round((last - second) / (second - first))
        if place < 2 or steps < 1 or abs(second + steps * (second - first) - last) > 1e-9:
            raise ValueError(text)
        between = [round(second + k * (second - first), 10) for k in range(1, steps)]
        return [float(p) for p in parts[:place]] + between + [float(p) for p in parts[place + 1 :]]
    except (ValueError, IndexError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of strengths such as 0,0.5,1 or 0,0.2,...,1") from None


def _sweep(options: argparse.Namespace) -> int:
    from .evaluation import format_table, save_csv, save_report, sweep
    from .evaluation.plots import plot_report, plot_sites
    from .inspect import read_adapter
    from .models import load_steered

    rows = _questions(options, "test") if options.questions else []
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
        _say(f"\n{name}\n{format_table(report.sets[name])}\n")
        save_report(report, out / "report.json")
        save_csv(report, out / "report.csv")
        written = [out / "report.json", out / "report.csv", *plot_report(report, out)]
        if os.path.isdir(options.adapter):
            plot_sites(read_adapter(options.adapter)[1], out / "sites.png")
            written.append(out / "sites.png")
        _say("Wrote " + ", ".join(str(path) for path in written))
    if options.tasks:
        from .evaluation.harness import evaluate_tasks, format_tasks

        results = evaluate_tasks(
            model,
            getattr(processor, "tokenizer", processor),
            options.tasks.split(","),
            options.strengths,
            limit=options.task_limit,
            include_path=options.include_path,
        )
        _say(f"\nGeneral ability\n{format_tasks(results)}\n")
        plain = {
            f"{w:g}": {key: {"value": m.value, "standard_error": m.standard_error, "n": m.n} for key, m in ms.items()}
            for w, ms in results.items()
        }
        (out / "tasks.json").write_text(json.dumps(plain, indent=2) + "\n")
        _say(f"Wrote {out / 'tasks.json'}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from .export import export_checkpoint
    from .models import load_steered

    model, processor = load_steered(options.model, options.adapter, options.dtype)
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
        _say(line)
    _say(f"Wrote {options.out}: load it with AutoModelForCausalLM.from_pretrained({options.out!r})")
    return 0


def _card(options: argparse.Namespace) -> int:
    from .export import push_adapter, save_card

    path = save_card(
        options.adapter,
        options.report,
        repo_id=options.repo_id,
        license=options.license,
        trained_on=options.trained_on,
    )
    _say(f"Wrote {path}")
    if options.push:
        if not options.repo_id:
            raise ValueError("--push needs --repo-id USER/NAME.")
        _say(
            push_adapter(options.adapter, options.repo_id, private=options.private or None, revision=options.revision)
        )
    return 0


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="folder or Hub name of the base model; smollm2: the quick start's"
    )
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16 or auto")


def _add_questions(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--questions",
        action="append",
        required=required,
        metavar="Q",
        help="pronouns, coreference, winobias:FILE, winobias-open:FILE, winogender:FILE, synthbias:FILE, bbq:FILE, or "
        "a .json or .jsonl file of rows; may be given several times",
    )
    parser.add_argument("--occupations", help="csv with occupation and share_women (percent) or majority")
    parser.add_argument(
        "--held-out-occupations",
        action="store_true",
        help="of a builder: train without one occupation in five, measure on those alone",
    )
    parser.add_argument("--chat", action="store_true", help="prompts as messages for an instruction-tuned model")
    parser.add_argument("--limit", type=int, help="about how many questions to use, evenly spaced")


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
        "About five minutes on two cores.",
        epilog="example: peft-dso quickstart --out quickstart-out",
    )
    quickstart.add_argument("--out", default="quickstart-out", help="folder for the adapter and the report")
    quickstart.add_argument("--steps", type=int, default=None, help="training steps, for a quick look")
    quickstart.set_defaults(run=_quickstart)

    train = commands.add_parser(
        "train",
        help="train an adapter",
        description="Train a DSO adapter on questions. Every field of DSOTrainerConfig is an option too, written with "
        "underscores, such as --max_steps 60 --learning_rate 2e-3 --l1_coef 0.2 --training_strength uniform.",
        epilog="example: peft-dso train --model smollm2 --questions pronouns --out adapter --max_steps 40",
    )
    _add_model(train)
    _add_questions(train, required=True)
    train.add_argument("--retain", help=".json or .jsonl file of rows with a prompt whose continuation is to be kept")
    train.add_argument("--slopes-only", action="store_true", help="learn no shift: such an adapter merges everywhere")
    train.add_argument("--out", required=True, help="folder for the adapter")
    train.set_defaults(run=_train)

    measure = commands.add_parser(
        "sweep",
        help="measure an adapter over the strengths",
        description="Measure bias and ability over the strengths: a table, report.json, report.csv and pictures.",
        epilog="example: peft-dso sweep --model smollm2 --adapter adapter --questions coreference "
        "--strengths 0,0.2,...,1 --out report",
    )
    _add_model(measure)
    measure.add_argument("--adapter", required=True, help="folder or Hub name of the adapter")
    _add_questions(measure, required=False)
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
    measure.set_defaults(run=_sweep)

    export = commands.add_parser(
        "export",
        help="write a plain transformers checkpoint at one strength",
        description="Fold the steering at one strength into a stock checkpoint that needs no peft_dso, and compare it "
        "with the steered model.",
        epilog="example: peft-dso export --model smollm2 --adapter adapter --strength 0.4 --out exported",
    )
    _add_model(export)
    export.add_argument("--adapter", required=True, help="folder or Hub name of the adapter")
    export.add_argument("--strength", type=float, help="default: the one that the adapter is published with")
    export.add_argument(
        "--drop-shift", action="store_true", help="leave out shifts that have no home, and say the cost"
    )
    export.add_argument("--prompt", action="append", help="to compare on; may be given several times")
    export.add_argument("--max-shard-size", default="5GB", help="largest file of weights (default 5GB)")
    export.add_argument("--out", required=True, help="new or empty folder")
    export.set_defaults(run=_export)

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
    card.set_defaults(run=_card)

    inspect = commands.add_parser(
        "inspect",
        help="say what an adapter changes",
        description="Say what a saved adapter changes: its sites, how many neurons, how strongly; what was measured.",
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
    parser = _parser()
    options, options_left = parser.parse_known_args(arguments)
    options.fields = options_left
    if options_left and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(options_left)}")
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
