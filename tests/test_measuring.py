"""What the measures read: neutral text, forms and abstentions, questions that offer fewer groups."""

import math

import numpy as np
import pytest
import torch
from models import tiny_questions, tiny_tokenizer
from peft import get_peft_model
from test_evaluation import by_hand
from trainers import leaning

from peft_dso import DSOConfig
from peft_dso.evaluation import Prompting, summarize, sweep
from peft_dso.evaluation.neutral import neutral_costs


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return get_peft_model(leaning(), DSOConfig(init_weights=False, steering_strength=0.7)).eval()


NEUTRAL = ["The farmer left because it was late .", "A man is a clerk .", "The driver said that he who left is she ."]


@torch.no_grad()
def test_neutral_texts(model):
    """Per token and in one forward pass per text, in float64."""
    tokenizer, base, kl, loss, tokens = tiny_tokenizer(), [], [], [], 0
    for text in NEUTRAL:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        found = []
        for w in (0.5, 0.0):
            model.set_steering_strength(w)
            found.append(model(ids).logits[0, :-1].double().log_softmax(-1))
        model.set_steering_strength(0.7)
        p, q = found
        kl.append(float((p.exp() * (p - q)).sum()))
        loss.append(-sum(float(p[i, t]) for i, t in enumerate(ids[0, 1:])))
        base.append(-sum(float(q[i, t]) for i, t in enumerate(ids[0, 1:])))
        tokens += ids.shape[1] - 1
    result = sweep(model, tokenizer, {"a": tiny_questions()}, (0.0, 0.5), neutral=NEUTRAL).sets["a"]
    assert result[1].measures["neutral_kl"].value == pytest.approx(sum(kl) / tokens, rel=1e-3)
    change = math.exp(sum(loss) / tokens) / math.exp(sum(base) / tokens) - 1
    assert result[1].measures["neutral_ppl_change"].value == pytest.approx(change, rel=1e-3)
    assert result[1].measures["neutral_kl"].n == len(NEUTRAL) and result[1].measures["neutral_kl"].standard_error > 0
    assert result[0].measures["neutral_kl"].value == 0 == result[0].measures["neutral_ppl_change"].value
    one_by_one = neutral_costs(model, tokenizer, NEUTRAL, (0.5,), batch_tokens=1)[0.5]
    assert one_by_one.kl == pytest.approx(kl, rel=1e-3) and one_by_one.tokens.sum() == tokens
    with_short = neutral_costs(model, tokenizer, ["nurse", *NEUTRAL], (0.5,))[0.5]
    assert with_short.kl == pytest.approx(one_by_one.kl, rel=1e-3) and len(with_short.tokens) == len(NEUTRAL)
    for texts, message in (
        ([], "no neutral text"),
        (["nurse"], "None of the 1 neutral texts has two tokens, such as 'nurse'"),
    ):
        with pytest.raises(ValueError, match=message):
            neutral_costs(model, tokenizer, texts, (0.5,))


def test_a_rewriting_that_no_neutral_text_stands_behind_has_no_cost():
    """It is made for questions as messages, or the prompt and the text are too long together."""
    base, tokenizer = leaning(), tiny_tokenizer()

    def of_messages(row):
        return {**row, "prompt": [{**message, "content": "Be fair."} for message in row["prompt"]]}

    long = "The man said that . " * base.config.max_position_embeddings
    for rewrite in (of_messages, lambda row: {**row, "prompt": long + row["prompt"]}):
        assert neutral_costs(base, tokenizer, NEUTRAL, (0.0, 1.0), knob=Prompting(rewrite, "x")) is None
    text = "The farmer left because it was late . " * 40  # cut at 256 tokens, behind the prompt as alone
    knob = Prompting(lambda row: {**row, "prompt": "A man . " + row["prompt"]}, "short")
    base.config.max_position_embeddings = 10_000
    costs = neutral_costs(base, tokenizer, [text], (0.0, 1.0), knob=knob)
    assert costs is not None and costs[1.0].tokens == costs[0.0].tokens == 255 and costs[1.0].kl > 0


def test_neutral_text_behind_a_prompt():
    base, tokenizer = leaning(), tiny_tokenizer()
    knob = Prompting(lambda row: {**row, "prompt": "The man said that . " + row["prompt"]}, "preamble")
    cost = neutral_costs(base, tokenizer, NEUTRAL, (0.0, 1.0), knob=knob)
    ids, own = (
        tokenizer(t, return_tensors="pt")["input_ids"] for t in ("The man said that . " + NEUTRAL[1], NEUTRAL[1])
    )
    with torch.no_grad():
        p = base(ids).logits[0, -own.shape[1] : -1].double().log_softmax(-1)
    assert cost[1.0].loss[1] == pytest.approx(-sum(float(p[i, t]) for i, t in enumerate(own[0, 1:])), rel=1e-4)
    behind = Prompting(lambda row: {**row, "prompt": row["prompt"] + " The"}, "suffix")
    assert neutral_costs(base, tokenizer, NEUTRAL, (0.0, 1.0), knob=behind) is None


def test_questions_that_offer_fewer_groups():
    """A model that says all offered answers equally often is fair, whatever each question offers."""
    rows = [
        {"prompt": "The nurse said", "occupation": "nurse", "answers": [" he", " she"],
         "meanings": ["male", "female"]},
        {"prompt": "The driver said", "occupation": "driver", "answers": [" he", " she", " they"],
         "meanings": ["male", "female", "other"]},
    ]  # fmt: skip
    log_probs = np.log([[0.2, 0.2, 0], [0.2, 0.2, 0.2]], where=[[1, 1, 0], [1, 1, 1]], out=np.full((2, 3), -np.inf))
    result = summarize(rows, log_probs, 0.0, kl=np.zeros(2))
    for key in ("bias", "bias_first_choice", "least_kl"):
        assert result.measures[key].value == pytest.approx(0, abs=1e-12), key
    assert result.occupations == pytest.approx({"nurse": 0, "driver": 0}, abs=1e-12)
    leaning_pair = np.log([[0.3, 0.1, 1e-300], [0.2, 0.2, 0.2]])
    leaning_pair[0, 2] = -np.inf
    assert summarize(rows, leaning_pair, 0.0).occupations["nurse"] == pytest.approx(0.25 + 0.25)


def test_what_is_left_on_the_answers_and_where_the_rest_goes():
    row = {**tiny_questions()[0], "abstentions": [" unknown"]}
    plain = tiny_questions()[1]
    result = summarize([row, plain], np.log([[0.3, 0.1], [0.5, 0.2]]), 1.0, abstained=np.log([0.4, 1e-300])).measures
    assert result["mass"].value == pytest.approx((0.4 + 0.7) / 2)
    assert result["abstention"].value == pytest.approx(1 - (0.4 + 0.7) / 2)
    assert result["abstention_named"].value == pytest.approx(0.4) and result["abstention_named"].n == 1
    assert result["other"].value == pytest.approx(1 - 0.4 - 0.4)
    assert "abstention_named" not in summarize([plain], np.log([[0.5, 0.2]]), 1.0, abstained=np.zeros(1)).measures


def test_named_abstentions_and_forms_are_read(model):
    """Of a question with forms, from the model's own probabilities."""
    rows = [{**row, "forms": [[" he"], [" she", " woman"]], "abstentions": [" they"]} for row in tiny_questions()]
    result = sweep(model, tiny_tokenizer(), {"a": rows}, (1.0,)).sets["a"][0].measures
    ids = tiny_tokenizer().convert_tokens_to_ids(["they", "he", "she", "woman"])
    named = [float(by_hand(model, row, 1.0)[1][ids[0]]) for row in rows]
    mass = [float(by_hand(model, row, 1.0)[1][ids[1:]].sum()) for row in rows]
    assert result["abstention_named"].value == pytest.approx(sum(named) / len(named), rel=1e-4)
    assert result["mass"].value == pytest.approx(sum(mass) / len(mass), rel=1e-4)
