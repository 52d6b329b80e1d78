"""
How far a random step of slopes or shifts moves a model, in each unit of the shift.

    python benchmarks/shift_units.py [MODEL ...] [--step 0.004]

MODEL is smollm2 or gemma-3-270m (see real_models.py), or a folder; default both. Every slope, or every shift, is moved
by plus or minus `--step` in its unit, at random. Printed: the KL to the base per token of neutral text. Units that
mean the same on every model show about the same KL, for slopes and shifts alike.
"""

from __future__ import annotations

import argparse

import torch
from peft import get_peft_model
from real_models import model_folder

from peft_dso import DSOConfig, DSOLayer
from peft_dso.models import load_base
from peft_dso.objective import kl_divergence
from peft_dso.questions import neutral_texts
from peft_dso.tuner import output_unit, shift_unit


@torch.no_grad()
def moved(name: str, step: float) -> list[float]:
    """KL for slopes, and for shifts in plain units, in those of the gain and in those of the output."""
    model, processor = load_base(str(model_folder(name)))
    model = get_peft_model(model, DSOConfig(task_type="CAUSAL_LM")).eval()
    layers = [module for module in model.modules() if isinstance(module, DSOLayer)]
    norms = [layer.get_base_layer() for layer in layers]
    texts = [processor(text, return_tensors="pt")["input_ids"][:, :24] for text in neutral_texts("train")[:6]]

    def said() -> list[torch.Tensor]:
        return [model(text).logits[0].float().log_softmax(-1) for text in texts]

    base = said()
    gains = [shift_unit(norm) for norm in norms]
    plain = [torch.ones_like(gain) for gain in gains]
    found = []
    for part, units in (("slope", plain), ("shift", plain), ("shift", gains), ("shift", output_unit(norms, said))):
        generator = torch.Generator().manual_seed(0)
        for layer, unit in zip(layers, units, strict=True):
            affine = layer.dso_affine["default"]
            for vector in affine.parameters():
                vector.zero_()
            signs = torch.randint(0, 2, unit.shape, generator=generator) * 2 - 1
            getattr(affine, part).copy_(step * signs * unit)
        kl = [kl_divergence(now, before) for now, before in zip(said(), base, strict=True)]
        found.append(torch.cat(kl).mean().item())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma-3-270m"])
    parser.add_argument("--step", type=float, default=0.004)
    options = parser.parse_args()
    titles = ("model", "slopes", "shifts, plain", "of the gain", "of the output")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for name in options.models:
        print("| " + " | ".join([name, *(f"{kl:.5f}" for kl in moved(name, options.step))]) + " |", flush=True)


if __name__ == "__main__":
    main()
