"""The comparison of methods: fitted once, measured on the same questions, gone on with, and what it says."""

import csv
import json
import math
import shutil
import warnings

import numpy as np
import pytest
from models import build, randomize, tiny_questions, tiny_tokenizer
from peft import PeftModel
from peft.utils.warning import PeftWarning

from peft_dso import cli
from peft_dso.baselines import WORDINGS
from peft_dso.baselines.comparison import Comparison, Fit, compare
from peft_dso.baselines.methods import METHODS, chosen_methods
from peft_dso.baselines.outcome import averaged, chosen_results, chosen_strength, format_comparison, table_lines
from peft_dso.baselines.outcome_card import card_section, save_comparison
from peft_dso.baselines.parts import Parts, parts_of, subset
from peft_dso.evaluation import Report, StrengthResult, load_records, sweep
from peft_dso.evaluation.measures import Measure
from peft_dso.questions import pronoun_questions


TOKENIZER = tiny_tokenizer()
FRAMES = {
    "train": ("The {o} said that", "The {o} who was late said that"),
    "validation": ("The {o} left because",),
    "test": ("The {o} was late because", "When the {o} left ,"),
}
SETTLED = {
    "train": "The {o} is a man who said that",
    "validation": "The {o} , a man , left because",
    "test": "The {o} is a man , was late because",
}
PARTS = Parts(*(tiny_questions(frames=FRAMES[k]) + tiny_questions(frames=(SETTLED[k],), right=0) for k in FRAMES))
SMALL = {
    "dso": {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "questions_per_occupation": 2,
        "use_cpu": True,
        "l1_coef": 0.0,
    },
    "lineas": {"steps": 2, "batch_size": 8},
    "counterfactual": {"max_steps": 2, "batch_size": 8, "questions_per_occupation": 2},
    "counterfactual-pairs": {"max_steps": 2, "batch_size": 8, "questions_per_occupation": 2},
}
TEXTS = ["The nurse who is late said that", "When a man left , the driver was late"]


def load():
    model = randomize(build("llama"))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
    return model, TOKENIZER


def run(folder, methods=None, parts=PARTS, said=None, **options):
    options = {"settings": SMALL, "neutral": TEXTS, **options}
    return compare(load, parts, folder, methods, say=(said if said is not None else []).append, **options)


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


def test_the_table_has_a_row_per_method_and_strength(world):
    _, found, _ = world
    head, *rows = table_lines(found)
    assert head[0] == "method" and head[-2:] == ["parameters", "seconds"]
    expected = 1 + sum(r.strength != 0 for reports in found.reports.values() for r in reports[0].sets["test"])
    assert len(rows) == expected and rows[0][:2] == ["base", "-"]
    assert all(len(row) == len(head) for row in rows)
    assert [row[1] for row in rows if row[0] == "prompting: role"] == ["-"]
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
    save_comparison(found, tmp_path)
    methods = {r.method for r in load_records(tmp_path / "records.json")}
    assert methods == {"caa", "caa-seed0", "caa-seed1"}
    assert table_lines(found)[0][-3] == "bias over fits"


# --- what is chosen, on figures of the test's own --------------------------------------------------------------------


def result(strength, bias, accuracy=1.0, neutral_kl=0.0, error=0.01):
    values = {"bias": bias, "accuracy": accuracy, "neutral_kl": neutral_kl}
    return StrengthResult(strength, {key: Measure(value, error, 10) for key, value in values.items()})


def test_the_strength_is_chosen_within_a_budget():
    line = [result(0, 0.5, 0.90), result(0.5, 0.3, 0.89, 0.01), result(1, 0.1, 0.5, 0.5), result(-1, 0.2, 0.885, 0.03)]
    assert chosen_strength(line) == -1
    assert chosen_strength(line, allowed=0.012) == 0.5
    assert chosen_strength(line, "neutral_kl") == 0.5
    assert chosen_strength([line[0], line[2]]) == 0
    with pytest.raises(ValueError, match="strength 0"):
        chosen_strength(line[1:])


def made(lines):
    """A comparison with the same results on the validation and the test part, unless told apart."""
    reports = {name: [Report({"test": test, "validation": validation})] for name, (test, validation) in lines.items()}
    fits = {name: [Fit(1.0, 1, "chosen" if name == "prompting: role" else "")] for name in lines}
    return Comparison(reports, fits)


def test_the_test_part_does_not_choose():
    validation = [result(0, 0.5), result(1, 0.3), result(2, 0.4)]
    test = [result(0, 0.5), result(1, 0.35), result(2, 0.1)]
    found = chosen_results(made({"dso": (test, validation), "prompting: role": (test[:2], validation[:2]),
                                 "prompting: request": (test[:2], validation[:2])}), "accuracy")  # fmt: skip
    assert {name: (r.strength, r.measures["bias"].value) for name, r in found.items()} == {
        "dso": (1, 0.35),
        "prompting: role": (1, 0.35),
    }


@pytest.mark.parametrize(
    "dso, other, words", [(0.1, 0.2, "is ahead of"), (0.2, 0.1, "is behind"), (0.1, 0.12, "is not told apart from")]
)
def test_what_it_says_of_dso(dso, other, words):
    lines = {name: [result(0, 0.5), result(1, bias)] for name, bias in (("dso", dso), ("caa", other), ("iti", 0.4))}
    section = card_section(made({name: (line, line) for name, line in lines.items()}))
    assert section.count(f"DSO {words} the best other method, caa") == 2  # by accuracy and by neutral KL


# --- the questions ---------------------------------------------------------------------------------------------------


def test_a_subset_has_the_same_share_of_everybody():
    rows = pronoun_questions("test") + pronoun_questions("test", ambiguous=False)
    few = subset(rows, 600)
    assert abs(len(few) - 600) < 120 and few == subset(rows, 600) and all(row in rows for row in few)
    for ambiguous in (True, False):
        counts = [
            sum(row["occupation"] == name and (row["right"] is None) == ambiguous for row in few)
            for name in {row["occupation"] for row in rows}
        ]
        assert min(counts) > 0 and max(counts) - min(counts) <= 4
    kept = {row["pair"] for row in few}
    assert sum(row["pair"] in kept for row in rows) == len(few)
    assert subset(rows, None) == rows


def test_questions_of_a_file_are_divided():
    rows = [
        {**row, "group": frame}
        for frame in [f for frames in FRAMES.values() for f in frames]
        for row in tiny_questions(frames=(frame,))
    ]
    parts = parts_of(rows, rows, rows)
    groups = [{row["group"] for row in part} for part in (parts.train, parts.validation, parts.test)]
    assert all(groups) and sum(map(len, groups)) == len(set().union(*groups)) == 5
    assert parts_of(PARTS.train, PARTS.validation, PARTS.test) == PARTS


def test_bad_input_is_refused_before_anything_is_fitted(tmp_path):
    one = tiny_questions(("nurse",))
    cases = [
        ({"methods": ["caa", "magic"]}, "Unknown method 'magic'"),
        ({"methods": []}, "Unknown method"),
        ({"seeds": 0}, "seeds=0"),
        ({"parts": Parts(one, PARTS.validation, PARTS.test)}, "train part.*All questions are about 'nurse'"),
        ({"parts": Parts(PARTS.train, one, PARTS.test)}, "validation part.*All questions are about 'nurse'"),
        ({"parts": Parts(PARTS.train, [], PARTS.test)}, "validation part.*no question"),
        ({"parts": Parts(PARTS.train[:4], PARTS.validation, PARTS.test)}, "too few to fit on"),
        ({"parts": Parts(tiny_questions(right=0), PARTS.validation, PARTS.test)}, "train part.*right=None"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_compared_is_refused_before_anything_is_fitted(tmp_path):
    def without_heads():
        model, _ = load()
        for layer in model.model.layers:
            layer.self_attn.__class__ = type("Mixer", (type(layer.self_attn),), {})
        return model, TOKENIZER

    def silent():
        """Everything goes to one token that is no answer."""
        model, _ = load()
        model.lm_head.weight.data.zero_()
        model.lm_head.weight.data[3] = 100 * model.model.norm.weight.data.sign()
        model.model.norm.weight.data.abs_()
        model.lm_head.weight.data[3].abs_()
        model.model.embed_tokens.weight.data.abs_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
        return model, TOKENIZER

    with pytest.raises(ValueError, match="o_proj"):
        compare(without_heads, PARTS, tmp_path / "out", ["caa", "iti"])
    with pytest.raises(ValueError, match="abstains from nearly all"):
        compare(silent, PARTS, tmp_path / "out", ["caa"])
    with pytest.raises(ValueError, match="adapter already"):
        compare(lambda: (FITTED(), TOKENIZER), PARTS, tmp_path / "out", ["caa"])
    assert not (tmp_path / "out").exists()


def FITTED():
    from peft import get_peft_model

    from peft_dso import DSOConfig

    return get_peft_model(load()[0], DSOConfig())


def test_methods_by_name():
    assert [m.name for m in chosen_methods()] == list(METHODS)
    assert [m.name for m in chosen_methods([" iti", "dso", "iti"])] == ["iti", "dso"]
    for method in METHODS.values():
        assert 0.0 in method.strengths and 1.0 in method.strengths


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    model, tokenizer = load()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    together = [row for part in vars(PARTS).values() for row in part]
    rows = [{**row, "group": row["prompt"].replace(row["occupation"], "{o}")} for row in together]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    call = ["compare", "--model", str(tmp_path / "base"), "--questions", str(tmp_path / "questions.json")]
    call += ["--neutral-texts", "0", "--out", str(tmp_path / "out"), "--methods"]
    assert cli.main([*call, "caa,prompting"]) == 0
    out = capsys.readouterr().out
    assert "[1/2] caa" in out and "prompting: role" in out and "parameters" in out
    assert (tmp_path / "out" / "caa" / "adapter_config.json").is_file()
    assert "neutral KL" not in out
    assert cli.main([*call, "caa,magic"]) == 1
    assert "choose of dso, caa" in capsys.readouterr().err
