"""The sweep, the report and the plots."""

import json
import math

import pytest
import torch
from models import build, tiny_questions, tiny_tokenizer
from peft import get_peft_model
from test_trainer import RIGHT, leaning

from peft_dso import DSOConfig, get_steering_strength
from peft_dso.evaluation import Report, format_table, load_report, save_report, sweep
from peft_dso.evaluation.plots import plot_sweep


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


def test_the_table(report):
    lines = format_table(report.sets["test"]).splitlines()
    assert len(lines) == 4 and lines[0].split()[:2] == ["strength", "bias"]
    assert f"{report.sets['test'][1].measures['bias'].value:.3f}" in lines[2]
    assert len({len(line) for line in lines}) == 1


def test_a_report_is_written_and_read(report, tmp_path):
    save_report(report, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert "NaN" not in text and json.loads(text)["description"] == {"answers": "probabilities", "n": 1}
    loaded = load_report(tmp_path / "report.json")
    assert format_table(loaded.sets["test"]) == format_table(report.sets["test"])
    assert loaded.sets["open"][0].occupations == report.sets["open"][0].occupations
    (tmp_path / "other.json").write_text('{"sets": {"a": [{"strength": 1}]}}')
    with pytest.raises(ValueError, match=r"other\.json is not a report"):
        load_report(tmp_path / "other.json")


def test_nan_becomes_null(report, tmp_path):
    report = Report({"a": [report.sets["test"][0]]}, {"value": math.nan})
    save_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["description"]["value"] is None


def test_the_plot(report, tmp_path):
    plot_sweep(report, tmp_path / "sweep.png")
    data = (tmp_path / "sweep.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    assert width > 1000 and height > 300


def test_wrong_calls(model):
    tokenizer = tiny_tokenizer()
    for sets, strengths in (({}, (1.0,)), ({"a": tiny_questions()}, ())):
        with pytest.raises(ValueError, match="Nothing to measure"):
            sweep(model, tokenizer, sets, strengths)
    with pytest.raises(ValueError, match="no question"):
        sweep(model, tokenizer, {"a": []})
    with pytest.raises(ValueError, match="finite"):
        sweep(model, tokenizer, {"a": tiny_questions()}, (float("nan"),))
    with pytest.raises(ValueError, match="no DSO adapter"):
        sweep(build("llama"), tokenizer, {"a": tiny_questions()})
