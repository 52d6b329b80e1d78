"""Whether adapters can be merged into the norms of a model, and whether they can be taken off them."""

from __future__ import annotations

from typing import Optional

from torch import nn

from .merging import check_unshared
from .strength import dso_layers


def check_merge(model: nn.Module, adapter_names: Optional[list[str]]) -> None:
    """
    Try every site before the first one is changed, so that a refusal leaves the model whole.

    Args:
        model (`nn.Module`): the model with the DSO layers.
        adapter_names (`list[str]`, *optional*): which adapters; default the active ones.

    Raises:
        ValueError: there is no such adapter, or a site cannot take the steering.
    """
    layers = dso_layers(model)
    known = sorted({name for layer in layers.values() for name in layer.dso_affine})
    wanted = {name: layer._mergeable(adapter_names) for name, layer in layers.items()}
    unknown = [name for name in adapter_names or () if name not in known]
    if unknown:
        raise ValueError(f"adapter_names: there is no DSO adapter {unknown[0]!r}. Loaded: {', '.join(known)}.")
    for name, layer in layers.items():
        if wanted[name]:
            try:
                layer.folded_weights(layer.merged_adapters + wanted[name])
            except ValueError as error:
                raise ValueError(f"Cannot merge into {name!r}: {error}") from None
    check_unshared(model, {name: layer.get_base_layer() for name, layer in layers.items() if wanted[name]})


def check_unload(model: nn.Module) -> None:
    """
    Refuse to take the layers off a model where those of another tuner would go with them.

    Args:
        model (`nn.Module`): the model with the DSO layers.

    Raises:
        ValueError: a site stands around another tuner's layer.
    """
    for name, layer in dso_layers(model).items():
        if layer.base_layer is not layer.get_base_layer():
            raise ValueError(
                f"{name!r} steers the output of another adapter ({type(layer.base_layer).__name__}), which would be "
                "lost. Merge and unload that one before the DSO adapter is added, or keep both."
            )
