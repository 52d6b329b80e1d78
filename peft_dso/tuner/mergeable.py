"""Whether adapters can be merged into the norms of a model."""

from __future__ import annotations

from typing import Optional

from torch import nn

from .layer import DSOLayer


def check_merge(model: nn.Module, adapter_names: Optional[list[str]]) -> None:
    """
    Try every site before the first one is changed, so that a refusal leaves the model whole.

    Args:
        model (`nn.Module`): the model with the DSO layers.
        adapter_names (`list[str]`, *optional*): which adapters; default the active ones.

    Raises:
        ValueError: a site cannot take the steering.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, DSOLayer):
            names = layer._mergeable(adapter_names)
            if names:
                try:
                    layer.folded_weights(layer.merged_adapters + names)
                except ValueError as error:
                    raise ValueError(f"Cannot merge into {name!r}: {error}") from None
