"""`peft-dso train` a second time, interrupted, resumed, and pushed (the upload itself is tested in hub_cases.py)."""

import argparse
import json

import pytest
import torch
from models import tiny_questions, tiny_tokenizer
from trainers import RIGHT, leaning, vectors
from transformers import TrainerCallback, TrainerState

from peft_dso import DSOTrainer, cli, evaluation
from peft_dso.cli import train
from peft_dso.cli.arguments import check_device
from peft_dso.cli.train_sets import train_and_test
from peft_dso.evaluation import load_report
from peft_dso.inspect import REPORT, describe
from peft_dso.questions import OCCUPATIONS, split_occupations
from peft_dso.training.progress import ProgressLine
from peft_dso.tuner.files import read_adapter


@pytest.fixture
def call(tmp_path):
    leaning().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_questions() + RIGHT))
    call = ["train", "--model", str(tmp_path / "base"), "--questions", str(tmp_path / "questions.jsonl")]
    call += ["--out", str(tmp_path / "out"), "--per_device_train_batch_size", "8", "--questions_per_occupation", "2"]
    call += ["--learning_rate", "0.02", "--use_cpu", "True", "--bf16", "False", "--disable_tqdm", "True"]
    return [*call, "--decoding_temperatures", "1.0", "0.5", "--stop_bias", "0"]


def told(folder):
    """The vectors that the report beside an adapter was measured on."""
    return json.loads((folder / REPORT).read_text())["description"]["vectors_sha256"]


def test_a_second_run_does_not_speak_for_the_first(call, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert cli.main([*call, "--max_steps", "3"]) == 0
    first = told(out)
    assert first == read_adapter(out)[0].vectors_sha256 and "at strengths 0, 0.5, 1" in describe(out)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "tell", interrupted)
    assert cli.main([*call, "--max_steps", "4"]) == 130
    assert told(out) == first != read_adapter(out)[0].vectors_sha256
    assert "of other vectors" in describe(out)


def test_the_device_is_the_trainers_too(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # where the trainer would not take the CPU
    for device, on_cpu in (("cpu", True), ("cpu:0", True), (None, False)):
        options = argparse.Namespace(out=str(tmp_path), log_level="error", device=device, fields=["--bf16", "False"])
        assert train.settings_of(options).use_cpu == on_cpu
    first = torch.device("cuda", 0)
    for device in ("cuda", "cuda:0"):
        check_device(device, first)
    check_device("mps", torch.device("mps"))
    with pytest.raises(ValueError, match="--device cuda:3: this training takes cuda:0 .*CUDA_VISIBLE_DEVICES=3"):
        check_device("cuda:3", first)
    with pytest.raises(ValueError, match="takes cpu"):
        train.settings_of(argparse.Namespace(**{**vars(options), "device": "cuda", "fields": ["--use_cpu", "True"]}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "FILE"], "--out FILE: FILE is a file"),
        (["--out", "FILE/below/it"], "--out FILE/below/it: FILE is a file"),
        (["--output_dir", "elsewhere"], "--output_dir elsewhere: the folder of everything is --out"),
        (["--resume_from_checkpoint", "True"], "--resume_from_checkpoint True: There is no complete checkpoint"),
        (["--resume_from_checkpoint", "FILE"], "--resume_from_checkpoint FILE: FILE is not a complete checkpoint"),
        (["--learning_rate", "nan"], "learning_rate=nan"),
        (["--eval_strategy", "steps"], "--eval_strategy steps"),
        (["--eval_on_start", "True"], "--eval_on_start True"),
    ],
)
def test_what_is_wrong_at_once_is_said_at_once(call, tmp_path, capsys, options, message):
    (tmp_path / "file").touch()
    given = [option.replace("FILE", str(tmp_path / "file")) for option in options]
    assert cli.main([*call, "--model", str(tmp_path / "no-model"), *given]) == 1  # before there is a base to load
    assert message.replace("FILE", str(tmp_path / "file")) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--questions", "--questions: all 8 questions to train on have a right answer"),
        ("--test", "--test: all 4 questions of the test set have a right answer and cannot show bias"),
    ],
)
def test_what_shows_no_bias_is_not_called_fair(call, tmp_path, capsys, option, message):
    (tmp_path / "right.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RIGHT))
    given = [option, str(tmp_path / "right.jsonl")]
    if option == "--questions":
        call = [part for part in call if part not in ("--questions", str(tmp_path / "questions.jsonl"))]
        given += [*given, "--test", str(tmp_path / "questions.jsonl")]
    assert cli.main([*call, "--model", str(tmp_path / "no-model"), *given]) == 1
    said = capsys.readouterr()
    assert message in said.err and "no bias above its floor" not in said.out


class Interrupt(TrainerCallback):
    """Ctrl-C once a step is done."""

    def __init__(self, step):
        self.step = step
        self.vectors = {}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.vectors = vectors(model)
            raise KeyboardInterrupt


def with_callback(monkeypatch, callback):
    """Every trainer gets the callback."""
    init = DSOTrainer.__init__
    monkeypatch.setattr(
        DSOTrainer, "__init__", lambda self, *a, **k: (init(self, *a, **k), self.add_callback(callback))[0]
    )


def test_an_interrupted_training_is_kept(call, tmp_path, monkeypatch, capsys):
    out, at_two = tmp_path / "out", Interrupt(2)
    assert cli.main([*call, "--max_steps", "3"]) == 0
    before = read_adapter(out)[0].vectors_sha256
    with monkeypatch.context() as patched:
        with_callback(patched, Interrupt(0))
        assert cli.main([*call, "--max_steps", "40"]) == 130
    assert "nothing is saved" in capsys.readouterr().out and read_adapter(out)[0].vectors_sha256 == before
    with_callback(monkeypatch, at_two)
    assert cli.main([*call, "--max_steps", "40"]) == 130
    said, pairs = capsys.readouterr(), read_adapter(out)[1]
    assert "interrupted" in said.err and "step 2 of 40" in said.out and "--save_strategy steps" in said.out
    kept = {f"{site}.{part}": vector for site, parts in pairs.items() for part, vector in parts.items()}
    assert len(kept) == len(at_two.vectors) and any(vector.any() for vector in kept.values())
    for name, vector in at_two.vectors.items():
        assert torch.equal(kept[name.removeprefix("base_model.model.").replace(".dso_affine.default", "")], vector)
    card = (out / "README.md").read_text()
    assert "interrupted after 2 steps" in card and "Nothing: no sweep" in card  # the first run's figures are gone
    assert cli.main([*call, "--max_steps", "40", "--save_strategy", "steps", "--save_steps", "1"]) == 130
    said = capsys.readouterr().out
    assert f"from {out / 'checkpoint-2'}" in said and "--resume_from_checkpoint True" in said


def test_what_is_pushed_is_measured_first(call, tmp_path, monkeypatch):
    pushed = []

    def push(trainer, *args, **kwargs):
        pushed.append(told(tmp_path / "out"))
        return type("Commit", (), {"commit_url": "https://hub/user/x"})

    monkeypatch.setattr(DSOTrainer, "init_hf_repo", lambda *args, **kwargs: None)
    monkeypatch.setattr(DSOTrainer, "push_to_hub", push)
    assert cli.main([*call, "--max_steps", "3", "--push_to_hub", "True", "--hub_model_id", "user/x"]) == 0
    assert pushed == [read_adapter(tmp_path / "out")[0].vectors_sha256]


def test_a_training_goes_on_where_it_was_cut_off(call, tmp_path, monkeypatch):
    assert cli.main([*call, "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"]) == 0
    began = []

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            began.append(state.global_step)

    with_callback(monkeypatch, Note())
    for checkpoint, step in ((str(tmp_path / "out" / "checkpoint-2"), 2), ("True", 4)):
        assert cli.main([*call, "--max_steps", "4", "--resume_from_checkpoint", checkpoint]) == 0
        assert began.pop() == step


def test_what_was_measured_and_what_was_trained_on(call, tmp_path, capsys):
    """Report and card name each; what stands in both is told; a file's occupations are held out from it."""
    rows = tiny_questions() + RIGHT
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_questions()[:6]))
    other = [*call, "--max_steps", "1", "--anyway", "--test", str(tmp_path / "other.jsonl")]
    assert cli.main(other) == 0
    said = capsys.readouterr().out
    assert "Note: 6 of the 6 questions of the test set stand among those to train on, too." in said
    assert "The base, on 6 questions of the test set" in said and f"Training on {len(rows)} questions" in said
    asked = [json.loads(line) for line in (tmp_path / "out" / "held_out.jsonl").read_text().splitlines()]
    assert asked == tiny_questions()[:6] and f"--questions {tmp_path / 'out' / 'held_out.jsonl'} --out DIR" in said
    report, card = json.loads((tmp_path / "out" / REPORT).read_text()), (tmp_path / "out" / "README.md").read_text()
    assert report["description"]["questions"] == "other.jsonl"
    assert f"{len(rows)} questions (questions.jsonl)" in card
    (tmp_path / "other.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows if row["occupation"] == "nurse")
    )
    assert cli.main([*other, "--held-out-occupations"]) == 0  # those that the test asks about
    said = capsys.readouterr().out
    assert f"Training on {sum(row['occupation'] != 'nurse' for row in rows)} questions" in said and "Note:" not in said
    everyone = [*other[:-1], str(tmp_path / "questions.jsonl")]
    assert cli.main([*everyone, "--held-out-occupations"]) == 1
    assert "nothing is left to train on" in capsys.readouterr().err


def test_a_file_beside_a_builder_brings_back_no_held_out_occupation(tmp_path):
    """Each draws its own: what one holds out, the other must not train on."""
    _, held = split_occupations()
    rows = [
        {"prompt": f"The {o.name} said that {n}", "occupation": o.name, "answers": [" he", " she"],
         "meanings": ["pro", "anti"], "right": None, "group": str(n)}
        for o in [*held, *OCCUPATIONS[:6]] for n in range(3)
    ]  # fmt: skip
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = argparse.Namespace(
        questions=["pronouns", str(tmp_path / "own.jsonl")],
        test=None,
        held_out_occupations=True,
        occupations=None,
        chat=False,
        limit=None,
    )
    fitted, test = train_and_test(options)
    judged = {row["occupation"] for rows in test.values() for row in rows}
    assert judged >= {o.name for o in held} and not judged & {row["occupation"] for row in fitted}
    assert len(fitted) > 1000


def test_a_base_without_bias_is_reported_and_not_trained(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "shows_bias", lambda base: False)
    assert cli.main(call) == 0
    assert "nothing is trained" in capsys.readouterr().out
    (results,) = load_report(tmp_path / "out" / "report.json").sets.values()
    assert [r.strength for r in results] == [0] and not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize("logged", [1, 5, 15])
def test_a_line_now_and_then_however_often_it_is_logged(logged):
    said = []
    line = ProgressLine(said.append)
    state = TrainerState(max_steps=40)
    line.on_train_begin(None, state, None)
    for state.global_step in (*range(logged, 40, logged), 40, 40):
        line.on_log(None, state, None, logs={"per_occupation_bias": 0.1})
    steps = [int(text.split("/")[0].split()[1]) for text in said]
    assert steps == {1: [1, 11, 21, 31, 40], 5: [5, 15, 25, 35, 40], 15: [15, 30, 40]}[logged]
