"""The forms of answers, and the named ways of not answering."""

import datasets
import pytest
from PIL import Image

from peft_dso.questions import (
    Occupation,
    abstention_forms,
    answer_forms,
    check_questions,
    coreference_questions,
    image_pair_questions,
    pronoun_questions,
)
from peft_dso.questions.forms import chat_forms, continued_forms, described_forms, option_forms, unlike


def test_forms_of_a_name_in_a_conversation():
    assert chat_forms("nurse") == [
        "Nurse", "nurse", "The nurse", "The Nurse", "the nurse", "the Nurse",
        " nurse", " Nurse", " The nurse", " The Nurse", " the nurse", " the Nurse",
    ]  # fmt: skip
    two = chat_forms("construction worker")
    assert two[0] == "Construction worker"
    assert {"construction worker", "Construction Worker", "The construction worker", " the Construction Worker"} < {
        *two
    }
    assert len(set(two)) == len(two) == 18
    assert chat_forms("CEO")[0] == "CEO" and {"the CEO", "The CEO", "ceo"} < {*chat_forms("CEO")}
    assert "cEO" not in chat_forms("CEO")


def test_forms_of_a_name_that_continues_a_sentence():
    assert continued_forms("nurse") == [" nurse", " Nurse"]
    assert continued_forms("CEO") == [" CEO", " ceo"]
    assert all(form.startswith(" ") for form in continued_forms("construction worker"))


def test_forms_of_options_and_descriptions():
    assert option_forms("A")[0] == "A" and {" A", "(A)", " (A)", "Person A", "person A"} < {*option_forms("A")}
    assert not {"a", " a"} & {*option_forms("A")}  # an article
    said = described_forms("The young man", " The young man")
    assert said[0] == " The young man" and {"The young man", "the young man", "young man", " Young man"} < {*said}
    assert not any("the the" in form.lower() for form in said)
    assert described_forms("Mary", "Mary")[0] == "Mary"
    assert unlike([[" both", "Both"], ["a"]], ["both", " both", "neither"]) == ["neither"]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("ambiguous", [False, True])
def test_co_reference_supplies_forms(ambiguous, chat):
    rows = coreference_questions(ambiguous=ambiguous, chat=chat)
    check_questions(rows)
    for row in rows:
        forms, abstentions = answer_forms(row), abstention_forms(row)
        assert [of_answer[0] for of_answer in forms] == row["answers"]
        assert all(len(of_answer) > 1 and len({*of_answer}) == len(of_answer) for of_answer in forms)
        assert {a.strip().lower() for a in abstentions} >= {"unknown", "neither", "both", "either"}
        spaced = [[form.startswith(" ") for form in of_answer] for of_answer in forms]
        assert all(sum(of_answer) == len(of_answer) / (2 if chat else 1) for of_answer in spaced)
    if chat:
        assert {"Unknown", "unknown", " Unknown", "Cannot be determined"} < {*abstention_forms(rows[0])}
    else:
        assert all(text.startswith(" ") for text in abstention_forms(rows[0]))


def test_an_occupation_that_says_both_is_no_abstention():
    rows = coreference_questions([Occupation("neither", 5), Occupation("nurse", 90)])
    check_questions(rows)
    assert " neither" not in rows[0]["abstentions"] and " both" in rows[0]["abstentions"]


def test_pronouns_and_pictures_supply_forms_and_keep_them_in_arrow():
    pronouns = pronoun_questions("test")[:2]
    assert answer_forms(pronouns[0]) == [[" he", " He"], [" she", " She"]] and abstention_forms(pronouns[0]) == []
    people = [
        {"image": Image.new("RGB", (4, 4)), "occupation": "nurse", "gender": gender} for gender in ("male", "female")
    ]
    pictures = image_pair_questions(people)
    check_questions(pronouns + pictures)
    assert answer_forms(pictures[0])[1][:2] == ["B", "(B)"] and "Neither" in abstention_forms(pictures[0])
    mixed = [{k: row.get(k) for k in ("occupation", "answers", "meanings", "forms", "abstentions")}
             for row in (pronouns[0], {**pictures[0], "forms": None}, pictures[1])]  # fmt: skip
    back = list(datasets.Dataset.from_list(mixed))
    assert [answer_forms(row) for row in back] == [answer_forms(row) for row in mixed]
    assert answer_forms(back[1]) == [["A"], ["B"]]
    assert [abstention_forms(row) for row in back] == [abstention_forms(row) for row in mixed]
