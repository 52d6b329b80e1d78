"""Splits that share nothing, and questions by name or from a file."""

import json
from pathlib import Path

import pytest
from PIL import Image

from peft_dso.questions import (
    OCCUPATIONS,
    Occupation,
    coreference_questions,
    describe_sets,
    hold_out,
    image_pair_questions,
    load_questions,
    question_set,
    registry,
    split_questions,
)


PICTURES = [
    {"image": Image.new("RGB", (4, 4), (90 * i, 90 * j, 0)), "occupation": occupation, "gender": gender}
    for i, occupation in enumerate(("nurse", "driver"))
    for j, gender in enumerate(("male", "female"))
]


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


def kinds(rows):
    return {row["right"] is None for row in rows}


def made_up(groups, pairs_each, **more):
    """Open and told questions by turns: `groups` groups of `pairs_each` pairs of two rows."""
    return [
        {"prompt": f"{g} {p} {k}", "occupation": "nurse", "answers": ["a", "b"], "meanings": ["pro", "anti"],
         "right": g % 2 or None, "group": f"g{g}", "pair": f"p{g}/{p}", **more}
        for g in range(groups) for p in range(pairs_each) for k in range(2)
    ]  # fmt: skip


def sides_by(column, train, test):
    return {str(r[column]) for r in train} & {str(r[column]) for r in test}


def test_a_split_divides_no_pair_and_knows_what_is_missing():
    rows = made_up(8, 2)
    for row in rows[:6]:
        row["pair"] = "spans two groups"  # g0 and the first half of g1
    for seed in range(6):
        train, test = split_questions(rows, "group", 0.25, seed)
        assert not sides_by("group", train, test) and not sides_by("pair", train, test)
        assert split_questions(rows, "group", 0.25, seed) == (train, test)
        assert len({r["group"] for r in test}) in (2, 3)
    assert len({str(split_questions(rows, seed=seed)) for seed in range(6)}) > 1
    for missing in (None, float("nan")):
        with pytest.raises(ValueError, match="Question 3 has no 'group' to split by; it has answers, meanings"):
            split_questions([*rows[:3], {**rows[3], "group": missing}], "group")
        loose = [{**row, "pair": missing, "group": str(n)} for n, row in enumerate(rows)]
        train, test = split_questions(loose, "group", 0.25)
        assert len(test) == 8 and len(train) == 24  # what misses a pair belongs to no other row


def test_an_occupation_is_held_out_with_whatever_names_it_in_any_form():
    for chat in (False, True):
        rows = coreference_questions(chat=chat)
        train, test = split_questions(rows, "occupation", 0.2)
        asked = {r["occupation"] for r in train}
        held = {r["occupation"] for r in rows} - {a.strip().lower() for r in train for a in r["answers"]} - asked
        assert len({name for name in held if name != "CEO"}) >= 7
        assert not {a.strip().lower() for r in train for a in r["answers"]} & held
        assert not sides_by("pair", train, test)


def test_hold_out_goes_by_group_pair_or_row():
    train, test = hold_out(made_up(8, 3))
    assert not sides_by("group", train, test) and len({r["group"] for r in test}) == 2
    assert kinds(train) == kinds(test) == {True, False} and len(train) + len(test) == 48
    # Three groups are too few: by pair.
    train, test = hold_out(made_up(3, 4))
    assert sides_by("group", train, test) and not sides_by("pair", train, test)
    assert kinds(train) == kinds(test) == {True, False} and len(test) == 2 * (2 + 1)  # of 8 open and 4 told pairs
    # Without pairs: by row.
    train, test = hold_out(made_up(1, 8, pair=None, group=float("nan")))
    assert len(test) == 4 and len(train) == 12
    # The order stays, the seed decides.
    rows = made_up(8, 3)
    assert hold_out(rows, seed=3) == hold_out(rows, seed=3)
    assert len({str(hold_out(rows, seed=seed)) for seed in range(8)}) > 1
    assert [r["prompt"] for r in rows if r in train] == [r["prompt"] for r in train if r in rows]
    # A kind of one pair alone cannot be on both sides; it is trained on.
    lonely = [*made_up(1, 4), {**made_up(1, 1)[0], "right": 0, "pair": "alone"}]
    train, test = hold_out(lonely)
    assert kinds(train) == {True, False} and kinds(test) == {True}
    # However large the share, each kind is trained on.
    train, test = hold_out(made_up(8, 1), 0.95)
    assert kinds(train) == kinds(test) == {True, False} and len(test) == 2 * 6
    train, test = hold_out(made_up(3, 4), by="group")
    assert not sides_by("group", train, test)


def test_both_kinds_whatever_the_seed_and_pairs_and_names_go_along():
    few_told = [row for row in made_up(8, 2) if row["right"] is None or row["group"] in ("g1", "g3")]
    for seed in range(20):
        assert all(kinds(side) == {True, False} for side in hold_out(few_told, seed=seed))
    # One of "u" and "v" is held out: the pair of both, and "W", which is named in another spelling.
    rows = [{"prompt": str(n), "occupation": name, "answers": answers, "meanings": ["pro", "anti"], "pair": pair}
            for n, (name, answers, pair) in enumerate([
                ("u", ["a", "b"], "both"), ("v", ["a", "b"], "both"), ("u", ["a", "b"], None), ("v", ["a", "b"], None),
                ("w", ["U", "b"], None), ("w", ["V", "b"], None),
            ])]  # fmt: skip
    for seed in range(12):
        test = hold_out(rows, 0.34, occupations=True, seed=seed)[1]
        prompts = {row["prompt"] for row in test}
        assert prompts in ({"0", "1", "2", "4"}, {"0", "1", "3", "5"}, {"4", "5"})


def test_hold_out_of_the_packages_own_questions():
    rows = load_questions("pronouns", "train") + load_questions("coreference", "train")
    train, test = hold_out(rows)
    assert not sides_by("group", train, test) and not sides_by("pair", train, test)
    assert kinds(train) == kinds(test) == {True, False}
    assert {r["occupation"] for r in test} == {r["occupation"] for r in train} == {o.name for o in OCCUPATIONS}
    train, test = hold_out(load_questions("coreference", "train", chat=True), 0.2, occupations=True)
    named = {text.strip().lower() for r in train for of_answer in r["forms"] for text in of_answer}
    assert len([o for o in OCCUPATIONS if o.name.lower() not in named]) >= 8
    assert kinds(train) == kinds(test) == {True, False}


def test_hold_out_of_occupations_looks_for_both_kinds():
    """Only one of six occupations has told questions in number: it must not be the one that goes."""

    def row(name, right, n):
        return {"prompt": f"{name} {right} {n}", "occupation": name, "answers": ["a", "b"],
                "meanings": ["pro", "anti"], "right": right}  # fmt: skip

    rows = [row(name, right, n) for name in "uvwxyz" for right in (None, 0) for n in range(2)]
    rows = [r for r in rows if r["right"] is None or r["occupation"] in "uv"]
    rows += [{**row("w", 0, 9), "answers": ["v", "u"]}]
    for seed in range(8):
        train, test = hold_out(rows, 0.3, occupations=True, seed=seed)
        assert kinds(train) == kinds(test) == {True, False}
        assert not sides_by("occupation", train, [r for r in test if r["answers"] == ["a", "b"]])

    # Every told question names w: where w is drawn, all of them would go with it.
    rows = [row(name, None, n) for name in "uvwxyz" for n in range(2)]
    rows += [{**row(name, 0, n), "answers": [name, "w"]} for name in "uvw" for n in range(2)]
    for seed in range(16):
        train, test = hold_out(rows, 0.3, occupations=True, seed=seed)
        assert kinds(train) == kinds(test) == {True, False}, seed


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (made_up(8, 1), {"share": 1.0}, "between 0 and 1"),
        (made_up(8, 1), {"by": "group", "occupations": True}, "two ways"),
        (made_up(8, 1), {"occupations": True}, r"too few occupations \(1\)"),
        (made_up(1, 1), {}, r"2 questions hold too few groups, pairs or rows .*\(1\)"),
        ([], {}, "0 questions"),
    ],
)
def test_what_cannot_be_held_out(rows, arguments, message):
    with pytest.raises(ValueError, match=message):
        hold_out(rows, **arguments)


# --- questions by name or from a file --------------------------------------------------------------------------------


def test_every_set_has_a_line_of_help_and_stands_in_the_guide():
    sets = describe_sets()
    assert list(sets)[:2] == ["coreference", "pronouns"] or list(sets)[:2] == ["pronouns", "coreference"]
    assert {"winobias:FILE", "winobias-open:FILE", "winogender:FILE", "synthbias:FILE", "bbq:FILE"} < {*sets}
    assert all(line and "\n" not in line for line in sets.values())
    guide = (Path(__file__).parents[1] / "docs" / "guides" / "train.md").read_text()
    for name, line in sets.items():
        assert f"| `{name}` | {line} |" in guide


def test_a_set_of_ones_own_is_one_function():
    row = {"prompt": "Who?", "occupation": "nurse", "answers": ["a", "b"], "meanings": ["pro", "anti"]}

    @question_set("riddles-of-the-test", "a riddle")
    def riddles(split, occupations, chat):
        return [{**row, "prompt": f"{split} {len(occupations)} {chat}"}]

    try:
        assert load_questions("riddles-of-the-test", "validation", chat=True)[0]["prompt"] == "validation 40 True"
        assert describe_sets()["riddles-of-the-test"] == "a riddle"
        for name, line in (("riddles-of-the-test", "x"), ("", "x"), ("a:b", "x"), ("a.json", "x"), ("a", "x\ny")):
            with pytest.raises(ValueError, match="cannot name|one line"):
                question_set(name, line)
    finally:
        registry._SETS.pop("riddles-of-the-test")


def test_three_parts_share_neither_frames_nor_occupations():
    for name in ("pronouns", "coreference"):
        for held_out in (False, True):
            parts = [load_questions(name, s, held_out_occupations=held_out) for s in ("train", "validation", "test")]
            assert all(kinds(part) == {True, False} for part in parts)
            for column in ("group", "prompt", *(["occupation"] if held_out else [])):
                values = [{row[column] for row in part} for part in parts]
                assert len(set().union(*values)) == sum(map(len, values)), (name, column)
    few = [Occupation("a", 5), Occupation("b", 10), Occupation("c", 20), Occupation("d", 60), Occupation("e", 70)]
    parts = [
        load_questions("pronouns", s, occupations=few, held_out_occupations=True) for s in ("train", "validation")
    ]
    assert [len({r["occupation"] for r in part}) for part in parts] == [3, 1]
    parts = [
        load_questions("pronouns", s, occupations=few[:4], held_out_occupations=True)
        for s in ("train", "validation", "test")
    ]
    assert [len({r["occupation"] for r in part}) for part in parts] == [2, 1, 1]


def test_a_record_of_json_lines_ends_at_a_line_feed(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "Note:\u2028the nurse\u0085said\x0bthat", "occupation": "nurse", "answers": [" he", " she"],
           "meanings": ["anti", "pro"]}  # fmt: skip
    text = json.dumps(row, ensure_ascii=False).replace("\\u000b", "\\u000b")
    path.write_bytes(("\ufeff" + text + "\r\n\r\n" + text + "\n").encode())
    assert load_questions(str(path)) == [row, row]
    (tmp_path / "rows.json").write_bytes(("\ufeff[" + text + "]").encode())
    assert load_questions(str(tmp_path / "rows.json")) == [row]
    path.write_text(text + "\n{\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is not valid JSON"):
        load_questions(str(path))
    path.write_bytes(text.encode() + b"\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"no UTF-8 text"):
        load_questions(str(path))
    path.write_text(json.dumps({**row, "images": "a.png"}) + "\n")
    with pytest.raises(ValueError, match=r"row 0: images must be a list of paths, got 'a.png'"):
        load_questions(str(path))


def test_sources(tmp_path):
    for name in ("pronouns", "coreference"):
        train, test = load_questions(name, "train"), load_questions(name, "test")
        assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
        assert {r["right"] is None for r in train} == {True, False}
    held = load_questions("pronouns", "test", held_out_occupations=True)
    seen = load_questions("pronouns", "train", held_out_occupations=True)
    assert not {r["occupation"] for r in held} & {r["occupation"] for r in seen}
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = {**image_pair_questions(PICTURES)[0], "images": ["a.png", "a.png"]}
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
