"""What a comparison chooses, what it refuses, and its command."""

import dataclasses
import json

import pytest
import torch
from compared import PARTS, TOKENIZER, load, run
from models import tiny_questions

from peft_dso import cli
from peft_dso.baselines.comparison import Comparison, Fit, compare
from peft_dso.baselines.methods import METHODS, chosen_methods
from peft_dso.baselines.outcome import chosen_results, chosen_strength, warning_lines
from peft_dso.baselines.outcome_card import card_section
from peft_dso.baselines.parts import Parts, parts_of
from peft_dso.evaluation import Report, StrengthResult, load_report, save_report
from peft_dso.evaluation.measures import Measure
from peft_dso.scoring.keys import digest


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


def test_one_question_may_be_lost():
    """Of 48 questions 0.02 would be none: 40 of 48 right, and 39 of them at the strength that is fairer."""

    def of(n, right, strength, bias):
        found = result(strength, bias)
        found.measures["accuracy"] = Measure(right / n, 0.01, n)
        return found

    line = [of(48, 40, 0, 0.5), of(48, 39, 0.5, 0.3), of(48, 38, 1, 0.1)]
    assert chosen_strength(line) == 0.5
    assert chosen_strength([of(400, 400, 0, 0.5), of(400, 392, 0.5, 0.3), of(400, 391, 1, 0.1)]) == 0.5
    assert chosen_strength(line, allowed=0.02) == 0
    section = card_section(made({"caa": (line, line)}))
    assert "48 unambiguous validation questions; a loss of 0.0208 (one question) was allowed." in section


def with_mass(line, masses):
    for found, mass in zip(line, masses, strict=True):
        found.measures["mass"] = Measure(mass, 0.001, 100)
        found.measures["accuracy_change"] = Measure(found.measures["accuracy"].value - 1, 0.001, 100)
    return line


def test_a_strength_that_answers_nothing_is_not_chosen():
    line = with_mass([result(0, 0.5), result(0.5, 0.4), result(1, 0.3), result(2, 0.0)], [0.03, 0.02, 0.0151, 0.0149])
    assert chosen_strength(line) == chosen_strength(line, "neutral_kl") == 1
    line = with_mass([result(0, 0.5), result(0.5, 0.3), result(1, 0.1)], [0.8, 0.41, 0.39])
    found = made({"caa": (line, line), "iti": (line[:2], line[:2])})
    assert {name: r.strength for name, r in chosen_results(found, "accuracy").items()} == {"caa": 0.5, "iti": 0.5}
    (words,) = warning_lines(found)
    assert words.startswith("caa: test: both answers lose their probability, from 0.800 at strength 0 to 0.390")
    assert words in card_section(found)


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
    assert (
        section.count(f"DSO {words} the best other method on the validation part, caa") == 2
    )  # by accuracy and by neutral KL


def test_the_best_other_method_is_the_best_on_the_validation_part():
    """ITI is the lucky one on the test part; CAA was the better one before it."""
    lines = {"dso": (0.2, 0.2), "caa": (0.3, 0.1), "iti": (0.1, 0.15)}
    found = made({n: ([result(0, 0.5), result(1, t)], [result(0, 0.5), result(1, v)]) for n, (t, v) in lines.items()})
    assert "DSO is ahead of the best other method on the validation part, caa" in card_section(found)


# --- what is refused -------------------------------------------------------------------------------------------------


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


def test_the_command(tmp_path, capsys, monkeypatch):
    model, tokenizer = load()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    together = [row for part in vars(PARTS).values() for row in part]
    rows = [{**row, "group": row["prompt"].replace(row["occupation"], "{o}")} for row in together]
    rows = [row for row in rows if row["right"] is None or row["occupation"] in ("nurse", "driver")]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    call = ["compare", "--model", str(tmp_path / "base"), "--questions", str(tmp_path / "questions.json")]
    call += ["--neutral-texts", "0", "--out", str(tmp_path / "out"), "--methods"]
    assert cli.main([*call, "caa,prompting"]) == 0
    out = capsys.readouterr().out
    assert "[1/2] caa" in out and "prompting: role" in out and "parameters" in out
    assert (tmp_path / "out" / "caa" / "adapter_config.json").is_file()
    assert "neutral KL" not in out
    # A folder of version 0.1.0, whose validation questions were drawn in their own proportions, goes on.
    record = tmp_path / "out" / "comparison.json"
    parts = parts_of(rows, rows, rows, measured=8, validated=4)
    earlier = parts_of(rows, rows, rows, measured=8, validated=4, halves=False)
    assert parts.validation != earlier.validation
    noted = {**json.loads(record.read_text()), "test": digest(parts.test), "validation": digest(earlier.validation)}
    record.write_text(json.dumps(noted))
    report = load_report(tmp_path / "out" / "caa" / "report.json")
    for results in report.sets.values():
        with_mass(results, [0.9 if r.strength == 0 else 0.0 for r in results])
    save_report(report, tmp_path / "out" / "caa" / "report.json")
    assert cli.main([*call, "caa", "--measure-on", "8"]) == 0
    out = capsys.readouterr().out
    assert "fitted already" in out and "\ncaa: test: both answers lose their probability" in out
    assert cli.main([*call, "caa,magic"]) == 1
    assert "choose of dso, caa" in capsys.readouterr().err

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setitem(METHODS, "iti", dataclasses.replace(METHODS["iti"], fit=interrupted))
    assert cli.main([*call, "iti", "--measure-on", "8"]) == 130
    assert f"stays in {tmp_path / 'out'}: the same command goes on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--methods", ""], "Unknown method ''"), (["--neutral-texts", "-4"], "neutral-texts -4"),
     (["--measure-on", "-1"], "measure-on -1")],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(tmp_path, capsys, more, message):
    call = ["compare", "--model", "nowhere", "--questions", "pronouns", "--out", str(tmp_path)]
    assert cli.main([*call, *more]) == 1
    assert message in capsys.readouterr().err


def test_the_cpu_is_taken_where_there_is_an_accelerator(tmp_path, capsys, monkeypatch):
    """By whichever name, as `peft-dso train` does; what ends this call is that there is no such model."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    call = ["compare", "--model", str(tmp_path / "nowhere"), "--questions", "pronouns", "--out", str(tmp_path / "out")]
    for device in ("cpu", "cpu:0"):
        assert cli.main([*call, "--device", device]) == 1
        assert "nowhere" in capsys.readouterr().err
