"""What surrounds the objective in a real training: checkpoints, settings, refusals, logs."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from models import OCCUPATIONS, build, tiny_questions, tiny_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from trainers import RIGHT, close, config, leaning, same, trainer, vectors

from peft_dso import DSOConfig, DSOLayer, DSOTrainer, FairnessReward, get_steering_strength


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"rollouts": "sample", "num_generations": 2},
        {"l1_coef": 0.2, "l1_until": 0.5, "decoding_temperatures": [1.0, 0.3]},
        {"max_kl": 100.0, "neutral_coef": 1.0, "max_neutral_kl": 100.0},
        {"step_unit": "fisher", "learning_rate": 0.02},
        {
            "per_device_train_batch_size": 4,
            "max_kl": None,
            "max_kl_ratio": 0.002,
            "neutral_coef": 1.0,
            "max_neutral_kl": 1e-5,
        },
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, changes):
    """To rounding, the multiplier and the counts included."""
    settings = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "reward_memory": 0.5,
        "kl_rate": 0.5,
        "max_kl": 1e-4,
        **changes,
    }
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    part = trainer(tmp_path / "part", **settings)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    part.train(resume_from_checkpoint=True)
    assert close(vectors(part.model), vectors(whole.model))
    assert part.beta == pytest.approx(whole.beta, abs=1e-4)
    assert part.reward_weight == pytest.approx(whole.reward_weight, abs=1e-4)
    assert part.neutral_weight == pytest.approx(whole.neutral_weight, abs=1e-4)
    assert part.usual_least == pytest.approx(whole.usual_least, rel=1e-3)
    assert bool(part.usual_least) == ("max_kl_ratio" in changes)
    assert (part.neutral_weight > 2) == (changes.get("max_neutral_kl", 1) < 1)
    # what is compared has moved
    assert "rollouts" in changes or part.beta > part.args.beta or part.reward_weight > 2
    for mine, theirs in zip(part.counting_rewards(), whole.counting_rewards(), strict=True):
        assert mine.counts.keys() == theirs.counts.keys()
        for name in mine.counts:
            assert mine.counts[name] == pytest.approx(theirs.counts[name], abs=1e-4)
    fresh = trainer(tmp_path / "fresh", **{**settings, "max_steps": 3})
    fresh.train()
    assert not close(vectors(fresh.model), vectors(whole.model))


def test_a_checkpoint_killed_while_it_was_saved_is_passed_over(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path, **settings)
    whole.train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    again = trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert close(vectors(again.model), vectors(whole.model))
    assert not (tmp_path / "checkpoint-2" / "ref").exists()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer(tmp_path / "nothing").train(resume_from_checkpoint=True)


def test_strength_is_one_in_training_and_what_it_was_afterwards(tmp_path):
    job = trainer(tmp_path, peft_config=DSOConfig(steering_strength=0.3, task_type="CAUSAL_LM"))
    seen = []
    original = job.after_optimizer_step
    job.after_optimizer_step = lambda optimizer: (original(optimizer), seen.append(get_steering_strength(job.model)))
    job.train()
    assert seen == [1.0] * 4 and get_steering_strength(job.model) == 0.3
    job = trainer(tmp_path, training_strength="uniform")
    seen.clear()
    original_two = job.after_optimizer_step
    job.after_optimizer_step = lambda optimizer: (
        original_two(optimizer),
        seen.append(get_steering_strength(job.model)),
    )
    job.train()
    assert len(set(seen)) == 4 and all(0 <= w < 1 for w in seen)


@pytest.mark.parametrize(
    "changes", [{"bf16": True}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}]
)
def test_vectors_stay_float32_and_training_settings_work(tmp_path, changes):
    job = trainer(tmp_path, build("llama", torch.bfloat16) if "bf16" in changes else None, **changes)
    start = vectors(job.model)
    job.train()
    end = vectors(job.model)
    assert all(v.dtype == torch.float32 for v in end.values()) and not same(start, end)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    runs = []
    for value in (False, True):
        job = trainer(tmp_path, gradient_checkpointing=value)
        job.train()
        runs.append(vectors(job.model))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-4, atol=1e-6)


def test_evaluation_does_not_touch_what_training_counts(tmp_path):
    runs = []
    for changes in (
        {},
        {
            "eval_dataset": tiny_questions()[:4],
            "eval_strategy": "steps",
            "eval_steps": 1,
            "per_device_eval_batch_size": 4,
        },
    ):
        job = trainer(tmp_path, reward_memory=0.9, **changes)
        job.train()
        runs.append((vectors(job.model), job.fairness_reward.counts))
        assert any("eval_per_occupation_bias" in entry for entry in job.state.log_history) == bool(changes)
    assert same(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]


def test_other_trainers_take_the_reward(tmp_path):
    """The reward on its own, with TRL's RLOO and LoRA."""
    from trl import RLOOConfig, RLOOTrainer

    job = RLOOTrainer(
        model=leaning(),
        reward_funcs=FairnessReward(),
        args=RLOOConfig(
            str(tmp_path), max_steps=2, per_device_train_batch_size=8, num_generations=4, max_completion_length=4,
            report_to=[], use_cpu=True, bf16=False, logging_steps=1, save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(tiny_questions()),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )  # fmt: skip
    job.train()
    assert any("abstention" in entry for entry in job.state.log_history)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "missing"),
        ([], "no question"),
        ([{"prompt": "The"}], "'occupation' is missing"),
        (RIGHT, "no ambiguous question"),
        ([{**r, "meanings": ["pro", "pro"]} for r in tiny_questions()], "no answer could show"),
        ([{**r, "answers": [" he", " "]} for r in tiny_questions()], "answers must be"),
        ([{**r, "answers": [" he", "he "]} for r in tiny_questions()], "the same"),
        ([{**r, "right": 7} for r in tiny_questions()], "right"),
        ([{**r, "image": "a.png"} for r in tiny_questions()], "must be a list of messages"),
    ],
)
def test_bad_data_is_refused_before_the_first_step(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        DSOTrainer(build("llama"), config(tmp_path), rows, processing_class=tiny_tokenizer())
    with pytest.raises(TypeError, match="must be a"):
        DSOTrainer(build("llama"), config(tmp_path), "questions.json", processing_class=tiny_tokenizer())


@pytest.mark.parametrize(
    "wrong",
    [
        {"rollouts": "both"}, {"training_strength": "two"}, {"questions_per_occupation": 3}, {"max_kl": 0},
        {"decoding_temperatures": [0.0]}, {"decoding_temperatures": []}, {"question_share": 2}, {"l1_until": 2},
        {"l1_coef": -1}, {"beta": -1}, {"num_iterations": 2},
        {"questions_per_occupation": 0}, {"warm_start": True, "reward_memory": 0.0},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config(tmp_path, **wrong)


def test_wrong_adapters_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a DSOConfig"):
        trainer(tmp_path, peft_config=LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="must hold a DSO adapter"):
        trainer(tmp_path, get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"])))
    frozen = get_peft_model(build("llama"), DSOConfig(inference_mode=True))
    with pytest.raises(ValueError, match="frozen"):
        trainer(tmp_path, frozen)
    with pytest.raises(ValueError, match="reward_funcs"):
        trainer(tmp_path, reward_funcs=FairnessReward())


def test_vllm_is_refused_where_the_shift_cannot_be_merged(tmp_path):
    with pytest.raises(ValueError, match="learn_shift=False"):
        trainer(tmp_path, use_vllm=True, rollouts="sample")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = leaning()
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="learning_rate"):
        trainer(tmp_path, model, max_kl=None).train()


def test_the_worst_occupations(tmp_path):
    job = trainer(tmp_path, rows=tiny_questions())
    job.fairness_reward.counts = {"nurse": [9.0, 1.0], "driver": [5.0, 5.0], "clerk": [2.0, 8.0]}
    assert [name for name, _ in job.worst_occupations(2)] == ["nurse", "clerk"]


def test_the_worst_occupations_reach_a_tracker(tmp_path):
    pytest.importorskip("trackio")
    code = "import sys; sys.path.insert(0, sys.argv[2]); from trainers import *\n"
    code += "trainer(sys.argv[1], max_steps=1, report_to=['trackio'], project='dso', rows=tiny_questions()).train()"
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRACKIO_DIR": str(tmp_path)})
    assert run.returncode == 0, run.stderr[-2000:]
    with sqlite3.connect(tmp_path / "dso.db") as logged:
        metrics = [json.loads(row) for (row,) in logged.execute("select metrics from metrics")]
    table, *_ = [entry["worst_occupations"]["_value"] for entry in metrics if "worst_occupations" in entry]
    assert {row["occupation"] for row in table} == set(OCCUPATIONS)
    assert table[0]["pro"] + table[0]["anti"] == pytest.approx(1)


def test_a_trained_checkpoint_is_an_ordinary_adapter(tmp_path):
    job = trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    job.train()
    folder = tmp_path / "checkpoint-2"
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "DSO"
    model = PeftModel.from_pretrained(leaning(), folder)
    assert sum(isinstance(m, DSOLayer) for m in model.modules()) == 4
