"""The trainer's recipe: what it takes, what holds it, and what it says."""

import pytest
import torch
from models import tiny_questions, tiny_tokenizer
from PIL import Image
from trainers import RIGHT, config, leaning, trainer, vectors
from vision import build_vision

from peft_dso import DSOConfig, DSOTrainer, DSOTrainerConfig, get_steering_strength


FAIR = {"kl_target": "fair", "abstain_reward": None, "max_kl": None}


def history(job, key):
    return [entry[key] for entry in job.state.log_history if key in entry]


@pytest.mark.parametrize(("batch", "each"), [(9, 3), (1, 1), (3, 1)])
def test_batches_that_enumeration_can_do_are_taken(tmp_path, batch, each):
    job = trainer(tmp_path, per_device_train_batch_size=batch, questions_per_occupation=each, max_steps=1)
    assert len(next(iter(job.get_train_dataloader()))) == batch
    job.train()
    with pytest.raises(ValueError, match="not a multiple of questions_per_occupation=2"):
        config(tmp_path, per_device_train_batch_size=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_target": "near"}, "kl_target='near'"),
        ({"step_unit": "metre"}, "step_unit='metre'"),
        ({"max_kl_ratio": 0.0}, "max_kl_ratio=0.0"),
        ({"max_neutral_kl": -1.0}, "max_neutral_kl=-1.0"),
        ({"neutral_coef": -1.0}, "neutral_coef=-1.0"),
        ({"keep_coef": -1.0}, "keep_coef=-1.0"),
        ({"stop_bias": -0.1}, "stop_bias=-0.1"),
        ({"l1_coef": float("inf")}, "l1_coef=inf"),
        ({"beta": float("inf")}, "beta=inf"),
        ({"kl_rate": float("inf")}, "kl_rate=inf"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"retain_batch_size": -1}, "retain_batch_size=-1"),
        ({"neutral_batch_size": -1}, "neutral_batch_size=-1"),
        ({"neutral_tokens": 1}, "neutral_tokens=1: at least 2"),
        ({"neutral_tokens": -1}, "neutral_tokens=-1: at least 2"),
        ({"abstain_reward": float("nan")}, "abstain_reward=nan"),
        ({"max_steps": 0}, "max_steps=0: at least 1, or -1"),
        ({"max_steps": -2}, "max_steps=-2"),
        ({"max_reward_weight": 0.5}, "max_reward_weight=0.5: a finite number of at least 1"),
        ({"max_reward_weight": float("inf")}, "max_reward_weight=inf"),
    ],
)
def test_settings_out_of_range(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_being_held_to_the_nearest_fair_distribution_costs_no_fairness(tmp_path):
    """A heavy KL to the base keeps the bias; to the nearest fair distribution it takes it away."""
    left = {}
    for target in ("base", "fair"):
        job = trainer(tmp_path, max_steps=60, beta=20.0, **{**FAIR, "kl_target": target})
        job.train()
        bias = history(job, "per_occupation_bias")
        left[target] = sum(bias[-4:]) / sum(bias[:2]) * 2 / 4
    assert left["fair"] < 0.3 < 0.6 < left["base"]


def test_shifts_move_in_units_of_their_norms_outputs(tmp_path):
    """
    Adam's first step has the size of the learning rate: what the shifts have moved is that times the unit, which is
    the root mean square of the output. Slopes have none.
    """
    job = trainer(tmp_path, max_steps=1, learning_rate=1e-3, warmup_steps=0, step_unit="output", **FAIR)
    job.train()
    for norm, (none, unit), affine in zip(job.pairs.norms, job.pairs.units, job.pairs.affines, strict=True):
        outputs = []
        handle = norm.register_forward_hook(lambda norm, inputs, h, to=outputs: to.append(h.float().flatten(0, -2)))
        with torch.no_grad(), job.scorer.as_base(job.model):
            job.run_probe()
        handle.remove()
        size = torch.cat(outputs).square().mean(0).sqrt()
        assert none is None and torch.allclose(unit, size.clamp(min=0.1 * size.median()), rtol=1e-4)
        moved = affine.shift.detach().abs()
        assert torch.allclose(moved[moved > 0], 1e-3 * unit[moved > 0], rtol=1e-2) and (moved > 0).any()


@pytest.mark.parametrize("neutral", [0.0, 1.0])
def test_slopes_and_shifts_move_in_units_of_what_they_cost(tmp_path, neutral):
    """By default: after one step every entry has moved by learning rate x unit, l1 step and optimizer alike."""
    settings = {"max_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0, "neutral_coef": neutral, "l1_coef": 0.25}
    job = trainer(tmp_path, step_unit="fisher", **settings, **FAIR)
    job.train()
    vectors = list(job.pairs.scaled())
    assert len(vectors) == 2 * len(job.pairs.affines)
    for vector, unit in vectors:
        moved = vector.detach().abs()
        assert unit.shape == moved.shape and (unit > 0).all() and (moved > 0).any()
        assert torch.allclose(moved[moved > 0], 0.75e-2 * unit[moved > 0], rtol=1e-2)
    units = [unit for _, unit in vectors]
    job.measure_units()  # whatever the adapter is now: it is measured on the base
    assert all(torch.allclose(a, b, rtol=1e-4) for a, (_, b) in zip(units, job.pairs.scaled(), strict=True))
    assert DSOTrainerConfig(str(tmp_path)).learning_rate == 0.028
    assert DSOTrainerConfig(str(tmp_path), step_unit="output").learning_rate == 3e-3


def test_training_ends_where_the_answers_are_fair(tmp_path):
    """Ten steps in a row below the limit, and no sooner: every earlier window of ten was above it."""
    settings = {"max_steps": 60, "beta": 0.0, **FAIR, "decoding_temperatures": [1.0]}
    early, late = (trainer(tmp_path, stop_bias=limit, **settings) for limit in (0.15, 0.0))
    for job in (early, late):
        job.train()
    assert late.state.global_step == 60 and "60 of 60 steps:" in late.why_it_ended()
    steps = early.state.global_step
    assert 10 < steps < 60 and f"{steps} of 60 steps, since the answers were fair" in early.why_it_ended()
    bias = history(early, "per_occupation_bias")
    windows = [sum(bias[n : n + 10]) / 10 for n in range(len(bias) - 9)]
    assert windows[-1] < 0.15 <= min(windows[:-1])
    seldom = trainer(tmp_path, stop_bias=0.15, logging_steps=7, **settings)
    seldom.train()
    assert f"the answers were fair (stop_bias): bias {windows[-1]:.3f} on" in seldom.why_it_ended()
    early.args.stop_bias = 0.0
    early.train()  # another run looks at its own steps alone
    assert early.state.global_step == 60 and "since the answers were fair" not in early.why_it_ended()


def test_the_cap_in_multiples_of_the_least_kl(tmp_path):
    settings = {"max_steps": 40, "learning_rate": 3e-2, "beta": 0.1, "kl_rate": 3.0, **FAIR, "kl_target": "base"}
    tight, loose = (trainer(tmp_path, max_kl_ratio=ratio, **settings) for ratio in (0.2, 50.0))
    for job in (tight, loose):
        job.train()
    assert max(history(tight, "beta")) > 0.12
    assert set(history(loose, "beta")) == {0.1}  # it never falls below where it began
    spent = [sum(history(job, "kl")[-5:]) / sum(history(job, "least_kl")[-5:]) for job in (tight, loose)]
    assert spent[0] < 0.9 * spent[1]
    tight.beta = 0.2
    assert "the cap on the KL was holding it (multiplier 0.20)" in tight.why_it_ended()
    assert "cap" not in loose.why_it_ended() and "40 of 40 steps" in loose.why_it_ended()


@pytest.mark.parametrize(("of_hard", "rises"), [(0.13, False), (0.25, True)])
def test_the_cap_binds_on_average_over_the_batches(tmp_path, of_hard, rises):
    """
    Batches that need little and spend three times that, and batches that need much: on the whole 1.45 or 2.5 times
    the least, at a cap of 2.
    """
    job = trainer(tmp_path, max_kl_ratio=2.0, kl_rate=0.1, beta=0.1, **FAIR)
    for _ in range(20):
        for least, kl in ((0.01, 0.03), (0.1, of_hard)):
            job._spent.update(least_kl=[least], kl=[kl])
            job._update_multipliers()
    assert (job.beta > 0.5) if rises else (job.beta < 0.12)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("The clerk said that he", TypeError, "neutral_texts must be a list of texts, got 'The clerk said that he'"),
        (["he", "she"], ValueError, "neutral_texts: none of 2 has two tokens.*neutral_coef=0"),
        ([], ValueError, "neutral_texts: none of 0 has two tokens.*neutral_coef=0"),
    ],
)
def test_neutral_texts_are_not_lost(tmp_path, texts, error, message):
    def job(coef):
        args = config(tmp_path, neutral_coef=coef)
        return DSOTrainer(leaning(), args, tiny_questions(), neutral_texts=texts, processing_class=tiny_tokenizer())

    with pytest.raises(error, match=message):
        job(1.0)
    if error is ValueError:
        assert job(0.0).neutral == []


@pytest.mark.parametrize("changes", [{"num_iterations": 4}, {"steps_per_generation": 4}])
def test_the_multiplier_does_not_hang_on_how_often_is_logged(tmp_path, changes):
    """Sampled answers that serve four steps move it once."""
    settings = {"rollouts": "sample", "num_generations": 2, "max_steps": 24, "learning_rate": 0.05, "max_kl": 1e-3}
    found, spent, beta = [], [], 0.1
    for steps in (1, 4, 10):
        job = trainer(tmp_path, kl_rate=0.5, logging_steps=steps, **settings, **changes)
        job.train()
        spent, found = spent or history(job, "sampled_kl"), [*found, job.beta]
    for kl in spent:
        beta = max(0.1, beta + 0.5 * min(kl / 1e-3 - 1, 1))
    assert len(spent) == 6 and beta > 0.1
    assert found == pytest.approx([beta] * 3, rel=1e-5)


def test_neutral_text_is_held(tmp_path):
    texts = ["The clerk said that he", "The driver was late because the farmer"]
    found = {}
    for coef in (0.0, 50.0):
        job = DSOTrainer(
            model=leaning(),
            args=config(tmp_path, max_steps=25, neutral_coef=coef, max_neutral_kl=None, learning_rate=2e-2, **FAIR),
            train_dataset=tiny_questions(),
            neutral_texts=texts,
            processing_class=tiny_tokenizer(),
        )
        job.train()
        ids = tiny_tokenizer()(texts[0], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            steered = job.model(ids).logits.log_softmax(-1)
            with job.model.disable_adapter():
                base = job.model(ids).logits.log_softmax(-1)
        found[coef] = float((steered.exp() * (steered - base)).sum(-1).mean())
        assert bool(history(job, "neutral_kl")) == bool(coef)
    assert found[50.0] < found[0.0] / 5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1.0, 1.5, 2.0, 2.5, 2.5, 2.5]),  # the first step knows no bias yet
        ({"max_reward_weight": 1.0}, [1.0] * 6),
        ({"max_neutral_kl": 1e-12}, [1.0] * 6),  # each binds as soon as it has moved
        ({"max_kl": 1e-12}, [1.0] * 6),
        ({"max_neutral_kl": None}, [1.0] * 6),  # nothing says how far it may go
        ({"max_kl": None}, [1.0] * 6),
        ({"neutral_coef": 0.0}, [1.0] * 6),
        ({"stop_bias": 10.0}, [1.0]),  # fair enough
    ],
)
def test_the_reward_weighs_more_while_no_cap_binds(tmp_path, changes, expected):
    settings = {"kl_rate": 0.5, "neutral_coef": 1.0, "max_neutral_kl": 1.0, "max_kl": 1.0, "max_reward_weight": 2.5}
    settings = {"warmup_steps": 0, "learning_rate": 1e-3, "abstain_reward": None, **settings, **changes}
    job = trainer(tmp_path, max_steps=6, **settings)
    job.train()
    assert history(job, "reward_weight")[:6] == pytest.approx([*expected, *[1.0] * 6][:6])
    job.reward_weight, job.neutral_weight = 2.0, job.args.neutral_coef + 1
    # Where a cap binds it moves by how far below or above it the model is; not at all where the answers are fair.
    for over, stop_bias, change in ((-0.5, 1e-3, 0.25), (0.4, 1e-3, -0.2), (7.0, 1e-3, -0.5), (-0.5, 1e6, 0.0)):
        job.reward_weight, job.args.stop_bias, job.args.max_reward_weight = 2.0, stop_bias, 2.5
        job._update_reward_weight(over)
        assert job.reward_weight == pytest.approx(2 + change, abs=1e-3)


def test_caps_move_in_units_of_the_reward(tmp_path):
    """Twice the cap, at a rate of 0.5: by 0.5 for a reward that weighs 1, by three times that where it weighs 3."""
    settings = {"kl_rate": 0.5, "neutral_coef": 1.0, "max_neutral_kl": 0.01, "max_kl": 0.1, "beta": 0.1}
    job = trainer(tmp_path, **settings)
    job._callback.biases.append(1.0)
    for weight in (1.0, 3.0):
        job.reward_weight, job.neutral_weight, job.beta = weight, 2.0, 1.0
        job._spent = {"kl": [0.15], "neutral_kl": [0.02]}
        job._update_multipliers()
        assert job.neutral_weight == pytest.approx(2 + 0.5 * weight) and job.beta == pytest.approx(1 + 0.25 * weight)
        assert job.reward_weight == max(1.0, weight - 0.5)


def test_the_loss_weighs_the_reward(tmp_path):
    job = trainer(tmp_path, max_steps=1)
    job.train()
    rows = job.train_dataset.rows[:4]
    encoded = [job.scorer.encode(row) for row in rows]
    scores, base = job.scorer.score(job.model, encoded), job.scorer.base(job.model, encoded)
    counts = {row["occupation"]: 1.0 for row in rows}
    losses = []
    for job.reward_weight in (1.0, 3.0):
        losses.append(float(job._open_loss(rows, scores, base, counts)))
    earned = float(job.enumerated(rows, scores.answers).mean())
    assert losses[1] - losses[0] == pytest.approx(-2 * earned, rel=1e-5) and abs(earned) > 0.01


def test_the_loss_counts_what_is_to_be_kept(tmp_path):
    """Right answers' share where it falls, and how often an answer is given; by plain arithmetic."""
    job = trainer(tmp_path, max_steps=3, retain_coef=0.0, keep_coef=2.0, **{**FAIR, "beta": 0.0})
    job.train()
    assert history(job, "lost_right_kl")  # without the KL on those rows, too
    open_rows, right = job.train_dataset.rows[:6], RIGHT[:3]
    retained = [*right, {"prompt": "The clerk said that"}]  # has nothing to lose, and counts as a row
    losses = {}
    for coef in (0.0, 2.0):
        job.args.keep_coef, job.reward_weight = coef, 1.5
        with torch.no_grad():
            losses[coef] = float(job._enumerated_loss(job.model, open_rows, retained, "eval"))

    def said(rows):
        return torch.tensor([_says(job.model, row["prompt"]) for row in rows])

    def kl(p, q):
        return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()

    steered_open, steered_right = said(open_rows), said(right)
    with job.model.disable_adapter():
        base_open, base_right = said(open_rows), said(right)
    given = kl(steered_open.sum(-1), base_open.sum(-1)).mean()
    now, before = steered_right[:, 0] / steered_right.sum(-1), base_right[:, 0] / base_right.sum(-1)
    assert (now < before).any()
    lost = torch.where(now < before, kl(now, before), torch.zeros(())).sum() / 4
    assert min(given, lost) > 1e-5
    assert losses[2.0] - losses[0.0] == pytest.approx(1.5 * 2.0 * float(given + lost), rel=1e-3)


def test_right_answers_keep_their_share(tmp_path):
    """The same pressure towards fairness, with and without; what a right answer gains is not held back."""
    left = {}
    for coef in (0.0, 20.0):
        job = trainer(tmp_path, max_steps=30, retain_coef=0.0, keep_coef=coef, **{**FAIR, "beta": 0.0})
        job.train()
        shares = [_says(job.model, row["prompt"]) for row in RIGHT]
        left[coef] = sum(he / (he + she) for he, she in shares) / len(RIGHT)
    with job.model.disable_adapter():
        base = [_says(job.model, row["prompt"]) for row in RIGHT]
    base = sum(he / (he + she) for he, she in base) / len(RIGHT)
    assert left[0.0] < base - 0.05 < base - 0.02 < left[20.0]


def test_an_evaluation_within_a_training_is_at_strength_one(tmp_path):
    """With strengths that are drawn anew at every step; the drawn one is there again afterwards."""
    job = trainer(
        tmp_path, training_strength="uniform", max_steps=3, eval_dataset=tiny_questions(), eval_strategy="steps",
        eval_steps=1,
    )  # fmt: skip
    seen, around = [], []
    plain = job._enumerated_loss

    def spy(model, rows, retained, mode):
        (seen if mode == "eval" else around).append(get_steering_strength(job.model))
        return plain(model, rows, retained, mode)

    job._enumerated_loss = spy
    job.train()
    assert set(seen) == {1.0} and len(set(around)) == 3 and 1.0 not in around


def test_the_loss_of_an_evaluation_does_not_hang_on_the_multipliers(tmp_path):
    job = trainer(tmp_path, eval_dataset=tiny_questions(), keep_coef=1.0, **FAIR)
    before = job.evaluate()["eval_loss"]
    job.reward_weight, job.beta = 5.0, 3.0
    assert job.evaluate()["eval_loss"] == before != 0 and (job.reward_weight, job.beta) == (5.0, 3.0)


def test_a_step_of_several_batches_is_judged_by_all_of_them(tmp_path):
    """With gradient accumulation: one occupation in each batch, the bias is that of them together."""
    found = []
    for batch, times in ((2, 3), (6, 1)):
        job = trainer(
            tmp_path, rows=tiny_questions(), per_device_train_batch_size=batch, gradient_accumulation_steps=times,
            max_steps=1, learning_rate=0.0,
        )  # fmt: skip
        job.train()
        found.append(job._callback.biases[0])
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0] > 0.01


@pytest.mark.parametrize(("size", "each", "told"), [(3, 2, True), (2, 2, False), (2, 1, False), (4, 3, True)])
def test_halves_of_pairs_are_told(tmp_path, caplog, size, each, told):
    rows = [
        {**row, "pair": f"{n // each}", "first": n % 2, "occupation": "nurse"}
        for n, row in enumerate(tiny_questions()[:6])
    ]
    trainer(tmp_path, rows=rows, questions_per_occupation=size, per_device_train_batch_size=12)
    words = f"questions_per_occupation={size} cuts pairs of {each} questions, such as pair='0' of 'nurse'"
    assert (words in caplog.text) is told
    caplog.clear()
    trainer(
        tmp_path,
        rows=[{**row, "first": None} for row in rows],
        questions_per_occupation=3,
        per_device_train_batch_size=12,
    )
    assert "cuts pairs" not in caplog.text


def test_evaluation_rows_with_a_right_answer_are_no_bias(tmp_path):
    job = trainer(tmp_path, eval_dataset=tiny_questions() + RIGHT, per_device_eval_batch_size=64)
    both = job.evaluate()
    alone = trainer(tmp_path, eval_dataset=tiny_questions(), per_device_eval_batch_size=64).evaluate()
    assert both["eval_per_occupation_bias"] == pytest.approx(alone["eval_per_occupation_bias"], abs=1e-6)
    right = sum(_says(job.model, row["prompt"])[0] > _says(job.model, row["prompt"])[1] for row in RIGHT)
    assert both["eval_accuracy"] == pytest.approx(right / len(RIGHT)) and "eval_accuracy" not in alone


def _says(model, prompt):
    """The probabilities of he and she."""
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        p = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].softmax(-1)
    return [float(p[tokenizer.convert_tokens_to_ids(word)]) for word in ("he", "she")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {**row, "meanings": ["male", "female"]}, "eval_dataset: Question 0: the meaning 'female'"),
        (lambda row: {k: v for k, v in row.items() if k != "meanings"}, "eval_dataset: Question 0: the column 'mean"),
    ],
)
def test_a_bad_evaluation_set_is_refused_at_once(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, eval_dataset=[change(row) for row in tiny_questions()])


def test_text_and_pictures_train_together_whichever_comes_first(tmp_path):
    model, processor = build_vision("llava")

    def row(name, picture, **more):
        made = {"prompt": [{"role": "user", "content": f"Who is the {name} ?"}], "occupation": name,
                "answers": ["A", "B"], "meanings": ["pro", "anti"], "right": None, **more}  # fmt: skip
        return {**made, "images": [picture]} if picture else made

    rows = [row(name, None) for name in ("nurse", "driver")]
    rows += [
        row(name, Image.new("RGB", (16, 16), (60 * i, 0, 0)), pair=f"{name}/{i}", first=0)
        for i in range(3)
        for name in ("nurse", "driver")
    ]
    args = config(tmp_path, max_steps=2, per_device_train_batch_size=8, questions_per_occupation=4)
    job = DSOTrainer(model=model, args=args, train_dataset=rows, processing_class=processor, peft_config=DSOConfig())
    kept = list(job.train_dataset)
    assert [bool(r["images"]) for r in kept] == [False] * 2 + [True] * 6
    assert [r["pair"] for r in kept] == [r.get("pair") for r in rows] and [r["first"] for r in kept][2:] == [0] * 6
    start = vectors(job.model)
    job.train()
    assert all(not torch.equal(start[name], value) for name, value in vectors(job.model).items())


def test_a_loss_that_is_not_finite_stops(tmp_path):
    job = trainer(tmp_path, max_steps=1)
    with torch.no_grad():
        next(p for n, p in job.model.named_parameters() if n.endswith("slope")).fill_(float("inf"))
    with pytest.raises((FloatingPointError, ValueError), match="loss is|NaN or infinity"):
        job.train()


def test_the_defaults_are_one_recipe():
    """No option is needed, and what is rewarded are the named answers."""
    args = DSOTrainerConfig("out", use_cpu=True)
    assert args.rollouts == "enumerate" and args.abstain_reward is None and args.kl_target == "fair"
    assert args.max_steps > 0 and args.max_kl_ratio and args.neutral_coef and args.l1_coef
