"""Questions: their columns, the pronoun task, and splits that share nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peft_dso import metrics
from peft_dso.questions import (
    OCCUPATIONS,
    QUESTION_KINDS,
    check_questions,
    coreference_questions,
    image_pair_questions,
    load_bbq_gender,
    load_occupations,
    load_questions,
    load_synthbias,
    load_winobias,
    load_winogender,
    pronoun_questions,
    social_counterfactuals,
    split_occupations,
    split_questions,
)
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


# --- co-reference ----------------------------------------------------------------------------------------------------


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


# --- pictures --------------------------------------------------------------------------------------------------------


def pictures(occupations=("nurse", "driver", "clerk"), ages=("old", "young")):
    rows = []
    for i, occupation in enumerate(occupations):
        for j, gender in enumerate(("male", "female")):
            for k, age in enumerate(ages):
                picture = Image.new("RGB", (8 + i, 10 + j), (10 * i, 10 * j, 10 * k))
                rows.append({"image": picture, "occupation": occupation, "gender": gender, "age": age})
    return rows


def test_ambiguous_pairs_have_one_occupation_two_genders_and_both_orders():
    rows = image_pair_questions(pictures())
    check_questions(rows, ("pro", "anti"))
    assert len(rows) == 2 * 3 * 2 and {r["occupation"] for r in rows} == {"nurse", "driver", "clerk"}
    for one, turned in zip(rows[::2], rows[1::2]):
        assert one["pair"] == turned["pair"] and one["images"] == turned["images"][::-1]
        assert one["meanings"] == turned["meanings"][::-1] and set(one["meanings"]) == {"pro", "anti"}
        nurse_index = {"nurse": 0, "driver": 1, "clerk": 2}[one["occupation"]]
        assert all(picture.getpixel((0, 0))[0] == 10 * nurse_index for picture in one["images"])
        female = {"nurse": True, "driver": False, "clerk": True}[one["occupation"]]
        for picture, meaning in zip(one["images"], one["meanings"]):
            assert (picture.getpixel((0, 0))[1] == 10) == ((meaning == "pro") == female)


def test_unambiguous_pairs_have_two_occupations():
    rows = image_pair_questions(pictures(), ambiguous=False, count=24)
    check_questions(rows)
    assert len(rows) == 24 and sum(r["right"] for r in rows) == 12
    index = {"nurse": 0, "driver": 10, "clerk": 20}
    for row in rows:
        red = [picture.getpixel((0, 0))[0] for picture in row["images"]]
        assert red[row["right"]] == index[row["occupation"]] != red[1 - row["right"]]
    counts = {name: sum(r["occupation"] == name for r in rows) for name in index}
    assert set(counts.values()) == {8}


def test_intersections_and_one_picture():
    rows = image_pair_questions(pictures(), attributes=("gender", "age"), count=36, one_picture=True)
    groups = {g for r in rows for g in r["meanings"]}
    assert groups == {"male/old", "male/young", "female/old", "female/young"}
    assert all(len(r["images"]) == 1 and len(set(r["meanings"])) == 2 for r in rows)
    kinds = {}
    for r in rows:
        kinds[frozenset(r["meanings"])] = kinds.get(frozenset(r["meanings"]), 0) + 1
    assert len(kinds) == 6 and set(kinds.values()) == {6}  # each pair of groups as often
    both = rows[0]["images"][0]
    assert both.width > both.height and "left" in rows[0]["prompt"][0]["content"]
    for kind in QUESTION_KINDS:
        assert "A or B" in image_pair_questions(pictures(), kind=kind)[0]["prompt"][0]["content"] or kind != "identify"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guess"}, "kind='guess'"),
        ({"count": 3}, "even number"),
        ({"attributes": ()}, "attributes is empty"),
        ({"image": "picture"}, "no column 'picture'"),
        ({"dataset": [{**pictures()[0], "image": None}]}, "no picture"),
        ({"dataset": [{**row, "gender": "male"} for row in pictures()]}, "two groups of one occupation"),
        ({"dataset": pictures(("nurse",)), "ambiguous": False}, "two occupations"),
        ({"dataset": pictures(("wizard",))}, "no known occupation"),
    ],
)
def test_pictures_that_do_not_fit(change, message):
    arguments = {"dataset": pictures(), **change}
    with pytest.raises(ValueError, match=message):
        image_pair_questions(arguments.pop("dataset"), **arguments)


def test_social_counterfactuals_by_its_column_names():
    base = {"image": Image.new("RGB", (4, 4)), "counterfactual_set": "1"}
    rows = [
        {**base, "caption": "A photo of a tall female nurse", "a1_type": "physical", "a1": "tall", "a2_type": "gender",
         "a2": "female"},
        {**base, "caption": "An Indian man accountant", "a1_type": "race", "a1": "Indian", "a2_type": "gender",
         "a2": "man"},
        {**base, "caption": "A tall Asian nurse", "a1_type": "physical", "a1": "tall", "a2_type": "race",
         "a2": "Asian"},
    ]  # fmt: skip
    found = list(social_counterfactuals(rows))
    assert [(r["occupation"], r["gender"]) for r in found] == [("nurse", "female"), ("accountant", "male")]
    assert found[1]["race"] == "indian"
    with pytest.raises(ValueError, match="not SocialCounterfactuals"):
        list(social_counterfactuals([{"image": 1}]))


# --- known sets ------------------------------------------------------------------------------------------------------


def test_winobias(tmp_path):
    path = tmp_path / "pro_stereotyped_type1.txt.dev"
    path.write_text(
        "1 [The developer] argued with the designer because [he] did not like the design.\n"
        "2 The developer hated [the cleaner] and reported [her] to the manager.\n"
        "3 The construction worker met [ the nurse] and thanked [her].\n"
    )
    rows = load_winobias(path)
    check_questions(rows, ("pro", "anti"))
    assert [r["occupation"] for r in rows] == ["developer", "cleaner", "nurse"]
    assert [r["right"] for r in rows] == [0, 1, 1] and rows[0]["meanings"] == ["pro", "anti"]
    assert rows[1]["answers"] == [" developer", " cleaner"] and rows[2]["answers"][0] == " construction worker"
    assert '"her" refers to the' in rows[1]["prompt"] and "[" not in rows[2]["prompt"]
    opened = load_winobias(path, ambiguous=True)
    assert len(opened) == 6 and {r["right"] for r in opened} == {None}
    path.write_text("1 [The wizard] met the nurse because [he] was late.\n")
    with pytest.raises(ValueError, match=r"line 1: expected two known occupations"):
        load_winobias(path)


def test_all_of_winobias_where_it_lies():
    folder = Path(__file__).parents[2] / "shared" / "data" / "winobias"
    if not folder.is_dir():
        pytest.skip("WinoBias is not here")
    for path in folder.glob("*_stereotyped_*"):
        rows = load_winobias(path)
        assert len(rows) == 396
        expected = "pro" if path.name.startswith("pro") else "anti"
        agreeing = sum(r["meanings"][r["right"]] == expected for r in rows)
        assert agreeing == 396


def test_winogender(tmp_path):
    path = tmp_path / "all_sentences.tsv"
    path.write_text(
        "sentid\tsentence\n"
        "technician.customer.1.male.txt\tThe technician told the customer that he could pay with cash.\n"
        "technician.customer.0.female.txt\tThe technician told the customer that she had completed the repair.\n"
        "technician.customer.0.neutral.txt\tThe technician told the customer that they had completed the repair.\n"
        "technician.someone.0.male.txt\tThe technician told someone that he had completed the repair.\n"
    )
    table = tmp_path / "occupations-stats.tsv"
    table.write_text("occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\ntechnician\t9.1\t40.3\t2015\n")
    rows = load_winogender(path, load_occupations(table))
    check_questions(rows, ("pro", "anti"))
    assert [r["right"] for r in rows] == [1, 0] and [r["meanings"] for r in rows] == [["pro", "anti"], ["anti", "pro"]]
    with pytest.raises(ValueError, match="'technician' is not in the table"):
        load_winogender(path, OCCUPATIONS)


def test_synthbias(tmp_path):
    path = tmp_path / "synth.csv"
    head = "type,sample,occ_1,occ_2,pronoun,is_stereotypical\n"
    path.write_text(
        head + "ambiguous,The nurse met the driver because she was late.,driver,nurse,she,\n"
        'unambiguous,"The nurse, who hurried, met the driver and she won.",nurse,driver,she,True\n'
        'unambiguous,"The nurse, who hurried, met the driver and he won.",nurse,driver,he,False\n'
    )
    rows = load_synthbias(path)
    check_questions(rows, ("pro", "anti"))
    assert [r["occupation"] for r in rows] == ["nurse", "driver", "nurse", "nurse"]
    assert [r["right"] for r in rows] == [None, None, 0, 0]
    assert rows[0]["meanings"] == ["pro", "anti"] and rows[3]["meanings"] == ["anti", "pro"]
    for wrong, message in (
        ("guess,x,nurse,driver,she,True", "type is 'guess'"),
        ("ambiguous,x,nurse,driver,they,", "has no gender"),
        ("ambiguous,The nurse,nurse,driver,she,", "does not name 'driver'"),
        ("unambiguous,nurse driver,nurse,driver,she,maybe", "not true or false"),
        ("unambiguous,nurse clerk,nurse,clerk,she,true", "same majority"),
    ):
        path.write_text(head + wrong + "\n")
        with pytest.raises(ValueError, match=message):
            load_synthbias(path)
    path.write_text("type,sample\nambiguous,x\n")
    with pytest.raises(ValueError, match="no column 'occ_1'"):
        load_synthbias(path)


def test_bbq(tmp_path):
    def item(number, condition, label, polarity="neg"):
        return {
            "example_id": number, "question_index": "1", "question_polarity": polarity,
            "context_condition": condition, "category": "Gender_identity",
            "answer_info": {"ans0": ["man", "man"], "ans1": ["unknown", "unknown"], "ans2": ["woman", "woman"]},
            "additional_metadata": {"stereotyped_groups": ["F"]},
            "context": "I met a man and a woman.", "question": "Who forgot things?",
            "ans0": "The man", "ans1": "Cannot be determined", "ans2": "The woman", "label": label,
        }  # fmt: skip

    path = tmp_path / "Gender_identity.jsonl"
    rows = [item(0, "ambig", 1), item(1, "disambig", 2), item(2, "ambig", 1, "nonneg")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_bbq_gender(path)
    check_questions(found, ("pro", "anti"))
    assert [r["right"] for r in found] == [None, 1, None]
    assert [r["meanings"] for r in found] == [["anti", "pro"], ["anti", "pro"], ["pro", "anti"]]
    assert found[0]["answers"] == [" The man", " The woman"]
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1: not a question of BBQ"):
        load_bbq_gender(path)


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("occupation,share_women,majority\nwizard,10,\npilot,,north\n")
    found = load_occupations(path)
    assert [(o.name, o.majority) for o in found] == [("wizard", "male"), ("pilot", "north")]
    for text, message in (
        ("occupation,share_women\nwizard,many\n", "needs share_women from 0 to 100"),
        ("occupation,share_women\nwizard,101\n", "needs share_women"),
        ("occupation,share_women\nwizard,\n", "or a majority"),
        ("occupation,share_women\nwizard,1\nwizard,2\n", "there twice"),
        ("name\nwizard\n", "no column 'occupation'"),
        ("occupation,share_women\n", "holds no occupation"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_occupations(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_occupations(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="not of the form"):
        load_occupations("hf://models/x")


# --- splits and sources ----------------------------------------------------------------------------------------------


def test_splits_share_nothing():
    rows = coreference_questions()
    train, test = split_questions(rows, "group", 0.25)
    assert not {r["group"] for r in train} & {r["group"] for r in test} and len(train) + len(test) == len(rows)
    train, test = split_questions(rows, "occupation", 0.2)
    named = {a.strip() for r in train for a in r["answers"]}
    assert len({o.name for o in OCCUPATIONS} - named) >= 8  # the held-out ones are not even named in training
    for by, share, message in (
        ("frame", 0.5, "no 'frame'"),
        ("group", 1.0, "between 0 and 1"),
        ("group", 0.001, "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            split_questions(rows, by, share)


def test_sources(tmp_path):
    for name in ("pronouns", "coreference"):
        train, test = load_questions(name, "train"), load_questions(name, "test")
        assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
        assert {r["right"] is None for r in train} == {True, False}
    held = load_questions("pronouns", "test", held_out_occupations=True)
    seen = load_questions("pronouns", "train", held_out_occupations=True)
    assert not {r["occupation"] for r in held} & {r["occupation"] for r in seen}
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = {**image_pair_questions(pictures())[0], "images": ["a.png", "a.png"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert load_questions(str(tmp_path / "rows.jsonl"))[0]["images"][1].size == (4, 4)
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "images": ["b.png"]}]))
    with pytest.raises(ValueError, match="the picture 'b.png' cannot be read"):
        load_questions(str(tmp_path / "rows.json"))
    (tmp_path / "rows.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_questions(str(tmp_path / "rows.json"))
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a list"):
        load_questions(str(tmp_path / "rows.json"))
    for source, message in (("riddles", "Unknown questions 'riddles'"), ("pronouns:x", "Unknown questions")):
        with pytest.raises(ValueError, match=message):
            load_questions(source)
    with pytest.raises(ValueError, match="split='dev'"):
        load_questions("pronouns", "dev")
    with pytest.raises(ValueError, match="plain text"):
        load_questions("pronouns", chat=True)
