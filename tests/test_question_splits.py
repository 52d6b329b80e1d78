"""Splits that share nothing, and questions by name or from a file."""

import json

import pytest
from PIL import Image

from peft_dso.questions import (
    OCCUPATIONS,
    coreference_questions,
    image_pair_questions,
    load_questions,
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
