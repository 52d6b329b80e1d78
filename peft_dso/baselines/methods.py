"""The methods by name: how each is fitted, and the strengths over which it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from .caa import fit_caa
from .counterfactual import fit_counterfactual
from .dso import fit_dso
from .iti import fit_iti
from .linear_act import fit_linear_act
from .lineas import fit_lineas


Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Method:
    """
    One method of a comparison.

    Args:
        name (`str`): on the command line, and the name of its folder.
        description (`str`): in one line, where the report says what was measured.
        strengths (`tuple[float, ...]`): its own range; 0 is the base, 1 the method's own default.
        fit (`Callable`, *optional*): a function of model, processor, questions and settings that returns a fitted
            `PeftModel`; `None` where nothing is fitted.
        settings (`Mapping[str, Any]`): what to set otherwise than by default.
        contrasts (`bool`): whether it learns from pairs of texts that differ in one thing.
        chooses (`bool`): whether it takes validation questions.
    """

    name: str
    description: str
    strengths: tuple[float, ...]
    fit: Optional[Callable[..., Any]] = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    contrasts: bool = False
    chooses: bool = False


_UNIT = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_TRANSPORT = (0.0, 0.5, 1.0, 1.5, 2.0)
_CAA = (-2.0, -1.0, 0.0, 0.5, 0.8, 1.0, 2.0)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "dso",
            "DSO with the trainer's defaults (arXiv 2512.15926), the only method that is held to neutral text as well",
            _UNIT,
            fit_dso,
        ),
        Method(
            "caa",
            "CAA at the norms of one block, chosen on the validation part (arXiv 2312.06681)",
            _CAA,
            fit_caa,
            contrasts=True,
            chooses=True,
        ),
        Method(
            "caa-residual",
            "CAA in the residual stream, its original place, behind one block chosen on the validation part",
            _CAA,
            fit_caa,
            {"variant": "residual"},
            contrasts=True,
            chooses=True,
        ),
        Method(
            "iti",
            "ITI at 4.7 % of the heads; strength 1 is alpha = 15 (arXiv 2306.03341)",
            (0.0, 1 / 6, 1 / 3, 2 / 3, 1.0, 4 / 3),
            fit_iti,
            contrasts=True,
        ),
        Method(
            "linear-act",
            "Linear-AcT at DSO's sites, incremental (arXiv 2410.23054)",
            _TRANSPORT,
            fit_linear_act,
            contrasts=True,
        ),
        Method(
            "lineas", "LinEAS at DSO's sites, 200 steps (arXiv 2503.10679)", _TRANSPORT, fit_lineas, contrasts=True
        ),
        Method(
            "counterfactual",
            "counterfactual fine-tuning of a LoRA on all linear layers, 120 steps; the strength is LoRA's scaling",
            (*_UNIT, 1.5),
            fit_counterfactual,
            {"max_steps": 120},
        ),
        Method(
            "counterfactual-pairs",
            "the counterfactual loss on DSO's own pairs, 120 steps",
            (*_UNIT, 1.5),
            fit_counterfactual,
            {"adapter": "pairs", "max_steps": 120},
        ),
        Method("prompting", "asking for fairness, in several wordings; nothing is fitted", (0.0, 1.0)),
    )
}


def chosen_methods(names: Optional[Iterable[str]] = None) -> list[Method]:
    """
    Methods by name.

    Args:
        names (`Iterable[str]`, *optional*): default all.

    Returns:
        `list[Method]`: in the order of the names, none twice.

    Raises:
        ValueError: a name is unknown, or there is none.
    """
    wanted = list(dict.fromkeys(METHODS if names is None else (name.strip() for name in names)))
    unknown = [name for name in wanted if name not in METHODS]
    if unknown or not wanted:
        raise ValueError(f"Unknown method {(unknown or [''])[0]!r}: choose of {', '.join(METHODS)}.")
    return [METHODS[name] for name in wanted]
