"""The strength that meets a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from torch import nn

from .knob import Knob, checked_strengths, knob_of
from .sweep import StrengthResult, sweep


@dataclass(frozen=True)
class Calibration:
    """
    A strength, and what it costs.

    Args:
        strength (`float`): the strength found.
        result (`StrengthResult`): what was measured at it.
        base (`StrengthResult`): what was measured at strength 0.
    """

    strength: float
    result: StrengthResult
    base: StrengthResult


# What each budget is a budget of.
_MEASURES = {"max_kl": ("kl", "kl_unambiguous"), "max_bias": ("bias",), "min_accuracy": ("accuracy",)}


def _budget(**budgets: Optional[float]) -> tuple[str, float]:
    """The one budget that is given, by name."""
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"Give exactly one of {', '.join(budgets)}; got {', '.join(given) or 'none'}.")
    ((name, budget),) = given.items()
    if not math.isfinite(budget):
        raise ValueError(f"{name}={budget!r}: give a finite number.")
    return name, budget


def _budgeted(result: StrengthResult, name: str) -> float:
    """The measure that a budget is about."""
    found = next((result.measures[key].value for key in _MEASURES[name] if key in result.measures), math.nan)
    if math.isnan(found):
        kind = "ambiguous" if name == "max_bias" else "unambiguous"
        raise ValueError(f"{name} cannot be measured: there is no {kind} question.")
    return found


def calibrate_strength(
    model: nn.Module,
    processor: Any,
    questions: Sequence[Mapping[str, Any]],
    *,
    max_kl: Optional[float] = None,
    max_bias: Optional[float] = None,
    min_accuracy: Optional[float] = None,
    highest: float = 1.0,
    tolerance: float = 0.01,
    seed: int = 0,
    knob: Optional[Knob] = None,
) -> Calibration:
    """
    Find a strength by bisection: the largest one whose KL to the base is at most `max_kl`, or whose unambiguous
    accuracy is at least `min_accuracy`; or the smallest one whose per-occupation bias is at most `max_bias`. Where the
    measure is not monotone in the strength, it is one of those at which the budget begins to be met; that the strength
    returned meets it has been measured.

    Args:
        model (`nn.Module`): a model with an adapter; its strength is restored afterwards.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        questions (`Sequence[Mapping]`): what to measure on; with ambiguous questions for a bias, unambiguous ones for
            an accuracy. The KL is that on the ambiguous ones if there are any.
        max_kl (`float`, *optional*): in nats.
        max_bias (`float`, *optional*): from probabilities.
        min_accuracy (`float`, *optional*): in [0, 1].
        highest (`float`, defaults to 1): the largest strength to consider, above 0.
        tolerance (`float`, defaults to 0.01): how exactly to find the strength.
        seed (`int`, defaults to 0): of the bootstraps.
        knob (`Knob`, *optional*): what the strength turns; default [`~peft_dso.evaluation.knob.knob_of`] the model.

    Returns:
        `Calibration`: the strength, what it gives and what the base gives.

    Raises:
        ValueError: not exactly one budget is given, the questions cannot show it, or no strength meets it.
    """
    name, budget = _budget(max_kl=max_kl, max_bias=max_bias, min_accuracy=min_accuracy)
    if not (0 < highest < math.inf and 0 < tolerance < math.inf):
        raise ValueError(f"highest={highest!r} and tolerance={tolerance!r} must be above 0.")

    knob = knob_of(model) if knob is None else knob
    checked_strengths(knob, (highest, highest / 2))  # what can only be on or off has no strength between to find
    results: dict[float, StrengthResult] = {}

    def value(strength: float) -> float:
        if strength not in results:
            wanted = [strength] if 0.0 in results else [0.0, strength]
            measured = sweep(model, processor, {"questions": questions}, wanted, seed=seed, knob=knob)
            results.update((r.strength, r) for r in measured.sets["questions"])
        return _budgeted(results[strength], name)

    def meets(strength: float) -> bool:
        return value(strength) >= budget if name == "min_accuracy" else value(strength) <= budget

    def done(strength: float) -> Calibration:
        return Calibration(strength, results[strength], results[0.0])

    # The end that costs nothing, and the end that is wanted if it can be had.
    safe, wanted = (highest, 0.0) if name == "max_bias" else (0.0, highest)
    if meets(wanted):
        return done(wanted)
    if not meets(safe):
        raise ValueError(
            f"No strength in [0, {highest:g}] meets {name}={budget:g}: at strength {safe:g} it is {value(safe):.4g}."
        )
    while abs(wanted - safe) > tolerance:
        middle = (wanted + safe) / 2
        if middle in (safe, wanted):  # no number lies between them
            break
        if meets(middle):
            safe = middle
        else:
            wanted = middle
    return done(safe)
