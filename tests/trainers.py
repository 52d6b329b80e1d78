"""A trainer of a tiny model, its questions, and what is read of it."""

import torch
from models import OCCUPATIONS, build, randomize, tiny_questions, tiny_tokenizer

from peft_dso import DSOTrainer, DSOTrainerConfig
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
        max_kl_ratio=None, beta=0.1, retain_coef=1.0, keep_coef=0.0, neutral_coef=0.0, step_unit="plain",
        l1_coef=0.0, l1_until=1.0, max_steps=4, per_device_train_batch_size=8, questions_per_occupation=2,
        retain_batch_size=4, learning_rate=1e-2, report_to=[], save_strategy="no", logging_steps=1, use_cpu=True,
        bf16=False, disable_tqdm=True,
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
