"""
How many neurons an adapter needs: the quick start's adapter with only its strongest neurons kept (the paper's sparsity
figure), trained with the l1 step and without it.

    python benchmarks/pruning.py [--out outputs/pruning.json]

Two trainings as `peft-dso quickstart` does them, and for each share of neurons a measurement at strength 1 on its
held-out sentences: about twelve minutes on two cores. The table goes to benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from peft_dso.demo.quickstart import SEEN, quickstart_questions, train_adapter
from peft_dso.evaluation import sweep


SHARES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/pruning.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    train, test = quickstart_questions()
    results = []
    print("| trained | kept at most | not zero | bias | first choices | accuracy | p(right) | KL |")
    print("|---|---|---|---|---|---|---|---|")
    for name, changes in (("with the l1 step", {}), ("without", {"l1_coef": 0.0})):
        trainer, trained = train_adapter("outputs/pruning", train, disable_tqdm=True, **changes)
        total = sum(p.numel() for n, p in trained.named_parameters() if ".dso_affine." in n) // 2
        for share in SHARES:  # from the top down, so that one adapter serves for all
            kept = trained.base_model.prune(keep=share)
            measures = sweep(trained, trainer.processing_class, {SEEN: test[SEEN]}, (1.0,)).sets[SEEN][0].measures
            results.append(
                {"trained": name, "keep": share, "not zero": kept / total}
                | {key: value.value for key, value in measures.items()}
            )
            options.out.write_text(json.dumps(results, indent=1) + "\n")
            cells = [name, f"{share:.0%}", f"{kept / total:.1%}", f"{measures['bias']}",
                     f"{measures['bias_first_choice']}",
                     *(f"{measures[key].value:.3f}" for key in ("accuracy", "right", "kl"))]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
