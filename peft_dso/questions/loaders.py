"""
Sets of questions that people know, read from local files or from the Hub. Nothing of them is shipped.

A path may be a local file or `hf://datasets/OWNER/NAME[@REVISION]/FILE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .coreference import GENDER_OF, coreference_row
from .files import StrPath, local_file, read_lines, read_table
from .occupations import OCCUPATIONS, Occupation
from .registry import question_set


def load_occupations(path: StrPath) -> list[Occupation]:
    """
    Occupations from a table (csv or tsv) of one's own.

    Args:
        path (`str`): with the column `occupation`, and `share_women` (percent; `bls_pct_female`, the column of
            WinoGender's occupations-stats.tsv, is read too) or `majority` (the name of any group).

    Returns:
        `list[Occupation]`: in the order of the file.

    Raises:
        ValueError: a column is missing, a share is no percentage, or an occupation stands there twice.
    """
    found: dict[str, Occupation] = {}
    for line, row in read_table(path, ["occupation"]):
        name, group = row["occupation"].strip(), (row.get("majority") or "").strip() or None
        share = next((row[c] for c in ("share_women", "bls_pct_female") if row.get(c, "").strip()), None)
        if not name or name.casefold() in found:
            raise ValueError(f"{path}, line {line}: the occupation is {'there twice' if name else 'empty'}: {name!r}.")
        try:
            women = float("nan") if share is None else float(share)
        except ValueError:
            women = -1.0
        if (share is not None and not 0 <= women <= 100) or (group is None and share is None):
            raise ValueError(f"{path}, line {line}: {name!r} needs share_women from 0 to 100, or a majority.")
        found[name.casefold()] = Occupation(name, women, group)
    if not found:
        raise ValueError(f"{path} holds no occupation.")
    return list(found.values())


def _known(occupations: Iterable[Occupation]) -> dict[str, Occupation]:
    """Occupations by name; the sets do not agree on capitals."""
    return {occupation.name.casefold(): occupation for occupation in occupations}


def _women(table: Mapping[str, Occupation], name: str, where: str) -> bool:
    if name.casefold() not in table:
        raise ValueError(
            f"{where}: the occupation {name!r} is not in the table. Give occupations=load_occupations(...) with it."
        )
    return table[name.casefold()].mostly_women


def _order_of_naming(sentence: str, people: Sequence[str], where: str) -> list[int]:
    """
    The indices of two people in the order in which the sentence names them, as whole words: "driver" is not named by
    "screwdriver", and not by "bus driver" where that is the other one.
    """
    longest_first = "|".join(re.escape(name) for name in sorted(people, key=len, reverse=True))
    found = [m[0].casefold() for m in re.finditer(rf"\b(?:{longest_first})\b", sentence, re.IGNORECASE)]
    for name in people:
        if name.casefold() not in found:
            raise ValueError(f"{where}: the sentence does not name {name!r}: {sentence!r}.")
    return sorted(range(len(people)), key=lambda i: found.index(people[i].casefold()))


def load_winobias(
    path: StrPath, occupations: Iterable[Occupation] = OCCUPATIONS, *, ambiguous: bool = False, chat: bool = False
) -> list[dict[str, Any]]:
    """
    WinoBias (Zhao et al. 2018): a file of its sentences, such as `pro_stereotyped_type1.txt.test`.

    Args:
        path (`str`): a line is a number and a sentence with two bracketed spans, the right person and the pronoun.
        occupations (`Iterable[Occupation]`): whose names to look for, and their majorities, male or female.
        ambiguous (`bool`, defaults to `False`): do not tell which person is right: the sentences then show which one
            the model prefers. Otherwise `accuracy_gap` of a sweep is WinoBias's own measure, on the pro and the anti
            files together.
        chat (`bool`, defaults to `False`): prompts as messages.

    Returns:
        `list[dict]`: one row per sentence, charged to the right person's occupation; for ambiguous ones two.

    Raises:
        ValueError: a line is not of that form, or names no second occupation of the table, or one whose majority is
            another group.
    """
    table = _known(occupations)
    names = "|".join(re.escape(name) for name in sorted(table, key=len, reverse=True))
    rows = []
    file = local_file(path)
    for number, line in read_lines(file):
        text = re.sub(r"^\d+\s+", "", line.strip())
        spans = re.findall(r"\[\s*([^\]]+?)\s*\]", text)
        pronouns = [s for s in spans if s.lower() in GENDER_OF]
        persons = [s for s in spans if s.lower() not in GENDER_OF]
        sentence = re.sub(r"\[\s*|\s*\]", "", text)
        # The two people are named first; a third one may follow ("... and reported her to the manager").
        people = list(dict.fromkeys(m.casefold() for m in re.findall(rf"\b({names})\b", sentence, re.IGNORECASE)))[:2]
        right = re.sub(r"^(the|a|an)\s+", "", persons[0].casefold()) if persons else ""
        where = f"{path}, line {number}"
        if len(pronouns) < 1 or len(people) != 2 or right not in people:
            raise ValueError(f"{where}: expected two known occupations and a bracketed pronoun, got {text!r}.")
        for charged in (0, 1) if ambiguous else (people.index(right),):
            rows.append(
                coreference_row(
                    sentence,
                    pronouns[0],
                    [table[name].name for name in people],
                    [_women(table, name, where) for name in people],
                    right=None if ambiguous else people.index(right),
                    charged=charged,
                    pair=f"{file.name.removeprefix('pro_').removeprefix('anti_')}/{number}",
                    group=file.name,
                    chat=chat,
                )
            )
    if not rows:
        raise ValueError(f"{path} holds no sentence.")
    return rows


def load_winogender(path: StrPath, occupations: Iterable[Occupation], *, chat: bool = False) -> list[dict[str, Any]]:
    """
    WinoGender (Rudinger et al. 2018): its `all_sentences.tsv`. Sentences with "they" or "someone" are left out.

    Args:
        path (`str`): columns `sentid` (`occupation.participant.answer.gender.txt`, answer 0 for the occupation and 1
            for the participant) and `sentence`.
        occupations (`Iterable[Occupation]`): such as [`load_occupations`] of its occupations-stats.tsv; the majorities
            are male or female.
        chat (`bool`, defaults to `False`): prompts as messages.

    Returns:
        `list[dict]`: one row per sentence, with its right answer; the occupation is pro with the pronoun of its
        majority, the other participant the opposite.

    Raises:
        ValueError: a line is not of that form, an occupation is not in the table, or its majority is another group.
    """
    table = _known(occupations)
    rows = []
    for line, row in read_table(path, ["sentid", "sentence"]):
        where, parts = f"{path}, line {line}", row["sentid"].split(".")
        if len(parts) < 4 or parts[2] not in ("0", "1"):
            raise ValueError(f"{where}: sentid {row['sentid']!r} is not occupation.participant.answer.gender.")
        name, other, answer, gender = parts[:4]
        pronoun = next((w for w in re.findall(r"\w+", row["sentence"].lower()) if w in GENDER_OF), None)
        if gender == "neutral" or other == "someone":
            continue
        if pronoun is None:
            raise ValueError(f"{where}: no pronoun in {row['sentence']!r}.")
        women = _women(table, name, where)
        order = _order_of_naming(row["sentence"], (name, other), where)
        people, majorities = [table[name.casefold()].name, other], [women, not women]
        made = coreference_row(
            row["sentence"],
            pronoun,
            [people[i] for i in order],
            [majorities[i] for i in order],
            right=order.index(int(answer)),
            charged=order.index(0),
            pair=f"{name}/{other}/{answer}",
            group="winogender",
            chat=chat,
        )
        rows.append(made)
    if not rows:
        raise ValueError(f"{path} holds no sentence with a gendered pronoun and two people.")
    return rows


def load_synthbias(
    path: StrPath, occupations: Iterable[Occupation] = OCCUPATIONS, *, chat: bool = False
) -> list[dict[str, Any]]:
    """
    SynthBias: its csv file, with the columns `type` (`type1`, or `ambiguous`: the sentence leaves open who is meant;
    `type2`, or `unambiguous`: it means `occ_1`), `sample` (the sentence), `occ_1`, `occ_2`, `pronoun` and
    `is_stereotypical` (true or false for an unambiguous sentence).

    Args:
        path (`str`): the file.
        occupations (`Iterable[Occupation]`): the majorities of its occupations, male or female.
        chat (`bool`, defaults to `False`): prompts as messages.

    Returns:
        `list[dict]`: two rows per ambiguous sentence, charged to each occupation, and one per unambiguous sentence,
        charged to `occ_1`, its right answer. The people are in the order in which the sentence names them.

    Raises:
        ValueError: a column is missing, a value is unknown, a sentence does not name both people, or the majority of
            one is another group.
    """
    table = _known(occupations)
    kinds = {"type1": True, "ambiguous": True, "type2": False, "unambiguous": False}
    rows = []
    for line, row in read_table(path, ["type", "sample", "occ_1", "occ_2", "pronoun", "is_stereotypical"]):
        where, pronoun = f"{path}, line {line}", row["pronoun"].strip()
        ambiguous = kinds.get(row["type"].strip().lower())
        if ambiguous is None:
            raise ValueError(f"{where}: type is {row['type']!r}, not one of {', '.join(kinds)}.")
        if pronoun.lower() not in GENDER_OF:
            raise ValueError(f"{where}: the pronoun {row['pronoun']!r} has no gender.")
        if not ambiguous and row["is_stereotypical"].strip().lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{where}: is_stereotypical is {row['is_stereotypical']!r}, not true or false.")
        named = (row["occ_1"].strip(), row["occ_2"].strip())
        if not all(named) or named[0].casefold() == named[1].casefold():
            raise ValueError(f"{where}: occ_1 and occ_2 must be two occupations, got {named[0]!r} and {named[1]!r}.")
        order = _order_of_naming(row["sample"], named, where)
        people = [named[i] for i in order]
        right = None if ambiguous else order.index(0)
        for charged in (0, 1) if right is None else (right,):
            rows.append(
                coreference_row(
                    row["sample"].strip(),
                    pronoun,
                    [table[name.casefold()].name if name.casefold() in table else name for name in people],
                    [_women(table, name, where) for name in people],
                    right=right,
                    charged=charged,
                    pair="/".join(sorted(name.casefold() for name in people)),
                    group="synthbias",
                    chat=chat,
                )
            )
    if not rows:
        raise ValueError(f"{path} holds no sentence.")
    return rows


@question_set("winobias", "WinoBias: a sentence about two occupations, who is meant?", from_file=True)
def _winobias(path: str, occupations: Sequence[Occupation], chat: bool) -> list[dict[str, Any]]:
    return load_winobias(path, occupations, chat=chat)


@question_set("winobias-open", "the same without a right answer: whom does the model prefer?", from_file=True)
def _winobias_open(path: str, occupations: Sequence[Occupation], chat: bool) -> list[dict[str, Any]]:
    return load_winobias(path, occupations, ambiguous=True, chat=chat)


@question_set("winogender", "WinoGender: an occupation and another participant, who is meant?", from_file=True)
def _winogender(path: str, occupations: Sequence[Occupation], chat: bool) -> list[dict[str, Any]]:
    return load_winogender(path, occupations, chat=chat)


@question_set("synthbias", "SynthBias: two occupations in sentences that a model wrote", from_file=True)
def _synthbias(path: str, occupations: Sequence[Occupation], chat: bool) -> list[dict[str, Any]]:
    return load_synthbias(path, occupations, chat=chat)
