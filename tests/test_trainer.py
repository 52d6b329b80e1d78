"""Real TRL training on tiny models."""

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
from models import OCCUPATIONS, build, randomize, tiny_questions, tiny_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model

from peft_dso import DSOConfig, DSOLayer, DSOTrainer, DSOTrainerConfig, FairnessReward, get_steering_strength
from peft_dso.scoring import encode_question, score


RIGHT = [
    {
        "prompt": f"The {o}, a man,",
        "occupation": o,
        "answers": [" he", " she"],
        "meanings": ["pro", "anti"],
        "right": 0,
    }
    for o in OCCUPATIONS
]


def leaning():
    """A model that answers he or she often, and with opinions: the probabilities of a fresh one are nearly equal."""
    model, tokenizer = randomize(build("llama")), tiny_tokenizer()
    head = model.lm_head.weight.data
    head *= 8
    with torch.no_grad():
        hidden = model.model(**tokenizer("The nurse said that", return_tensors="pt")).last_hidden_state[0, -1]
    he, she = tokenizer.convert_tokens_to_ids(["he", "she"])
    head[he] += 6.5 * hidden / hidden.square().sum()
    head[she] += 4.5 * hidden / hidden.square().sum()
    return model


def config(folder, **changes):
    """The objective in the paper's form, so that each part can be computed apart."""
    settings = dict(
        abstain_reward=-1.0, decoding_temperatures=[1.0], question_share=0.0, kl_target="base", max_kl=0.1,
        max_kl_ratio=None, beta=0.1, retain_coef=1.0, neutral_coef=0.0, shift_unit="plain", l1_coef=0.0, l1_until=1.0,
        max_steps=4, per_device_train_batch_size=8, questions_per_occupation=2, retain_batch_size=4,
        learning_rate=1e-2, report_to=[], save_strategy="no", logging_steps=1, use_cpu=True, bf16=False,
    disable_tqdm=True,
    )  # fmt: skip
    return DSOTrainerConfig(str(folder), **{**settings, **changes})


def trainer(folder, model=None, rows=None, **changes):
    more = {
        key: changes.pop(key)
        for key in ("eval_dataset", "retain_dataset", "reward_funcs", "peft_config")
        if key in changes
    }
    return DSOTrainer(
        model=leaning() if model is None else model,
        args=config(folder, **changes),
        train_dataset=tiny_questions() + RIGHT if rows is None else rows,
        processing_class=tiny_tokenizer(),
        **more,
    )


def vectors(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".dso_affine." in n}


def base_state(model):
    return {
        n.removeprefix("base_model.model.").replace(".base_layer", ""): p.clone()
        for n, p in model.state_dict().items()
        if "dso_affine" not in n
    }


def close(a, b):
    """Equal to rounding: what the base says to a question depends on the batch that it was first asked in."""
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def bias(model, rows):
    """Per-occupation bias from probabilities among the answers, in the open."""
    tokenizer, by_occupation = tiny_tokenizer(), {}
    encoded = [encode_question(tokenizer, row["prompt"], row["answers"]) for row in rows]
    for numbers, scores in score(model, encoded):
        for number, p in zip(numbers, scores.answers.softmax(-1), strict=False):
            row = rows[number]
            pro = float(p[row["meanings"].index("pro")])
            by_occupation.setdefault(row["occupation"], []).append(pro)
    return sum(abs(2 * sum(ps) / len(ps) - 1) for ps in by_occupation.values()) / len(by_occupation)


@pytest.mark.parametrize("rollouts", ["enumerate", "sample"])
def test_only_the_adapter_is_trained(tmp_path, rollouts):
    model = leaning()
    before = base_state(model)
    job = trainer(tmp_path, model, rollouts=rollouts, num_generations=4)
    start = vectors(job.model)
    job.train()
    end = vectors(job.model)
    assert same(base_state(job.model), before)
    assert len(end) == 8 and all(not torch.equal(start[name], end[name]) for name in end)
    assert {n for n, p in job.model.named_parameters() if p.requires_grad} == set(end)
    logged = {key for entry in job.state.log_history for key in entry}
    kl = "kl" if rollouts == "enumerate" else "sampled_kl"  # TRL's is a log-ratio, no exact KL
    assert {"per_occupation_bias", "stereotype_gap", kl, "retain_kl", "zero_neurons", "l1", "beta"} <= logged
    assert ("kl" in logged) == (rollouts == "enumerate")


def test_training_makes_the_model_fair(tmp_path):
    rows = tiny_questions(frames=("The {o} said that",))
    job = trainer(
        tmp_path,
        rows=rows,
        max_steps=60,
        questions_per_occupation=1,
        abstain_reward=None,
        max_kl=None,
        beta=0.0,
        warmup_steps=0.1,
    )
    with job.model.disable_adapter():
        before = bias(job.model, rows)
    job.train()
    after = bias(job.model, rows)
    assert before > 0.1 and after < before / 4


def test_abstain_reward_decides_whether_refusing_pays(tmp_path):
    """Read literally (+1), the paper's reward empties both answers; -1 fills them."""
    named = {}
    for value in (1.0, -1.0):
        job = trainer(tmp_path, rows=tiny_questions(), abstain_reward=value, max_steps=60, max_kl=None,
                      beta=0.0, learning_rate=5e-2)  # fmt: skip
        job.train()
        encoded = [encode_question(tiny_tokenizer(), row["prompt"], row["answers"]) for row in tiny_questions()]
        named[value] = sum(float(s.answers.exp().sum()) for _, s in score(job.model, encoded)) / len(encoded)
    assert named[1.0] < 0.1 and named[-1.0] > 0.8


def loss_gradient(job, rows, **inputs):
    """Gradient of one call of the trainer's loss on some rows."""
    job.model.zero_grad()
    job.model.train()
    job._compute_loss(job.model, job._prepare_inputs(rows)).backward()
    return torch.cat([p.grad.flatten() for p in job.model.parameters() if p.requires_grad]).clone()


def by_hand_gradient(model, rows, beta, temperatures=(1.0,), share=0.0, smoothing=0.1):
    """-E[r] + beta KL with one forward pass per prompt, the rewards held fixed; abstaining costs 1."""
    tokenizer = tiny_tokenizer()
    model.zero_grad()
    p, kl = [], 0.0
    for row in rows:
        ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        log_p = model(ids).logits[0, -1].log_softmax(-1)
        with torch.no_grad(), model.disable_adapter():
            log_q = model(ids).logits[0, -1].log_softmax(-1)
        kl = kl + (log_p.exp() * (log_p - log_q)).sum() / len(rows)
        answers = log_p.exp()[[tokenizer(a)["input_ids"][0] for a in row["answers"]]]
        p.append(answers if row["meanings"][0] == "pro" else answers.flip(0))  # pro, anti
    p = torch.stack(p)
    reward = -(1 - p.sum(-1)).mean()
    for temperature in temperatures:
        sharp = p ** (1 / temperature)
        sharp = p.sum(-1, keepdim=True) * sharp / sharp.sum(-1, keepdim=True)
        for occupation in {row["occupation"] for row in rows}:
            mine = torch.tensor([row["occupation"] == occupation for row in rows])
            lean = sharp[mine].detach().sum(0)
            sign = (lean[0] - lean[1]) / lean.sum()
            own = (sharp[mine, 0] - sharp[mine, 1]).detach() / sharp[mine].sum(-1).detach()
            pro = -(1 - share) * (sign / smoothing).clamp(-1, 1) - share * (own / smoothing).clamp(-1, 1)
            r = torch.stack([pro, -pro], 1)
            reward = reward + (sharp[mine] * r).sum() / len(rows) / len(temperatures)
    (-reward + beta * kl).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).clone()


@pytest.mark.parametrize(
    ("temperatures", "share", "smoothing"), [([1.0], 0.0, 0.1), ([1.0, 0.4], 0.0, 0.1), ([1.0], 0.7, 1.5)]
)
def test_the_enumerated_gradient_is_that_of_the_objective(tmp_path, temperatures, share, smoothing):
    model = get_peft_model(leaning(), DSOConfig(init_weights=False, task_type="CAUSAL_LM"))
    rows = tiny_questions()
    job = trainer(tmp_path, model, rows=rows, beta=0.3, decoding_temperatures=temperatures, question_share=share,
                  reward_smoothing=smoothing)  # fmt: skip
    job._step = 0
    got = loss_gradient(job, rows)
    expected = by_hand_gradient(job.model, rows, 0.3, temperatures, share, smoothing)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_sampling_estimates_the_enumerated_gradient(tmp_path):
    """
    The mean over many sampled answers of TRL's leave-one-out gradient, with the rewards of the current model held
    fixed, is the gradient of the exact expectation.
    """
    torch.manual_seed(0)
    model = get_peft_model(leaning(), DSOConfig(init_weights=False, task_type="CAUSAL_LM"))
    rows = tiny_questions(OCCUPATIONS[:2], ("The {o} said that",))
    exact_job = trainer(tmp_path, model, rows=rows, beta=0.0, max_kl=None, per_device_train_batch_size=2,
                        questions_per_occupation=1, reward_smoothing=0.0)  # fmt: skip
    exact_job._step = 0
    exact = loss_gradient(exact_job, rows)

    job = trainer(tmp_path, model, rows=rows, beta=0.0, max_kl=None, rollouts="sample", num_generations=256,
                  per_device_train_batch_size=512, questions_per_occupation=1, max_completion_length=1,
                  reward_smoothing=0.0, steps_per_generation=1)  # fmt: skip
    # The rewards of the exact majority: what is sampled is the answers, not the signs.
    job.fairness_reward.counts = {
        k: [1e9 * v for v in values] for k, values in exact_job.fairness_reward.counts.items()
    }
    job.fairness_reward.memory = 0.999999
    total, n = 0, 30
    for i in range(n):
        job._step = 0
        torch.manual_seed(i)
        total = total + loss_gradient(job, [row for row in rows for _ in range(256)]) / n
    cosine = torch.nn.functional.cosine_similarity(total, exact, dim=0)
    assert cosine > 0.97
    assert float(total @ exact / (exact @ exact)) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"rollouts": "sample", "num_generations": 2},
        {"l1_coef": 0.2, "l1_until": 0.5, "decoding_temperatures": [1.0, 0.3]},
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
    assert "rollouts" in changes or part.beta > part.args.beta  # what is compared has moved
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


def test_the_kl_is_to_the_base_also_when_training_goes_on(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    job = trainer(tmp_path, max_steps=8)
    job.train()
    job.save_model(str(tmp_path / "adapter"))
    assert {p.name for p in (tmp_path / "adapter").iterdir() if p.is_dir()} == set()  # no "ref" adapter
    loaded = PeftModel.from_pretrained(leaning(), tmp_path / "adapter", is_trainable=True)
    assert same(vectors(loaded), vectors(job.model))
    more = trainer(tmp_path, loaded, max_steps=1)
    assert list(more.model.peft_config) == ["default"]
    more.train()
    assert more.state.log_history[0]["kl"] == pytest.approx(job.state.log_history[-2]["kl"], rel=0.5)
    assert float(more.state.log_history[0]["kl"]) > 1e-4  # to the adapter that was loaded it would be 0


def test_the_multiplier_holds_the_cap(tmp_path):
    free = trainer(tmp_path, max_steps=40, max_kl=None, beta=0.0, abstain_reward=None)
    free.train()
    capped = trainer(tmp_path, max_steps=40, max_kl=0.02, kl_rate=5.0, beta=0.0, abstain_reward=None)
    capped.train()

    def last(job):
        return sum(entry["kl"] for entry in job.state.log_history if "kl" in entry and entry["step"] > 30) / 10

    assert last(free) > 0.05
    assert last(capped) < 0.03
    assert capped.beta > 0.01


# Adam divides a gradient by its own size; with a large epsilon small gradients stay small, and the l1 step wins.
L1 = {"l1_coef": 0.5, "adam_epsilon": 1e-3}


def test_l1_gives_exact_zeros_that_are_saved(tmp_path):
    job = trainer(tmp_path, max_steps=10, **L1)
    job.train()
    job.save_model(str(tmp_path / "adapter"))
    zeros = [float((v == 0).float().mean()) for v in vectors(job.model).values()]
    assert sum(zeros) / len(zeros) > 0.2
    loaded = PeftModel.from_pretrained(leaning(), tmp_path / "adapter")
    assert same(vectors(loaded), vectors(job.model))
    assert 0 < job.state.log_history[-2]["zero_neurons"] < 1


def test_after_l1_until_zeros_stay_and_the_rest_is_free(tmp_path):
    job = trainer(tmp_path, max_steps=8, l1_until=0.5, **L1)
    seen = []
    original = job.after_optimizer_step
    job.after_optimizer_step = lambda optimizer: (original(optimizer), seen.append(vectors(job.model)))
    job.train()
    kept = [{n: v != 0 for n, v in step.items()} for step in seen]
    assert sum(int((~m).sum()) for m in kept[3].values()) > 10
    for later in range(4, 8):
        assert same(kept[later], kept[3]) and not same(seen[later], seen[3])


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


def test_retained_rows_hold_ability(tmp_path):
    """Without them the model may forget what the pronoun depends on."""
    kl = {}
    for coef in (0.0, 5.0):
        job = trainer(tmp_path, rows=tiny_questions(), retain_dataset=[{"prompt": r["prompt"]} for r in RIGHT],
                      retain_coef=coef, max_steps=40, max_kl=None, beta=0.0)  # fmt: skip
        job.train()
        encoded = [encode_question(tiny_tokenizer(), row["prompt"], row["answers"]) for row in RIGHT]
        steered = torch.cat([s.decision for _, s in score(job.model, encoded, packed=False)])
        with job.model.disable_adapter():
            plain = torch.cat([s.decision for _, s in score(job.model, encoded, packed=False)])
        kl[coef] = float((steered.exp() * (steered - plain)).sum(-1).mean())
    assert kl[5.0] < kl[0.0] / 2


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


def test_answers_that_share_their_first_token(tmp_path):
    """They are scored to their ends."""
    rows = [{**r, "answers": [" he said", " he left"]} for r in tiny_questions()]
    job = trainer(tmp_path, rows=rows)
    job.train()
    assert all(torch.isfinite(v).all() for v in vectors(job.model).values())


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


def test_warm_start(tmp_path):
    """The first majorities are those of a first pass over all training questions, on top of the first batch."""
    settings = {"reward_memory": 0.5, "rows": tiny_questions(), "per_device_train_batch_size": 2}
    job = trainer(tmp_path, warm_start=True, max_steps=1, **settings)
    with job.model.disable_adapter():
        encoded = [encode_question(tiny_tokenizer(), row["prompt"], row["answers"]) for row in tiny_questions()]
        p = torch.cat([s.answers.exp() for _, s in score(job.model, encoded, batch_tokens=10**6)])
    job.observe_first_pass()
    rows = tiny_questions()
    for occupation in OCCUPATIONS:
        mine = [i for i, row in enumerate(rows) if row["occupation"] == occupation]
        order = [0, 1] if rows[mine[0]]["meanings"][0] == "pro" else [1, 0]
        expected = p[mine][:, order].sum(0).tolist()
        assert job.fairness_reward.counts[occupation] == pytest.approx(expected, rel=1e-4)
    job.fairness_reward.counts = {}
    job.train()
    assert set(job.fairness_reward.counts) == set(OCCUPATIONS)  # one batch holds one of them
    cold = trainer(tmp_path, max_steps=1, **settings)
    cold.train()
    assert len(cold.fairness_reward.counts) == 1


def test_the_worst_occupations(tmp_path):
    job = trainer(tmp_path, rows=tiny_questions())
    job.fairness_reward.counts = {"nurse": [9.0, 1.0], "driver": [5.0, 5.0], "clerk": [2.0, 8.0]}
    assert [name for name, _ in job.worst_occupations(2)] == ["nurse", "clerk"]


def test_the_worst_occupations_reach_a_tracker(tmp_path):
    pytest.importorskip("trackio")
    code = "import sys; sys.path.insert(0, sys.argv[2]); from test_trainer import *\n"
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
