"""In words: where fairness was bought, and where there was none to buy."""

from __future__ import annotations

import math
from collections.abc import Callable

from .measures import Measure
from .sweep import Report, StrengthResult


LEAST = 0.02  # changes smaller than this are no news, however certain they are


def _beyond(change: float, one: Measure, other: Measure) -> bool:
    """Whether a change is more than small, and more than two standard errors of it."""
    errors = [0.0 if math.isnan(m.standard_error) else m.standard_error for m in (one, other)]
    return change > max(LEAST, 2 * math.hypot(*errors))


def _position(base: StrengthResult, turned: StrengthResult) -> bool:
    before, after = base.measures["position"], turned.measures["position"]
    return _beyond(abs(after.value) - abs(before.value), before, after)


def _grows(key: str) -> Callable[[StrengthResult, StrengthResult], bool]:
    def grows(base: StrengthResult, turned: StrengthResult) -> bool:
        before, after = base.measures[key], turned.measures[key]
        return _beyond(after.value - before.value, before, after)

    return grows


def halves_mass(base: StrengthResult, turned: StrengthResult) -> bool:
    """
    Whether less than half of the base's probability is left on the named answers: such a model leans nowhere because
    it does not answer.

    Args:
        base (`StrengthResult`): at strength 0.
        turned (`StrengthResult`): at another strength.

    Returns:
        `bool`: `False` where it was not measured.
    """
    if "mass" not in base.measures or "mass" not in turned.measures:
        return False
    return turned.measures["mass"].value < base.measures["mass"].value / 2


def _loses_mass(base: StrengthResult, turned: StrengthResult) -> bool:
    before, after = base.measures["mass"], turned.measures["mass"]
    return halves_mass(base, turned) and _beyond(before.value - after.value, before, after)


def _accuracy_falls(base: StrengthResult, turned: StrengthResult) -> bool:
    change = turned.measures["accuracy_change"]  # paired, and so surer than the difference of the two
    error = 0.0 if math.isnan(change.standard_error) else change.standard_error
    return change.value < -max(0.01, 2 * error)


_BOUGHT: tuple[tuple[str, str, Callable[[StrengthResult, StrengthResult], bool], str], ...] = (
    ("position", "position", _position, "the preference for the answer named first grows"),
    ("abstention", "abstention", _grows("abstention"), "abstention grows"),
    ("mass", "mass", _loses_mass, "both answers lose their probability"),
    ("accuracy_change", "accuracy", _accuracy_falls, "the unambiguous accuracy falls"),
)


def warnings_of(report: Report) -> list[str]:
    """
    What a reader of a report should not overlook: fairness that is bought, by a preference for positions, by not
    answering, by answers that lose their probability or by accuracy; and a base without a bias above its floor.

    Args:
        report (`Report`): the results; fairness is seen to be bought against strength 0.

    Returns:
        `list[str]`: sentences, none where there is nothing to say.
    """
    found = []
    for name, results in report.sets.items():
        base = next((r for r in results if r.strength == 0), None)
        if base is None:
            continue
        for needs, shown, bought, words in _BOUGHT:
            turned = [r for r in results if needs in r.measures and needs in {**base.measures, "accuracy_change": 0}]
            worst = [r for r in turned if r.strength != 0 and bought(base, r)]
            if worst:
                first = min(worst, key=lambda r: abs(r.strength))
                last = max(worst, key=lambda r: abs(r.strength))
                found.append(
                    f"{name}: {words}, from {base.measures[shown].value:.3f} at strength 0 to "
                    f"{last.measures[shown].value:.3f} at strength {last.strength:g}"
                    f"{'' if first is last else f'; beyond its errors from strength {first.strength:g} on'}."
                )
        if _no_bias(base):
            found.append(
                f"{name}: the base shows no bias above its floor, neither from probabilities nor from first choices."
            )
    return found


def _no_bias(base: StrengthResult) -> bool:
    pairs = [
        (base.measures[key], floor)
        for key, floor in (("bias", base.noise_floor), ("bias_first_choice", base.noise_floor_first_choice))
        if key in base.measures
    ]
    known = [(bias, floor) for bias, floor in pairs if not math.isnan(floor) and not math.isnan(bias.value)]
    return bool(known) and all(
        bias.value - floor <= (0.0 if math.isnan(bias.standard_error) else 2 * bias.standard_error)
        for bias, floor in known
    )
