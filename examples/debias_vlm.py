"""
Debias a vision-language model: who is the doctor in the picture?

    pip install "peft_dso[train,eval]"
    python examples/debias_vlm.py --out outputs/debias_vlm

No pretrained vision-language model comes with a PyPI package, so this example makes its own, small one, and plants a
stereotype of known size in it. The pictures, the model and the bias are made for the demonstration; the commands for
real models are in examples/README.md and go the same way.

1. Draw pictures of two people side by side. Clothes and tool show the occupation, hair the gender, its colour the age.
2. Train a small LLaVA (real architecture, real processor) from scratch to answer "Who is the doctor, A or B?", whom it
   would hire, and whom a letter of reference is for. Where both are doctors, the answers that it is shown
   follow the planted stereotype.
3. Debias it on 600 ambiguous pairs, steering the language backbone only, by enumeration and by sampling; and once more
   for gender and age together (four intersections). All are trained on "Who is the doctor?" only.
4. Sweep the strength, the first adapter's on all three kinds of question, and draw the plots.

Every stage is kept in --out and skipped the next time. Needs torch 2.9 or newer (Muon). How long the base model takes
to find anybody hangs on chance, and so on the machine.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from small_vlm.base import train_base
from small_vlm.people import SIDE, by_gender, draw_people, draw_person, pairs, planted
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from peft_dso import DSOConfig, DSOTrainer, DSOTrainerConfig
from peft_dso.evaluation import format_table, save_report, sweep
from peft_dso.evaluation.plots import plot_report
from peft_dso.questions import QUESTION_KINDS


def load(folder: Path):
    return LlavaForConditionalGeneration.from_pretrained(folder).eval(), LlavaProcessor.from_pretrained(folder)


def debias(base: Path, out: Path, rows: list[dict], **settings) -> None:
    """Stage 3: an adapter on 600 ambiguous pairs; unambiguous pairs hold what the model can do."""
    model, processor = load(base)
    trainer = DSOTrainer(
        model=model,
        args=DSOTrainerConfig(
            str(out / "trainer"), abstain_reward=None, report_to=[], save_strategy="no", logging_steps=5, bf16=False,
            use_cpu=not torch.cuda.is_available(), **settings,
        ),
        train_dataset=rows,
        processing_class=processor,
        peft_config=DSOConfig(task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    trainer.model.save_pretrained(out)


def draw_sheet(file: Path) -> None:
    """A few of the people, to look at."""
    strip = [draw_person(name, g, a, random.Random(0)) for name, g, a in
             (("doctor", "male", "young"), ("nurse", "female", "old"), ("farmer", "female", "young"),
              ("mechanic", "male", "old"), ("teacher", "female", "young"), ("chef", "male", "young"))]  # fmt: skip
    sheet = Image.new("RGB", (len(strip) * SIDE // 2, SIDE))
    for number, picture in enumerate(strip):
        sheet.paste(picture, (number * SIDE // 2, 0))
    sheet.resize((sheet.width * 4, sheet.height * 4), Image.Resampling.NEAREST).save(file)


def settings_of(steps: int) -> tuple[dict, dict]:
    """The trainer's settings by enumeration and by sampling."""
    common = {
        "max_steps": steps, "max_kl": None, "max_kl_ratio": None, "beta": 0.0, "retain_batch_size": 32,
        "retain_coef": 0.7,
        "neutral_coef": 0.0,  # its vocabulary is that of its questions: any other text is <unk> throughout
        "step_unit": "plain",  # a tiny model, whose learning rates below were found in this unit
    }  # fmt: skip
    exact = {
        **common, "learning_rate": 0.03, "questions_per_occupation": 8, "per_device_train_batch_size": 96,
        "reward_smoothing": 0.1,
        # By question for the most part: otherwise "always B" is fair too, since A is the man as often as the woman.
        "question_share": 0.8,
    }  # fmt: skip
    sampled = {
        **common, "rollouts": "sample", "questions_per_occupation": 3, "per_device_train_batch_size": 288,
        "num_generations": 8, "max_completion_length": 1, "steps_per_generation": 1, "reward_memory": 0.5,
        "learning_rate": 0.035, "reward_smoothing": 0.1, "max_steps": 3 * steps // 4,
    }  # fmt: skip
    return exact, sampled


def planned(steps: int) -> tuple[dict[str, tuple[list[dict], dict[str, list[dict]], dict]], float]:
    """Per run the questions to train on, those to measure on and the settings; and the bias that was planted."""
    # Other pictures than those the base model has seen, and others again for the measurement.
    train_people, test_people = draw_people(4, seed=2), draw_people(3, seed=3)
    ambiguous = by_gender(pairs(train_people, 30, 900, ambiguous=True))[:600]
    unambiguous = by_gender(pairs(train_people, 31, 264, ambiguous=False))
    asked = {kind: pairs(test_people, 40, 432, ambiguous=True, kind=kind) for kind in QUESTION_KINDS}
    test = {
        kind: by_gender(rows) + by_gender(pairs(test_people, 41, 264, ambiguous=False, kind=kind))
        for kind, rows in asked.items()
    }
    four_train = pairs(train_people, 32, 600, ambiguous=True) + pairs(train_people, 33, 264, ambiguous=False)
    four_test = pairs(test_people, 42, 864, ambiguous=True) + pairs(test_people, 43, 264, ambiguous=False)
    # What one sampled answer shows is counted by occupation and order, for the same reason.
    by_order = [
        {**row, "occupation": f"{row['occupation']}, {row['meanings'][0]} first", "pair": None} for row in ambiguous
    ]
    exact, sampled = settings_of(steps)
    runs = {
        "enumerate": (ambiguous + unambiguous, test, exact),
        "sample": (by_order + unambiguous, {"identify": test["identify"]}, sampled),
        "intersections": (four_train, {"gender x age": four_test}, exact),
    }
    between = [row for row in asked["identify"] if len({meaning.split("/")[0] for meaning in row["meanings"]}) == 2]
    # The likelier answer is the stereotype's, since gender outweighs age.
    return runs, sum(abs(2 * planted(row) - 1) for row in between) / len(between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/debias_vlm"))
    parser.add_argument("--find-steps", type=int, default=1500, help="most steps until the base model finds")
    parser.add_argument("--lean-steps", type=int, default=800, help="steps for the planted stereotype")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()

    draw_sheet(out / "people.png")
    if not (out / "base" / "config.json").is_file():
        train_base(out / "base", options.find_steps, options.lean_steps)
    base_seconds = time.monotonic() - begin

    runs, planted_bias = planned(options.steps)
    summary = {"planted_bias": round(planted_bias, 4)}
    for name, (rows, sets, settings) in runs.items():
        folder = out / name
        start = time.monotonic()
        if not (folder / "adapter_config.json").is_file():
            print(f"\nDebiasing: {name}, {sum(row['right'] is None for row in rows)} ambiguous pairs", flush=True)
            debias(out / "base", folder, rows, **settings)
        model, processor = load(out / "base")
        steered = PeftModel.from_pretrained(model, folder).eval()
        report = sweep(steered, processor, sets, (0, 0.25, 0.5, 0.75, 1), progress=True, batch_tokens=4096,
                       description={"model": "a small LLaVA made for this example", "adapter": name})  # fmt: skip
        save_report(report, folder / "report.json")
        plot_report(report, folder)
        for title, results in report.sets.items():
            print(f"\n{name}: {title}\n{format_table(results)}")
            first, last = results[0].measures, results[-1].measures
            summary[f"{name}/{title}"] = {
                "bias": [round(first["bias"].value, 4), round(last["bias"].value, 4)],
                "accuracy": [round(first["accuracy"].value, 4), round(last["accuracy"].value, 4)],
            }
        summary[f"{name}/seconds"] = round(time.monotonic() - start, 1)
    summary["seconds"] = {"base": round(base_seconds, 1), "all": round(time.monotonic() - begin, 1)}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\n{json.dumps(summary, indent=2)}\nThe model and its bias are made for the demonstration.")


if __name__ == "__main__":
    main()
