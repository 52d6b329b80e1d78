"""
How the settings of the quick start were chosen: the same task and model, one setting changed at a time.

    python benchmarks/objective_ablation.py [--only NAME ...] [--out outputs/objective_ablation.json]

Each variant trains an adapter as `peft-dso quickstart` does and measures it at strength 1 on all held-out frames and
occupations: about four minutes each on two cores. The table goes to benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_dso import DSOConfig, DSOLayer, DSOTrainer
from peft_dso.evaluation import sweep
from peft_dso.penalties import sparsity
from peft_dso.questions import pronoun_questions, split_occupations
from peft_dso.quickstart import quickstart_config
from peft_dso.quickstart_model import smollm2_folder


BASE = {"max_steps": 52, "l1_coef": 0.4, "l1_until": 0.5, "beta": 0.02, "reward_smoothing": 0.3, "retain_coef": 1.0,
        "question_share": 0.0, "decoding_temperatures": [1.0]}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "occupations": {},
    "and questions": {"question_share": 0.5, "beta": 0.01},
    "smoothing 0.1": {"reward_smoothing": 0.1},
    "the sign": {"reward_smoothing": 0.0},
    "memory 0.5": {"reward_memory": 0.5},
    "at temperatures 1 and 0.2": {"decoding_temperatures": [1.0, 0.2]},
    "both, half by question": {
        "question_share": 0.5, "beta": 0.01, "decoding_temperatures": [1.0, 0.2], "retain_coef": 1.5,
    },
    "both, a quarter by question": {
        "question_share": 0.25, "beta": 0.01, "decoding_temperatures": [1.0, 0.2], "retain_coef": 2.0,
    },
    "abstaining costs 1": {"abstain_reward": -1.0},
    "drawn strength": {"training_strength": "uniform"},
    "no l1 step": {"l1_coef": 0.0},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("outputs/objective_ablation.json"))
    options = parser.parse_args()
    folder = smollm2_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    seen, held_out = split_occupations()
    train = pronoun_questions("train", seen) + pronoun_questions("train", seen, ambiguous=False)
    test = {
        name: pronoun_questions("test", occupations) + pronoun_questions("test", occupations, ambiguous=False)
        for name, occupations in (("frames", seen), ("occupations", held_out))
    }
    results = {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    print("| variant | bias | first choices | bias, held-out occupations | accuracy | p(right) | KL | zeros | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.only:
        begin = time.monotonic()
        trainer = DSOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=quickstart_config("outputs/objective_ablation", disable_tqdm=True, **{**BASE, **VARIANTS[name]}),
            train_dataset=train,
            processing_class=tokenizer,
            peft_config=DSOConfig(task_type="CAUSAL_LM"),
        )
        trainer.train()
        seconds = time.monotonic() - begin
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
        zeros, _ = sparsity(
            [tuple(m.dso_affine["default"].parameters()) for m in model.modules() if isinstance(m, DSOLayer)]
        )
        report = sweep(model, tokenizer, test, (1.0,))
        frames, others = (report.sets[key][0] for key in test)
        m = frames.measures
        results[name] = {key: value.value for key, value in m.items()} | {"zeros": zeros, "seconds": seconds}
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        cells = [
            name,
            f"{m['bias']} (floor {frames.noise_floor:.3f})",
            f"{m['bias_first_choice']} (floor {frames.noise_floor_first_choice:.3f})",
            f"{others.measures['bias']}",
            *(f"{m[key].value:.3f}" for key in ("accuracy", "right", "kl")),
            f"{zeros:.2f}",
            f"{seconds:.0f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
