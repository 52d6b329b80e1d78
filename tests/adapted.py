"""Models with adapters, and what they say."""

import torch
from models import build, randomize
from peft import (
    get_peft_model,
)

from peft_dso import DSOConfig, DSOLayer


def ids(rows=3, length=5, seed=1):
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def layers(model):
    return [m for m in model.modules() if isinstance(m, DSOLayer)]


def steered(name="llama", adapters=("default",), **config):
    torch.manual_seed(3)
    model = get_peft_model(randomize(build(name)), DSOConfig(init_weights=False, **config)).eval()
    for adapter in adapters[1:]:
        model.add_adapter(adapter, DSOConfig(init_weights=False, **config))
    return model


def logits(model, x=None, **kwargs):
    with torch.no_grad():
        return model(ids() if x is None else x, **kwargs).logits
