"""What a sweep turns: DSO's strength, another adapter's scaling, a prompt, or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Optional, Protocol

from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..tuner import DSOLayer, steering_strength


STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
# What writes into the base's weights or repeats its layers: without the adapter such a base is not the one loaded.
_REWRITING: dict[str, Callable[[Any], bool]] = {
    "bias": lambda value: value not in ("none", None),
    "init_lora_weights": lambda value: str(value).lower().startswith(("pissa", "corda", "olora", "loftq", "lora_ga")),
    **dict.fromkeys(("layer_replication", "kasa_config"), bool),
}
# Settings of LoRA in which more acts than the scaled product, so that half of the scaling is not half of it.
_UNSCALED_SETTINGS = ("use_dora", "modules_to_save", "trainable_token_indices", "alora_invocation_tokens")


class Knob(Protocol):
    """
    What can be turned and measured. At strength 0 the model is the base.

    A knob may also have `rewrite(row)`, which gives a question as it is asked at any other strength than 0;
    `strengths`, those of a sweep that names none; and `system_instruction`, what the rewriting says, for the harness.
    """

    @property
    def name(self) -> str:
        """What a report calls it."""
        ...

    def at(self, strength: float) -> AbstractContextManager[None]:
        """Turn the knob within a `with` block; what was there is restored, also after an exception."""
        ...


def _check_one_of(strength: float, allowed: Sequence[float], why: str) -> None:
    if strength not in allowed:
        raise ValueError(f"The strength must be {' or '.join(f'{w:g}' for w in allowed)}, got {strength!r}: {why}.")


@dataclass(frozen=True)
class DSOStrength:
    """
    The steering strength of DSO adapters.

    Args:
        model (`nn.Module`): with an active DSO adapter.
        adapter_name (`str`, *optional*): which one; default the active ones.
    """

    model: nn.Module
    adapter_name: Optional[str] = None
    name: str = "DSO"
    strengths: tuple[float, ...] = STRENGTHS

    def at(self, strength: float) -> AbstractContextManager[None]:
        return steering_strength(self.model, strength, self.adapter_name)


@dataclass(frozen=True)
class AdapterScaling:
    """
    The scaling of LoRA adapters, by PEFT's `rescale_adapter_scale`; at 0 they are switched off, which is the base bit
    for bit.

    Args:
        model (`nn.Module`): with an active LoRA adapter.
    """

    model: nn.Module
    name: str = "LORA"
    strengths: tuple[float, ...] = STRENGTHS

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        if not math.isfinite(strength):
            raise ValueError(f"The strength must be a finite number, got {strength!r}.")
        with switched_off(self.model) if strength == 0 else rescale_adapter_scale(self.model, float(strength)):
            yield


@dataclass(frozen=True)
class AdapterSwitch:
    """
    An adapter that is on (1) or off (0).

    Args:
        model (`nn.Module`): with an adapter.
        why (`str`): why nothing lies between.
    """

    model: nn.Module
    why: str = "this adapter can be on or off"
    name: str = "adapter"
    strengths: tuple[float, ...] = (0.0, 1.0)

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        _check_one_of(strength, (0, 1), self.why)
        with switched_off(self.model) if strength == 0 else nullcontext():
            yield


@dataclass(frozen=True)
class Prompting:
    """
    A rewriting of the question: without it (0) or with it (1).

    Args:
        rewrite (`Callable[[Mapping], Mapping]`): gives the question as it is asked; it may change the prompt alone.
        name (`str`): of the report.
        system_instruction (`str`, *optional*): what it puts before a question, for the harness's tasks.
    """

    rewrite: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    name: str = "prompt"
    system_instruction: Optional[str] = None
    strengths: tuple[float, ...] = (0.0, 1.0)

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        _check_one_of(strength, (0, 1), "a prompt is there or not")
        yield


@dataclass(frozen=True)
class BareModel:
    """A model as it is: there is nothing to turn."""

    name: str = "base"
    strengths: tuple[float, ...] = (0.0,)

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        _check_one_of(strength, (0,), "the model has no adapter that could be turned")
        yield


def rows_at(knob: Knob, rows: Sequence[Mapping[str, Any]], strength: float) -> Sequence[Mapping[str, Any]]:
    """
    Questions as they are asked at a strength.

    Args:
        knob (`Knob`): with a rewriting or without.
        rows (`Sequence[Mapping]`): questions.
        strength (`float`): the strength.

    Returns:
        `Sequence[Mapping]`: the rows themselves at strength 0, and where the knob rewrites nothing.

    Raises:
        ValueError: the rewriting changes more than the prompt.
    """
    rewrite = getattr(knob, "rewrite", None)
    if rewrite is None or strength == 0:
        return rows
    # Of its own: a rewriting may edit the row that it is given.
    rewritten = [
        rewrite({key: value if key in ("image", "images") else deepcopy(value) for key, value in row.items()})
        for row in rows
    ]
    for number, (row, new) in enumerate(zip(rows, rewritten, strict=True)):
        if not isinstance(new, Mapping):
            raise ValueError(f"{knob.name} turns question {number} into {new!r}: a rewriting returns a row.")
        for column in ("occupation", "answers", "forms", "abstentions", "meanings", "right", "first"):
            if new.get(column) != row.get(column):
                raise ValueError(
                    f"{knob.name} turns the {column} {row.get(column)!r} of question {number} into "
                    f"{new.get(column)!r}: a rewriting may change the prompt alone."
                )
    return rewritten


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """
    All adapters of a model off within the block. Which parameters are trained is kept: switching PEFT's adapters on
    again would let all of them be trained.

    Args:
        model (`nn.Module`): a `PeftModel`, or a plain transformers model with a loaded adapter.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                yield
        else:
            layers = _tuner_layers(model)
            for layer in layers:
                layer.enable_adapters(False)
            try:
                yield
            finally:
                for layer in layers:
                    layer.enable_adapters(True)
    finally:
        for parameter, was in trained:
            parameter.requires_grad_(was)


def _tuner_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _active_configs(model: nn.Module, layers: Sequence[BaseTunerLayer]) -> dict[str, Any]:
    """The configs of the adapters that act, by name."""
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    active: Any = layers[0].active_adapters if layers else getattr(model, "active_adapters", [])
    return {name: configs[name] for name in active if name in configs}


def _kind(configs: Mapping[str, Any]) -> str:
    return "+".join(sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in configs.values()})) or "adapter"


def _why_on_or_off(layers: Sequence[BaseTunerLayer], configs: Mapping[str, Any]) -> Optional[str]:
    """Why an adapter has no strength between on and off; `None` where it has one."""
    if not layers or not all(isinstance(layer, LoraLayer) for layer in layers):
        return f"an adapter of type {_kind(configs)} has no scaling, it is on or off"
    acting = [(s, getattr(c, s)) for c in configs.values() for s in _UNSCALED_SETTINGS if getattr(c, s, None)]
    return f"with {acting[0][0]}={acting[0][1]!r} more than the scaling acts, it is on or off" if acting else None


def knob_of(model: nn.Module) -> Knob:
    """
    The knob of a model: of an active DSO adapter its strength; of LoRA its scaling; of any other adapter of PEFT
    whether it is on; of a plain model nothing.

    Args:
        model (`nn.Module`): a `PeftModel`, a plain transformers model with a loaded adapter, or without one.

    Returns:
        `Knob`: see [`DSOStrength`], [`AdapterScaling`], [`AdapterSwitch`] (also of a DSO adapter with
        `modules_to_save`, which no strength turns) and [`BareModel`].

    Raises:
        ValueError: the adapters are off or merged, none is active, or the base cannot be had from the model.
    """
    layers = _tuner_layers(model)
    if not layers and not isinstance(model, PeftModel):
        return BareModel()
    if any(layer.disable_adapters for layer in layers):
        said = "The adapters of this model are switched off, so that no strength would change anything."
        raise ValueError(f"{said} Switch them on, or pass knob=BareModel() to measure it as it is.")
    merged = sorted({name for layer in layers for name in layer.merged_adapters})
    if merged:
        raise ValueError(
            f"The adapter {merged[0]!r} is merged: call unmerge_adapter(), or pass knob=BareModel() to measure it so."
        )
    steered = [layer for layer in layers if isinstance(layer, DSOLayer)]
    others = [layer for layer in layers if not isinstance(layer, DSOLayer)]
    if any(name in layer.dso_affine for layer in steered for name in layer.active_adapters):
        if any(config.modules_to_save for config in _active_configs(model, steered).values()):
            return AdapterSwitch(model, "modules_to_save act at every strength, it is on or off", name="DSO")
        return DSOStrength(model)
    if steered and not others:
        known = sorted({name for layer in steered for name in layer.dso_affine})
        raise ValueError(f"No DSO adapter is active. Loaded: {', '.join(known)}; activate one with set_adapter.")
    configs = _active_configs(model, others)
    for name, config in configs.items():
        if found := [key for key, does in _REWRITING.items() if does(getattr(config, key, None))]:
            raise ValueError(
                f"The adapter {name!r} has {found[0]}={getattr(config, found[0])!r}, which changes the base's own "
                "weights: without it the model is not the base, and has no strength 0. To measure it as it is pass "
                "knob=BareModel(), or on the command line give the merged model as --model."
            )
    kind, why = _kind(configs), _why_on_or_off(others, configs)
    return AdapterScaling(model, name=kind) if why is None else AdapterSwitch(model, why, name=kind)


def checked_strengths(knob: Knob, strengths: Optional[Sequence[float]]) -> list[float]:
    """
    The strengths to measure.

    Args:
        knob (`Knob`): what is turned.
        strengths (`Sequence[float]`, *optional*): default those that suit the knob.

    Returns:
        `list[float]`: the strengths.

    Raises:
        ValueError: one of them is not a finite number, or the knob cannot be turned to it.
        TypeError: it is no knob: it has no `name`, or no `at` that gives a context manager.
    """
    said = f"{type(knob).__name__} is no knob"
    if not isinstance(getattr(knob, "name", None), str) or not callable(getattr(knob, "at", None)):
        raise TypeError(f"{said}: it needs a name, a string, and at(strength), a context manager.")
    given = getattr(knob, "strengths", STRENGTHS) if strengths is None else strengths
    try:
        values = list(given)
        if any(isinstance(w, str) for w in values):
            raise TypeError
        wanted = [float(w) for w in values]
    except TypeError:
        raise ValueError(f"strengths={given!r}: give a list of finite numbers.") from None
    wrong = [w for w in wanted if not math.isfinite(w)]
    if wrong:
        raise ValueError(f"strengths holds {wrong[0]!r}: give finite numbers.")
    for w in wanted:
        turned = knob.at(w)
        if not hasattr(turned, "__enter__"):
            raise TypeError(f"{said}: at({w:g}) gives {turned!r} in place of a context manager (@contextmanager).")
        with turned:  # what it cannot be turned to is refused before anything is measured
            pass
    return wanted
