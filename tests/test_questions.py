"""Questions: their columns, the pronoun task, and splits that share nothing."""

import pytest

from peft_dso.questions import OCCUPATIONS, check_questions, pronoun_questions, split_occupations
from peft_dso.questions.occupations import Occupation


GOOD = {
    "prompt": "The nurse said that",
    "occupation": "nurse",
    "answers": [" he", " she"],
    "meanings": ["anti", "pro"],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"occupation": None}, "occupation"),
        ({"answers": [" he"]}, "at least two"),
        ({"answers": [" he", "he"]}, "the same"),
        ({"answers": "he"}, "answers"),
        ({"meanings": ["pro"]}, "meanings"),
        ({"meanings": ["pro", "neutral"]}, "'neutral'"),
        ({"right": 2}, "right"),
        ({"right": True}, "right"),
    ],
)
def test_the_first_bad_row_is_named(change, message):
    check_questions([GOOD], ("pro", "anti"))
    with pytest.raises(ValueError, match="Question 1.*" + message):
        check_questions([GOOD, {**GOOD, **change}, {}], ("pro", "anti"))


def test_missing_columns_and_no_rows():
    with pytest.raises(ValueError, match="'meanings' is missing; it has answers, occupation, prompt"):
        check_questions([{k: v for k, v in GOOD.items() if k != "meanings"}])
    with pytest.raises(ValueError, match="no question"):
        check_questions([])


def test_forty_occupations_half_of_them_of_each_majority():
    assert len(OCCUPATIONS) == 40
    majorities = [o.majority for o in OCCUPATIONS]
    assert majorities.count("male") == majorities.count("female") == 20
    assert Occupation("nurse", 90).majority == "female"


@pytest.mark.parametrize("ambiguous", [True, False])
def test_pronoun_questions(ambiguous):
    train, test = (pronoun_questions(split, ambiguous=ambiguous) for split in ("train", "test"))
    check_questions(train + test, ("pro", "anti"))
    assert {row["occupation"] for row in train} == {o.name for o in OCCUPATIONS}
    texts = [row["prompt"] for row in train + test]
    assert len(set(texts)) == len(texts) and not any("{" in text or text.endswith(" ") for text in texts)
    frames = [{row["prompt"] for row in rows if row["occupation"] == "nurse"} for rows in (train, test)]
    assert not frames[0] & frames[1] and min(map(len, frames)) >= 12
    for row in train + test:
        # pro is the pronoun of the majority
        assert row["answers"][row["meanings"].index("pro")] == (" he" if majority(row) == "male" else " she")
        if ambiguous:
            assert row["right"] is None
        else:
            words = row["prompt"].replace(",", " ").replace(".", " ").split()
            assert ("man" in words) != ("woman" in words)
            assert row["answers"][row["right"]] == (" he" if "man" in words else " she")


def majority(row):
    return next(o.majority for o in OCCUPATIONS if o.name == row["occupation"])


def test_no_opening_is_in_both_splits():
    """Also not with another conjunction: "The nurse was late because" and "The nurse was late when" stand together."""
    opened = [{row["pair"] for row in pronoun_questions(split)} for split in ("train", "test")]
    assert not opened[0] & opened[1]
    pairs = [row["pair"] for row in pronoun_questions("test") if row["occupation"] == "nurse"]
    assert max(map(pairs.count, pairs)) == 4 and min(map(pairs.count, pairs)) == 1


def test_split_occupations():
    seen, held_out = split_occupations()
    assert len(seen) == 32 and len(held_out) == 8 and not set(seen) & set(held_out)
    assert {o.majority for o in held_out} == {"male", "female"}
    for wrong in (1, 41):
        with pytest.raises(ValueError, match="every"):
            split_occupations(every=wrong)


def test_wrong_calls():
    with pytest.raises(ValueError, match="'validation'.*train, test"):
        pronoun_questions("validation")
    with pytest.raises(ValueError, match="no question"):
        pronoun_questions("train", [])
