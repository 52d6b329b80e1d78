"""
The contrasts that the fits by activations learn from: pairs of texts that differ in one thing.

How the DSO paper built the contrasts of CAA and ITI is not known. Three constructions are here, for a question q:

| name | positive (target) | negative (source) | read at |
|---|---|---|---|
| stereotype | q + anti answer | q + pro answer | answer token |
| gender | q + woman's answer | q + man's answer | answer token |
| instruction | fairness text + q | neutral text of the same length + q | last prompt token |

They are balanced: as many questions per occupation, as many occupations of either majority, each place of the pro
answer (he or she, A or B, named first or second) equally often. Otherwise what they differ in is just "she" or "B"
(arXiv 2407.12404).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from ..questions import OCCUPATIONS, Occupation, check_questions
from ..questions.coreference import GENDER_OF
from .activations import Text, encode_text
from .wordings import FAIRNESS, neutral_text, with_preamble


CONTRASTS = ("stereotype", "gender", "instruction")


@dataclass(frozen=True)
class Contrast:
    """
    Pairs of texts, balanced.

    Args:
        positive (`list[Text]`): the texts to move to.
        negative (`list[Text]`): the texts to move from, one for each of `positive`.
        occupations (`list[str]`): whom each pair is about.
        types (`list[str]`): the majority of each pair's occupation, `"male"` or `"female"`; `""` where not known.
    """

    positive: list[Text]
    negative: list[Text]
    occupations: list[str]
    types: list[str]


def majorities_of(occupations: Sequence[Occupation]) -> dict[str, str]:
    """The majority by the name of the occupation, in lower case."""
    return {occupation.name.lower(): occupation.majority for occupation in occupations}


def pro_gender(row: Mapping[str, Any], majorities: Mapping[str, str]) -> str:
    """
    The gender that the pro answer of a question says: its own where it is a pronoun, or else the majority of the
    question's occupation.

    Args:
        row (`Mapping`): a question with the meanings pro and anti.
        majorities (`Mapping[str, str]`): the majority by the name of the occupation, in lower case.

    Returns:
        `str`: `"male"`, `"female"`, or `""` where neither tells.
    """
    pro = row["answers"][row["meanings"].index("pro")].strip().lower()
    return GENDER_OF.get(pro) or majorities.get(row["occupation"].lower(), "")


def _womans_answer(row: Mapping[str, Any], majorities: Mapping[str, str]) -> tuple[int, int]:
    """Index of the woman's and of the man's answer; see [`contrast`] for what counts as a woman's."""
    genders = [GENDER_OF.get(a.strip().lower()) or majorities.get(a.strip().lower(), "") for a in row["answers"]]
    if "female" in genders and "male" in genders:
        return genders.index("female"), genders.index("male")
    pro, anti = row["meanings"].index("pro"), row["meanings"].index("anti")
    gender = pro_gender(row, majorities)
    if not gender:
        raise ValueError(
            f"Which answer of {list(row['answers'])!r} is a woman's cannot be told: neither is a pronoun or a known "
            f"occupation, and the majority of {row['occupation']!r} is not known. Give its table as occupations, or "
            "choose contrast='stereotype'."
        )
    return (pro, anti) if gender == "female" else (anti, pro)


def fit_rows(questions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    The ambiguous questions among some, which are what is fitted on.

    Args:
        questions (`Sequence[Mapping]`): questions; those with a right answer are left out.

    Returns:
        `list[dict]`: those with a pro and an anti answer.

    Raises:
        ValueError: there is no ambiguous question, one that has no pro or no anti answer, or one occupation only.
    """
    check_questions(questions)
    rows = [dict(row) for row in questions if row.get("right") is None]
    if not rows:
        raise ValueError("There is no ambiguous question (right=None) to fit on.")
    for row in rows:
        if not {"pro", "anti"} <= set(row["meanings"]):
            raise ValueError(
                f"A contrast needs a pro and an anti answer; those about {row['occupation']!r} mean "
                f"{', '.join(map(repr, row['meanings']))}."
            )
    names = {row["occupation"] for row in rows}
    if len(names) < 2:
        raise ValueError(
            f"All questions are about {names.pop()!r}: with one occupation a contrast is nothing but its pro and anti "
            "answer. Give questions about several."
        )
    return rows


def _places(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the pro answer of each question stands: which of a closed set of answers it is, or whether named first."""
    closed = _closed(rows)
    found = []
    for row in rows:
        pro = row["meanings"].index("pro")
        first = row.get("first")
        place = row["answers"][pro] if closed else ""
        found.append(f"{place}/{'' if first is None else pro == first}")
    return found


def balanced(
    questions: Sequence[Mapping[str, Any]],
    count: Optional[int] = None,
    *,
    occupations: Sequence[Occupation] = OCCUPATIONS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """
    Draw ambiguous questions so that nothing but the stereotype tells the pro answers from the anti ones.

    Args:
        questions (`Sequence[Mapping]`): questions.
        count (`int`, *optional*): about how many to draw; default as many as can be balanced. The least is one per
            occupation and place of the pro answer, or their common multiple.
        occupations (`Sequence[Occupation]`): who knows the majority where the answers do not say a gender.
        seed (`int`, defaults to 0): of the draw.

    Returns:
        `list[dict]`: as many questions per occupation, as many occupations per majority (where it is known), as many
        per place of the pro answer within an occupation that has several; questions of one pair together.

    Raises:
        ValueError: the questions cannot be balanced: all occupations are of one majority, or there are too few; or
            `count` is below 1.
    """
    if count is not None and (isinstance(count, bool) or count < 1):
        raise ValueError(f"{count} pairs of texts: give 1 or more, or None for all that can be balanced.")
    rows = fit_rows(questions)
    majorities = majorities_of(occupations)
    rng = random.Random(seed)
    types: dict[str, dict[str, list[int]]] = {}  # majority: occupation: questions
    for number, row in enumerate(rows):
        by_name = types.setdefault(pro_gender(row, majorities), {})
        by_name.setdefault(row["occupation"], []).append(number)
    known = {majority: by_name for majority, by_name in types.items() if majority} or _by_answer(rows)
    if len(known) == 1:
        raise ValueError(
            f"All occupations are mostly {next(iter(known)).strip()}: the pro answer is the same everywhere, and a "
            "contrast would be just that answer. Give occupations of both majorities."
        )
    known = known or types  # of pictures the majority need not be known: the answers are letters
    fewest = min(map(len, known.values()))
    kept = {name: found for by_name in known.values() for name, found in _drawn(by_name, fewest, rng)}
    places = _places(rows)
    cells = {name: {p: [n for n in numbers if places[n] == p] for p in sorted({places[n] for n in numbers})}
             for name, numbers in kept.items()}  # fmt: skip
    step = math.lcm(*map(len, cells.values()))
    each = min(len(c) * min(map(len, c.values())) for c in cells.values())
    if count is not None:
        each = min(each, max(step, count // len(cells)))
    each -= each % step
    if not each:
        raise ValueError(
            f"There are too few questions to balance: {len(rows)} about {len(cells)} occupations, and some have none "
            "for a place of the pro answer. Give more."
        )
    chosen: list[int] = []
    for by_place in cells.values():
        pairs = sorted({str(rows[n].get("pair") or n) for numbers in by_place.values() for n in numbers})
        rank = {pair: place for place, pair in enumerate(rng.sample(pairs, len(pairs)))}
        for numbers in by_place.values():
            ordered = sorted(numbers, key=lambda n: rank[str(rows[n].get("pair") or n)])
            chosen += ordered[: each // len(by_place)]
    return [rows[n] for n in sorted(chosen)]


def _by_answer(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """
    Questions by their pro answer and occupation, where all have the same answers and each occupation one pro answer
    ("lazy" or "diligent"); nothing otherwise.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for number, row in enumerate(rows):
        pro = row["answers"][row["meanings"].index("pro")]
        found.setdefault(pro, {}).setdefault(row["occupation"], []).append(number)
    names = [name for by_name in found.values() for name in by_name]
    return found if _closed(rows) and len(names) == len(set(names)) else {}


def _closed(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all questions have the same answers."""
    return len({tuple(sorted(row["answers"])) for row in rows}) == 1


def _drawn(by_name: Mapping[str, list[int]], count: int, rng: random.Random) -> list[tuple[str, list[int]]]:
    names = sorted(by_name)
    return [(name, by_name[name]) for name in sorted(rng.sample(names, count))]


def contrast(
    processor: Any,
    questions: Sequence[Mapping[str, Any]],
    kind: str = "stereotype",
    *,
    pairs: Optional[int] = 400,
    occupations: Sequence[Occupation] = OCCUPATIONS,
    seed: int = 0,
) -> Contrast:
    """
    The pairs of texts of a contrast.

    Args:
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): the model's.
        questions (`Sequence[Mapping]`): questions; the ambiguous ones are used.
        kind (`str`, defaults to `"stereotype"`): `"stereotype"`, `"gender"` or `"instruction"` (see the module). A
            woman's answer is "she" or "her", the occupation named that is mostly held by women, or, where the answers
            are letters, the pro answer about such an occupation.
        pairs (`int`, *optional*, defaults to 400): how many at the most (arXiv 2505.03189: gains flatten near 80).
        occupations (`Sequence[Occupation]`): who knows the majority where the answers do not say a gender.
        seed (`int`, defaults to 0): of the draw.

    Returns:
        `Contrast`: the pairs, in the order of the questions.

    Raises:
        ValueError: the kind is unknown, or the questions cannot show it (see [`balanced`]).
    """
    if kind not in CONTRASTS:
        raise ValueError(f"contrast={kind!r}: choose one of {', '.join(CONTRASTS)}.")
    rows = balanced(questions, pairs, occupations=occupations, seed=seed)
    majorities = majorities_of(occupations)
    positive, negative = [], []
    for row in rows:
        if kind == "instruction":
            neutral = neutral_text(processor, FAIRNESS)
            positive.append(encode_text(processor, with_preamble(row, FAIRNESS)))
            negative.append(encode_text(processor, with_preamble(row, neutral)))
            continue
        if kind == "stereotype":
            first, second = row["meanings"].index("anti"), row["meanings"].index("pro")
        else:
            first, second = _womans_answer(row, majorities)
        positive.append(encode_text(processor, row, row["answers"][first]))
        negative.append(encode_text(processor, row, row["answers"][second]))
    return Contrast(
        positive, negative, [row["occupation"] for row in rows], [pro_gender(row, majorities) for row in rows]
    )
