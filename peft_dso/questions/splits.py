"""Splits, so that what is measured was not seen in training."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Optional

from ..answers import answer_forms
from .occupations import OCCUPATIONS, Occupation


SPLITS = ("train", "validation", "test")
Rows = Sequence[Mapping[str, Any]]
TwoSides = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def split_frames(frames: Sequence[str], every: Optional[int] = None) -> dict[str, tuple[str, ...]]:
    """
    Divide sentence frames in three, evenly over their order.

    Args:
        frames (`Sequence[str]`): such that what is alike stands together.
        every (`int`, *optional*): one in `every` is for the test; default none.

    Returns:
        `dict[str, tuple[str, ...]]`: by name of the split; validation is one in four of those that are not for the
        test.
    """
    test = tuple(frames[1::every]) if every else ()
    rest = [frame for frame in frames if frame not in test]
    validation = tuple(rest[2::4])
    return {"train": tuple(f for f in rest if f not in validation), "validation": validation, "test": test}


def check_split(split: str) -> None:
    """
    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}.")


def split_occupations(
    occupations: Sequence[Occupation] = OCCUPATIONS, every: int = 5
) -> tuple[list[Occupation], list[Occupation]]:
    """
    Divide occupations into those to train on and those held out, evenly over the share of women.

    Args:
        occupations (`Sequence[Occupation]`): all of them.
        every (`int`, defaults to 5): one in `every` is held out.

    Returns:
        The occupations to train on and the held-out ones.

    Raises:
        ValueError: `every` is below 2, there are fewer occupations than that, or a share of women is not known.
    """
    if not 2 <= every <= len(occupations):
        raise ValueError(f"every={every!r}: one in 2 to {len(occupations)} occupations can be held out.")
    unknown = [occupation.name for occupation in occupations if occupation.share_women != occupation.share_women]
    if unknown:
        raise ValueError(
            f"The share of women of {unknown[0]!r} is not known (NaN), so occupations cannot be held out evenly over "
            "it: give share_women, or hold out by split_questions(rows, 'occupation')."
        )
    ordered = sorted(occupations, key=lambda occupation: (occupation.share_women, occupation.name))
    held_out = ordered[every // 2 :: every]
    return [occupation for occupation in ordered if occupation not in held_out], held_out


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share={share!r}: give a share between 0 and 1.")


def missing(value: Any) -> bool:
    """Whether a row says nothing in a column: `None`, or the NaN of a table."""
    return value is None or value != value


def _joined(rows: Rows, unit_of: Callable[[int], Hashable]) -> list[Hashable]:
    """Per row its unit; units that share a pair are one, named like the smallest of them, so that no pair is split."""
    parent: dict[Hashable, Hashable] = {}

    def root(unit: Hashable) -> Hashable:
        while parent.setdefault(unit, unit) != unit:
            unit = parent[unit]
        return unit

    unit_of_pair: dict[Any, Hashable] = {}
    for number, row in enumerate(rows):
        unit = root(unit_of(number))
        if not missing(row.get("pair")):
            one, other = sorted((unit, root(unit_of_pair.setdefault(row["pair"], unit))), key=str)
            parent[other] = one
    return [root(unit_of(number)) for number in range(len(rows))]


def occupations_named(row: Mapping[str, Any]) -> set[str]:
    """Whom a row is about and whom it offers as an answer, in any of its forms; upper and lower case are one."""
    answers = answer_forms(row) if row.get("answers") is not None else []
    return {str(row["occupation"]).casefold()} | {text.strip().casefold() for texts in answers for text in texts}


def _sides(rows: Rows, held: Callable[[int], bool]) -> TwoSides:
    chosen = [held(number) for number in range(len(rows))]
    train = [dict(row) for row, is_held in zip(rows, chosen, strict=False) if not is_held]
    return train, [dict(row) for row, is_held in zip(rows, chosen, strict=False) if is_held]


def hold_occupations(rows: Rows, names: Iterable[str]) -> TwoSides:
    """
    Hold out what names one of some occupations, and what belongs to such a question by its pair.

    Args:
        rows (`Sequence[Mapping]`): questions.
        names (`Iterable[str]`): of occupations, in upper or lower case.

    Returns:
        The questions to train on and the held-out ones, in their order; either may be empty.
    """
    wanted = {name.casefold() for name in names}
    direct = [bool(occupations_named(row) & wanted) for row in rows]
    pairs = {row["pair"] for row, named in zip(rows, direct, strict=False) if named and not missing(row.get("pair"))}
    return _sides(rows, lambda number: direct[number] or rows[number].get("pair") in pairs)


def split_questions(rows: Rows, by: str = "group", share: float = 0.25, seed: int = 0) -> TwoSides:
    """
    Divide questions so that no frame (or occupation) and no pair is on both sides.

    Args:
        rows (`Sequence[Mapping]`): questions.
        by (`str`, defaults to `"group"`): the column whose values are kept together: `"group"` for the sentence
            frames, `"occupation"`, or `"pair"`. A question that names a held-out occupation as an answer is held out
            as well. Values that share a pair are held out together.
        share (`float`, defaults to 0.25): share of the values to hold out, in (0, 1).
        seed (`int`, defaults to 0): of the draw.

    Returns:
        The questions to train on and the held-out ones, in their order.

    Raises:
        ValueError: a row lacks the column, the share is out of range, or a side would be empty.
    """
    _check_share(share)
    for number, row in enumerate(rows):
        if missing(row.get(by)):
            has = ", ".join(sorted(column for column in row if not missing(row[column])))
            raise ValueError(f"Question {number} has no {by!r} to split by; it has {has}.")
    units = [str(row[by]) for row in rows]
    if by != "occupation":
        units = [str(unit) for unit in _joined(rows, lambda number: str(rows[number][by]))]
    values = sorted(set(units))
    held = set(random.Random(seed).sample(values, round(share * len(values))))
    train, test = (
        hold_occupations(rows, held) if by == "occupation" else _sides(rows, lambda number: units[number] in held)
    )
    if not train or not test:
        raise ValueError(
            f"A split by {by!r} with share={share!r} leaves a side empty: there are {len(values)} values of it that "
            "share no pair."
        )
    return train, test


def _kinds(rows: Iterable[Mapping[str, Any]]) -> frozenset[bool]:
    """Of which kinds questions are: with a right answer, or without one."""
    return frozenset(row.get("right") is not None for row in rows)


def _draw(rows: Rows, units: Sequence[Hashable], share: float, rng: random.Random) -> set[Hashable]:
    """Draw the share from the units of each kind apart: at least one, unless it is the only one of its kind."""
    rows_of: dict[Hashable, list[Mapping[str, Any]]] = {}
    for unit, row in zip(units, rows, strict=False):
        rows_of.setdefault(unit, []).append(row)
    strata: dict[frozenset[bool], list[Hashable]] = {}
    for unit in sorted(rows_of, key=str):
        strata.setdefault(_kinds(rows_of[unit]), []).append(unit)
    held: set[Hashable] = set()
    for _, members in sorted(strata.items(), key=lambda item: sorted(item[0])):
        if len(members) > 1:
            held |= set(rng.sample(members, min(len(members) - 1, max(1, round(share * len(members))))))
    return held


def _units(rows: Rows, by: str) -> list[Hashable]:
    """Per row what is held out as a whole: its value of the column, else its pair, else itself."""

    def unit_of(number: int) -> Hashable:
        row = rows[number]
        return next(((c, str(row[c])) for c in (by, "pair") if not missing(row.get(c))), ("row", f"{number:09d}"))

    return _joined(rows, unit_of)


def unit_column(rows: Rows) -> str:
    """
    The column by which [`hold_out`] divides questions where none is named.

    Args:
        rows (`Sequence[Mapping]`): questions.

    Returns:
        `str`: `"group"` where there are four groups or more that share no pair, else `"pair"`.
    """
    groups = {unit for unit in _units(rows, "group") if isinstance(unit, tuple) and unit[0] == "group"}
    return "group" if len(groups) >= 4 else "pair"


def hold_out(
    rows: Rows, share: float = 0.25, by: Optional[str] = None, *, occupations: bool = False, seed: int = 0
) -> TwoSides:
    """
    Hold out a part of any questions, to judge by it what was trained on the rest.

    Questions with a right answer and questions without one are drawn apart, so that both sides have both kinds
    wherever that is possible. A pair is never split.

    Args:
        rows (`Sequence[Mapping]`): questions.
        share (`float`, defaults to 0.25): share to hold out, in (0, 1).
        by (`str`, *optional*): the column whose values are kept together. Default: `"group"` if there are at least
            four groups, else `"pair"`; a row without that column goes by its pair, or else by itself.
        occupations (`bool`, defaults to `False`): hold out whole occupations, with every question that names one of
            them as an answer.
        seed (`int`, defaults to 0): of the draw; the same seed holds out the same rows.

    Returns:
        The questions to train on and the held-out ones, in their order.

    Raises:
        ValueError: the share is out of range, both `by` and `occupations` are given, or a side would be empty.
    """
    _check_share(share)
    if occupations and by not in (None, "occupation"):
        raise ValueError(f"by={by!r} and occupations=True are two ways to hold out: give one of them.")
    rng = random.Random(seed)
    if not occupations and by != "occupation":
        units = _units(rows, by or unit_column(rows))
        held = _draw(rows, units, share, rng)
        train, test = _sides(rows, lambda number: units[number] in held)
    else:
        units = [row["occupation"] for row in rows]
        train, test = [], []
        # What names a held-out occupation goes with it, and can take a kind along: another draw then.
        for _ in range(100):
            found = hold_occupations(rows, map(str, _draw(rows, units, share, rng)))
            if all(found) and (not train or all(_kinds(side) == _kinds(rows) for side in found)):
                train, test = found
                if all(_kinds(side) == _kinds(rows) for side in found):
                    break
    if not train or not test:
        what = "occupations" if occupations else "groups, pairs or rows that belong to no pair"
        raise ValueError(f"{len(rows)} questions hold too few {what} ({len(set(units))}) to hold some of them out.")
    return train, test
