"""BBQ, gender identity: questions about a man and a woman, read from its file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from .files import StrPath, read_lines
from .forms import ABSTENTIONS, chat_abstentions, described_forms, distinct, unlike
from .occupations import Occupation
from .registry import question_set


GROUPS = {"m": "M", "man": "M", "boy": "M", "male": "M", "f": "F", "woman": "F", "girl": "F", "female": "F"}


def load_bbq_gender(path: StrPath, *, chat: bool = False) -> list[dict[str, Any]]:
    """
    BBQ, gender identity (Parrish et al. 2022): its `Gender_identity.jsonl`. Questions whose two people are not of the
    groups M/man/boy/male and F/woman/girl/female are left out.

    An answer is pro where it names the group that the stereotype of the question is about, in a negative question, or
    the other one in a non-negative question (`stereotyped_groups`). The third answer, "unknown", is no named answer:
    it is one of the abstentions.

    Args:
        path (`str`): a JSON object per line.
        chat (`bool`, defaults to `False`): prompts as messages.

    Returns:
        `list[dict]`: one row per question; the occupation column holds the question's number (`question_index`), since
        BBQ has topics and no occupations. Questions of one example (`example_id`, four in a row) are a pair; where it
        is missing, those with the same number and people. `first` is `None` where the context does not name both
        people.

    Raises:
        ValueError: a line is no JSON object of that form.
    """
    rows = []
    for number, line in read_lines(path):
        try:
            row = _row(json.loads(line), chat)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not a question of BBQ ({error!r}).") from None
        if row is not None:
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no question about a man and a woman.")
    return rows


def _row(data: Mapping[str, Any], chat: bool) -> Optional[dict[str, Any]]:
    """The row of one question; `None` if it is not about a man and a woman."""
    of = [GROUPS.get(str(data["answer_info"][f"ans{i}"][1]).lower()) for i in range(3)]
    stereotyped = {GROUPS.get(str(g).lower()) for g in data["additional_metadata"]["stereotyped_groups"]} - {None}
    context, question, label = data["context"], data["question"], data["label"]
    texts = [str(data[f"ans{i}"]).strip() for i in range(3)]
    condition, polarity, topic = data["context_condition"], data["question_polarity"], data["question_index"]
    if condition not in ("ambig", "disambig") or polarity not in ("neg", "nonneg") or label not in (0, 1, 2):
        raise ValueError(f"context_condition {condition!r}, question_polarity {polarity!r}, label {label!r}")
    named = [i for i in range(3) if of[i] is not None]
    ambiguous = condition == "ambig"
    if len(named) != 2 or of[named[0]] == of[named[1]] or len(stereotyped) != 1:
        return None
    if not ambiguous and label not in named:
        return None
    text, target = f"{context} {question}", stereotyped.pop()
    forms = [described_forms(texts[i], texts[i] if chat else f" {texts[i]}") for i in named]
    (unknown,) = (texts[i] for i in range(3) if i not in named)
    said = chat_abstentions((unknown, unknown.lower(), *ABSTENTIONS))
    example = data.get("example_id")
    people = "+".join(sorted(texts[i] for i in named)) if example is None else int(example) // 4
    return {
        "prompt": [{"role": "user", "content": text}] if chat else f"{text} Answer:",
        "occupation": f"question {topic}",
        "answers": [of_answer[0] for of_answer in forms],
        "forms": forms,
        "abstentions": unlike(forms, distinct(unknown if chat else f" {unknown}", said)),
        "meanings": ["pro" if (of[i] == target) == (polarity == "neg") else "anti" for i in named],
        "right": None if ambiguous else named.index(label),
        "first": _first_named(context, [texts[i] for i in named]),
        "pair": f"{topic}/{people}",
        "group": str(polarity),
    }


def _first_named(context: str, people: Sequence[str]) -> Optional[int]:
    """Which person the context names first, "the boy" also as "a boy"; `None` where it does not name all of them."""
    nouns = [re.sub(r"^(the|a|an)\s+", "", person, flags=re.IGNORECASE) for person in people]
    found = [re.search(rf"\b{re.escape(noun)}\b", context, re.IGNORECASE) for noun in nouns]
    places = [match.start() for match in found if match]
    return places.index(min(places)) if len(places) == len(people) else None


@question_set("bbq", "BBQ, gender identity: a man and a woman, who did it?", from_file=True)
def _bbq(path: str, occupations: Sequence[Occupation], chat: bool) -> list[dict[str, Any]]:
    return load_bbq_gender(path, chat=chat)
