"""In words: where fairness was bought, and where there was none to buy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Optional

from .measures import Measure
from .sweep import Report, StrengthResult


LEAST = 0.02  # changes smaller than this are no news, however certain they are
LEAST_BIAS = 0.01  # nor is a bias that is less than this above its floor
LEAST_MASS = 1e-3  # a model that gives less probability than that to the named answers does not answer with them


def _beyond(growth: float, change: Optional[Measure], one: Measure, other: Measure) -> bool:
    """
    Whether something grew by more than is small, and by more than two standard errors: of the change of the same
    questions, or in a report without it of the two values.
    """
    errors = [
        0.0 if math.isnan(m.standard_error) else m.standard_error for m in ([change] if change else [one, other])
    ]
    return growth > max(LEAST, 2 * math.hypot(*errors))


def _position(base: StrengthResult, turned: StrengthResult) -> bool:
    before, after = base.measures["position"], turned.measures["position"]
    return _beyond(abs(after.value) - abs(before.value), turned.measures.get("position_change"), before, after)


def _abstains(base: StrengthResult, turned: StrengthResult) -> bool:
    before, after = base.measures["abstention"], turned.measures["abstention"]
    return _beyond(after.value - before.value, turned.measures.get("abstention_change"), before, after)


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
    change = turned.measures.get("abstention_change")
    return halves_mass(base, turned) and _beyond(before.value - after.value, change, before, after)


def _right_loses_mass(base: StrengthResult, turned: StrengthResult) -> bool:
    before, after = base.measures["right_of_all"], turned.measures["right_of_all"]
    return after.value < before.value / 2 and _beyond(before.value - after.value, None, before, after)


def _accuracy_falls(base: StrengthResult, turned: StrengthResult) -> bool:
    change = turned.measures["accuracy_change"]  # paired, and so surer than the difference of the two
    error = 0.0 if math.isnan(change.standard_error) else change.standard_error
    return change.value < -max(0.01, 2 * error)


_BOUGHT: tuple[tuple[str, str, Callable[[StrengthResult, StrengthResult], bool], str], ...] = (
    ("position", "position", _position, "the preference for the answer named first grows"),
    ("abstention", "abstention", _abstains, "abstention grows"),
    ("mass", "mass", _loses_mass, "both answers lose their probability"),
    ("right_of_all", "right_of_all", _right_loses_mass, "the right answers lose their probability"),
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
        mass = base.measures.get("mass")
        if mass is not None and mass.value < LEAST_MASS:
            found.append(
                f"{name}: the named answers have a probability of {mass.value:.2g} at strength 0: the model does not "
                "say them, and their shares tell little. Mind the space before an answer, or ask as a chat."
            )
        elif _leans(base) is False:
            found.append(
                f"{name}: the base shows no bias above its floor, neither from probabilities nor from first choices."
            )
        elif _unsure(base):
            found.append(f"{name}: too few questions for each occupation to tell what a fair model would show.")
    return found


def shows_bias(base: StrengthResult) -> bool:
    """
    Whether the bias of a model, from probabilities or first choices, stands out from what a fair model would show: by
    more than 0.01, and by more than two standard errors.

    Args:
        base (`StrengthResult`): at strength 0.

    Returns:
        `bool`: `True` also where that cannot be told, because no occupation has two questions.
    """
    return _leans(base) is not False


def _biases(base: StrengthResult) -> list[tuple[Measure, float]]:
    """What was measured, with its floor."""
    pairs = (("bias", base.noise_floor), ("bias_first_choice", base.noise_floor_first_choice))
    found = [(base.measures[key], floor) for key, floor in pairs if key in base.measures]
    return [(bias, floor) for bias, floor in found if not math.isnan(bias.value)]


def _leans(base: StrengthResult) -> Optional[bool]:
    """`None` where it cannot be told."""
    known = [(bias, floor) for bias, floor in _biases(base) if not math.isnan(floor)]
    if not known:
        return None
    return any(
        bias.value - floor > max(LEAST_BIAS, 0.0 if math.isnan(bias.standard_error) else 2 * bias.standard_error)
        for bias, floor in known
    )


def _unsure(base: StrengthResult) -> bool:
    return "noise_floor" in base.measures and bool(_biases(base)) and _leans(base) is None
