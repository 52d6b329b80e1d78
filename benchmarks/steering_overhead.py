"""
What steering costs: prefill and cached decoding of the same model, side by side in one process.

    python benchmarks/steering_overhead.py [--rounds 15] [--models SmolLM2-135M GPT-2] [--out outputs/overhead.json]

Variants: the base; DSO at strength 0.4; DSO with one strength per row; LoRA r=8 unmerged on all linear layers; a plain
forward hook per norm that does h + w (a h + b). The variants take turns within each round, in an order that changes
from round to round, so that what else the machine does hits all of them alike; reported are the median over the
rounds and the median of the ratios to the base of the same round, with the middle half of those ratios.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, GPT2LMHeadModel

import peft_dso
from peft_dso.demo.model import smollm2_folder


STRENGTH = 0.4
PREFILL_TOKENS, CONTEXT, DECODED = 256, 64, 16


def smollm2() -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=12, n_embd=768, n_head=12))


MODELS: dict[str, Callable[[], nn.Module]] = {"SmolLM2-135M": smollm2, "GPT-2": gpt2}


def hooked(model: nn.Module) -> nn.Module:
    """The same arithmetic with forward hooks and no adapter."""
    for site in peft_dso.find_sites(model, peft_dso.DSOConfig()):
        slope, shift = 0.1 * torch.randn(site.width), 0.1 * torch.randn(site.width)
        strength = torch.tensor(STRENGTH)

        def steer(module: Any, args: Any, h: Any, a: Any = slope, b: Any = shift, w: Any = strength) -> Any:
            return h + w * (a * h + b)

        model.get_submodule(site.name).register_forward_hook(steer)
    return model


def dso(model: nn.Module) -> nn.Module:
    steered = get_peft_model(model, peft_dso.DSOConfig(init_weights=False, task_type="CAUSAL_LM"))
    steered.set_steering_strength(STRENGTH)
    return steered


def lora(model: nn.Module) -> nn.Module:
    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "base": lambda model: model,
    "dso": dso,
    "dso per row": dso,
    "lora": lora,
    "hook": hooked,
}


@torch.inference_mode()
def prefill(model: nn.Module, batch: int) -> float:
    ids = torch.arange(PREFILL_TOKENS).remainder(1000).expand(batch, -1)
    begin = time.perf_counter()
    model(input_ids=ids, use_cache=True)
    return time.perf_counter() - begin


@torch.inference_mode()
def decode(model: nn.Module, batch: int) -> float:
    """Seconds per decoded token (of all rows), after a context that is not counted."""
    cache = DynamicCache()
    model(input_ids=torch.arange(CONTEXT).expand(batch, -1), past_key_values=cache, use_cache=True)
    token = torch.full((batch, 1), 7)
    begin = time.perf_counter()
    for _ in range(DECODED):
        model(input_ids=token, past_key_values=cache, use_cache=True)
    return (time.perf_counter() - begin) / DECODED


TASKS: dict[str, tuple[Callable[[nn.Module, int], float], int]] = {
    "prefill 1 x 256": (prefill, 1),
    "decode batch 1": (decode, 1),
    "decode batch 8": (decode, 8),
}


def measure(build: Callable[[], nn.Module], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    models = {name: make(build()).eval() for name, make in VARIANTS.items()}
    found = {}
    for task, (run, batch) in TASKS.items():
        models["dso per row"].set_steering_strength([STRENGTH] * batch)
        for model in models.values():
            run(model, batch)
        times: dict[str, list[float]] = {name: [] for name in models}
        for number in range(rounds):
            order = list(models)
            random.Random(number).shuffle(order)
            for name in order:
                times[name].append(run(models[name], batch))
        found[task] = {}
        for name, seconds in times.items():
            ratios = sorted(s / b for s, b in zip(seconds, times["base"], strict=False))
            low, _, high = statistics.quantiles(ratios, n=4)
            found[task][name] = {
                "milliseconds": 1000 * statistics.median(seconds),
                "ratio": statistics.median(ratios),
                "ratio_low": low,
                "ratio_high": high,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    results = {}
    for title in options.models:
        results[title] = measure(MODELS[title], options.rounds)
        for task, variants in results[title].items():
            print(f"\n{title}, {task} (float32, {torch.get_num_threads()} threads, torch {torch.__version__})")
            for name, row in variants.items():
                print(
                    f"  {name:12} {row['milliseconds']:8.2f} ms   x{row['ratio']:.3f}"
                    f"   (middle half {row['ratio_low']:.3f} - {row['ratio_high']:.3f})"
                )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
