"""The sweep, the report and the plots."""

import math

import numpy as np
import pytest
import torch
from models import build, tiny_questions, tiny_tokenizer
from peft import get_peft_model
from trainers import RIGHT, leaning, trainer

from peft_dso import DSOConfig, get_steering_strength
from peft_dso.answers import read_answer
from peft_dso.evaluation import (
    calibrate_strength,
    format_table,
    generate_texts,
    harness,
    summarize,
    sweep,
)
from peft_dso.scoring import encode_row


STRENGTHS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return get_peft_model(leaning(), DSOConfig(init_weights=False, steering_strength=0.7)).eval()


@pytest.fixture(scope="module")
def report(model):
    rows = tiny_questions() + RIGHT
    sets = {"test": rows, "open": tiny_questions()[:4]}
    return sweep(model, tiny_tokenizer(), sets, STRENGTHS, description={"n": 1})


@torch.no_grad()
def by_hand(model, row, strength):
    """Probabilities of the answers and of all tokens, steered and not, one prompt at a time."""
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
    found = []
    for w in (strength, 0.0):
        model.set_steering_strength(w)
        found.append(model(ids).logits[0, -1].double().softmax(-1))
    model.set_steering_strength(0.7)
    return found[0][[tokenizer.convert_tokens_to_ids(a.strip()) for a in row["answers"]]], *found


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_measured(model, report, place):
    result, rows = report.sets["test"][place], tiny_questions()
    leans, rest, kl = {}, [], []
    for row in rows:
        answers, p, q = by_hand(model, row, STRENGTHS[place])
        share = float(answers[row["meanings"].index("pro")] / answers.sum())
        leans.setdefault(row["occupation"], []).append(share)
        rest.append(1 - float(answers.sum()))
        kl.append(float((p * (p / q).log()).sum()))
    measures = result.measures
    expected = sum(abs(2 * sum(x) / len(x) - 1) for x in leans.values()) / len(leans)
    assert measures["bias"].value == pytest.approx(expected, abs=1e-4)
    first = sum(abs(2 * sum(v > 0.5 for v in x) / len(x) - 1) for x in leans.values()) / len(leans)
    assert measures["bias_first_choice"].value == pytest.approx(first)
    everything = [2 * v - 1 for x in leans.values() for v in x]
    assert measures["gap"].value == pytest.approx(sum(everything) / len(everything), abs=1e-4)
    assert measures["abstention"].value == pytest.approx(sum(rest) / len(rest), abs=1e-4)
    assert measures["kl"].value == pytest.approx(sum(kl) / len(kl), abs=1e-4)
    right = [by_hand(model, row, STRENGTHS[place])[0] for row in RIGHT]
    assert measures["accuracy"].value == sum(int(p.argmax() == 0) for p in right) / len(right)
    assert measures["right"].value == pytest.approx(sum(float(p[0] / p.sum()) for p in right) / len(right), abs=1e-4)
    assert measures["right_of_all"].value == pytest.approx(sum(float(p[0]) for p in right) / len(right), abs=1e-4)
    assert measures["bias"].n == len(rows) and measures["accuracy"].n == len(RIGHT)
    assert {name: round(sum(x) / len(x) * 2 - 1, 3) for name, x in leans.items()} == pytest.approx(
        {name: round(v, 3) for name, v in result.occupations.items()}, abs=2e-3
    )


def test_the_base_is_strength_zero_and_the_strength_is_restored(model, report):
    assert report.sets["test"][0].measures["kl"].value == 0
    assert get_steering_strength(model) == 0.7
    only = sweep(model, tiny_tokenizer(), {"test": tiny_questions()}, (1.0,))
    assert [r.strength for r in only.sets["test"]] == [1.0]
    again, before = only.sets["test"][0].measures["kl"], report.sets["test"][2].measures["kl"]
    assert again.value == pytest.approx(before.value, abs=1e-5)


def test_sets_without_a_kind_of_question_leave_its_measures_out(report):
    assert "accuracy" not in report.sets["open"][0].measures
    assert "accuracy" not in format_table(report.sets["open"])


def test_wrong_calls(model):
    tokenizer = tiny_tokenizer()
    for sets, strengths in (({}, (1.0,)), ({"a": tiny_questions()}, ())):
        with pytest.raises(ValueError, match="Nothing to measure"):
            sweep(model, tokenizer, sets, strengths)
    with pytest.raises(ValueError, match="no question"):
        sweep(model, tokenizer, {"a": []})
    with pytest.raises(ValueError, match="finite"):
        sweep(model, tokenizer, {"a": tiny_questions()}, (float("nan"),))
    with pytest.raises(ValueError, match="has no adapter"):
        sweep(build("llama"), tokenizer, {"a": tiny_questions()}, (1.0,))


def test_groups_of_other_names(model):
    rows = [{**row, "meanings": ["old", "young"] if "who" in row["prompt"] else ["young", "old"]}
            for row in tiny_questions()]  # fmt: skip
    result = sweep(model, tiny_tokenizer(), {"a": rows}, (1.0,)).sets["a"][0]
    assert "gap" not in result.measures and result.measures["bias"].value >= 0
    by_hand_shares = {}
    for row in rows:
        answers, _, _ = by_hand(model, row, 1.0)
        by_hand_shares.setdefault(row["occupation"], []).append(
            float(answers[row["meanings"].index("old")] / answers.sum())
        )
    expected = sum(abs(2 * sum(x) / len(x) - 1) for x in by_hand_shares.values()) / len(by_hand_shares)
    assert result.measures["bias"].value == pytest.approx(expected, abs=1e-4)


def test_position_accuracy_gap_and_bound(model):
    rows = [{**row, "first": 0} for row in tiny_questions()]
    rows += [{**row, "right": right} for row in RIGHT for right in (0, 1)]
    results = sweep(model, tiny_tokenizer(), {"a": rows}, (0.0, 1.0)).sets["a"]
    base, steered = results
    expected = []
    for row in tiny_questions():
        answers, _, _ = by_hand(model, row, 1.0)
        expected.append(float(2 * answers[0] / answers.sum() - 1))
    assert steered.measures["position"].value == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    for name in ("position", "abstention"):
        before, after, change = base.measures[name], steered.measures[name], steered.measures[f"{name}_change"]
        assert change.value == pytest.approx(after.value - before.value, abs=1e-9)
        assert base.measures[f"{name}_change"].value == 0 != change.value
        assert 0 < change.standard_error < math.hypot(before.standard_error, after.standard_error)
    # " he" is pro in RIGHT, so that always saying he is right for pro only.
    picks = [int(by_hand(model, row, 1.0)[0].argmax()) for row in RIGHT]
    gap = sum(p == 0 for p in picks) / len(picks) - sum(p == 1 for p in picks) / len(picks)
    assert steered.measures["accuracy_gap"].value == pytest.approx(gap)
    assert base.measures["accuracy_change"].value == 0 and base.accuracy_bound == 0
    kl = steered.measures["kl_unambiguous"].value
    assert steered.accuracy_bound == pytest.approx(0.5 * math.sqrt(2 * kl))
    change = steered.measures["accuracy"].value - base.measures["accuracy"].value
    assert steered.measures["accuracy_change"].value == pytest.approx(change)
    assert abs(change) <= steered.accuracy_bound
    assert "acc. bound" in format_table(results, columns="all")


def test_answers_in_text(model):
    """What is read is what the model writes greedily."""
    rows, tokenizer = tiny_questions() + RIGHT, tiny_tokenizer()
    texts = generate_texts(model, tokenizer, [encode_row(tokenizer, row) for row in rows], max_new_tokens=3)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer(row["prompt"], return_tensors="pt")
        written = model.generate(**ids, do_sample=False, max_new_tokens=3)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True) == text
    result = sweep(model, tokenizer, {"a": rows}, (0.7,), answers="text", max_new_tokens=3).sets["a"][0]
    given = [read_answer(text, row["answers"]) for row, text in zip(rows, texts, strict=True)]
    none = [g is None for g, row in zip(given, rows, strict=True) if row["right"] is None]
    assert result.measures["abstention"].value == sum(none) / len(none)
    right = [g == row["right"] for g, row in zip(given, rows, strict=True) if row["right"] is not None]
    assert result.measures["accuracy"].value == sum(right) / len(right)
    assert "kl" not in result.measures
    with pytest.raises(ValueError, match="answers='guess'"):
        sweep(model, tokenizer, {"a": rows}, (0.7,), answers="guess")


def test_nobody_answered():
    rows = tiny_questions()
    nothing = np.full((len(rows), 2), -np.inf)
    result = summarize(rows, nothing, 1.0)
    assert math.isnan(result.measures["bias"].value) and math.isnan(result.measures["gap"].value)
    assert result.measures["abstention"].value == 1
    silent = np.full((len(RIGHT), 2), -np.inf)
    unambiguous = summarize(RIGHT, silent, 1.0, base=silent)
    assert unambiguous.measures["accuracy"].value == 0 and unambiguous.measures["right"].value == 0
    assert unambiguous.measures["accuracy_change"].value == 0


def test_one_sample_and_one_group():
    row = tiny_questions()[0]
    result = summarize([row], np.log([[0.7, 0.2]]), 1.0)
    assert result.measures["bias"].value == pytest.approx(5 / 9) and math.isnan(result.measures["bias"].standard_error)
    same = [{**row, "meanings": ["pro", "pro"]}]  # no answer could show the model to be fair: nothing is asked
    assert math.isnan(summarize(same, np.log([[0.7, 0.2]]), 1.0).measures["bias"].value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An adapter that lowers the bias, at a cost."""
    rows = tiny_questions(frames=("The {o} said that",))
    settings = dict(max_steps=60, questions_per_occupation=1, abstain_reward=None, max_kl=None, beta=0.0)
    job = trainer(tmp_path_factory.mktemp("trained"), rows=rows, **settings)
    job.train()
    job.model.set_steering_strength(0.7)
    return job.model.eval()


@pytest.mark.parametrize("name", ["max_kl", "min_accuracy", "max_bias"])
def test_calibration(trained, name):
    """The strength found meets the budget, and a little beyond it the budget is not met."""
    model, tokenizer = trained, tiny_tokenizer()
    key = {"max_kl": "kl", "min_accuracy": "accuracy", "max_bias": "bias"}[name]
    # What the base says is called right, so that a fairer model is the less accurate one.
    asked = tiny_questions(frames=("The {o} said that",))
    rows = asked + [{**row, "right": int(by_hand(model, row, 0.0)[0].argmax())} for row in asked]
    model.set_steering_strength(0.7)
    base, steered = (r.measures[key].value for r in sweep(model, tokenizer, {"a": rows}, (0.0, 1.0)).sets["a"])
    assert steered > base if name == "max_kl" else steered < base
    middle = (base + steered) / 2
    found = calibrate_strength(model, tokenizer, rows, **{name: middle}, tolerance=0.005)
    side = -0.005 if name == "max_bias" else 0.005
    beyond = sweep(model, tokenizer, {"a": rows}, (found.strength + side,)).sets["a"][0].measures[key].value
    reached = found.result.measures[key].value
    if name == "min_accuracy":
        assert reached >= middle > beyond
    else:
        assert reached <= middle < beyond
    assert found.result.strength == found.strength and found.base.strength == 0 < found.strength < 1
    assert get_steering_strength(model) == pytest.approx(0.7)


def test_calibration_that_cannot_be(model):
    rows, tokenizer = tiny_questions(), tiny_tokenizer()
    for budget, message in (
        ({}, "exactly one"),
        ({"max_kl": 1, "max_bias": 1}, "exactly one"),
        ({"max_kl": float("nan")}, "finite"),
        ({"min_accuracy": 0.5}, "no unambiguous question"),
        ({"max_bias": -1.0}, "No strength in"),
        ({"max_kl": 1, "highest": 0}, "above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate_strength(model, tokenizer, rows, **budget)
    kl = sweep(model, tokenizer, {"a": rows}, (0.5,)).sets["a"][0].measures["kl"].value
    found = calibrate_strength(model, tokenizer, rows, max_kl=kl, tolerance=1e-300)  # which comes to an end
    assert 0 < found.strength < 1
    assert calibrate_strength(model, tokenizer, rows, max_kl=1e9).strength == 1
    assert calibrate_strength(model, tokenizer, rows, max_bias=2.0).strength == 0


def test_a_task_that_is_read_by_several_filters_has_a_measure_for_each():
    values = {
        "exact_match,strict-match": 0.10, "exact_match_stderr,strict-match": 0.01,
        "exact_match,flexible-extract": 0.55, "exact_match_stderr,flexible-extract": 0.02, "acc,none": 0.3,
    }  # fmt: skip
    found = harness._measures({"results": {"gsm8k": values}, "n-samples": {"gsm8k": {"effective": 9}}})
    assert {key: (m.value, m.n) for key, m in found.items()} == {
        "gsm8k/exact_match,strict-match": (0.10, 9), "gsm8k/exact_match,flexible-extract": (0.55, 9),
        "gsm8k/acc": (0.3, 9),
    }  # fmt: skip
