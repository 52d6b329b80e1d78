"""The questions of the package: occupations, the pronoun task, co-reference."""

import re

import numpy as np
import pytest

from peft_dso.evaluation import measures as metrics
from peft_dso.questions import (
    OCCUPATIONS,
    check_questions,
    coreference_questions,
    coreference_sentences,
    load_questions,
    pronoun_questions,
    split_occupations,
)
from peft_dso.questions.occupations import Occupation


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


SPLITS = ("train", "validation", "test")


def test_no_opening_is_in_two_splits():
    """Also not with another conjunction: "The nurse was late because" and "The nurse was late when" stand together."""
    opened = [{row["pair"] for row in pronoun_questions(split)} for split in SPLITS]
    assert not opened[0] & opened[1] and not opened[0] & opened[2] and not opened[1] & opened[2]
    for split in SPLITS:
        rows = pronoun_questions(split, OCCUPATIONS[:1])
        last = {row["prompt"].split()[-1] for row in rows}
        assert {"because", "when", "after", "before", "that"} <= last  # each split has all kinds of sentences
        # An opening has all of its conjunctions in its split.
        went_on = [row for row in rows if row["prompt"] != row["pair"]]
        assert len(went_on) == 4 * len({row["pair"] for row in went_on})
    pairs = [row["pair"] for row in pronoun_questions("test") if row["occupation"] == "nurse"]
    assert max(map(pairs.count, pairs)) == 4 and min(map(pairs.count, pairs)) == 1


def test_the_test_frames_stay_and_validation_comes_out_of_training():
    """Every third opening and sentence from the second on is for the test; of the others every fourth validates."""
    nurse = [o for o in OCCUPATIONS if o.name == "nurse"]
    prompts = {split: [row["prompt"] for row in pronoun_questions(split, nurse)] for split in SPLITS}
    assert prompts["test"][:4] == [f"Everybody trusted the nurse {w}" for w in ("because", "when", "after", "before")]
    assert {split: len(rows) for split, rows in prompts.items()} == {
        "train": 4 * 32 + 21, "validation": 4 * 11 + 7, "test": 4 * 21 + 14,
    }  # fmt: skip
    told = {split: {row["group"] for row in pronoun_questions(split, nurse, ambiguous=False)} for split in SPLITS}
    assert {split: len(frames) for split, frames in told.items()} == {"train": 14, "validation": 4, "test": 6}
    assert len(set().union(*told.values())) == 24
    for ambiguous in (True, False):
        frames = [coreference_sentences(split, ambiguous) for split in SPLITS]
        assert [len(f) for f in frames] == [23, 8, 11] and len(set().union(*frames)) == 42
    from peft_dso.questions.coreference import AMBIGUOUS_SENTENCES

    assert coreference_sentences("test") == AMBIGUOUS_SENTENCES[1::4]


def test_articles():
    named = {}
    for split in SPLITS:
        for row in pronoun_questions(split, ambiguous=False):
            named.setdefault(row["occupation"], []).extend(re.findall(rf"\b(an?) {row['occupation']}", row["prompt"]))
    assert set(named["accountant"]) == set(named["editor"]) == {"an"} and set(named["nurse"]) == {"a"}
    assert all(len(articles) == 8 for articles in named.values())  # four frames, two genders


def test_split_occupations():
    seen, held_out = split_occupations()
    assert len(seen) == 32 and len(held_out) == 8 and not set(seen) & set(held_out)
    assert {o.majority for o in held_out} == {"male", "female"}
    for wrong in (1, 41):
        with pytest.raises(ValueError, match="every"):
            split_occupations(every=wrong)
    with pytest.raises(ValueError, match="'pilot' is not known"):
        split_occupations([*OCCUPATIONS, Occupation("pilot", float("nan"), "male")])
    for name, share, group in (("pilot", float("nan"), None), ("pilot", 101, "male"), (" ", 3, None)):
        with pytest.raises(ValueError, match="share_women from 0 to 100|needs a name"):
            Occupation(name, share, group)


def test_a_majority_in_any_spelling():
    unknown = float("nan")
    for spelled, pronoun in (("male", " he"), ("Male", " he"), (" MALE ", " he"), ("Female", " she")):
        (welder, *_) = pronoun_questions("train", [Occupation("welder", unknown, spelled)])
        assert welder["answers"][welder["meanings"].index("pro")] == pronoun
    plain = [Occupation("nurse", unknown, "female"), Occupation("driver", unknown, "male")]
    capitals = [Occupation("nurse", unknown, "Female"), Occupation("driver", unknown, "Male")]
    assert coreference_questions(capitals) == coreference_questions(plain)
    assert Occupation("welder", unknown, " North ").majority == "North"
    with pytest.raises(ValueError, match="or a group and NaN"):
        Occupation("welder", unknown, " ")


def test_questions_about_he_and_she_take_no_other_majority():
    table = [Occupation("nurse", 90), Occupation("driver", 6), Occupation("welder", float("nan"), "north")]
    for ambiguous in (True, False):
        with pytest.raises(ValueError, match="majority of 'welder' is 'north'"):
            pronoun_questions("train", table, ambiguous=ambiguous)
        with pytest.raises(ValueError, match="majority of 'welder' is 'north'"):
            coreference_questions(table, ambiguous=ambiguous)


def test_wrong_calls():
    with pytest.raises(ValueError, match="'dev'.*train, validation, test"):
        pronoun_questions("dev")
    with pytest.raises(ValueError, match="'dev'.*train, validation, test"):
        coreference_sentences("dev")
    with pytest.raises(ValueError, match="no question"):
        pronoun_questions("train", [])


# --- co-reference ----------------------------------------------------------------------------------------------------


def test_a_question_of_co_reference_belongs_to_one_quadruple():
    """Also where questions of both kinds and of all splits are put together."""
    rows = [r for a in (True, False) for s in SPLITS
            for r in coreference_questions(ambiguous=a, sentences=coreference_sentences(s, a))]  # fmt: skip
    prompts = {}
    for row in rows:
        prompts.setdefault(row["pair"], set()).add(row["prompt"])
    assert {len(of_pair) for of_pair in prompts.values()} == {4}


@pytest.mark.parametrize("ambiguous", [True, False])
def test_coreference_comes_in_quadruples(ambiguous):
    rows = coreference_questions(ambiguous=ambiguous)
    check_questions(rows, ("pro", "anti"))
    assert len({row["group"] for row in rows}) >= 40
    majority = {o.name: o.majority for o in OCCUPATIONS}
    quadruples = {}
    for row in rows:
        quadruples.setdefault(row["pair"], {})[row["prompt"]] = row
        first, second = (answer.strip() for answer in row["answers"])
        assert row["prompt"].index(first) < row["prompt"].index(second) and row["first"] == 0
        pronoun = row["prompt"].split('"')[1]
        gender = {"he": "male", "she": "female"}[pronoun]
        assert row["meanings"] == ["pro" if majority[o] == gender else "anti" for o in (first, second)]
        assert sorted(row["meanings"]) == ["anti", "pro"]
        if row["right"] is not None:
            assert row["occupation"] == row["answers"][row["right"]].strip()
            # The genders are named in the order of the people.
            genders = re.findall(r"\b(man|woman)\b", row["prompt"])
            assert genders[row["right"]] == {"he": "man", "she": "woman"}[pronoun] and len(set(genders)) == 2
    for of_pair in quadruples.values():
        assert len(of_pair) == 4
        assert len({(r["answers"][0], r["prompt"].split('"')[1]) for r in of_pair.values()}) == 4
    charged = {}
    for row in rows:
        charged.setdefault(row["prompt"], []).append(row["occupation"])
    if ambiguous:
        assert all(len(set(names)) == 2 for names in charged.values())


@pytest.mark.parametrize("ambiguous", [True, False])
def test_coreference_is_trained_with_many_partners(ambiguous):
    def couples(split):
        rows = [r for r in load_questions("coreference", split) if (r["right"] is None) == ambiguous]
        met, women, asked = {}, {}, {}
        for row in rows:
            one, other = sorted(answer.strip() for answer in row["answers"])
            met.setdefault(one, set()).add(other)
            met.setdefault(other, set()).add(one)
            asked[row["occupation"]] = asked.get(row["occupation"], 0) + 1
            if not ambiguous:
                genders = re.findall(r"\b(man|woman)\b", row["prompt"])
                first = row["answers"][0].strip()
                women.setdefault((one, other), {})[row["group"]] = (genders[0] == "woman") == (first == one)
        assert len(set(asked.values())) == 1 and len(met) == len(OCCUPATIONS)
        return met, women

    assert all(len(others) == 1 for others in couples("test")[0].values())
    met, women = couples("train")
    assert all(len(others) == 12 for others in met.values())  # of 23 frames
    # Two frames each, in which either one is the woman.
    assert all(len(frames) == 1 or sorted(frames.values()) == [False, True] for frames in women.values())


def test_a_liked_occupation_or_position_is_no_stereotype():
    rows = coreference_questions(OCCUPATIONS[::7], partners=2)
    names = [row["occupation"] for row in rows]
    pairs = [row["pair"] for row in rows]

    def shares(choose):
        picked = np.zeros((len(rows), 2))
        for i, row in enumerate(rows):
            picked[i, int(row["meanings"][choose(row)] == "anti")] = 1
        return picked

    liked = rows[0]["answers"][0]
    for choose in (lambda row: 0, lambda row: row["answers"].index(liked) if liked in row["answers"] else 0):
        assert metrics.per_occupation_bias(shares(choose), names, pairs).value == pytest.approx(0)
    always = metrics.per_occupation_bias(shares(lambda row: row["meanings"].index("pro")), names, pairs)
    assert always.value == 1


def test_coreference_as_chat_and_wrong_calls():
    row = coreference_questions(chat=True)[0]
    assert row["prompt"][0]["role"] == "user" and "Editor" in row["answers"]
    with pytest.raises(ValueError, match="both majorities"):
        coreference_questions(OCCUPATIONS[:3])
    with pytest.raises(ValueError, match="partners=0"):
        coreference_questions(partners=0)
