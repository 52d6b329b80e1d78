"""The command line as a user runs it, on a tiny model in a folder."""

import argparse
import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from models import OCCUPATIONS, build, randomize, tiny_questions, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from PIL import Image
from test_trainer import RIGHT, leaning

from peft_dso import cli
from peft_dso.cli import strength_list
from peft_dso.cli.arguments import joined_lists


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base model, questions, and an adapter trained by the command."""
    folder = tmp_path_factory.mktemp("world")
    leaning().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_questions() + RIGHT))
    (folder / "retain.json").write_text(json.dumps([{"prompt": "The nurse left because"}]))
    call = ["train", "--model", str(folder / "base"), "--questions", str(folder / "questions.jsonl")]
    call += ["--retain", str(folder / "retain.json"), "--out", str(folder / "adapter"), "--max_steps", "3"]
    call += ["--per_device_train_batch_size", "8", "--questions_per_occupation", "2", "--learning_rate", "0.02"]
    call += ["--use_cpu", "True", "--bf16", "False", "--disable_tqdm", "True", "--decoding_temperatures", "1.0", "0.5"]
    assert cli.main(call) == 0
    return folder


def test_train_sweep_card_inspect(world, capsys):
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir(world / "adapter"))
    assert not list((world / "adapter").glob("*.bin"))
    assert cli.main(["inspect", str(world / "adapter")]) == 0
    assert "measured      nothing" in capsys.readouterr().out
    assert cli.main(["card", str(world / "adapter")]) == 0
    assert "Nothing: no sweep" in (world / "adapter" / "README.md").read_text()

    call = ["sweep", "--model", str(world / "base"), "--adapter", str(world / "adapter"), "--strengths", "0,0.5,1"]
    assert cli.main([*call, "--questions", str(world / "questions.jsonl"), "--out", str(world / "report")]) == 0
    said = capsys.readouterr().out
    assert "first choices" in said and "Wrote" in said
    report = json.loads((world / "report" / "report.json").read_text())
    (results,) = report["sets"].values()
    assert [r["strength"] for r in results] == [0, 0.5, 1]
    with open(world / "report" / "report.csv", newline="") as file:
        assert {row["measure"] for row in csv.DictReader(file)} >= {"bias", "kl", "accuracy", "noise_floor"}
    for name in ("sweep", "pareto", "occupations", "sites"):
        assert Image.open(world / "report" / f"{name}.png").width > 400

    options = ["--report", str(world / "report"), "--license", "mit", "--repo-id", "user/x", "--trained-on", "Tiny."]
    assert cli.main(["card", str(world / "adapter"), *options]) == 0
    card = (world / "adapter" / "README.md").read_text()
    bias = results[2]["measures"]["bias"]["value"]
    assert f"{bias:.3f}" in card and "license: mit" in card and "model-index" in card and "sweep.png" in card
    assert str(world) not in card and card.index("import peft_dso") < card.index("from_pretrained") and "Tiny." in card
    assert "Nothing: no sweep" not in card and f"value: {round(bias, 4)}" in card
    capsys.readouterr()
    assert cli.main(["inspect", str(world / "adapter")]) == 0
    assert "at strengths 0, 0.5, 1" in capsys.readouterr().out


def test_answers_in_words_and_limits(world, capsys):
    call = ["sweep", "--model", str(world / "base"), "--adapter", str(world / "adapter"), "--strengths", "1"]
    call += ["--questions", str(world / "questions.jsonl"), "--answers", "text", "--limit", "6"]
    assert cli.main([*call, "--out", str(world / "words")]) == 0
    report = json.loads((world / "words" / "report.json").read_text())
    (results,) = report["sets"].values()
    assert report["description"]["answers"] == "text" and "kl" not in results[0]["measures"]


def test_a_model_without_an_adapter_and_with_a_lora(world, tmp_path, capsys):
    call = ["sweep", "--model", str(world / "base"), "--questions", str(world / "questions.jsonl"), "--device", "cpu"]
    assert cli.main([*call, "--out", str(tmp_path / "base")]) == 0
    torch.manual_seed(0)
    lora = get_peft_model(leaning(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.3
    lora.save_pretrained(tmp_path / "lora")
    call += ["--adapter", str(tmp_path / "lora"), "--strengths", "-1,0,0.5"]
    assert cli.main([*call, "--out", str(tmp_path / "adapted")]) == 0
    base, adapted = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("base", "adapted"))
    assert "adapter" not in base["description"] and adapted["description"]["knob"] == "LORA"
    (alone,), (turned,) = base["sets"].values(), adapted["sets"].values()
    assert [r["strength"] for r in alone] == [0] and [r["strength"] for r in turned] == [-1, 0, 0.5]
    assert turned[1]["measures"] == alone[0]["measures"]
    assert turned[0]["measures"]["kl"]["value"] > 0 < turned[2]["measures"]["kl"]["value"]
    assert not (tmp_path / "adapted" / "sites.png").exists()
    export = [
        "export",
        "--model",
        str(world / "base"),
        "--adapter",
        str(tmp_path / "lora"),
        "--out",
        str(tmp_path / "x"),
    ]
    assert cli.main(export) == 1
    assert "type LORA, not DSO" in capsys.readouterr().err


def test_lists_that_begin_with_a_minus():
    assert joined_lists(["sweep", "--strengths", "-1,0,1", "--out", "-1,x"]) == [
        "sweep", "--strengths=-1,0,1", "--out=-1,x"
    ]  # fmt: skip
    assert joined_lists(["--strengths=-1,0", "-.5,1"]) == ["--strengths=-1,0", "-.5,1"]
    assert joined_lists(["--beta", "-1", "--push", "a,b"]) == ["--beta", "-1", "--push", "a,b"]


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


@pytest.mark.slow
def test_general_ability_on_a_task_in_local_files(world, capsys, monkeypatch):
    pytest.importorskip("lm_eval")
    folder = world / "tasks"
    folder.mkdir()
    rows = [{"question": f"The {o} said that", "choices": ["he", "she"], "label": i % 2}
            for i, o in enumerate(OCCUPATIONS)]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny_choice.yaml").write_text(TASK.format(data=folder / "data.jsonl"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    call = ["sweep", "--model", str(world / "base"), "--adapter", str(world / "adapter"), "--strengths", "0,1"]
    call += ["--tasks", "tiny_choice", "--include-path", str(folder), "--out", str(world / "ability")]
    assert cli.main(call) == 0
    found = json.loads((world / "ability" / "tasks.json").read_text())
    # The share of rows whose likelier answer is the labelled one, in the open.
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(world / "base"), tiny_tokenizer()
    he, she = tokenizer.convert_tokens_to_ids(["he", "she"])
    right = 0
    for row in rows:
        with torch.no_grad():
            logits = model(**tokenizer(row["question"], return_tensors="pt")).logits[0, -1]
        right += int(logits[she] > logits[he]) == row["label"]
    assert found["0"]["tiny_choice/acc"]["value"] == right / len(rows) and set(found) == {"0", "1"}
    assert "tiny_choice/acc" in capsys.readouterr().out
    call[call.index("tiny_choice")] = "no_such_task"
    assert cli.main(call) == 1
    assert "no_such_task" in capsys.readouterr().err


@pytest.mark.slow
def test_the_harness_own_command_takes_the_adapter_after_the_import(world):
    pytest.importorskip("lm_eval")
    code = (
        "import peft_dso, sys\n"
        "from lm_eval.models.huggingface import HFLM\n"
        "lm = HFLM(pretrained=sys.argv[1], peft=sys.argv[2], batch_size=1, device='cpu')\n"
        "print(type(lm.model).__name__, lm.model.get_steering_strength())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(world / "base"), str(world / "adapter")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "PeftModelForCausalLM 1.0" in run.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,0.2,...,1", [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ("1", [1]),
        ("-1,0,2.5", [-1, 0, 2.5]),
        ("0,1,...,3,5", [0, 1, 2, 3, 5]),
    ],
)
def test_lists_of_strengths(text, expected):
    assert strength_list(text) == expected


@pytest.mark.parametrize("text", ["", "a", "0,...,1", "0,0.3,...,1", "0,0,...,1", "...", "0,0.5,..."])
def test_wrong_lists_of_strengths(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no list of strengths"):
        strength_list(text)


def test_errors_are_one_line(world, tmp_path, capsys):
    base, adapter = str(world / "base"), str(world / "adapter")
    other = randomize(build("llama"))
    other.config.model_type = "llama"
    calls = [
        (["sweep", "--model", base, "--adapter", adapter, "--out", str(tmp_path)], "Nothing to measure"),
        (["sweep", "--model", base, "--adapter", str(tmp_path), "--questions", "pronouns", "--out", str(tmp_path)],
         "adapter_config.json"),
        (["sweep", "--model", base, "--adapter", adapter, "--questions", "riddles", "--out", str(tmp_path)],
         "Unknown questions 'riddles'"),
        (["train", "--model", base, "--questions", "winobias:nowhere.txt", "--out", str(tmp_path)], "no file"),
        (["train", "--model", str(tmp_path / "no"), "--questions", "pronouns", "--out", str(tmp_path)], "no"),
        (["train", "--model", base, "--questions", "pronouns", "--out", str(tmp_path), "--rollouts", "guess"],
         "rollouts='guess'"),
        (["card", adapter, "--report", str(tmp_path)], "no report"),
        (["card", adapter, "--push"], "--repo-id"),
    ]  # fmt: skip
    for call, message in calls:
        assert cli.main(call) == 1, call
        error = capsys.readouterr().err
        assert "peft-dso: " in error and message in error and "Traceback" not in error, (call, error)
    for call in (["sweep", "--nonsense"], ["export"], ["inspect", adapter, "--extra"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(call)
        assert stop.value.code == 2
    for command in ("train", "sweep", "export", "card"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0 and "example: peft-dso" in capsys.readouterr().out
