"""The knob: set, read and borrow the steering strength while a model is in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Optional, Union

import torch
from torch import nn

from .affine import DSOAffine
from .layer import DSOLayer
from .targets import pattern_matches


Value = Union[float, Sequence[float], torch.Tensor]
Strength = Union[Value, Mapping[str, Value]]


def dso_layers(model: nn.Module) -> dict[str, DSOLayer]:
    """
    The steered norms of a model by name.

    Raises:
        ValueError: there are none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DSOLayer)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no DSO adapter. Add one with get_peft_model(model, DSOConfig()), "
            "PeftModel.from_pretrained or model.load_adapter."
        )
    return layers


def _selected(model: nn.Module, adapter_name: Optional[str]) -> dict[tuple[str, str], DSOAffine]:
    """The pairs of one adapter, or of the active ones, by site and adapter."""
    layers = dso_layers(model)
    known = sorted({name for layer in layers.values() for name in layer.dso_affine})
    if adapter_name is not None and adapter_name not in known:
        raise ValueError(f"There is no DSO adapter {adapter_name!r}. Loaded: {', '.join(known)}.")
    chosen = {}
    for site, layer in layers.items():
        for name in [adapter_name] if adapter_name is not None else layer.active_adapters:
            if name in layer.dso_affine:
                chosen[site, name] = layer.dso_affine[name]
    if not chosen:
        raise ValueError(f"No DSO adapter is active. Loaded: {', '.join(known)}; name one with adapter_name.")
    return chosen


def _as_tensor(value: Value) -> torch.Tensor:
    """A number as shape `()`, a sequence or vector as shape `(rows,)`, both float32."""
    try:
        # torch.inference_mode would leave a tensor that no later training step may use.
        with torch.inference_mode(False):
            given = torch.as_tensor(value)
            if isinstance(value, (bool, str)) or given.dtype == torch.bool or given.is_complex():
                raise TypeError
            tensor = given.detach().to(torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"The steering strength must be a number or one number per row, got {value!r}.") from None
    if tensor.dim() > 1 or tensor.numel() == 0:
        raise ValueError(
            f"The steering strength must be a number or one number per row, got shape {tuple(tensor.shape)}."
        )
    if not tensor.isfinite().all():
        raise ValueError(f"The steering strength must be finite, got {value!r}.")
    return tensor


def pattern_value(patterns: Mapping[str, Any], site: str) -> Any:
    """
    The value of the first pattern that matches a site: the pattern is a regex for whole dotted parts of the name, so
    `"layers.3"` is block 3 but not block 30, and `r"layers\\.[0-3]"` the first four. `None` where none matches.
    """
    for pattern, value in patterns.items():
        if pattern_matches(rf"(.*\.)?(?:{pattern})(\..*)?", site, "steering strength"):
            return value
    return None


def check_patterns(patterns: Iterable[str], sites: Sequence[str]) -> None:
    """
    Raises:
        ValueError: a pattern (see [`pattern_value`]) matches none of the sites.
    """
    for pattern in patterns:
        if not any(pattern_value({pattern: True}, site) for site in sites):
            raise ValueError(
                f"steering_strength: the pattern {pattern!r} matches none of the sites, such as {sites[0]!r}."
            )


def set_steering_strength(model: nn.Module, strength: Strength, adapter_name: Optional[str] = None) -> None:
    """
    Set the strength w of h' = h + w (a * h + b), from now on. 0 is the base model, 1 what was trained; values outside
    [0, 1] extrapolate.

    The tensor of each site is kept and written into, as long as a number follows a number, or n rows follow n rows: a
    captured CUDA graph and a compiled model compute with the new value. While another thread has borrowed the
    strength (see [`steering_strength`]), this waits.

    Args:
        model (`nn.Module`): a `PeftModel`, or a plain model with a loaded DSO adapter.
        strength (`float`, `Sequence[float]`, `torch.Tensor` or `Mapping`): a number; one number per row of the batch;
            or a mapping from layer pattern (see [`pattern_value`]) to either, which leaves the other sites as they
            are.
        adapter_name (`str`, *optional*): which adapter; default the active ones.

    Raises:
        TypeError: the strength is not made of numbers.
        ValueError: it is NaN, infinite, empty or of two dimensions; the adapter or a pattern matches nothing; the
            adapter is merged; or a row's strength is asked of a vision tower's norm.
    """
    chosen = _selected(model, adapter_name)
    layers = dso_layers(model)
    if isinstance(strength, Mapping):
        tensors = {pattern: _as_tensor(value) for pattern, value in strength.items()}
        wanted = {key: pattern_value(tensors, key[0]) for key in chosen}
        check_patterns(tensors, [site for site, _ in chosen])
    else:
        tensor = _as_tensor(strength)
        wanted = dict.fromkeys(chosen, tensor)
    for (site, name), tensor in wanted.items():
        if name in layers[site].merged_adapters:
            raise ValueError(f"The adapter {name!r} is merged at a fixed strength. Call unmerge_adapter() first.")
        if tensor is not None and tensor.dim() and layers[site].rows == "none":
            raise ValueError(f"{site!r} stands in a tower whose inputs are not rows of the batch: set a number.")
    with borrowed_turn(layers.values()):
        placed: dict[tuple[int, torch.device], torch.Tensor] = {}
        for key, tensor in wanted.items():
            if tensor is not None:
                device = chosen[key].strength.device
                moved = placed.setdefault((id(tensor), device), tensor.to(device))
                _write(chosen[key], moved)


def _write(affine: DSOAffine, value: torch.Tensor) -> None:
    """
    Give a pair another strength: in place where the shape stays, so that whatever holds the tensor (a captured CUDA
    graph, a compiled model) computes with the new value. Autograd never holds it (see `DSOLayer.forward`).
    """
    old = affine.strength
    with torch.inference_mode(False), torch.no_grad():
        if old.shape == value.shape and not old.is_inference():
            old.copy_(value)
        else:  # a tensor of each site's own: torch.compile guards aliases
            affine.strength = value.clone()


@contextmanager
def borrowed_turn(layers: Iterable[DSOLayer]) -> Iterator[None]:
    """Wait until no other thread has borrowed the strength of a model, and keep it from others (see [`Turn`])."""
    with ExitStack() as stack:
        for turn in dict.fromkeys(layer.turn for layer in layers):
            stack.enter_context(turn)
        yield


def get_steering_strength(model: nn.Module, adapter_name: Optional[str] = None) -> Any:
    """
    The strength that is set now.

    Args:
        model (`nn.Module`): a `PeftModel`, or a plain model with a loaded DSO adapter.
        adapter_name (`str`, *optional*): which adapter; default the active ones.

    Returns:
        A `float`, or a `list[float]` with one per row; a `dict` by site where sites differ, by adapter where active
        adapters differ.

    Raises:
        ValueError: there is no such adapter.
    """
    chosen = _selected(model, adapter_name)
    by_adapter: dict[str, dict[str, Any]] = {}
    for (site, name), values in zip(chosen, _on_host([a.strength for a in chosen.values()]), strict=True):
        # Back to the shortest decimal that is this float32, so that 0.4 reads 0.4.
        by_adapter.setdefault(name, {})[site] = values.numpy().astype(str).astype(float).tolist()
    return _collapsed({name: _collapsed(sites) for name, sites in by_adapter.items()})


def _on_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of small and various shapes on the CPU, with one wait per device and not one per tensor."""
    found: list[torch.Tensor] = list(tensors)
    for device in {tensor.device for tensor in tensors}:
        places = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        flat = torch.cat([tensors[i].reshape(-1) for i in places]).cpu()
        for i, part in zip(places, flat.split([tensors[i].numel() for i in places]), strict=True):
            found[i] = part.reshape(tensors[i].shape)
    return found


def _collapsed(values: dict[str, Any]) -> Any:
    first = next(iter(values.values()))
    return first if all(value == first for value in values.values()) else values


@contextmanager
def steering_strength(model: nn.Module, strength: Strength, adapter_name: Optional[str] = None) -> Iterator[None]:
    """
    Set the strength within a `with` block and restore what was there, also after an exception.

    Args and errors as [`set_steering_strength`]. With gradient checkpointing, call `backward` inside the block: the
    blocks are run again there, at the strength that is set then.

    A model has one strength. A thread that enters the block while another is inside waits until that one has left;
    so does `set_steering_strength`. A plain call of the model does not wait: it gets the strength that is set. Do not
    wait inside the block for a thread that borrows the strength itself, and leave the block in the thread (and the
    task of an event loop) that entered it.

    Raises:
        RuntimeError: another task of the same event loop is inside such a block.
    """
    with borrowed_turn(dso_layers(model).values()):
        before = {key: (a.strength, a.strength.clone()) for key, a in _selected(model, adapter_name).items()}
        try:
            set_steering_strength(model, strength, adapter_name)
            yield
        finally:
            after = dso_layers(model)
            for (site, name), (tensor, value) in before.items():
                if site in after and name in after[site].dso_affine:
                    affine = after[site].dso_affine[name]
                    if tensor.device == affine.strength.device:
                        affine.strength = tensor
                    _write(affine, value.to(affine.strength.device))
