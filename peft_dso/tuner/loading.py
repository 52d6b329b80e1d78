"""Whether tensors are those of the adapter that they are loaded into, or taken from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Optional

import torch
from torch import nn

from .files import Taken, pair_vectors, vectors_sha256
from .strength import dso_layers


def check_fits(
    model: nn.Module, adapter: str, tensors: Mapping[str, torch.Tensor], remapped: Mapping[str, torch.Tensor]
) -> None:
    """
    Check that tensors fit before any of them is loaded: PEFT itself lets missing and surplus ones pass.

    Args:
        model (`nn.Module`): the model with the adapter's pairs.
        adapter (`str`): its name.
        tensors (`Mapping[str, torch.Tensor]`): as the file has them.
        remapped (`Mapping[str, torch.Tensor]`): by the names of the model's parameters.

    Raises:
        ValueError: a vector is missing, surplus, of another shape or not finite, or the vectors are not those that
            were saved.
    """
    layers = {n: m for n, m in dso_layers(model).items() if adapter in m.dso_affine}
    wanted = {
        f"{site}.dso_affine.{adapter}.{vector}": parameter
        for site, layer in layers.items()
        for vector, parameter in layer.dso_affine[adapter].named_parameters()
    }
    present = model.state_dict().keys() | {f"base_model.model.{key}" for key in model.state_dict()}
    problems = [f"{key} is missing" for key in wanted if key not in remapped]
    problems += [f"{key} does not belong to this adapter and base model" for key in remapped if key not in present]
    for key in wanted.keys() & remapped.keys():
        tensor = remapped[key]
        if tensor.shape != wanted[key].shape:
            problems.append(f"{key} has shape {tuple(tensor.shape)} instead of {tuple(wanted[key].shape)}")
        elif not tensor.is_floating_point():
            problems.append(f"{key} holds {tensor.dtype}, not floating-point numbers")
        elif not tensor.is_meta and not tensor.isfinite().all():
            problems.append(f"{key} holds NaN or infinity")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError("The DSO adapter does not fit: " + "; ".join(sorted(problems)[:5]) + more + ".")
    pending = (layer.dso_affine[adapter].expected for layer in layers.values())
    expected = next((found for found in pending if found is not None), None)
    if expected is not None:
        expected.compare(pair_vectors(tensors))
        if expected.sha256 is None and not any(remapped[key].is_meta for key in wanted):
            for layer in layers.values():  # all is checked: the model can be compiled as one graph
                layer.dso_affine[adapter].expected = None


def check_whole(model: nn.Module, adapter_name: str, found: int, others: Sequence[str]) -> None:
    """
    Raises:
        ValueError: fewer of an adapter's vectors are about to be saved than it has: PEFT passes over every tensor in
            whose name that of another adapter stands.
    """
    pairs = [layer.dso_affine for layer in dso_layers(model).values()]
    expected = sum(len(list(pair[adapter_name].parameters())) for pair in pairs if adapter_name in pair)
    if found != expected:
        raise ValueError(
            f"The adapter {adapter_name!r} would be saved with {found} of its {expected} vectors: the name of another "
            f"adapter ({', '.join(others)}) is a part of the names of modules. Give that one another name."
        )


def taken(
    model: nn.Module, adapter_name: str, vectors: list[tuple[str, torch.Tensor]], copied: bool
) -> Optional[Taken]:
    """
    Note which vectors are taken from a model to be saved.

    Args:
        model (`nn.Module`): the model with the adapter's pairs.
        adapter_name (`str`): its name.
        vectors (`list[tuple[str, torch.Tensor]]`): what is taken.
        copied (`bool`): they come from somebody's copy, and not from the model as it is.

    Returns:
        `Taken`: of the parameters themselves where they are whole; `None` where there is nothing to tell them by.
    """
    pairs = [layer.dso_affine for layer in dso_layers(model).values()]
    parameters = [item for pair in pairs if adapter_name in pair for item in pair[adapter_name].named_parameters()]
    for found in (vectors,) if copied else (parameters, vectors):
        if found and all(type(v.data) is torch.Tensor and not v.is_meta and v.numel() for _, v in found):
            return Taken(found, time.time(), vectors_sha256(vectors))
    return None
