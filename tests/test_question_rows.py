"""The columns of a question and their check; groups."""

import datasets
import pandas
import pytest

from peft_dso.questions import abstention_forms, answer_forms, check_questions, question_groups, trainable_groups


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
        ({"right": 1.0}, "right must be None or the index of an answer, a whole number, got 1.0"),
        ({"right": float("nan")}, "right is NaN.*None"),
        ({"first": -1}, "first"),
        ({"prompt": float("nan")}, "prompt is NaN"),
        ({"prompt": ["Who?"]}, "message.*'Who\\?'"),
        ({"prompt": [{"content": "Who?"}]}, "role"),
        ({"occupation": " "}, "occupation"),
        ({"answers": None}, "answers"),
        ({"meanings": ["pro", None]}, "meaning"),
        ({"pair": 3}, "pair must be None or a text, got 3"),
        ({"pair": float("nan")}, "pair is NaN"),
        ({"group": ""}, "group"),
        ({"group": float("nan")}, "group is NaN"),
        ({"image": float("nan")}, "image is NaN"),
        ({"forms": [[" he"]]}, "forms must be a list of texts.*each of the 2 answers"),
        ({"forms": [[" he", " "], [" she"]]}, "forms.*empty"),
        ({"forms": [[" he"], []]}, "forms.*empty"),
        ({"forms": [" he", " she"]}, "forms"),
        ({"forms": [[" he", None], [" she"]]}, "forms"),
        ({"forms": float("nan")}, "forms is NaN"),
        ({"forms": [["he"], [" she"]]}, "first form of the answer ' he' must be the answer itself, got 'he'"),
        ({"forms": [[" he", "they"], [" she", " they"]]}, "the form ' they' is one of ' he' and of ' she'"),
        ({"abstentions": ["unknown", ""]}, "abstentions"),
        ({"abstentions": "unknown"}, "abstentions"),
        ({"abstentions": ["she "]}, "the abstention 'she ' is also a form of the answer ' she'"),
        ({"forms": [[" he", " both"], [" she"]], "abstentions": ["both"]}, "'both' is also a form of .* ' he'"),
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


def test_forms_and_abstentions_as_they_stand_and_where_there_are_none():
    row = {**GOOD, "forms": [[" he", "He", " He"], [" she"]], "abstentions": ["they", "unknown"]}
    check_questions([row])
    assert answer_forms(row) == [[" he", "He", " He"], [" she"]]
    assert abstention_forms(row) == ["they", "unknown"]
    for bare in (GOOD, {**GOOD, "forms": None, "abstentions": None}):
        check_questions([bare])
        assert answer_forms(bare) == [[" he"], [" she"]] and abstention_forms(bare) == []
    # What is handed out can be changed without changing the row.
    answer_forms(row)[0].append("x")
    abstention_forms(row).append("x")
    assert len(row["forms"][0]) == 3 and len(row["abstentions"]) == 2


def test_rows_that_went_through_arrow_or_pandas():
    """A mixed set has None in the columns that a row lacks; pandas has NaN, which is refused with the remedy."""
    full = {**GOOD, "forms": [[" he", "He"], [" she"]], "abstentions": ["they"], "right": 1, "first": 0,
            "pair": "a", "group": "b"}  # fmt: skip
    columns = {name: [full[name], GOOD.get(name)] for name in full}
    rows = list(datasets.Dataset.from_dict(columns))
    assert rows[1]["forms"] is None
    check_questions(rows)
    assert [answer_forms(row) for row in rows] == [[[" he", "He"], [" she"]], [[" he"], [" she"]]]
    assert [abstention_forms(row) for row in rows] == [["they"], []]
    with pytest.raises(ValueError, match=r"Question 0: right must be .* whole number, got 1.0"):
        check_questions(pandas.DataFrame([full, GOOD]).to_dict("records"))
    frame = pandas.DataFrame([{**full, "right": 1}, {**GOOD, "right": 1, "first": 0}])
    with pytest.raises(ValueError, match="Question 1: forms is NaN, as pandas marks what is missing; set it to None"):
        check_questions(frame.to_dict("records"))
    check_questions(frame.astype(object).where(frame.notna(), None).to_dict("records"))


def test_groups_have_one_order():
    def rows(*meanings):
        return [{"occupation": "nurse", "meanings": list(m)} for m in meanings]

    assert question_groups(rows(("anti", "pro"))) == ("pro", "anti")
    assert question_groups(rows(("pro", "pro"))) == ("pro", "anti")  # both, though one was not met
    assert question_groups(rows(("anti", "b"), ("a", "pro"))) == ("pro", "anti", "a", "b")
    assert question_groups(rows(("old", "young"), ("middle", "old"))) == ("middle", "old", "young")
    assert trainable_groups(rows(("anti", "anti"), ("pro", "pro"))) == ("pro", "anti")
    assert trainable_groups(rows(("anti", "b"))) == ("anti", "b")
    with pytest.raises(ValueError, match="All answers about 'nurse' mean 'pro'"):
        trainable_groups(rows(("pro", "pro")))
