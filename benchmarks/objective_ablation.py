"""
What each setting of the quick start does: the same task and model, one setting changed at a time.

    python benchmarks/objective_ablation.py [--only NAME ...] [--out outputs/objective_ablation.json]

Each variant trains an adapter as `peft-dso quickstart` does and measures it on the same questions, at half and full
strength: about four minutes each on two cores. The table goes to benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from peft_dso.demo.quickstart import HELD_OUT, SEEN, quickstart_questions, train_adapter
from peft_dso.evaluation import sweep


VARIANTS: dict[str, dict[str, Any]] = {
    "the quick start": {},
    "drawn strength": {"training_strength": "uniform"},
    "the sign": {"reward_smoothing": 0.0},
    "smoothing 0.1": {"reward_smoothing": 0.1},
    "memory 0.5": {"reward_memory": 0.5},
    "abstaining costs 1": {"abstain_reward": -1.0},
    "temperature 1 only": {"decoding_temperatures": [1.0]},
    "no share by question": {"question_share": 0.0},
    "the paper's reward": {
        "reward_smoothing": 0.0, "abstain_reward": -1.0, "decoding_temperatures": [1.0], "question_share": 0.0,
    },
    "KL to the base": {"kl_target": "base"},
    "plain units": {"step_unit": "plain"},
    "no neutral text": {"neutral_coef": 0.0},
    "no l1 step": {"l1_coef": 0.0},
    "l1 step to the end": {"l1_until": 1.0},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("outputs/objective_ablation.json"))
    options = parser.parse_args()
    train, test = quickstart_questions()
    results = {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    print("| variant | bias at 0.5 | bias | first choices | held-out occupations | accuracy | p(right) | KL | zeros |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.only:
        begin = time.monotonic()
        trainer, model = train_adapter("outputs/objective_ablation", train, disable_tqdm=True, **VARIANTS[name])
        seconds = time.monotonic() - begin
        zeros, _ = trainer.pairs.sparsity()
        report = sweep(model, trainer.processing_class, test, (0.5, 1.0))
        (half, frames), (_, others) = (report.sets[key] for key in (SEEN, HELD_OUT))
        m = frames.measures
        results[name] = {key: value.value for key, value in m.items()}
        results[name] |= {"bias at 0.5": half.measures["bias"].value, "zeros": zeros, "seconds": seconds}
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        cells = [
            name,
            f"{half.measures['bias']}",
            f"{m['bias']} (floor {frames.noise_floor:.3f})",
            f"{m['bias_first_choice']} (floor {frames.noise_floor_first_choice:.3f})",
            f"{others.measures['bias']}",
            *(f"{m[key].value:.3f}" for key in ("accuracy", "right", "kl")),
            f"{zeros:.2f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
