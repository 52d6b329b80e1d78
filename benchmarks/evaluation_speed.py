"""
Questions per second: this package's scoring against lm-evaluation-harness, on the same questions and model in one run.

    pip install "peft_dso[quickstart,harness]"
    python benchmarks/evaluation_speed.py [--questions 600] [--rounds 3]

Both give log Pr[answer | prompt] for two answers per question on SmolLM2-135M-Instruct in float32; the harness with
the batch size (of 1 to 64) that is its fastest here. They take turns; reported are the medians, and the largest
difference of the log-probabilities. Three sets: the pronoun task, whose prompts begin alike; co-reference, whose do
less; and co-reference as a conversation, the form that the model was tuned to, which begins with its system prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from peft_dso.demo.model import load_smollm2
from peft_dso.questions import coreference_questions, pronoun_questions
from peft_dso.scoring import encode_row, score


def ours(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Log-probabilities of the answers, shape `(questions, 2)`, tokenizing included."""
    encoded = [encode_row(tokenizer, row) for row in rows]
    found = torch.empty(len(rows), 2)
    for numbers, scores in score(model, encoded):
        found[numbers] = scores.answers
    return found


def harness(wrapped: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    def text(prompt: Any) -> str:
        return prompt if isinstance(prompt, str) else wrapped.apply_chat_template(prompt)

    requests = [
        Instance("loglikelihood", {}, (text(row["prompt"]), answer), number)
        for number, row in enumerate(rows)
        for answer in row["answers"]
    ]
    return torch.tensor([value for value, _ in wrapped.loglikelihood(requests, disable_tqdm=True)]).view(-1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, tokenizer = load_smollm2()
    sets = {"pronouns": pronoun_questions("test"), "co-reference": coreference_questions(),
            "co-reference, chat": coreference_questions(chat=True)}  # fmt: skip
    for name, rows in sets.items():
        rows = rows[: options.questions]  # as they stand: each sentence of the co-reference is charged to two people
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
        sizes = {}
        for size in (1, 4, 16, 64):
            wrapped.batch_size_per_gpu = size
            begin = time.perf_counter()
            harness(wrapped, rows[:64])
            sizes[size] = time.perf_counter() - begin
        wrapped.batch_size_per_gpu = best = min(sizes, key=sizes.__getitem__)
        times: dict[str, list[float]] = {"peft_dso": [], "lm-evaluation-harness": []}
        for _ in range(options.rounds):
            begin = time.perf_counter()
            mine = ours(model, tokenizer, rows)
            middle = time.perf_counter()
            theirs = harness(wrapped, rows)
            times["peft_dso"].append(middle - begin)
            times["lm-evaluation-harness"].append(time.perf_counter() - middle)
        speeds = {key: len(rows) / statistics.median(values) for key, values in times.items()}
        print(f"\n{name}: {len(rows)} questions, {torch.get_num_threads()} threads, harness batch size {best}")
        for key, speed in speeds.items():
            print(f"  {key:22} {speed:8.1f} questions/s")
        print(f"  ratio {speeds['peft_dso'] / speeds['lm-evaluation-harness']:.2f}, "
              f"largest difference of log-probabilities {(mine - theirs).abs().max():.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
