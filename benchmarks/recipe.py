"""
What the trainer's defaults reach, model by model and task by task, with no setting for any of them.

    python benchmarks/recipe.py [MODEL ...] [--tasks pronouns,coreference,chat] [--out DIR] [--questions N]

MODEL is smollm2, gemma-3-270m, qwen2.5-coder-0.5b-instruct (see real_models.py) or a folder; default the first three.
Each pair of model and task is trained once and written to DIR as it is done: a second run goes on where the first one
ended, within a training at its last checkpoint.

Frames and occupations are split three ways. Nothing is chosen here, so that this script trains on the "train" frames
and judges on the "test" frames and on the occupations that `split_occupations` holds out; the defaults were chosen on
the "validation" frames.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
from pathlib import Path

from real_models import MODELS, model_folder

from peft_dso import DSOConfig, DSOTrainer, DSOTrainerConfig
from peft_dso.evaluation import save_report, sweep
from peft_dso.models import load_base
from peft_dso.questions import load_questions, neutral_texts, split_occupations, subset
from peft_dso.training.checkpoints import is_complete


STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
FRAMES, OCCUPATIONS = "held-out frames", "held-out occupations"


def questions(task: str, most: int) -> tuple[list, dict[str, list]]:
    """Rows to train on, and the two sets to judge on."""
    source, chat = ("coreference", True) if task == "chat" else (task, False)
    seen, held_out = split_occupations()
    train = load_questions(source, "train", occupations=seen, chat=chat)
    sets = {FRAMES: seen, OCCUPATIONS: held_out}
    return train, {
        name: subset(load_questions(source, "test", occupations=table, chat=chat), most, each_kind=True)
        for name, table in sets.items()
    }


def measure(name: str, task: str, out: Path, most: int) -> dict:
    """Train with the defaults, sweep, and note what the table shows."""
    model, processor = load_base(str(model_folder(name)))
    if task == "chat" and not getattr(processor, "chat_template", None):
        return {"model": name, "task": task, "skipped": "no chat template"}
    train, test = questions(task, most)
    folder = out / f"{name.replace('/', '_')}-{task}"
    checkpoints = folder / "trainer"
    saved = {"save_strategy": "steps", "save_steps": 20, "save_total_limit": 1}
    trainer = DSOTrainer(
        model=model,
        args=DSOTrainerConfig(str(checkpoints), report_to=[], disable_tqdm=True, **saved),
        train_dataset=train,
        processing_class=processor,
        peft_config=DSOConfig(task_type="CAUSAL_LM"),
    )
    trainer.train(resume_from_checkpoint=any(is_complete(str(path)) for path in checkpoints.glob("checkpoint-*")))
    # Of all runs that it took.
    step_times = [line["step_time"] for line in trainer.state.log_history if "step_time" in line]
    seconds = statistics.mean(step_times) * trainer.state.global_step
    steered = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    steered.save_pretrained(folder / "adapter")
    report = sweep(steered, processor, test, STRENGTHS, neutral=neutral_texts("test"), progress=True)
    save_report(report, folder / "report.json")
    zeros, _ = trainer.pairs.sparsity()
    row = {"model": name, "task": task, "seconds": round(seconds), "zeros": zeros, "why": trainer.why_it_ended()}
    for label, key in (("frames", FRAMES), ("occupations", OCCUPATIONS)):
        row[label] = [
            {"strength": r.strength, **{k: (m.value, m.standard_error) for k, m in r.measures.items()}}
            for r in report.sets[key]
        ]
    return row


def line(row: dict) -> str:
    """One line of the table."""
    if "skipped" in row:
        return f"| {row['model']} | {row['task']} | {row['skipped']} |" + " |" * 10
    base, end, other = row["frames"][0], row["frames"][-1], row["occupations"]

    def both(key: str, spec: str = ".3f") -> str:
        return f"{base[key][0]:{spec}} -> {end[key][0]:{spec}}"

    biases = [r["bias"] for r in row["frames"]]
    rises = [b[0] - a[0] > 2 * (a[1] ** 2 + b[1] ** 2) ** 0.5 for a, b in itertools.pairwise(biases)]
    cells = [
        row["model"], row["task"],
        f"{both('bias')} (floor {end['noise_floor'][0]:.3f})",
        f"{both('bias_first_choice')} (floor {end['noise_floor_first_choice'][0]:.3f})",
        f"{other[0]['bias'][0]:.3f} -> {other[-1]['bias'][0]:.3f}",
        f"{end['kl'][0]:.3f} ({end['kl'][0] / base['least_kl'][0]:.1f} x {base['least_kl'][0]:.3f})",
        both("accuracy"), both("abstention"), f"{end['neutral_kl'][0]:.4f}", f"{row['zeros']:.0%}",
        "no" if any(rises) else "yes", f"{row['seconds']} s",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--tasks", default="pronouns,coreference,chat")
    parser.add_argument("--out", default="recipe-out")
    parser.add_argument("--questions", type=int, default=500, help="about how many of each kind to judge on")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "rows.jsonl"
    rows = [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []
    done = {(row["model"], row["task"], row.get("questions")): row for row in rows}
    asked = [(name, task, options.questions) for name in options.models for task in options.tasks.split(",")]
    for key in asked:
        if key not in done:
            name, task, most = key
            done[key] = {**measure(name, task, out, most), "questions": most}
            with open(file, "a") as added:
                added.write(json.dumps(done[key]) + "\n")
            gc.collect()
    titles = "model,task,bias,first choices,held-out occupations,KL (x least),accuracy,abstention,neutral KL,zeros,"
    titles = (titles + "monotone,training").split(",")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for key in asked:
        print(line(done[key]))


if __name__ == "__main__":
    main()
