"""Fewer questions that are like all of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Optional


def _strata(questions: Sequence[Mapping[str, Any]]) -> list[list[list[int]]]:
    """Numbers of the questions of each pair, the pairs by what they are about: kinds and occupations."""
    pairs: dict[str, list[int]] = {}
    for number, row in enumerate(questions):
        pairs.setdefault(str(row.get("pair") or f"question {number}"), []).append(number)
    strata: dict[tuple[tuple[bool, str], ...], list[list[int]]] = {}
    for _, pair in sorted(pairs.items()):
        about = {(questions[i].get("right") is None, questions[i]["occupation"]) for i in pair}
        strata.setdefault(tuple(sorted(about)), []).append(pair)
    return [members for _, members in sorted(strata.items())]


def subset(
    questions: Sequence[Mapping[str, Any]], count: Optional[int], seed: int = 0, each_kind: bool = False
) -> list[dict[str, Any]]:
    """
    About `count` of some questions: of each occupation, and of ambiguous and unambiguous ones, the same share; whole
    pairs. The same ones every time.

    Args:
        questions (`Sequence[Mapping]`): questions.
        count (`int`, *optional*): default all. Too few for a pair of each occupation leave some of them out.
        seed (`int`, defaults to 0): of the draw.
        each_kind (`bool`, defaults to `False`): about `count` ambiguous questions, and as many unambiguous ones.

    Returns:
        `list[dict]`: in their order; with `each_kind` the ambiguous ones first.

    Raises:
        ValueError: `count` is below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"count={count}: it must be at least 1.")
    if each_kind:
        kinds: list[list[Mapping[str, Any]]] = [[], []]
        for row in questions:
            kinds[row.get("right") is not None].append(row)
        return [row for kind in kinds for row in subset(kind, count, seed)]
    if count is None or count >= len(questions):
        return [dict(row) for row in questions]
    rng = random.Random(seed)
    drawn = [rng.sample(pairs, len(pairs)) for pairs in _strata(questions)]
    for_all = sum(len(pairs[0]) for pairs in drawn) <= count  # a pair of each can be had
    kept: set[int] = set()
    owed = 0.0  # where less than two pairs are wanted of each, what is missing or over goes to the next
    for pairs in drawn:
        wanted, taken = count * sum(map(len, pairs)) / len(questions), 0
        owed += wanted
        for pair in pairs:
            most = owed if wanted < 2 * len(pair) else wanted
            if for_all and not taken:
                most = max(owed, wanted)
            if taken + len(pair) / 2 > most:
                break
            kept.update(pair)
            taken += len(pair)
        owed -= taken
    return [dict(row) for number, row in enumerate(questions) if number in kept]
