"""Questions about pairs of pictures."""

import pytest
from PIL import Image

from peft_dso.questions import (
    QUESTION_KINDS,
    Occupation,
    check_questions,
    image_pair_questions,
    social_counterfactuals,
)


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
    for one, turned in zip(rows[::2], rows[1::2], strict=False):
        assert one["pair"] == turned["pair"] and one["images"] == turned["images"][::-1]
        assert one["meanings"] == turned["meanings"][::-1] and set(one["meanings"]) == {"pro", "anti"}
        nurse_index = {"nurse": 0, "driver": 1, "clerk": 2}[one["occupation"]]
        assert all(picture.getpixel((0, 0))[0] == 10 * nurse_index for picture in one["images"])
        female = {"nurse": True, "driver": False, "clerk": True}[one["occupation"]]
        for picture, meaning in zip(one["images"], one["meanings"], strict=False):
            assert (picture.getpixel((0, 0))[1] == 10) == ((meaning == "pro") == female)


def test_of_three_groups_the_majority_stands_beside_each_other_one():
    races = ("asian", "black", "white")
    people = [{"image": Image.new("RGB", (4, 4), (i, 0, 0)), "occupation": "welder", "race": race}
              for i, race in enumerate(races)]  # fmt: skip
    table = [Occupation("welder", float("nan"), "white")]
    rows = image_pair_questions(people, table, attributes=("race",), count=8)
    shown = [[races[picture.getpixel((0, 0))[0]] for picture in row["images"]] for row in rows]
    assert [row["meanings"] for row in rows] == [["pro" if r == "white" else "anti" for r in pair] for pair in shown]
    assert sorted(map(sorted, shown)) == [["asian", "white"]] * 4 + [["black", "white"]] * 4
    unambiguous = [*people, {**people[0], "occupation": "nurse"}]
    table.append(Occupation("nurse", float("nan"), "black"))
    rows = image_pair_questions(unambiguous, table, attributes=("race",), ambiguous=False)
    assert {tuple(sorted(row["meanings"])) for row in rows} == {("anti", "anti"), ("anti", "pro")}


def test_occupations_and_genders_in_any_spelling():
    people = [{**row, "occupation": {"clerk": "CEO"}.get(row["occupation"], row["occupation"])} for row in pictures()]
    capitals = [{**row, "occupation": row["occupation"].title(), "gender": row["gender"].title()} for row in people]
    for ambiguous in (True, False):
        rows = image_pair_questions(people, ambiguous=ambiguous)
        assert {row["occupation"] for row in rows} == {"nurse", "driver", "CEO"}
        assert image_pair_questions(capitals, ambiguous=ambiguous) == rows
    lower = [{**row, "occupation": row["occupation"].lower()} for row in people]
    assert {row["occupation"] for row in image_pair_questions(lower)} == {"nurse", "driver", "CEO"}


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
        ({"attributes": ("age",)}, r"majorities are \['female', 'male'\].*'age' has \['old', 'young'\]"),
        ({"dataset": [{**row, "gender": row["gender"][0]} for row in pictures()]}, r"'gender' has \['f', 'm'\]"),
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
