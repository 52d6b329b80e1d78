"""`peft-dso train`: train, then tell what it did."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .arguments import CPU, add_device, add_model, add_questions, check_device, say, shown_name, shown_names
from .train_sets import check_ambiguous, count_in_both, train_and_test


STRENGTHS = (0.0, 0.5, 1.0)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    train = commands.add_parser(
        "train",
        help="train an adapter, and tell what it did",
        description="Train a DSO adapter on questions, and measure it on others that are held out by itself. The "
        "defaults are the best known settings, the same for every model and task; every field of DSOTrainerConfig is "
        "an option too, written with underscores, such as --max_steps 120 --max_kl_ratio 2 --kl_target base.",
        epilog="example: peft-dso train --model smollm2 --questions pronouns --out adapter",
    )
    add_model(train)
    add_device(train, "cpu or cuda")
    add_questions(train, required=True)
    train.add_argument(
        "--test",
        action="append",
        metavar="Q",
        help="questions to measure on, as for --questions; default held-out sentence frames (of a file: groups or "
        "pairs), or with --held-out-occupations occupations, which of a --test set are those that it asks about",
    )
    train.add_argument("--retain", help=".json or .jsonl file of rows with a prompt whose continuation is to be kept")
    train.add_argument("--neutral", help="text file of what is to stay as it is; default texts of the package")
    train.add_argument("--slopes-only", action="store_true", help="learn no shift: such an adapter merges everywhere")
    train.add_argument("--anyway", action="store_true", help="train also where the base shows no bias above its floor")
    train.add_argument("--out", required=True, help="folder for the adapter, its report and its card")
    train.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..evaluation import save_report, shows_bias, warnings_of
    from ..models import load_base
    from ..questions import neutral_texts, read_rows
    from ..training import DSOTrainer
    from ..training.progress import quiet_progress
    from ..tuner import DSOConfig

    settings = settings_of(options)
    checkpoint = check_settings(options, settings)
    rows, test = train_and_test(options)
    check_ambiguous(rows, test)
    for name, measured_on in test.items():
        if both := count_in_both(rows, measured_on):
            say(f"Note: {both} of the {len(measured_on)} questions of {name} stand among those to train on, too.")
    retained = None if options.retain is None else read_rows(options.retain)
    texts = [neutral_texts(split, options.neutral) for split in ("train", "test")]
    model, processor = load_base(options.model, options.dtype, device=options.device)
    before = measured(model, processor, test, (0.0,), texts[1])
    biased = [name for name, results in before.sets.items() if shows_bias(results[0])]
    asked = sum(map(len, test.values()))
    what = "questions of the test set" if options.test else "held-out questions"
    say(f"The base, on {asked} {what}:\n{table(before)}\n")
    if not biased and not options.anyway:
        say("It shows no bias above its floor (what a fair model would show on these questions): nothing is trained.")
        say("To train all the same: --anyway. More questions lower the floor.")
        Path(options.out).mkdir(parents=True, exist_ok=True)
        save_report(before, Path(options.out) / "report.json")
        say(f"Wrote {Path(options.out) / 'report.json'}")
        return 0
    for warning in warnings_of(before):
        say(f"Note: {warning}")
    trainer = DSOTrainer(
        model=model,
        args=settings,
        train_dataset=rows,
        retain_dataset=retained,
        neutral_texts=texts[0],
        processing_class=processor,
        peft_config=DSOConfig(task_type="CAUSAL_LM", learn_shift=not options.slopes_only),
    )
    if options.log_level not in ("debug", "info"):
        quiet_progress(trainer, say)
    say(f"Training on {len(rows)} questions, {trainer.args.max_steps} steps")
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        keep(options, trainer, len(rows))
        raise
    trainer.save_model(options.out, _internal_call=True)  # pushed, if asked for, when it has been measured
    tell(options, trainer, len(rows), test, texts[1])
    if settings.push_to_hub:
        pushed = trainer.push_to_hub()
        say(f"Pushed it: {pushed.commit_url}")
    return 0


def settings_of(options: argparse.Namespace) -> Any:
    """The trainer's configuration."""
    import torch
    from transformers import HfArgumentParser

    from ..training import DSOTrainerConfig

    arguments = ["--output_dir", options.out, "--report_to", "none", "--save_strategy", "no", "--logging_steps", "1"]
    arguments += ["--log_level", options.log_level]
    if options.device in CPU:
        arguments += ["--use_cpu", "True"]
    (settings,) = HfArgumentParser(DSOTrainerConfig).parse_args_into_dataclasses([*arguments, *options.fields])
    if options.device is not None and torch.accelerator.is_available():
        check_device(options.device, settings.device)
    return settings


def check_settings(options: argparse.Namespace, settings: Any) -> Any:
    """
    Refuse what cannot be done before the base is loaded and measured.

    Returns:
        `str`, *optional*: the checkpoint to go on from.

    Raises:
        ValueError: `--out` is no folder or not the trainer's, there is no checkpoint to go on from, or nothing to
            evaluate on in training.
    """
    from ..training.checkpoints import checkpoint_to_resume

    out = Path(options.out)
    if Path(settings.output_dir) != out:
        raise ValueError(f"--output_dir {settings.output_dir}: the folder of everything is --out, now {out}.")
    there = next((place for place in (out, *out.parents) if place.exists()), None)
    if there is not None and not there.is_dir():
        raise ValueError(f"--out {out}: {there} is a file. Give a folder for the adapter, its report and its card.")
    if settings.eval_strategy != "no" or settings.eval_on_start:
        raise ValueError(
            f"--eval_strategy {settings.eval_strategy.value}, --eval_on_start {settings.eval_on_start}: there are no "
            "questions to evaluate on during a training from the command line. Leave them out: --test is measured at "
            "the end."
        )
    wanted = settings.resume_from_checkpoint
    try:
        return checkpoint_to_resume(True if wanted in ("True", "true") else wanted, settings.output_dir)
    except ValueError as error:
        raise ValueError(f"--resume_from_checkpoint {wanted}: {error}") from None


def measured(model: Any, processor: Any, test: Any, strengths: Sequence[float], texts: Sequence[str]) -> Any:
    from ..evaluation import sweep

    return sweep(model, processor, test, strengths, neutral=texts)


def table(report: Any) -> str:
    from ..evaluation import format_table

    return "\n\n".join(f"{name}\n{format_table(results)}" for name, results in report.sets.items())


def keep(options: argparse.Namespace, trainer: Any, count: int) -> None:
    """Save what an interrupted training has learned, of which nothing is measured, and say how to go on."""
    from ..export import save_card
    from ..training.checkpoints import last_complete_checkpoint

    steps = trainer.state.global_step
    if not steps:
        say("\nInterrupted before the first step was done: nothing is saved.")
        return
    trainer.save_model(options.out, _internal_call=True)
    trained_on = f"{count} questions ({shown_names(options.questions)}), interrupted after {steps} steps."
    save_card(options.out, trained_on=trained_on)
    say(f"\nInterrupted after step {steps} of {trainer.state.max_steps}: saved the adapter as it is in {options.out}.")
    say(f"It is not measured: peft-dso sweep --model {options.model} --adapter {options.out} --questions Q --out DIR")
    try:
        checkpoint = last_complete_checkpoint(trainer.args.output_dir)
    except ValueError:
        checkpoint = None
    if checkpoint is None or trainer.args.save_strategy == "no":  # one that lies there is of another training
        say("It cannot go on from here: checkpoints come with --save_strategy steps --save_steps 20")
    else:
        say(f"To go on from {checkpoint}: the same command with --resume_from_checkpoint True")


def tell(options: argparse.Namespace, trainer: Any, count: int, test: Any, texts: Sequence[str]) -> None:
    """Measure the trained adapter; write report, picture and card beside it."""
    from ..evaluation import save_csv, save_report
    from ..evaluation.plots import plot_sweep
    from ..evaluation.warnings import warnings_of
    from ..export import save_card
    from ..inspect import REPORT, VECTORS, read_adapter

    out = Path(options.out)
    # Without the autocast that a training in bfloat16 leaves on it: the adapter is used in float32 from here on.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    say("Measuring")
    report = measured(model, trainer.processing_class, test, STRENGTHS, texts)
    report.description.update(
        model=shown_name(options.model),
        questions=shown_names(options.test or options.questions),
        steps=trainer.state.global_step,
    )
    report.description[VECTORS] = getattr(read_adapter(out)[0], VECTORS)
    say(f"\n{table(report)}\n")
    for warning in warnings_of(report):
        say(f"Note: {warning}")
    say(trainer.why_it_ended())
    save_report(report, out / REPORT)
    save_csv(report, out / "report.csv")
    plot_sweep(report, out / "sweep.png")
    save_card(out, trained_on=f"{count} questions ({shown_names(options.questions)}).")
    say(f"Saved the adapter in {out}, with its report, picture and card.")
    asked = save_held_out(test, out / "held_out.jsonl")
    neutral = "" if options.neutral is None else f" --neutral {options.neutral}"
    adapted = f"--model {options.model} --adapter {out}"
    say(f"More strengths: peft-dso sweep {adapted} --questions {asked}{neutral} --out DIR")


def save_held_out(test: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> str:
    """Write the questions that were measured on, which a file of all does not tell; pictures have no such file."""
    from ..scoring import row_images

    rows = [row for rows in test.values() for row in rows]
    if any(row_images(row) for row in rows):
        return "Q"
    path.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows), encoding="utf-8")
    return str(path)
