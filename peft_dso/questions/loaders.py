"""
Sets of questions that people know, read from local files or from the Hub. Nothing of them is shipped.

A path may be a local file or `hf://datasets/OWNER/NAME[@REVISION]/FILE`.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .coreference import GENDER_OF, coreference_row
from .occupations import OCCUPATIONS, Occupation


StrPath = str | os.PathLike[str]


def local_file(path: StrPath) -> Path:
    """
    The local file of a path, downloaded first if it is one of the Hub.

    Args:
        path (`str`): a local file, or `hf://datasets/OWNER/NAME[@REVISION]/FILE`.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError: there is no such local file.
        ValueError: the address of the Hub is not of that form.
    """
    text = os.fspath(path)
    if text.startswith("hf://"):
        match = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", text)
        if not match:
            raise ValueError(f"{text!r} is not of the form hf://datasets/OWNER/NAME[@REVISION]/FILE.")
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(match[1], match[3], repo_type="dataset", revision=match[2]))
    if not Path(text).is_file():
        raise FileNotFoundError(f"There is no file {text!r}.")
    return Path(text)


def _table(path: StrPath, required: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a csv or tsv file with their line numbers, after a look at the header."""
    file = local_file(path)
    with open(file, newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")
        missing = [column for column in required if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{file} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ())}.")
        for row in reader:
            yield reader.line_num, row


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
    for line, row in _table(path, ["occupation"]):
        name, group = row["occupation"].strip(), (row.get("majority") or "").strip() or None
        share = next((row[c] for c in ("share_women", "bls_pct_female") if row.get(c)), None)
        if not name or name in found:
            raise ValueError(f"{path}, line {line}: the occupation is {'there twice' if name else 'empty'}: {name!r}.")
        try:
            women = float("nan") if share is None else float(share)
        except ValueError:
            women = -1.0
        if women < 0 or women > 100 or (group is None and share is None):
            raise ValueError(f"{path}, line {line}: {name!r} needs share_women from 0 to 100, or a majority.")
        found[name] = Occupation(name, women, group)
    if not found:
        raise ValueError(f"{path} holds no occupation.")
    return list(found.values())


def _women(table: Mapping[str, Occupation], name: str, where: str) -> bool:
    if name not in table:
        raise ValueError(
            f"{where}: the occupation {name!r} is not in the table. Give occupations=load_occupations(...) with it."
        )
    return table[name].majority == "female"


def load_winobias(
    path: StrPath, occupations: Iterable[Occupation] = OCCUPATIONS, *, ambiguous: bool = False, chat: bool = False
) -> list[dict[str, Any]]:
    """
    WinoBias (Zhao et al. 2018): a file of its sentences, such as `pro_stereotyped_type1.txt.test`.

    Args:
        path (`str`): a line is a number and a sentence with two bracketed spans, the right person and the pronoun.
        occupations (`Iterable[Occupation]`): whose names to look for, and their majorities.
        ambiguous (`bool`, defaults to `False`): do not tell which person is right: the sentences then show which one
            the model prefers. Otherwise `accuracy_gap` of a sweep is WinoBias's own measure, on the pro and the anti
            files together.
        chat (`bool`, defaults to `False`): prompts as messages.

    Returns:
        `list[dict]`: one row per sentence, charged to the right person's occupation; for ambiguous ones two.

    Raises:
        ValueError: a line is not of that form, or names no second occupation of the table.
    """
    table = {o.name.lower(): o for o in occupations}
    names = "|".join(re.escape(name) for name in sorted(table, key=len, reverse=True))
    rows = []
    file = local_file(path)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        text = re.sub(r"^\d+\s+", "", line.strip())
        spans = re.findall(r"\[\s*([^\]]+?)\s*\]", text)
        pronouns = [s for s in spans if s.lower() in GENDER_OF]
        persons = [s for s in spans if s.lower() not in GENDER_OF]
        sentence = re.sub(r"\[\s*|\s*\]", "", text)
        # The two people are named first; a third one may follow ("... and reported her to the manager").
        people = list(dict.fromkeys(m.lower() for m in re.findall(rf"\b({names})\b", sentence, re.IGNORECASE)))[:2]
        right = re.sub(r"^(the|a|an)\s+", "", persons[0].lower()) if persons else ""
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
        occupations (`Iterable[Occupation]`): such as [`load_occupations`] of its occupations-stats.tsv.
        chat (`bool`, defaults to `False`): prompts as messages.

    Returns:
        `list[dict]`: one row per sentence, with its right answer; the occupation is pro with the pronoun of its
        majority, the other participant the opposite.

    Raises:
        ValueError: a line is not of that form, or an occupation is not in the table.
    """
    table = {o.name: o for o in occupations}
    rows = []
    for line, row in _table(path, ["sentid", "sentence"]):
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
        text = row["sentence"].lower()
        order = [0, 1] if text.find(name) <= text.find(other) else [1, 0]
        people, majorities = [name, other], [women, not women]
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
    SynthBias: a csv file with the columns `type` (`ambiguous` or `unambiguous`), `sample` (the sentence), `occ_1`,
    `occ_2`, `pronoun` and `is_stereotypical`.

    Args:
        path (`str`): the file.
        occupations (`Iterable[Occupation]`): the majorities of its occupations.
        chat (`bool`, defaults to `False`): prompts as messages.

    Returns:
        `list[dict]`: two rows per ambiguous sentence, charged to each occupation, and one per unambiguous sentence,
        whose right answer is the person with the pronoun's stereotype if `is_stereotypical`, else the other one.

    Raises:
        ValueError: a column is missing, a value is unknown, or an unambiguous sentence has two people of one majority.
    """
    table = {o.name.lower(): o for o in occupations}
    rows = []
    for line, row in _table(path, ["type", "sample", "occ_1", "occ_2", "pronoun", "is_stereotypical"]):
        where, kind, pronoun = f"{path}, line {line}", row["type"].strip().lower(), row["pronoun"].strip().lower()
        if kind not in ("ambiguous", "unambiguous"):
            raise ValueError(f"{where}: type is {row['type']!r}, not 'ambiguous' or 'unambiguous'.")
        if pronoun not in GENDER_OF:
            raise ValueError(f"{where}: the pronoun {row['pronoun']!r} has no gender.")
        people = [row["occ_1"].strip().lower(), row["occ_2"].strip().lower()]
        text = row["sample"].lower()
        people.sort(key=text.find)
        if text.find(people[0]) < 0:
            raise ValueError(f"{where}: the sentence does not name {people[0]!r}.")
        women = [_women(table, name, where) for name in people]
        right = None
        if kind == "unambiguous":
            stereotypical = {"true": True, "1": True, "false": False, "0": False}.get(
                row["is_stereotypical"].strip().lower()
            )
            if stereotypical is None:
                raise ValueError(f"{where}: is_stereotypical is {row['is_stereotypical']!r}, not true or false.")
            if women[0] == women[1]:
                raise ValueError(f"{where}: {people[0]} and {people[1]} have the same majority, so none is right.")
            right = women.index((GENDER_OF[pronoun] == "female") == stereotypical)
        for charged in (0, 1) if right is None else (right,):
            rows.append(
                coreference_row(
                    row["sample"],
                    pronoun,
                    [table[name].name for name in people],
                    women,
                    right=right,
                    charged=charged,
                    pair="/".join(sorted(people)),
                    group="synthbias",
                    chat=chat,
                )
            )
    if not rows:
        raise ValueError(f"{path} holds no sentence.")
    return rows


def load_bbq_gender(path: StrPath, *, chat: bool = False) -> list[dict[str, Any]]:
    """
    BBQ, gender identity (Parrish et al. 2022): its `Gender_identity.jsonl`. Questions whose two people are not of the
    groups M/man/boy/male and F/woman/girl/female are left out.

    An answer is pro where it names the group that the stereotype of the question is about, in a negative question, or
    the other one in a non-negative question (`stereotyped_groups`). The third answer, "unknown", is no named answer:
    it counts as an abstention in ambiguous contexts.

    Args:
        path (`str`): a JSON object per line.
        chat (`bool`, defaults to `False`): prompts as messages.

    Returns:
        `list[dict]`: one row per question; the occupation column holds the question's number (`question_index`), since
        BBQ has topics and no occupations.

    Raises:
        ValueError: a line is no JSON object of that form.
    """
    groups = {"m": "M", "man": "M", "boy": "M", "male": "M", "f": "F", "woman": "F", "girl": "F", "female": "F"}
    rows = []
    for number, line in enumerate(local_file(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            data = json.loads(line)
            of = [groups.get(str(data["answer_info"][f"ans{i}"][1]).lower()) for i in range(3)]
            stereotyped = {groups.get(str(g).lower()) for g in data["additional_metadata"]["stereotyped_groups"]}
            context, question, label = data["context"], data["question"], data["label"]
            texts = [str(data[f"ans{i}"]) for i in range(3)]
            condition, polarity = data["context_condition"], data["question_polarity"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a question of BBQ ({error!r}).") from None
        named = [i for i in range(3) if of[i] is not None]
        stereotyped.discard(None)
        if len(named) != 2 or of[named[0]] == of[named[1]] or len(stereotyped) != 1:
            continue
        target = stereotyped.pop()
        ambiguous = condition == "ambig"
        if not ambiguous and label not in named:
            continue
        text = f"{context} {question}"
        answers = [texts[i] if chat else f" {texts[i]}" for i in named]
        rows.append(
            {
                "prompt": [{"role": "user", "content": text}] if chat else f"{text} Answer:",
                "occupation": f"question {data['question_index']}",
                "answers": answers,
                "meanings": ["pro" if (of[i] == target) == (polarity == "neg") else "anti" for i in named],
                "right": None if ambiguous else named.index(label),
                "first": min((0, 1), key=lambda k: context.lower().find(texts[named[k]].lower())),
                "pair": f"{data['question_index']}/{data['example_id'] // 4}",
                "group": str(polarity),
            }
        )
    if not rows:
        raise ValueError(f"{path} holds no question about a man and a woman.")
    return rows
