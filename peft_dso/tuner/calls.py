"""What one call of `forward` or `generate` of a `PeftModel` brings along: a strength, an adapter per row, beams."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import GenerationConfig

from .layer import DSOLayer
from .strength import borrowed_turn, steering_strength


KEYWORD = "steering_strength"
REFUSAL = "dso_keyword_refusal"  # the attribute of the base model that holds the handle of its hook


@contextmanager
def call_settings(
    model: nn.Module, adapters: Collection[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """
    Run a call under the settings that stand among its arguments, and restore what was there, also after an exception.

    A row's adapter (`adapter_names`) is a row's strength: that of the adapter for its own rows, 0 for the others.
    `generate` repeats each row for beams and returned sequences.

    Args:
        model (`nn.Module`): the model with the DSO layers.
        adapters (`Collection[str]`): the adapters that are loaded.
        args (`Sequence[Any]`): of the call, among which may be the `GenerationConfig`.
        kwargs (`Mapping[str, Any]`): of the call: `steering_strength`, `adapter_names`, and what says how often each
            row is repeated (`num_beams`, `num_return_sequences`, `generation_config`).

    Raises:
        TypeError, ValueError: as [`set_steering_strength`]; or the two cannot be had here.
    """
    adapter_names: Optional[list[str]] = kwargs.get("adapter_names")
    strength = kwargs.get(KEYWORD)
    layers = [module for module in model.modules() if isinstance(module, DSOLayer)]
    if adapter_names is not None:
        _check_adapter_names(model, adapters, adapter_names, layers)
    with ExitStack() as stack:
        if KEYWORD in kwargs or adapter_names is not None:
            stack.enter_context(borrowed_turn(layers))
        if strength is not None:
            _check_recomputation(model)
            for name in _steered(adapter_names):
                stack.enter_context(steering_strength(model, strength, name))
        if adapter_names is not None:
            stack.enter_context(_adapter_per_row(layers, adapter_names))
        repeats = _sequences_per_row(model, args, kwargs)
        if KEYWORD in kwargs or repeats != 1:
            stack.enter_context(_own_methods(model, layers, repeats))
        yield


def _steered(adapter_names: Optional[list[str]]) -> list[Optional[str]]:
    """Whose strength a call sets: the active adapters' (`None`), or those that its rows name."""
    if adapter_names is None:
        return [None]
    return [name for name in dict.fromkeys(adapter_names) if name != "__base__"]


def _check_recomputation(model: nn.Module) -> None:
    trained = torch.is_grad_enabled() and any(module.training for module in model.modules())
    if trained and getattr(model, "is_activation_checkpointing", False):
        raise ValueError(
            "steering_strength: gradient checkpointing runs the blocks again in backward(), when the strength of this "
            "call is gone. Put the call and backward() into `with peft_dso.steering_strength(model, ...)`."
        )


@contextmanager
def _own_methods(model: Any, layers: Sequence[DSOLayer], repeats: int) -> Iterator[None]:
    """
    Keep the strength away from the model's own methods, which do not know it (as PEFT keeps `adapter_names`), and let
    rows be repeated where the model writes, and nowhere else.
    """
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "forward": nullcontext,
        "generate": lambda: _repeated_rows(layers, repeats),
    }
    saved = {name: model.__dict__.get(name) for name in contexts if hasattr(model, name)}
    for name in saved:
        setattr(model, name, _dropping(getattr(model, name), contexts[name]))
    try:
        yield
    finally:
        for name, own in saved.items():
            if own is None:
                delattr(model, name)
            else:
                setattr(model, name, own)


def _dropping(method: Any, context: Callable[[], AbstractContextManager[None]]) -> Any:
    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(KEYWORD, None)
        with context():
            return method(*args, **kwargs)

    called.drops_keyword = True  # type: ignore[attr-defined]
    return called


def has_settings(model: nn.Module) -> bool:
    """Whether a call of the model runs under its settings already, so that its own methods may get the keyword."""
    return hasattr(model.forward, "drops_keyword")


def refuse_keyword(model: nn.Module) -> None:
    """
    Let calls of the model itself, which pass by [`call_settings`], refuse a strength: the `**kwargs` of transformers'
    models would swallow it. Once for each model; [`allow_keyword`] takes it back.

    Args:
        model (`nn.Module`): the model that the adapters are put into.
    """
    if not hasattr(model, REFUSAL):
        # Kept on the model, which outlives the tuner that transformers' `load_adapter` makes.
        setattr(model, REFUSAL, model.register_forward_pre_hook(_refuse, with_kwargs=True))


def allow_keyword(model: nn.Module) -> None:
    """Take back what [`refuse_keyword`] has done."""
    if hasattr(model, REFUSAL):
        getattr(model, REFUSAL).remove()
        delattr(model, REFUSAL)


def _refuse(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if kwargs.get(KEYWORD) is None or has_settings(model):
        return
    layers = (module for module in model.modules() if isinstance(module, DSOLayer))
    if any(layer.active_affines() and not layer.disable_adapters for layer in layers):
        raise TypeError(
            f"steering_strength={kwargs[KEYWORD]!r}: a call of {type(model).__name__} itself takes no strength, and "
            "would run at the one that is set. Call the PeftModel, or put the call into `with "
            "peft_dso.steering_strength(model, ...)`."
        )


@contextmanager
def _repeated_rows(layers: Sequence[DSOLayer], repeats: int) -> Iterator[None]:
    for layer in layers:
        layer.row_repeats = repeats
    try:
        yield
    finally:
        for layer in layers:
            layer.row_repeats = 1


@contextmanager
def _adapter_per_row(layers: Sequence[DSOLayer], adapter_names: list[str]) -> Iterator[None]:
    saved = [(layer, layer.active_adapter, {n: a.strength for n, a in layer.dso_affine.items()}) for layer in layers]
    try:
        for layer in layers:
            used = [name for name in dict.fromkeys(adapter_names) if name in layer.dso_affine]
            layer._active_adapter = used  # not set_adapter, which would touch requires_grad
            for name in used:
                affine = layer.dso_affine[name]
                own = torch.tensor([other == name for other in adapter_names], device=affine.strength.device)
                affine.strength = own * affine.strength
        yield
    finally:
        for layer, active, strengths in saved:
            layer._active_adapter = active
            for name, value in strengths.items():
                layer.dso_affine[name].strength = value


def _check_adapter_names(
    model: nn.Module, adapters: Collection[str], adapter_names: list[str], layers: Sequence[DSOLayer]
) -> None:
    if model.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode. Call model.eval() first.")
    unknown = sorted(set(adapter_names) - set(adapters) - {"__base__"})
    if unknown:
        raise ValueError(f"adapter_names: {unknown[0]!r} is not loaded. Loaded: {', '.join(adapters)}.")
    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in model.modules()):
        raise ValueError("adapter_names: not possible with modules_to_save, which cannot be chosen per row.")
    if any(isinstance(m, BaseTunerLayer) and not isinstance(m, DSOLayer) for m in model.modules()):
        raise ValueError("adapter_names: the model also has adapters of another kind, which would ignore it.")
    if any(layer.merged for layer in layers):
        raise ValueError("adapter_names: an adapter is merged into all rows. Call unmerge_adapter() first.")
    if any(layer.rows == "none" for layer in layers):
        raise ValueError("adapter_names: a norm of a vision or audio tower is steered, whose inputs are not rows.")
    for layer in layers:
        for name, affine in layer.dso_affine.items():
            if name in adapter_names and affine.strength.dim() and affine.strength.shape[0] != len(adapter_names):
                raise ValueError(
                    f"adapter_names has {len(adapter_names)} rows, the strength {affine.strength.shape[0]}."
                )


def _sequences_per_row(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """
    How often `generate` repeats each row: each number is that of its arguments, or else of the given generation
    config, or else of the model's (as `GenerationMixin._prepare_generation_config` fills them in).
    """
    given = [value for value in (*args, kwargs.get("generation_config")) if isinstance(value, GenerationConfig)]
    configs = [*given, getattr(model, "generation_config", None)]
    counts = []
    for key in ("num_beams", "num_return_sequences"):
        values = [kwargs.get(key), *(getattr(config, key, None) for config in configs)]
        counts.append(next((int(value) for value in values if value is not None), 1))
    return max(counts)
