"""Steered models, and the formula in the open."""

import torch

from peft_dso import DSOLayer


def ids(rows=3, length=5, seed=1):
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def run(model, x, **kwargs):
    if model.config.is_encoder_decoder:
        kwargs["decoder_input_ids"] = x[:, :2]
    return model(x, **kwargs).logits


def pairs(model):
    return {name: layer.dso_affine["default"] for name, layer in model.named_modules() if isinstance(layer, DSOLayer)}


def by_hand(base, vectors, strength, x):
    """The base model with a forward hook per norm that does the arithmetic in the open."""
    handles = []
    for name, (a, b) in vectors.items():
        hook = lambda module, args, h, a=a, b=b: h + strength * (a * h + b)  # noqa: E731
        handles.append(base.get_submodule(name).register_forward_hook(hook))
    try:
        return run(base, x)
    finally:
        for handle in handles:
            handle.remove()
