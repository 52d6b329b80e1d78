"""
DSO and the methods it is compared with, on a real model: the same questions, the same held-out ones, each method over
its own strengths.

    python benchmarks/compare.py --questions pronouns coreference --seeds 3 --out outputs/compare

It is `peft-dso compare` for each set of questions, on SmolLM2-135M-Instruct, and on the model of `--gemma` (a folder,
or a name on the Hub, of Gemma-3-270M) where one is given. What is done already in the folders is not done again. One
seed of SmolLM2 on the pronouns is meant to end within 40 minutes on two cores. The tables go to benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from peft_dso.cli import main as peft_dso


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", nargs="+", default=["pronouns"], help="such as pronouns coreference")
    parser.add_argument("--gemma", help="folder or Hub name of Gemma-3-270M")
    parser.add_argument("--methods", help="default all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--measure-on", help="of about how many questions of the test (default 900)")
    parser.add_argument("--out", type=Path, default=Path("outputs/compare"))
    options = parser.parse_args()
    models = {"smollm2": "smollm2", **({"gemma": options.gemma} if options.gemma else {})}
    for name, model in models.items():
        for questions in options.questions:
            begin = time.monotonic()
            call = ["compare", "--model", model, "--questions", questions, "--held-out-occupations"]
            call += ["--seeds", str(options.seeds), "--out", str(options.out / f"{name}-{questions}")]
            for option in ("methods", "measure_on"):
                if getattr(options, option):
                    call += [f"--{option.replace('_', '-')}", getattr(options, option)]
            code = peft_dso(call)
            print(f"{name}, {questions}: {time.monotonic() - begin:.0f} s, exit status {code}", flush=True)


if __name__ == "__main__":
    main()
