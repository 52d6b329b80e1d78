"""What a comparison looks at before anything is fitted: the folder, and the wordings."""

import pytest
import transformers as tf
from compared import PARTS, SMALL, TOKENIZER, run
from models import GPT2, randomize

from peft_dso.baselines import prompts
from peft_dso.baselines.comparison import compare
from peft_dso.baselines.parts import Parts


def test_a_folder_of_the_users_is_never_deleted(tmp_path):
    mine = tmp_path / "out" / "caa" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(ValueError, match="caa is in the way and no fit.*Move it"):
        run(tmp_path / "out", ["iti", "caa"])
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["caa", "notes.txt"]
    assert mine.read_text() == "years of work"
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "prompting").write_text("mine")
    with pytest.raises(ValueError, match="prompting is in the way"):
        run(tmp_path / "file", ["prompting"])
    mine.unlink()  # what is empty is nobody's
    found = run(tmp_path / "out", ["caa"], settings={"caa": {"layer": 1, "pairs": 4}})
    assert not found.failures and (mine.parent / "fit.json").is_file()


def test_a_wording_that_is_too_long_is_left_out_alone(tmp_path):
    before = "The man who was late because he left when a man left said that he is late . " * 2
    parts = Parts(*([{**row, "prompt": before + row["prompt"]} for row in part] for part in vars(PARTS).values()))
    rows = [*parts.validation, *parts.test]
    longest = {
        knob.name: max(len(TOKENIZER(knob.rewrite(row)["prompt"])["input_ids"]) for row in rows)
        for knob in prompts(TOKENIZER, parts.train)
    }
    limit = longest["preamble"]
    assert longest["few-shot"] > limit and max(longest["request"], longest["role"]) <= limit
    said = []

    def short(positions):
        config = tf.GPT2Config(**{**GPT2, "n_positions": positions})
        return lambda: (randomize(tf.GPT2LMHeadModel(config).eval()), TOKENIZER)

    found = compare(short(limit), parts, tmp_path / "out", ["caa", "prompting"], settings=SMALL, say=said.append)
    assert not found.failures
    assert {name.partition(": ")[2] for name in found.reports} - {""} >= {"request", "preamble", "role"}
    assert "prompting: few-shot" not in found.reports
    (line,) = [line for line in said if "'few-shot' is left out" in line]
    assert f"positions for {limit}" in line and said.index(line) < said.index(next(x for x in said if "[1/2]" in x))
    least = max(longest["role"], longest["request"]) - 1
    found = compare(short(least), parts, tmp_path / "less", ["prompting"], settings=SMALL)
    assert list(found.reports) == [f"prompting: {min(('role', 'request'), key=longest.get)}"]
