"""How a training begins and ends: what it leaves behind, what it carries over, and when it calls answers fair."""

import math

import pytest
import torch
from models import OCCUPATIONS, tiny_questions, tiny_tokenizer
from peft import get_peft_model
from trainers import RIGHT, config, leaning, trainer, vectors
from transformers import TrainerCallback

from peft_dso import DSOConfig, DSOTrainer, get_steering_strength, set_steering_strength
from peft_dso.objective import EnumeratedReward, FairnessReward


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_abstentions_alone_are_not_fair(tmp_path):
    assert math.isnan(FairnessReward().bias_of([("nurse", [0.0, 0.0], [0.0, 0.0])]))
    rows = [{**row, "answers": [" he she", " she he"]} for row in tiny_questions()]  # longer than what is written
    job = trainer(
        tmp_path, rows=rows, rollouts="sample", max_completion_length=1, max_steps=12, stop_bias=0.5,
        num_generations=2, per_device_train_batch_size=16,
    )  # fmt: skip
    job.train()
    assert job.state.global_step == 12 and not job.ended_fair
    steps = [entry for entry in job.state.log_history if "abstention" in entry]
    assert steps and all(entry["abstention"] == 1 for entry in steps)
    assert not any("per_occupation_bias" in entry for entry in job.state.log_history)


def test_the_reward_reads_the_forms_that_the_evaluation_reads():
    reward = FairnessReward(smoothing=0.0, memory=0.0)
    rewards = reward(
        prompts=[""] * 3,
        completions=["The woman.", "He", "unknown"],
        occupation=["nurse"] * 3,
        answers=[["She", "He"]] * 3,
        meanings=[["pro", "anti"]] * 3,
        forms=[[["She", "The woman"], ["He", "The man"]], None, None],
        abstentions=[None, None, ["unknown"]],
    )
    assert [said for _, said, _ in reward.latest] == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert rewards == [0.0, 0.0, -1.0]


def test_a_sampled_training_says_its_own_kl(tmp_path):
    """It knows no least KL to compare it with; and what was not logged is not said."""
    job = trainer(tmp_path, rollouts="sample", num_generations=2, max_steps=2)
    for history, said in (([], "steps."), ([{"per_occupation_bias": 0.25}], "steps: bias 0.250 on the last batches.")):
        job.state.log_history = history
        assert said in job.why_it_ended() and "KL" not in job.why_it_ended()
    job.train()
    logged = [entry for entry in job.state.log_history if "sampled_kl" in entry]
    kl, bias = (sum(e[key] for e in logged) / 2 for key in ("sampled_kl", "per_occupation_bias"))
    assert len(logged) == 2
    assert job.why_it_ended() == f"Ended after 2 of 2 steps: bias {bias:.3f} on the last batches, KL {kl:.3f}."


def test_a_training_of_few_steps_learns(tmp_path):
    settings = dict(step_unit="fisher", l1_coef=0.01, l1_until=0.3, learning_rate=0.02, warmup_steps=0.1)
    job = trainer(tmp_path, max_steps=3, **settings)
    job.train()
    assert sum(int(v.count_nonzero()) for v in vectors(job.model).values()) > 100
    assert "Nothing was learned" not in job.why_it_ended()
    job = trainer(tmp_path, max_steps=1, **settings)  # of warm-up alone
    job.train()
    assert "Nothing was learned" in job.why_it_ended()


def test_an_optimizer_of_the_users_takes_steps_in_the_same_units(tmp_path):
    settings = dict(step_unit="fisher", l1_coef=0.05, max_steps=6, learning_rate=0.02)
    expected = trainer(tmp_path / "default", **settings)
    expected.train()
    model = get_peft_model(leaning(), DSOConfig(task_type="CAUSAL_LM"))
    own = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    job = DSOTrainer(
        model=model,
        args=config(tmp_path / "own", **settings),
        train_dataset=tiny_questions() + RIGHT,
        processing_class=tiny_tokenizer(),
        optimizers=(own, None),
    )
    job.train()
    found, wanted = vectors(job.model), vectors(expected.model)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("training_strength", ["one", "uniform"])
def test_an_interrupted_training_leaves_the_strength(tmp_path, training_strength):
    model = get_peft_model(leaning(), DSOConfig(task_type="CAUSAL_LM"))
    set_steering_strength(model, 0.4)
    job = trainer(tmp_path, model, training_strength=training_strength)
    job.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        job.train()
    assert get_steering_strength(model) == pytest.approx(0.4)


def test_occupations_that_offer_some_of_the_groups():
    """Two of three groups: 35 to 65 is not fair, and half and half is."""
    groups = ("female", "male", "nonbinary")
    rows = [{"occupation": "nurse", "answers": [" she", " he"], "meanings": ["female", "male"]}]
    for share, gradient, bias in ((0.35, True, 0.3), (0.5, False, 0.0)):
        reward = EnumeratedReward(groups, (1.0,), None, 0.0, 0.0, 0.0)
        log_p = torch.tensor([[share, 1 - share]]).log().requires_grad_()
        reward(rows, log_p).sum().backward()
        assert bool((log_p.grad.abs() > 1e-3).any()) == gradient
        assert reward.counts[0].bias_of(reward.counts[0].latest) == pytest.approx(bias, abs=1e-6)
        assert reward.counts[0].bias() == pytest.approx(bias, abs=1e-6)


def test_the_window_of_the_stop_goes_into_the_checkpoint(tmp_path):
    settings = dict(max_steps=20, stop_bias=2.0, save_strategy="steps", save_steps=6)
    job = trainer(tmp_path, **settings)
    job.train()
    assert job.state.global_step == 10 and job.ended_fair
    again = trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert again.state.global_step == 10


def test_an_evaluation_leaves_what_training_said_last(tmp_path):
    job = trainer(tmp_path, eval_dataset=tiny_questions()[:2])
    job.train()
    said = [list(reward.latest) for reward in job.counting_rewards()]
    state = str([reward.state_dict() for reward in job.counting_rewards()])
    job.evaluate()
    assert said[0] and [reward.latest for reward in job.counting_rewards()] == said
    assert str([reward.state_dict() for reward in job.counting_rewards()]) == state


def test_a_second_training_begins_anew(tmp_path):
    job = trainer(tmp_path, max_kl=1e-4, kl_rate=2.0, max_steps=6)
    job.train()
    once = [float(entry["beta"]) for entry in job.state.log_history if "beta" in entry]
    assert once[-1] > 3 * once[0]
    job.args.max_kl = 10.0  # far away: what is left is what it begins with
    job.train()
    again = [float(entry["beta"]) for entry in job.state.log_history if "beta" in entry]
    assert max(again) <= job.args.beta


def test_warm_start_of_a_reward_that_is_given(tmp_path):
    """Sampled answers are counted by the reward that pays them, whose groups may stand in another order."""
    reward = FairnessReward(("anti", "pro"), memory=0.5)
    job = trainer(tmp_path, rows=tiny_questions(), rollouts="sample", warm_start=True, reward_funcs=[reward])
    job.observe_first_pass()
    expected = {name: [0.0, 0.0] for name in OCCUPATIONS}
    for row in tiny_questions():
        ids = tiny_tokenizer()(row["prompt"], return_tensors="pt")["input_ids"]
        with torch.no_grad(), job.model.disable_adapter():
            p = job.model(input_ids=ids).logits[0, -1].softmax(-1)
        for answer, meaning in zip(row["answers"], row["meanings"], strict=True):
            index = tiny_tokenizer().convert_tokens_to_ids(answer.strip())
            expected[row["occupation"]][["anti", "pro"].index(meaning)] += float(p[index])
    assert reward.counts.keys() == expected.keys()
    for name, counts in expected.items():
        assert reward.counts[name] == pytest.approx(counts, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollouts": "sample", "reward_memory": 0.0}, "warm_start=True needs a memory above 0"),
        ({"rollouts": "sample", "reward_memory": 0.5, "reward_funcs": FairnessReward(memory=0.0)}, "needs a memory"),
        ({"rollouts": "sample", "reward_funcs": FairnessReward(("man", "woman"))}, "also have .'anti', 'pro'"),
    ],
)
def test_a_reward_that_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, warm_start=True, **changes)


def test_what_is_logged_of_a_reward_whose_groups_stand_in_another_order(tmp_path, caplog):
    job = trainer(tmp_path, rollouts="sample", reward_funcs=FairnessReward(("anti", "pro")))
    job.fairness_reward.latest = [("nurse", [1.0, 3.0], [2.0, 2.0]), ("clerk", [1.0, 1.0], [1.0, 1.0])]
    job._log_bias("train")
    assert job._metrics["train"]["stereotype_gap"] == [pytest.approx((0.75 - 0.25 + 0) / 2)]
    job.fairness_reward.counts = {"nurse": [1.0, 3.0]}
    with caplog.at_level("INFO", "peft_dso.training.logs"):
        job.log({})
    assert "Most unequal occupations: nurse: anti 0.25, pro 0.75" in caplog.messages
