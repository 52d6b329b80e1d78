"""The command line as a user runs it, on a tiny model in a folder."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from models import OCCUPATIONS, build, randomize, tiny_questions, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from PIL import Image
from trainers import RIGHT, leaning
from vision import build_vision

from peft_dso import DSOConfig, cli, steering_strength
from peft_dso.evaluation.harness import evaluate_tasks
from peft_dso.questions import neutral_texts


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
    assert "at strengths 0, 0.5, 1" in capsys.readouterr().out  # the training has measured it
    card = (world / "adapter" / "README.md").read_text()
    assert "held-out questions" in card and "questions.jsonl" in card and "Nothing: no sweep" not in card
    assert Image.open(world / "adapter" / "sweep.png").width > 400

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
    (tmp_path / "texts.txt").write_text("".join(f"The {o} left because it was late .\n" for o in OCCUPATIONS) * 3)
    call += ["--neutral", str(tmp_path / "texts.txt")]  # of which a training with it sees all but one in five
    assert cli.main([*call, "--out", str(tmp_path / "base")]) == 0
    torch.manual_seed(0)
    lora = get_peft_model(leaning(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.3
    lora.save_pretrained(tmp_path / "lora")
    call += ["--adapter", str(tmp_path / "lora"), "--strengths", "-1,0,0.5"]
    (tmp_path / "adapted").mkdir()
    (tmp_path / "adapted" / "sites.png").write_text("of another adapter")
    assert cli.main([*call, "--out", str(tmp_path / "adapted")]) == 0
    base, adapted = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("base", "adapted"))
    assert "adapter" not in base["description"] and adapted["description"]["knob"] == "LORA"
    (alone,), (turned,) = base["sets"].values(), adapted["sets"].values()
    assert [r["strength"] for r in alone] == [0] and [r["strength"] for r in turned] == [-1, 0, 0.5]
    assert turned[1]["measures"] == alone[0]["measures"]
    assert turned[0]["measures"]["kl"]["value"] > 0 < turned[2]["measures"]["kl"]["value"]
    read = neutral_texts("test", tmp_path / "texts.txt")
    assert {r["measures"]["neutral_kl"]["n"] for r in turned} == {len(read)} and len(read) < 12
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


LETTERS = """
task: tiny_pictures
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: generate_until
doc_to_text: "<image> Who is nurse ?"
doc_to_target: "{{{{letter}}}}"
doc_to_image: !function pictures.doc_to_image
generation_kwargs:
  until: ["."]
  max_gen_toks: 1
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
PICTURES = """
from PIL import Image

def doc_to_image(doc):
    return [Image.new("RGB", (16, 16), tuple(doc["colour"]))]
"""


@pytest.mark.slow
def test_ability_with_pictures_through_the_processor(tmp_path, monkeypatch):
    """A task with pictures, and one of text, on a vision-language model whose processor is nowhere on disk."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    base, processor = build_vision("llava")
    model = get_peft_model(base, DSOConfig(init_weights=False)).eval()
    colours = [[200, 30, 30], [30, 200, 30], [10, 10, 250], [255, 255, 255]]
    said = {}
    for w in (0.0, 1.0):
        said[w] = []
        for colour in colours:
            # As the harness asks without a chat template: the text with the model's own token for a picture.
            picture = Image.new("RGB", (16, 16), tuple(colour))
            inputs = processor(text="<image> Who is nurse ?", images=[picture], return_tensors="pt")
            with steering_strength(model, w), torch.no_grad():
                said[w].append(processor.tokenizer.decode(model(**inputs).logits[0, -1].argmax()).strip())
    rows = [{"colour": colour, "letter": letter} for colour, letter in zip(colours, said[1.0], strict=True)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny_pictures.yaml").write_text(LETTERS.format(data=tmp_path / "data.jsonl"))
    (tmp_path / "pictures.py").write_text(PICTURES)
    choices = [{"question": "Who is nurse", "choices": ["A", "B"], "label": i % 2} for i in range(4)]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    (tmp_path / "tiny_choice.yaml").write_text(TASK.format(data=tmp_path / "choices.jsonl"))
    tasks = ["tiny_pictures", "tiny_choice"]
    found = evaluate_tasks(model, processor, tasks, (0.0, 1.0), include_path=str(tmp_path), batch_size=2)
    for w in (0.0, 1.0):
        expected = sum(a == b for a, b in zip(said[w], said[1.0], strict=True)) / len(colours)
        assert found[w]["tiny_pictures/exact_match"].value == expected
        assert found[w]["tiny_choice/acc"].value == 0.5  # the same question with each answer called right
    assert found[1.0]["tiny_pictures/exact_match"].value == 1


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


def spied(function, results):
    """A function whose results are noted."""

    def noting(*args, **kwargs):
        results.append(function(*args, **kwargs))
        return results[-1]

    return noting


@pytest.mark.slow
def test_general_ability_on_a_task_in_local_files(world, capsys, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
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
    few = [*call, "--num-fewshot", "2"]
    asked = []
    monkeypatch.setattr(lm_eval, "simple_evaluate", spied(lm_eval.simple_evaluate, asked))
    assert cli.main(few) == 0 and len(asked) == 2
    for results in asked:
        context = results["samples"]["tiny_choice"][0]["arguments"]
        text = str(context)
        assert text.count("said that") == 2 * 3  # for each choice two examples, and the question
    path = folder / "tiny_choice.yaml"
    path.write_text(path.read_text() + "num_fewshot: 0\n")
    with pytest.warns(UserWarning, match="tiny_choice was asked with 0 examples, not num_fewshot=2"):
        assert cli.main(few) == 0
    for wrong, said in (("--num-fewshot=-1", "num_fewshot=-1: at least 0"), ("--task-limit=0", "limit=0: at least 1")):
        assert cli.main([*call, wrong]) == 1 and said in capsys.readouterr().err
    assert cli.main([*call, "--apply-chat-template"]) == 1
    assert "no chat template" in capsys.readouterr().err
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


def test_errors_are_one_line(world, tmp_path, capsys):
    base, adapter = str(world / "base"), str(world / "adapter")
    other = randomize(build("llama"))
    other.config.model_type = "llama"
    shutil.copytree(adapter, tmp_path / "cut")
    config = json.loads((tmp_path / "cut" / "adapter_config.json").read_text())
    (tmp_path / "cut" / "adapter_config.json").write_text(json.dumps({**config, "weights_sha256": None}))
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
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
        (["inspect", str(tmp_path / "cut")], "cannot be read"),
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
