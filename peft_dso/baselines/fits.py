"""What a comparison finds, and the names under which its folder keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation import Report
from .methods import Method


@dataclass
class Fit:
    """
    What a fit took.

    Args:
        seconds (`float`): wall-clock time.
        parameters (`int`): values of the adapter that are not zero.
        note (`str`): what was chosen, in words.
        seed (`int`): of the fit.
    """

    seconds: float
    parameters: int
    note: str = ""
    seed: int = 0


@dataclass
class Comparison:
    """
    What a comparison found. Methods are named as on the command line, wordings as `"prompting: request"`.

    Args:
        reports (`dict[str, list[Report]]`): by method, one report per seed with the sets `"test"` and `"validation"`.
        fits (`dict[str, list[Fit]]`): by method, one per seed.
        failures (`dict[str, str]`): by method (and seed) the reason why it is not among the reports.
        description (`dict[str, Any]`): what was compared on.
    """

    reports: dict[str, list[Report]] = field(default_factory=dict)
    fits: dict[str, list[Fit]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)


def label_of(method: Method, seed: int) -> str:
    """The name of a fit's folder."""
    return method.name if seed == 0 else f"{method.name}-seed{seed}"


def seeds_of(folder: Path, method: Method, count: int) -> list[int]:
    """The seeds of a method: those that are asked for, and those that an earlier call has fitted and measured."""
    if method.fit is None:
        return [0]
    done = [path.name for path in folder.glob(f"{method.name}-seed*") if (path / "report.json").is_file()]
    before = [int(seed) for seed in (name.rpartition("-seed")[2] for name in done) if seed.isdecimal()]
    return sorted(
        {*range(count), *(seed for seed in before if (folder / label_of(method, seed) / "fit.json").is_file())}
    )
