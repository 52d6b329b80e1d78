"""The comparison of methods: fitted once, measured on the same questions, gone on with, and what it says."""

import csv
import dataclasses
import json
import math
import shutil
import warnings

import numpy as np
import pytest
from compared import PARTS, SMALL, TEXTS, TOKENIZER, load, run
from peft import PeftModel
from peft.utils.warning import PeftWarning

from peft_dso import cli
from peft_dso.baselines import WORDINGS
from peft_dso.baselines.comparison import Comparison, Fit, compare
from peft_dso.baselines.methods import METHODS
from peft_dso.baselines.outcome import averaged, format_comparison, records_of_comparison, table_lines
from peft_dso.baselines.outcome_card import card_section, save_comparison
from peft_dso.baselines.parts import Parts
from peft_dso.evaluation import Report, StrengthResult, load_records, load_report, save_report, sweep
from peft_dso.evaluation.measures import Measure
from peft_dso.inspect import REPORT, VECTORS, describe, read_adapter


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """All methods, compared once."""
    folder = tmp_path_factory.mktemp("compared")
    found = run(folder)
    written = save_comparison(found, folder)
    return folder, found, written


def test_every_method_is_fitted_saved_and_measured(world):
    folder, found, _ = world
    assert not found.failures
    fitted = [name for name in METHODS if name != "prompting"]
    assert [name for name in found.reports if ": " not in name] == fitted
    assert {name for name in found.reports if ": " in name} == {f"prompting: {name}" for name in WORDINGS}
    for name in fitted:
        (report,) = found.reports[name]
        assert [r.strength for r in report.sets["test"]] == pytest.approx(METHODS[name].strengths)
        (fit,) = found.fits[name]
        assert fit.parameters > 0 and fit.seconds >= 0
        model = PeftModel.from_pretrained(load()[0], folder / name).eval()
        again = sweep(model, TOKENIZER, {"test": PARTS.test}, (1.0,), neutral=TEXTS)
        mine = next(r for r in report.sets["test"] if r.strength == 1)
        for key in ("bias", "accuracy", "kl", "neutral_kl", "mass"):
            assert again.sets["test"][0].measures[key].value == pytest.approx(mine.measures[key].value, abs=1e-6)


def test_all_are_measured_against_the_same_base(world):
    _, found, _ = world
    tests = [reports[0].sets["test"] for reports in found.reports.values()]
    base = [r.measures["bias"].value for results in tests for r in results if r.strength == 0]
    assert len(base) == len(found.reports)
    assert base == pytest.approx([base[0]] * len(base), abs=1e-6)


def test_the_files(world):
    folder, found, written = world
    names = {path.name for path in written}
    assert names >= {"comparison.csv", "records.json", "comparison.md", "pareto.png", "pareto_kl.png", "strengths.png"}
    records = load_records(folder / "records.json")
    assert len(records) == len(load_records(folder / "comparison.csv"))
    with open(folder / "comparison.csv", newline="") as file:
        assert set(next(csv.reader(file))) == {"method", "set", "strength", "measure", "value", "standard_error", "n"}
    iti = {(r.set, r.strength, r.measure): r.value for r in records if r.method == "iti"}
    (report,) = found.reports["iti"]
    assert iti["test", 1.0, "bias"] == next(r for r in report.sets["test"] if r.strength == 1).measures["bias"].value
    assert iti["fit", 1.0, "parameters"] == found.fits["iti"][0].parameters
    assert ("fit", 1.0, "fit_seconds") in iti
    places = [
        {(r.method, r.set, r.strength, r.measure) for r in load_records(folder / name)}
        for name in ("records.json", "comparison.csv")
    ]
    assert places[0] == places[1] and ("iti", "test", 1 / 3, "bias") in places[1]
    marks = {r.method: r.value for r in records if r.measure == "chosen"}
    chosen = json.loads((folder / "prompting" / "fit.json").read_text())["chosen"]
    assert marks == {f"prompting: {name}": float(name == chosen) for name in WORDINGS}


def test_the_table_has_a_row_per_method_and_strength(world):
    _, found, _ = world
    head, *rows = table_lines(found)
    assert head[0] == "method" and head[-2:] == ["parameters", "seconds"]
    expected = 1 + sum(r.strength != 0 for reports in found.reports.values() for r in reports[0].sets["test"])
    assert len(rows) == expected and rows[0][:2] == ["base", "-"]
    assert all(len(row) == len(head) for row in rows)
    marked = [row[0] for row in rows if row[0].endswith(" (chosen)")]
    (chosen,) = [name for name, fits in found.fits.items() if ": " in name and fits[0].note]
    assert marked == [f"{chosen} (chosen)"] and [row[1] for row in rows if row[0] in marked] == ["-"]
    assert format_comparison(found).count("\n") == expected


def test_the_section_of_the_card_is_put_in_once(world):
    folder, found, _ = world
    once = (folder / "dso" / "README.md").read_text()
    save_comparison(found, folder)
    assert (folder / "dso" / "README.md").read_text() == once
    assert once.count("## Compared with other methods") == 1
    section = (folder / "comparison.md").read_text()
    assert section in once
    for name in METHODS:
        assert f"*{name}*" in section


def test_the_card_of_dso_says_what_was_measured(world, tmp_path):
    folder, found, _ = world
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    text = (copied / "dso" / "README.md").read_text()
    bias = found.reports["dso"][0].sets["test"][-1].measures["bias"].value
    assert f"{bias:.3f}" in text.partition("## What was measured")[2].partition("## Limits")[0]
    assert f"{len(PARTS.train)} questions." in text and "has not said" not in text
    assert "More Information Needed" not in text and "has been measured here" not in text
    section = (copied / "comparison.md").read_text()
    for arguments in ([], ["--report", str(copied / "dso")], ["--license", "mit"]):
        assert cli.main(["card", str(copied / "dso"), *arguments]) == 0
        again = (copied / "dso" / "README.md").read_text()
        assert again.count(section) == 1 and again.replace("license: mit\n", "") == text
    for name in ("dso", "caa", "lineas", "counterfactual-pairs"):
        config, _ = read_adapter(copied / name)
        assert load_report(copied / name / REPORT).description[VECTORS] == config.vectors_sha256
        assert "measured      test" in describe(copied / name)
    assert not (copied / "iti" / REPORT).exists()


@pytest.mark.parametrize("methods", [["dso"], ["caa"]])
def test_a_folder_of_an_earlier_version_gets_its_card(world, tmp_path, methods):
    """Its reports name no vectors, and the card is PEFT's with the section behind it."""
    folder, _, _ = world
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    (copied / "dso" / REPORT).unlink()
    report = load_report(copied / "dso" / "report.json")
    save_report(Report(report.sets, {"answers": "probabilities", "knob": "DSO"}), copied / "dso" / "report.json")
    (copied / "dso" / "README.md").write_text("Nothing has been measured here.\n\n<!-- comparison -->\n# Old\n"
                                              "<!-- end of comparison -->\n")  # fmt: skip
    save_comparison(run(copied, methods), copied)
    text = (copied / "dso" / "README.md").read_text()
    assert "## What was measured" in text and "has been measured here" not in text and "# Old" not in text
    assert (copied / "comparison.md").read_text() in text and text.count("<!-- comparison -->") == 1
    (copied / "dso" / "README.md").write_text(f"By hand.\n{text}")
    save_comparison(run(copied, methods), copied)
    assert (copied / "dso" / "README.md").read_text() == f"By hand.\n{text}"


def test_what_is_done_is_not_done_again(world, tmp_path):
    folder, found, _ = world
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    (copied / "iti" / "report.json").unlink()
    shutil.rmtree(copied / "caa")
    (copied / ".caa.unfinished").mkdir()
    (copied / ".caa.unfinished" / "adapter_model.safetensors").write_text("cut off")
    before = {path: path.stat().st_mtime_ns for path in copied.glob("[a-z]*/adapter_model.safetensors")}
    said = []
    again = run(copied, said=said)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    text = "\n".join(said)
    assert text.count("fitted already") == len(METHODS) - 2  # not CAA, and prompting is not fitted
    assert text.count("fitted in") == 1 and not (copied / ".caa.unfinished").exists()
    for name in ("iti", "caa", "lineas"):
        one, other = (c.reports[name][0].sets["test"][-1].measures["bias"].value for c in (found, again))
        assert one == pytest.approx(other, abs=1e-6)


def test_what_is_measured_again_is_shown_and_what_lies_there_otherwise_stays(world, tmp_path):
    folder, _, _ = world
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    for name in ("dso", "caa"):
        (copied / name / REPORT).write_text("an older one")
    (copied / "dso" / "report.json").unlink()
    run(copied, ["dso", "caa"])
    assert (copied / "dso" / REPORT).read_text() == (copied / "dso" / "report.json").read_text()
    assert (copied / "caa" / REPORT).read_text() == "an older one"


def test_a_fit_without_its_vectors_is_refused(world, tmp_path):
    folder, _, _ = world
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    (copied / "caa" / "adapter_model.safetensors").unlink()
    (copied / "caa" / "report.json").unlink()
    found = run(copied, ["caa", "iti"])
    assert "has no adapter_model.safetensors: delete the folder" in found.failures["caa"] and "iti" in found.reports


def test_other_questions_and_other_settings_are_refused(world):
    folder, _, _ = world
    with pytest.raises(ValueError, match="differs in test"):
        run(folder, parts=Parts(PARTS.train, PARTS.validation, PARTS.test[1:]))
    with pytest.raises(ValueError, match="differs in description"):
        run(folder, description={"model": "another"})
    found = run(folder, ["lineas"], settings={"lineas": {"steps": 3, "batch_size": 8}})
    assert "fitted with" in found.failures["lineas"]


def test_one_that_fails_is_reported_and_the_others_go_on(tmp_path):
    settings = {"lineas": {"steps": 2, "batch_size": 8, "optimizer": "sgd", "learning_rate": 1e38}}
    said = []
    found = run(tmp_path, ["lineas", "iti"], settings=settings, said=said)
    assert list(found.reports) == ["iti"] and "FloatingPointError" in found.failures["lineas"]
    assert not (tmp_path / "lineas").exists() and (tmp_path / "iti" / "fit.json").is_file()
    assert "lineas failed: FloatingPointError" in format_comparison(found)
    assert "lineas failed" in card_section(found)
    with pytest.raises(ValueError, match="Every method failed: lineas"):
        save_comparison(Comparison(failures={"lineas": "no"}), tmp_path)


def test_whatever_a_method_fails_with_the_others_go_on(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise IndexError("beyond the end")

    monkeypatch.setitem(METHODS, "caa", dataclasses.replace(METHODS["caa"], fit=broken))
    found = run(tmp_path, ["caa", "iti"], description={"model": "tiny", "questions": "tiny ones"})
    assert found.failures == {"caa": "IndexError: beyond the end"} and list(found.reports) == ["iti"]
    described = load_report(tmp_path / "iti" / "report.json").description
    assert (described["model"], described["questions"]) == ("tiny", "tiny ones")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        run(tmp_path / "iti" / "report.json", ["iti"])


def test_biases_are_saved_and_loaded_without_a_warning_that_misleads(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PeftWarning)
        found = run(tmp_path, ["iti", "caa-residual"])
    assert list(found.reports) == ["iti", "caa-residual"], found.failures


def test_seeds_are_fitted_apart(tmp_path):
    settings = {"caa": {"layer": 1, "pairs": 4}}
    found = run(tmp_path, ["caa"], seeds=2, settings=settings)
    assert (tmp_path / "caa" / "fit.json").is_file() and (tmp_path / "caa-seed1" / "fit.json").is_file()
    one, other = ([r.measures["bias"] for r in report.sets["test"]] for report in found.reports["caa"])
    assert [m.value for m in one] != [m.value for m in other]
    for a, b, mean in zip(one, other, averaged(found.reports["caa"]), strict=True):
        m = mean.measures["bias"]
        assert m.value == pytest.approx((a.value + b.value) / 2)
        spread = np.std([a.value, b.value], ddof=1)
        error = math.sqrt((a.standard_error**2 + b.standard_error**2) / 2 + spread**2 / 2)
        assert m.standard_error == pytest.approx(error)
    older = Report({"test": found.reports["caa"][1].sets["test"][::2]})  # measured when there were fewer strengths
    both = averaged([found.reports["caa"][0], older])
    assert [r.strength for r in both] == [r.strength for r in older.sets["test"]]
    assert both[1].measures["bias"].value == pytest.approx((one[2].value + other[2].value) / 2)
    save_report(older, tmp_path / "caa-seed1" / "report.json")
    said = []
    again = run(tmp_path, ["caa"], seeds=2, settings=settings, said=said)  # both at all strengths, whatever it held
    assert again == found and "measured at other strengths before" in "\n".join(said)
    (tmp_path / "caa-seedling").mkdir()
    said = []
    again = run(tmp_path, ["caa"], settings=settings, said=said)  # with fewer seeds: the others stay
    assert again == found and "\n".join(said).count("measured already") == 2 and "0.1.0" not in "\n".join(said)
    path = tmp_path / "caa" / "report.json"
    measured = json.loads(path.read_text())
    assert measured["description"].pop("kl") == "of all tokens that decide an answer"
    path.write_text(json.dumps(measured))  # as it was before
    run(tmp_path, ["caa"], settings=settings, said=said)
    assert f"{path} is of version 0.1.0: its KL is that of the first token of an answer alone" in "\n".join(said)
    save_comparison(again, tmp_path)
    methods = {r.method for r in load_records(tmp_path / "records.json")}
    assert methods == {"caa", "caa-seed0", "caa-seed1"}
    path.write_text(path.read_text()[:100])
    without = run(tmp_path, ["linear-act"], settings={"linear-act": {"pairs": 4}}, said=said)
    assert list(without.reports) == list(without.fits) == ["linear-act"]
    assert f"caa: left out, and to be deleted, since it cannot be read: {path} is not" in "\n".join(said)
    path.write_text(json.dumps(measured))
    others = run(tmp_path, ["caa"], settings={"caa": {"layer": 0, "pairs": 4}})
    assert others.failures.keys() == {"caa", "caa-seed1"} and "was fitted with" in others.failures["caa-seed1"]
    assert table_lines(found)[0][-3] == "bias over fits"


def test_other_labels_another_model_and_a_broken_record_are_refused(world, tmp_path):
    folder, _, _ = world
    flipped = [{**row, "right": None if row["right"] is None else 1 - row["right"]} for row in PARTS.test]
    with pytest.raises(ValueError, match="differs in test"):
        run(folder, parts=Parts(PARTS.train, PARTS.validation, flipped))

    def other():
        model, tokenizer = load()
        model.lm_head.weight.data *= 2
        return model, tokenizer

    with pytest.raises(ValueError, match="differs in base"):
        compare(other, PARTS, folder, ["caa"], settings=SMALL, neutral=TEXTS)
    (tmp_path / "comparison.json").write_text("[]")
    with pytest.raises(ValueError, match="not a record of a comparison"):
        run(tmp_path, ["caa"])


def test_what_was_compared_before_stays_in_the_tables(world, tmp_path):
    folder, found, _ = world
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    said = []
    again = run(copied, ["caa"], said=said)
    assert again.reports.keys() == found.reports.keys() and next(iter(again.reports)) == "caa"
    save_comparison(again, copied)
    assert {r.method for r in load_records(copied / "records.json")} == set(found.reports)
    assert "*dso*" in (copied / "dso" / "README.md").read_text()


def test_a_seed_that_failed_does_not_rename_the_others():
    reports = [Report({"test": []}), Report({"test": []})]
    fits = [Fit(1.0, 10, seed=1), Fit(9.0, 10, seed=2)]
    records = records_of_comparison(Comparison({"iti": reports}, {"iti": fits}))
    seconds = next(r for r in records if r.measure == "fit_seconds")
    assert (seconds.value, seconds.standard_error) == (5.0, pytest.approx(4.0))
    reports = [Report({"test": [StrengthResult(1.0, {"bias": Measure(0.1, 0.0, 4)})]}) for _ in fits]
    records = records_of_comparison(Comparison({"iti": reports}, {"iti": fits}))
    assert {r.method for r in records} == {"iti", "iti-seed1", "iti-seed2"}
