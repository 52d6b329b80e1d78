"""
How far a random step of slopes or shifts moves a model, in each unit.

    python benchmarks/step_units.py [MODEL ...] [--step 0.004] [--rate 0.03]

MODEL is smollm2 or gemma-3-270m (see real_models.py), or a folder; default both. Every slope, or every shift, is moved
by plus or minus `--step` in its unit, or by `--rate` in units of what it costs, at random. Printed: the KL to the base
per token of neutral text that the units were not measured on. Units that mean the same on every model show about the
same KL, for slopes and shifts alike; those of what it costs promise half of the rate's square.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from peft import get_peft_model
from real_models import model_folder

from peft_dso import DSOConfig, DSOLayer
from peft_dso.models import load_base
from peft_dso.objective import kl_divergence
from peft_dso.questions import neutral_texts
from peft_dso.tuner import fisher_information, fisher_units, output_unit, shift_unit


UNITS = ("plain", "gain", "output", "fisher")


def moved(name: str, step: float, rate: float) -> dict[str, list[float]]:
    """KL for slopes and for shifts, by unit."""
    model, processor = load_base(str(model_folder(name)))
    model = get_peft_model(model, DSOConfig(task_type="CAUSAL_LM")).eval()
    layers = [module for module in model.modules() if isinstance(module, DSOLayer)]
    norms = [layer.get_base_layer() for layer in layers]
    known, others = (
        [processor(text, return_tensors="pt")["input_ids"][:, :32] for text in texts]
        for texts in (neutral_texts("train")[:64], neutral_texts("test")[:16])
    )

    def said(text: torch.Tensor) -> torch.Tensor:
        return model(text).logits[0].float().log_softmax(-1)

    with model.disable_adapter():
        costs = fisher_units(fisher_information(norms, [partial(said, text) for text in known]))
        outputs = output_unit(norms, lambda: [said(text) for text in known[:16]])
    gains = [shift_unit(norm) for norm in norms]
    ones = [torch.ones_like(gain) for gain in gains]
    units = {
        "plain": [(ones, step), (ones, step)],
        "gain": [(ones, step), (gains, step)],
        "output": [(ones, step), (outputs, step)],
        "fisher": [([slope for slope, _ in costs], rate), ([shift for _, shift in costs], rate)],
    }
    found: dict[str, list[float]] = {}
    with torch.no_grad():
        base = [said(text) for text in others]
        for unit, parts in units.items():
            for part, (sizes, by) in zip(("slope", "shift"), parts, strict=True):
                generator = torch.Generator().manual_seed(0)
                for layer, size in zip(layers, sizes, strict=True):
                    affine = layer.dso_affine["default"]
                    for vector in affine.parameters():
                        vector.zero_()
                    signs = torch.randint(0, 2, size.shape, generator=generator) * 2 - 1
                    getattr(affine, part).copy_(by * signs * size)
                kl = [kl_divergence(said(text), before) for text, before in zip(others, base, strict=True)]
                found.setdefault(unit, []).append(torch.cat(kl).mean().item())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma-3-270m"])
    parser.add_argument("--step", type=float, default=0.004)
    parser.add_argument("--rate", type=float, default=0.03)
    options = parser.parse_args()
    print("| model | moved | " + " | ".join(UNITS) + " |\n" + "|---" * (2 + len(UNITS)) + "|")
    for name in options.models:
        found = moved(name, options.step, options.rate)
        for n, part in enumerate(("slopes", "shifts")):
            print("| " + " | ".join([name, part, *(f"{found[unit][n]:.5f}" for unit in UNITS)]) + " |", flush=True)


if __name__ == "__main__":
    main()
