"""
What a gradient costs: time and forward tokens until the held-out bias is halved, side by side in one run.

    python benchmarks/gradient_cost.py [--budget 300] [--out outputs/gradient_cost.json]

The same task (the pronoun task of the quick start) and model (SmolLM2-135M-Instruct, float32) for each of: DSO with
the exact expectation (rollouts="enumerate"), DSO with 8 sampled answers per question (rollouts="sample"), and plain
TRL RLOO with LoRA r=8 on all linear layers and the same fairness reward. After every few steps the per-occupation bias
is measured on sentence frames that are not trained on; the measuring counts neither as time nor as tokens. A variant
that has not halved the bias within the budget is reported so, with what it had reached.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from peft_dso import DSOConfig, DSOTrainer, DSOTrainerConfig, FairnessReward
from peft_dso.demo.model import smollm2_folder
from peft_dso.evaluation.measures import per_occupation_bias
from peft_dso.questions import pronoun_questions, split_occupations
from peft_dso.scoring import encode_row, score


ANSWERS = 8  # sampled per question


class Halved(TrainerCallback):
    """Measures the held-out bias now and then, and stops the training when it is halved or the budget is spent."""

    def __init__(self, rows: list[dict[str, Any]], tokenizer: Any, every: int, budget: float) -> None:
        self.rows, self.every, self.budget = rows, every, budget
        self.encoded = [encode_row(tokenizer, row) for row in rows]
        self.tokens, self.counting, self.paused, self.begin = 0, True, 0.0, 0.0
        self.curve: list[tuple[int, float, int, float]] = []

    def bias(self, model: Any) -> float:
        shares = np.zeros((len(self.rows), 2))
        for numbers, scores in score(model, self.encoded):
            shares[numbers] = scores.answers.softmax(-1).cpu().numpy()
        pro = [row["meanings"].index("pro") for row in self.rows]
        shares = np.array([s if p == 0 else s[::-1] for s, p in zip(shares, pro, strict=False)])
        names = [row["occupation"] for row in self.rows]
        return per_occupation_bias(shares, names, [row["pair"] for row in self.rows]).value

    def measure(self, step: int, model: Any) -> float:
        start = time.monotonic()
        self.counting = False
        value = self.bias(model)
        self.counting = True
        self.paused += time.monotonic() - start
        self.curve.append((step, start - self.begin - (self.paused - (time.monotonic() - start)), self.tokens, value))
        return value

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        def count(module: Any, inputs: Any, output: Any) -> None:
            self.tokens += inputs[0].numel() if self.counting else 0

        model.get_input_embeddings().register_forward_hook(count)
        self.begin = time.monotonic()
        self.base = self.measure(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            value = self.measure(state.global_step, model)
            control.should_training_stop = value <= self.base / 2 or self.curve[-1][1] > self.budget


def variants(out: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    common = {
        "report_to": [], "save_strategy": "no", "logging_steps": 1000, "max_steps": 100_000, "bf16": False,
        "use_cpu": not torch.cuda.is_available(), "disable_tqdm": True, "lr_scheduler_type": "constant",
    }  # fmt: skip
    sampled = {"num_generations": ANSWERS, "max_completion_length": 1, "per_device_train_batch_size": 24 * ANSWERS,
               "steps_per_generation": 1}  # fmt: skip

    def dso(**settings: Any) -> Any:
        args = DSOTrainerConfig(
            str(out), abstain_reward=None, max_kl=None, beta=0.02, learning_rate=2e-3, warmup_steps=0,
            step_unit="plain",
            **{**common, **settings},
        )  # fmt: skip
        return DSOTrainer(model(), args, rows, processing_class=tokenizer,
                          peft_config=DSOConfig(task_type="CAUSAL_LM"))  # fmt: skip

    def lora() -> Any:
        args = RLOOConfig(str(out), beta=0.02, learning_rate=3e-4, gradient_checkpointing=False, **common, **sampled)
        reward = FairnessReward(abstain_reward=None, memory=0.9)
        return RLOOTrainer(
            model(), reward, args, Dataset.from_list(rows), processing_class=tokenizer,
            peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip

    return {
        "enumerate": lambda: dso(questions_per_occupation=8, per_device_train_batch_size=96),
        f"sample {ANSWERS}": lambda: dso(rollouts="sample", questions_per_occupation=4, reward_memory=0.9, **sampled),
        f"RLOO + LoRA r=8, {ANSWERS} samples": lora,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=300, help="seconds of training per variant, at the most")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    folder = smollm2_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    seen, _ = split_occupations()
    rows = pronoun_questions("train", seen)
    held_out = pronoun_questions("test", seen)[::5]

    def model() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    results = {}
    for name, make in variants(Path("outputs/gradient_cost"), model, tokenizer, rows).items():
        trainer = make()
        watch = Halved(held_out, tokenizer, 1 if name == "enumerate" else 2, options.budget)
        trainer.add_callback(watch)
        trainer.train()
        step, seconds, tokens, bias = watch.curve[-1]
        results[name] = {
            "halved": bias <= watch.base / 2, "steps": step, "seconds": seconds, "forward_tokens": tokens,
            "bias": bias, "base_bias": watch.base, "curve": watch.curve,
        }  # fmt: skip
        reached = "halved" if results[name]["halved"] else "NOT halved within the budget"
        print(f"{name:28} {reached}: bias {watch.base:.3f} -> {bias:.3f} after {step} steps, {seconds:.1f} s, "
              f"{tokens:,} forward tokens", flush=True)  # fmt: skip
    first = results["enumerate"]
    for name, row in results.items():
        at_least = "" if row["halved"] else "at least "
        times, tokens = (row[key] / first[key] for key in ("seconds", "forward_tokens"))
        print(f"{name:28} {at_least}{times:.1f} x the time, {at_least}{tokens:.1f} x the tokens of enumerate")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
