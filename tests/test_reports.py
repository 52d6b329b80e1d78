"""The report: table, JSON, CSV, pictures, and what it says in words."""

import csv
import json
import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from models import tiny_questions, tiny_tokenizer
from peft import get_peft_model
from test_evaluation import STRENGTHS
from trainers import RIGHT, leaning

from peft_dso import DSOConfig
from peft_dso.evaluation import (
    Report,
    StrengthResult,
    format_table,
    load_records,
    load_report,
    plots,
    records_of,
    save_csv,
    save_records,
    save_report,
    sweep,
    warnings_of,
)
from peft_dso.evaluation.measures import MEASURES, Measure
from peft_dso.evaluation.plots import _style, draw_occupations, draw_pareto, draw_sites, draw_sweep, plot_report
from peft_dso.inspect import read_adapter


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return get_peft_model(leaning(), DSOConfig(init_weights=False)).eval()


@pytest.fixture(scope="module")
def report(model):
    sets = {"test": tiny_questions() + RIGHT, "open": tiny_questions()[:4]}
    return sweep(model, tiny_tokenizer(), sets, STRENGTHS, description={"n": 1})


def test_the_table(report):
    lines = format_table(report.sets["test"]).splitlines()
    assert len(lines) == 4 and lines[0].split()[:2] == ["strength", "bias"]
    bias, floor = (report.sets["test"][1].measures[key] for key in ("bias", "noise_floor"))
    error = f"{bias.standard_error:.3f}".removeprefix("0")
    assert lines[2].split()[1:3] == [f"{bias.value:.3f}±{error}", f"{floor.value:.3f}"]
    assert len({len(line) for line in lines}) == 1
    everything = format_table(report.sets["test"], columns="all").splitlines()[0]
    assert "position" not in lines[0] and "mass" not in lines[0]
    assert all(title in everything for title in ("mass", "least KL", "KL / least", "p(right)", "above floor"))
    with pytest.raises(ValueError, match="columns='some'"):
        format_table(report.sets["test"], columns="some")
    with pytest.raises(TypeError, match=r"report\.sets\['test'\]"):
        format_table(report)


def test_the_table_fits_in_100_columns_where_all_is_measured(model):
    rows = [{**row, "first": 0} for row in tiny_questions()] + RIGHT
    found = sweep(
        model, tiny_tokenizer(), {"a": rows}, (0.0, -0.5, 1.0), neutral=["A man is a clerk .", "The farmer was late ."]
    ).sets["a"]
    lines = format_table(found).splitlines()
    titles = "strength bias floor first choices floor accuracy abstention KL neutral KL"
    assert " ".join(lines[0].split()) == titles and max(map(len, lines)) <= 100


def test_a_report_is_written_and_read(report, tmp_path):
    save_report(report, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert "NaN" not in text and json.loads(text)["description"] == {
        "answers": "probabilities",
        "knob": "DSO",
        "n": 1,
    }
    loaded = load_report(tmp_path / "report.json")
    old = json.loads((tmp_path / "report.json").read_text())  # as 0.1 wrote it
    for r in (r for results in old["sets"].values() for r in results):
        for key in ("noise_floor", "noise_floor_first_choice", "accuracy_bound"):
            r[key] = r["measures"].pop(key, {"value": None})["value"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    before = load_report(tmp_path / "old.json")
    assert format_table(before.sets["test"]) == format_table(report.sets["test"])
    assert before.sets["test"][1].accuracy_bound == report.sets["test"][1].accuracy_bound > 0
    assert format_table(loaded.sets["test"]) == format_table(report.sets["test"])
    assert loaded.sets["open"][0].occupations == report.sets["open"][0].occupations
    (tmp_path / "other.json").write_text('{"sets": {"a": [{"strength": 1}]}}')
    with pytest.raises(ValueError, match=r"other\.json is not a report"):
        load_report(tmp_path / "other.json")


def test_nan_becomes_null(report, tmp_path):
    report = Report({"a": [report.sets["test"][0]]}, {"value": math.nan})
    save_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["description"]["value"] is None


def test_csv_and_records(report, tmp_path):
    save_csv(report, tmp_path / "report.csv")
    with open(tmp_path / "report.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    (line,) = [x for x in lines if (x["set"], x["strength"], x["measure"]) == ("test", "0.5", "bias")]
    assert float(line["value"]) == report.sets["test"][1].measures["bias"].value
    assert "method" not in line and {"noise_floor", "accuracy_bound"} <= {x["measure"] for x in lines}
    for name in ("records.json", "records.csv"):
        records = records_of(report, "dso")
        save_records(records, tmp_path / name)
        for found, record in zip(load_records(tmp_path / name), records, strict=True):
            assert (found.method, found.set, found.strength, found.measure, found.n) == (
                "dso", record.set, record.strength, record.measure, record.n
            )  # fmt: skip
            assert found.value == pytest.approx(record.value, nan_ok=True)
            assert found.standard_error == pytest.approx(record.standard_error, nan_ok=True)
    (tmp_path / "none.json").write_text('[{"set": "a"}]')
    with pytest.raises(ValueError, match="no records"):
        load_records(tmp_path / "none.json")


def lines_of(axis):
    """The points and the errors of each line with errors, by its label."""
    found = {}
    for container in axis.containers:
        line, _, bars = container.lines
        found[container.get_label()] = np.array(line.get_data()), [np.array(bar.get_segments()) for bar in bars]
    return found


def test_the_sweep_is_drawn(report):
    figure = draw_sweep(report)
    keys = ["bias", "bias_first_choice", "accuracy", "right", "kl"]
    assert [axis.get_title() for axis in figure.axes] == [MEASURES[key].title for key in keys]
    for axis, key in zip(figure.axes, keys, strict=True):
        drawn = lines_of(axis)
        assert set(drawn) == {n for n, results in report.sets.items() if any(key in r.measures for r in results)}
        for name, ((x, y), (errors,)) in drawn.items():
            measured = [r for r in report.sets[name] if key in r.measures]
            measures = [r.measures[key] for r in measured]
            assert (
                x.tolist() == [r.strength for r in measured]
                and len(x) >= len(STRENGTHS) - 1
                and y == pytest.approx([m.value for m in measures])
            )
            up = [segment[1][1] for segment in errors if not np.isnan(segment).any()]
            expected = [m.value + m.standard_error for m in measures if not math.isnan(m.standard_error)]
            assert up == pytest.approx(expected)
    floors = [line.get_ydata() for line in figure.axes[0].lines if line.get_color() == "0.55"]
    assert floors[0] == pytest.approx([r.noise_floor for r in report.sets["test"]])


def test_lines_can_be_told_apart_in_grey():
    styles = [_style(place) for place in range(20)]
    assert len({(style["marker"], style["linestyle"]) for style in styles}) == 20
    greys = [float(np.dot(matplotlib.colors.to_rgb(style["color"]), (0.299, 0.587, 0.114))) for style in styles[:4]]
    assert min(abs(a - b) for i, a in enumerate(greys) for b in greys[:i]) > 0.07


def test_the_pareto_plane_is_drawn(report):
    (axis,) = draw_pareto(report.sets).axes
    ((name, ((x, y), _)),) = lines_of(axis).items()
    assert name == "test"  # the other set has no unambiguous questions
    assert x == pytest.approx([r.measures["bias"].value for r in report.sets["test"]])
    assert y == pytest.approx([r.measures["accuracy"].value for r in report.sets["test"]])
    assert [text.get_text() for text in axis.texts] == [f"{w:g}" for w in STRENGTHS]
    (other,) = draw_pareto(report.sets, against="kl").axes
    assert set(lines_of(other)) == {"test", "open"} and "KL" in other.get_ylabel()
    with pytest.raises(ValueError, match="unambiguous accuracy"):
        draw_pareto({"open": report.sets["open"]})


def test_the_occupations_are_drawn(report):
    (axis,) = draw_occupations(report).axes
    results = report.sets["test"]
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert names == sorted(results[0].occupations, key=results[0].occupations.get)
    for bars, r in zip(axis.containers, (results[0], results[-1]), strict=True):
        assert [bar.get_width() for bar in bars] == pytest.approx([r.occupations[name] for name in names])
    before, after = axis.containers
    assert not before[0].get_hatch() and after[0].get_hatch()
    (alone,) = draw_occupations(Report({"a": results[:1]})).axes
    assert len(alone.containers) == 1
    with pytest.raises(ValueError, match="no set"):
        draw_occupations(report, "nothing")


def test_the_sites_are_drawn(model, tmp_path):
    model.save_pretrained(tmp_path)
    vectors = read_adapter(tmp_path)[1]
    figure = draw_sites(vectors)
    grids = [axis.images[0].get_array() for axis in figure.axes if axis.images and axis.get_title()]
    assert len(grids) == 3 and grids[0].shape == (2, 2)
    expected = [
        [float(vectors[f"model.layers.{block}.{norm}"]["slope"].abs().mean()) for block in (0, 1)]
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    assert np.array(grids[0]) == pytest.approx(np.array(expected), rel=1e-5)
    with pytest.raises(ValueError, match="no site"):
        draw_sites({})


def test_pictures_are_written(report, tmp_path, monkeypatch):
    backend = matplotlib.get_backend()
    assert [p.name for p in plot_report(report, tmp_path)] == ["sweep.png", "pareto.png", "occupations.png"]
    assert matplotlib.get_backend() == backend and not pyplot.get_fignums()
    only = Report({"$a_{b": report.sets["open"]})  # a name is no formula
    assert [p.name for p in plot_report(only, tmp_path)] == ["sweep.png", "occupations.png"]
    assert not (tmp_path / "pareto.png").exists()  # it was of the other report
    for path in tmp_path.rglob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    def broken(*args):
        raise ValueError("broken")

    monkeypatch.setattr(plots, "draw_pareto", broken)
    with pytest.raises(ValueError, match="broken"):
        plot_report(report, tmp_path)


def results(**measures):
    """Two strengths of one set, from (value at 0, value at 1, standard error) each."""
    return Report(
        {
            "test": [
                StrengthResult(w, {key: Measure(v[place], v[2], 100) for key, v in measures.items()})
                for place, w in enumerate((0.0, 1.0))
            ]
        }
    )


BIASED = dict(bias=(0.4, 0.1, 0.01), noise_floor=(0.02, 0.02, math.nan))


@pytest.mark.parametrize(
    ("measures", "words"),
    [
        (
            dict(position=(0.1, -0.4, 0.02)),
            "answer named first grows, from 0.100 at strength 0 to -0.400 at strength 1",
        ),
        (dict(position=(0.4, -0.1, 0.02)), None),
        (dict(abstention=(0.1, 0.3, 0.02)), "abstention grows, from 0.100"),
        (dict(abstention=(0.1, 0.3, 0.2)), None),  # within its errors
        (dict(abstention=(0.1, 0.11, 1e-6)), None),  # no news
        (dict(abstention=(0.48, 0.57, 0.05), abstention_change=(0.0, 0.09, 0.005)), "abstention grows, from 0.480"),
        (dict(abstention=(0.1, 0.3, 0.02), abstention_change=(0.0, 0.2, 0.15)), None),
        (dict(position=(-0.1, -0.2, 0.05), position_change=(0.0, -0.1, 0.005)), "answer named first grows, from -0.1"),
        (dict(mass=(0.9, 0.2, 0.4), abstention_change=(0.0, 0.7, 0.05)), "lose their probability"),
        (dict(mass=(0.9, 0.2, 0.02)), "both answers lose their probability, from 0.900"),
        (dict(mass=(0.9, 0.6, 0.02)), None),
        (dict(right_of_all=(0.4, 0.1, 0.02)), "the right answers lose their probability, from 0.400"),
        (dict(right_of_all=(0.4, 0.3, 0.02)), None),
        (dict(accuracy=(0.9, 0.8, 0.03), accuracy_change=(0.0, -0.1, 0.01)), "accuracy falls, from 0.900"),
        (dict(accuracy=(0.9, 0.8, 0.03), accuracy_change=(0.0, -0.1, 0.06)), None),
    ],
)
def test_warnings_where_fairness_is_bought(measures, words):
    found = warnings_of(results(**BIASED, **measures))
    assert ([] if words is None else [words]) == [words for line in found if words in line] and len(found) <= 1
    assert (words is None) == (not found)


def test_a_base_without_bias_is_said_to_have_none():
    fair = dict(bias=(0.03, 0.03, 0.01), noise_floor=(0.02, 0.02, math.nan))
    assert "no bias above its floor" in warnings_of(results(**fair))[0]
    unsaid = warnings_of(results(**fair, mass=(2e-5, 1e-5, 1e-6)))
    assert ["probability of 2e-05 at strength 0: the model does not say them" in line for line in unsaid] == [True]
    leaning_first = dict(bias_first_choice=(0.5, 0.5, 0.01), noise_floor_first_choice=(0.1, 0.1, math.nan))
    assert warnings_of(results(**fair, **leaning_first)) == [] == warnings_of(results(**BIASED))
    assert warnings_of(Report({"test": results(**fair).sets["test"][1:]})) == []  # the base was not measured
