"""
Debias a real vision-language model on SocialCounterfactuals, with the paper's set-up: 600 ambiguous pairs.

    pip install "peft_dso[train,eval]" torchvision
    python examples/social_counterfactuals.py --model Qwen/Qwen2.5-VL-7B-Instruct --out outputs/qwen
    python examples/social_counterfactuals.py --model google/gemma-3-4b-it --out outputs/gemma

Pairs show two people of one occupation and different gender (ambiguous) or of two occupations (unambiguous), each in
both orders; pictures of the training do not occur in the measurement. examples/README.md says what memory it takes.
The majorities come from --occupations, a csv with occupation and share_women; default are the 40 that come with the
package, of which the dataset shows some.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch

from peft_dso import DSOConfig, DSOTrainer, DSOTrainerConfig
from peft_dso.evaluation import format_table, save_report, sweep
from peft_dso.evaluation.plots import plot_report
from peft_dso.models import load_base
from peft_dso.questions import OCCUPATIONS, image_pair_questions, load_occupations, social_counterfactuals


def run(model, processor, people, out, occupations=OCCUPATIONS, pairs=600, **settings):
    """
    Train on `pairs` ambiguous questions about some of the people and sweep the strength on questions about the others.

    Args:
        model, processor: a vision-language model and its processor.
        people (`list[dict]`): rows with image, occupation, gender and counterfactual_set.
        out (`str`): folder for the adapter and the report.
        occupations (`list[Occupation]`): the majorities.
        pairs (`int`, defaults to 600): number of ambiguous training questions.
        **settings: fields of `DSOTrainerConfig`.
    """
    # Whole counterfactual sets go to one side: their pictures differ in the attribute alone.
    sets = sorted({str(row["counterfactual_set"]) for row in people})
    held_out = set(sets[::4])
    train = [row for row in people if str(row["counterfactual_set"]) not in held_out]
    test = [row for row in people if str(row["counterfactual_set"]) in held_out]
    rows = image_pair_questions(train, occupations, count=pairs)
    rows += image_pair_questions(train, occupations, ambiguous=False, count=max(2, pairs // 4 * 2))
    measured = image_pair_questions(test, occupations, count=pairs, seed=1)
    measured += image_pair_questions(test, occupations, ambiguous=False, count=max(2, pairs // 4 * 2), seed=1)
    trainer = DSOTrainer(
        model=model,
        args=DSOTrainerConfig(f"{out}/trainer", save_strategy="no", report_to=[], **settings),
        train_dataset=rows,
        processing_class=processor,
        peft_config=DSOConfig(task_type="CAUSAL_LM"),  # the language backbone alone
    )
    trainer.train()
    trainer.model.save_pretrained(out)
    steered = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    report = sweep(steered, processor, {"held-out pictures": measured}, progress=True)
    save_report(report, Path(out) / "report.json")
    plot_report(report, out)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-VL-7B-Instruct")
    parser.add_argument("--out", default="outputs/social_counterfactuals")
    parser.add_argument("--occupations", default=None)
    parser.add_argument("--pictures", type=int, default=20_000, help="rows of the dataset to read (streamed)")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    from datasets import load_dataset

    streamed = load_dataset("Intel/SocialCounterfactuals", split="train", streaming=True)
    table = OCCUPATIONS if options.occupations is None else load_occupations(options.occupations)
    known = {occupation.name for occupation in table}
    people = [row for row in social_counterfactuals(islice(streamed, options.pictures)) if row["occupation"] in known]
    model, processor = load_base(options.model, dtype="bfloat16")
    if torch.cuda.is_available():
        model = model.cuda()
    report = run(
        model, processor, people, options.out, table, max_steps=options.steps, per_device_train_batch_size=16,
        questions_per_occupation=8, retain_batch_size=4, gradient_checkpointing=True,
    )  # fmt: skip
    print(format_table(report.sets["held-out pictures"]))


if __name__ == "__main__":
    main()
