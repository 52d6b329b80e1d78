"""The pieces that the vision example makes itself; its stages are DSOTrainer and sweep, which have their own tests."""

import importlib
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from peft_dso.questions import check_questions
from peft_dso.scoring import encode_row, pictured_inputs


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        base, people = importlib.import_module("small_vlm.base"), importlib.import_module("small_vlm.people")
        importlib.import_module("debias_vlm")
    return SimpleNamespace(**vars(people), **{k: v for k, v in vars(base).items() if k not in vars(people)})


def test_the_processor_knows_every_word_and_the_model_reads_the_picture(example):
    processor = example.make_processor()
    people = example.draw_people(1, seed=0)
    assert len(people) == 12 * 4
    rows = [row for kind in example.QUESTION_KINDS for row in example.pairs(people, 0, 24, True, kind=kind)]
    rows += example.pairs(people, 0, 24, False)
    check_questions(rows)
    encoded = [encode_row(processor, row) for row in rows + example.describe_rows(people, 50, 0)]
    assert not any(processor.tokenizer.unk_token_id in q.prompt for q in encoded)
    assert all(len(forms[0]) == 1 for q in encoded for forms in q.answers)  # the letter itself
    inputs = pictured_inputs(processor, encoded[:3])
    logits = example.make_model(processor)(**inputs).logits
    assert logits.shape[0] == 3 and logits.shape[2] == len(processor.tokenizer)


def test_pictures_show_every_attribute(example):
    def drawn(*who):
        return example.draw_person(*who, random.Random(0)).tobytes()

    one = drawn("doctor", "male", "old")
    for other in (("nurse", "male", "old"), ("doctor", "female", "old"), ("doctor", "male", "young")):
        assert sum(a != b for a, b in zip(one, drawn(*other), strict=False)) > 20
    assert one == drawn("doctor", "male", "old")


def test_the_planted_stereotype_has_the_size_that_is_said(example):
    row = {"right": None, "occupation": "nurse", "meanings": ["female/old", "male/old"]}
    assert 2 * example.planted(row) - 1 == pytest.approx(example.PLANTED_BIAS)
    assert example.planted({**row, "right": 1}) == 0 and example.planted({**row, "right": 0}) == 1
    assert example.planted({**row, "meanings": ["female/young", "female/young"]}) == 0.5
    assert example.planted({**row, "occupation": "guard"}) == pytest.approx(1 - example.planted(row))


def test_questions_by_gender_keep_the_pairs_that_differ_in_it(example):
    people = example.draw_people(1, seed=0)
    rows = example.by_gender(example.pairs(people, 0, 144, True))
    majority = {o.name: o.majority for o in example.OCCUPATIONS}
    assert rows and all(sorted(r["meanings"]) == ["anti", "pro"] for r in rows)
    assert {majority[r["occupation"]] for r in rows} == {"male", "female"}
