"""Real TRL training on tiny models."""

from contextlib import nullcontext

import pytest
import torch
from models import OCCUPATIONS, tiny_questions, tiny_tokenizer
from peft import PeftModel, get_peft_model
from trainers import RIGHT, base_state, bias, leaning, same, trainer, vectors

from peft_dso import DSOConfig
from peft_dso.scoring import encode_question, score


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


def test_the_kl_is_to_the_base_also_when_training_goes_on(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    job = trainer(tmp_path, max_steps=8)
    job.train()
    job.save_model(str(tmp_path / "adapter"))
    assert {p.name for p in (tmp_path / "adapter").iterdir() if p.is_dir()} == set()  # no "ref" adapter
    loaded = PeftModel.from_pretrained(leaning(), tmp_path / "adapter", is_trainable=True)
    assert same(vectors(loaded), vectors(job.model))
    rows = tiny_questions()
    expected = []
    for row in rows:
        ids = tiny_tokenizer()(row["prompt"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            steered = loaded(input_ids=ids).logits[0, -1].log_softmax(-1)
            with loaded.disable_adapter():
                base = loaded(input_ids=ids).logits[0, -1].log_softmax(-1)
        expected.append(float((steered.exp() * (steered - base)).sum()))
    each = len(rows) // len({row["occupation"] for row in rows})
    more = trainer(  # all questions in its one batch
        tmp_path, loaded, rows, max_steps=1, per_device_train_batch_size=len(rows), questions_per_occupation=each
    )
    assert list(more.model.peft_config) == ["default"]
    more.train()
    assert sum(expected) / len(rows) > 1e-4  # to the adapter that was loaded it would be 0
    assert float(more.state.log_history[0]["kl"]) == pytest.approx(sum(expected) / len(rows), rel=1e-3)


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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"right": 5, "answers": [" he", " she"]}, "retain_dataset, row 1: right .* got 5"),
        ({"right": True, "answers": [" he", " she"]}, "retain_dataset, row 1: right .* got True"),
        ({"right": 0}, None),  # nothing to be right: held to the base alone
        ({"right": 0, "answers": []}, None),
        ({"right": 0, "answers": [" he"]}, None),
    ],
)
def test_right_answers_of_a_retain_dataset(tmp_path, row, message):
    rows = [{"prompt": "The clerk said"}, {"prompt": "The nurse, a man,", **row}]
    settings = {"rows": tiny_questions(), "retain_dataset": rows, "keep_coef": 1.0, "max_steps": 1}
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        trainer(tmp_path, **settings).train()


def test_answers_that_share_their_first_token(tmp_path):
    """They are scored, and held to the base, to their ends; ways of not answering are not followed to theirs."""
    model = get_peft_model(leaning(), DSOConfig(init_weights=False, task_type="CAUSAL_LM"))
    rows = [{**r, "answers": [" he said", " he left"], "abstentions": [" she left"]} for r in tiny_questions()]
    job = trainer(tmp_path, model, rows=rows, max_steps=1, learning_rate=0.0, per_device_train_batch_size=len(rows))
    asked = []
    with model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs["input_ids"]), with_kwargs=True):
        job.train()
    tokenizer, kl = tiny_tokenizer(), 0.0
    assert asked and not any((ids == tokenizer.convert_tokens_to_ids("she")).any() for ids in asked)
    said, left, he = tokenizer.convert_tokens_to_ids(["said", "left", "he"])
    for row in rows:
        ids = tokenizer(row["prompt"])["input_ids"]
        p, q = [], []
        for found, switched_off in ((p, False), (q, True)):
            with torch.no_grad(), model.disable_adapter() if switched_off else nullcontext():
                first, second = (model(torch.tensor([text])).logits[0, -1].softmax(-1) for text in (ids, [*ids, he]))
            found += [first, torch.stack([second[said], second[left], 1 - second[said] - second[left]])]
        kl += float((p[0] * (p[0] / q[0]).log()).sum() + p[0][he] * (p[1] * (p[1] / q[1]).log()).sum()) / len(rows)
    assert job.state.log_history[0]["kl"] == pytest.approx(kl, rel=1e-3)


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
