"""A few of the architectures that benchmarks/architectures.py goes through, with its own checks."""

import importlib.util
from pathlib import Path

import pytest
import transformers as tf


SCRIPT = Path(__file__).parent.parent / "benchmarks" / "architectures.py"
specification = importlib.util.spec_from_file_location("architectures", SCRIPT)
architectures = importlib.util.module_from_spec(specification)
specification.loader.exec_module(architectures)


@pytest.mark.parametrize(
    "name",
    [
        "AfmoeForCausalLM",
        "ApertusForCausalLM",
        "Gemma3ForConditionalGeneration",
        "OlmoForCausalLM",
        "XLMWithLMHeadModel",  # the norms of its blocks are lists
        "XLNetLMHeadModel",  # the rows of a batch are its second dimension
    ],
)
def test_steering(name):
    model_class = getattr(tf, name)
    answers = architectures.check(architectures.build(model_class.config_class, model_class))
    assert answers.pop("sites") > 0
    assert answers == dict.fromkeys(("acts", "zero", "rows", "cached", "loaded"), "yes")


def test_the_checks_notice_what_is_wrong(monkeypatch):
    """A layer that steers every row as the first, and one more than it should."""
    from peft_dso.tuner.layer import DSOLayer

    per_row = DSOLayer._per_row
    monkeypatch.setattr(DSOLayer, "_per_row", lambda self, strength, h: per_row(self, strength, h).roll(1, 0))
    answers = architectures.check(architectures.build(tf.LlamaConfig, tf.LlamaForCausalLM))
    assert answers["rows"] == "no" and answers["zero"] == "yes"


def test_the_table_and_what_is_not_run_again(tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    architectures.main(["--out", str(out), "--only", "nothing_of_this_name"])
    assert "0 of 0 could be built" in capsys.readouterr().out and not out.exists()
    out.write_text(
        '{"name": "A", "sites": 4, "acts": "yes", "zero": "yes", "rows": "no"}\n{"name": "B", "note": "why"}\n'
    )
    architectures.main(["--out", str(out), "--only", "A,B"])
    printed = capsys.readouterr().out
    assert "1 of 2 could be built" in printed and "rows: no" in printed and "why" in printed
