"""
With how many others an occupation has to meet in co-reference for what is learned of it to hold for new ones.

    python benchmarks/partners.py [MODEL] [--partners 1,4] [--rotate] [--steps 70]

MODEL is a name of real_models.py, or a folder; default gemma-3-270m. What judges recipe.py is not looked at: 26 of
the occupations that it trains on are trained on here, and the 6 others are judged, on validation frames, at strength 1
and beyond. `--rotate` pairs with others in every two frames, as the set "coreference" does.
"""

from __future__ import annotations

import argparse
import tempfile

from real_models import model_folder

from peft_dso import DSOConfig, DSOTrainer, DSOTrainerConfig
from peft_dso.evaluation import format_table, sweep
from peft_dso.models import load_base
from peft_dso.questions import neutral_texts, split_occupations, subset
from peft_dso.questions.coreference import both_kinds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="gemma-3-270m")
    parser.add_argument("--partners", default="1,4")
    parser.add_argument("--rotate", action="store_true")
    parser.add_argument("--steps", type=int, default=70)
    options = parser.parse_args()
    trained, others = split_occupations(split_occupations()[0])
    sets = {
        "occupations trained on": both_kinds("validation", trained),
        "other occupations": both_kinds("validation", others, partners=2),
    }
    test = {name: subset(rows, 160, each_kind=True) for name, rows in sets.items()}
    for partners in map(int, options.partners.split(",")):
        model, processor = load_base(str(model_folder(options.model)))
        with tempfile.TemporaryDirectory() as folder:
            settings = {"save_strategy": "no", "max_steps": options.steps}
            trainer = DSOTrainer(
                model=model,
                args=DSOTrainerConfig(folder, report_to=[], disable_tqdm=True, **settings),
                train_dataset=both_kinds("train", trained, partners=partners, rotate=options.rotate),
                processing_class=processor,
                peft_config=DSOConfig(task_type="CAUSAL_LM"),
            )
            trainer.train()
        steered = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
        report = sweep(steered, processor, test, (0.0, 1.0, 1.5), neutral=neutral_texts("test"))
        for name, results in report.sets.items():
            print(
                f"\n{partners} partners{', rotated' if options.rotate else ''}; {name}:\n{format_table(results)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
