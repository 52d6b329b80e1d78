"""Answers in several forms: against the sum over all texts that a tiny model can write."""

import itertools
import math

import pytest
import torch
import transformers as tf
from models import randomize, tiny_tokenizer

from peft_dso.objective import answers_kl
from peft_dso.scoring import EncodedQuestion, answer_terms, encode_question, encode_row, pack, prepare, score_prepared


VOCABULARY, LONGEST = 7, 4
# Forms that begin others, of the same answer, of another and of an abstention; answers of many forms and of one.
CASES = {
    "plain": ((((3,),), ((4, 5),)), ()),
    "forms": ((((3,), (4, 5), (4, 6)), ((4, 4), (5, 3, 2))), ((6,), (1, 2))),
    "begins its own": ((((3,), (3, 4), (3, 4, 5)), ((5,),)), ()),
    "begins another": ((((3,),), ((3, 4),)), ()),
    "far below": ((((3,),), ((3, 4, 5, 6),)), ((3, 4),)),
    "own, other, own": ((((3,), (3, 4, 5)), ((3, 4), (3, 5, 5), (3, 5, 6))), ((3, 4, 6), (2,))),
    "below a dropped one": ((((3,), (3, 4)), ((3, 4, 5),)), ()),
    "abstention begins": ((((3, 4),), ((3, 5),)), ((3,),)),
    "only abstentions": ((), ((3,), (3, 4))),
    "nothing": ((), ()),
}


def tiny_model(scale=4.0):
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(
        tf.LlamaConfig(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                       num_attention_heads=2, max_position_embeddings=32)
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data *= scale if parameter.dim() > 1 else 1
    return randomize(model).eval()


@torch.no_grad()
def by_enumeration(model, question):
    """
    Pr of each answer and of the abstentions: all texts of four tokens with their probabilities, each of which gives
    what the longest form that it begins with stands for.
    """
    owner = {form: n for n, forms in enumerate((*question.answers, question.abstentions)) for form in forms}
    texts = list(itertools.product(range(VOCABULARY), repeat=LONGEST))
    log_probs = model(torch.tensor([question.prompt + text for text in texts])).logits.double().log_softmax(-1)
    start, found = len(question.prompt) - 1, [0.0] * (len(question.answers) + 1)
    for row, text in enumerate(texts):
        given = next((owner[text[:n]] for n in range(LONGEST, 0, -1) if text[:n] in owner), None)
        if given is not None:
            found[given] += float(sum(log_probs[row, start + n, token] for n, token in enumerate(text)).exp())
    return found


def asked(prompts=((1, 2), (1, 2, 3), (5,))):
    return [EncodedQuestion(prompt, *case[:1], abstentions=case[1]) for case in CASES.values() for prompt in prompts]


@pytest.mark.parametrize("packed", [True, False])
def test_forms_are_summed_and_no_text_counts_twice(packed):
    model, questions = tiny_model(), asked()
    with torch.no_grad():
        scores = score_prepared(model, prepare(questions, packed))
    for row, question in enumerate(questions):
        *answers, abstained = by_enumeration(model, question)
        n = len(answers)
        assert scores.answers[row, :n].exp().tolist() == pytest.approx(answers, rel=1e-4, abs=1e-6)
        assert (scores.answers[row, n:] == -torch.inf).all()
        assert float(scores.abstentions[row].exp()) == pytest.approx(abstained, rel=1e-4, abs=1e-6)
        assert (scores.abstentions[row] == -torch.inf) == (not question.abstentions)
        assert float(scores.answers[row].exp().sum() + scores.abstentions[row].exp()) <= 1 + 1e-6


def test_without_idle_abstentions_the_answers_are_what_they_were():
    """Only an abstention that begins as an answer does takes something from it."""
    model, questions = tiny_model(), asked()
    with torch.no_grad():
        scores = score_prepared(model, prepare([question.answers_only() for question in questions], True))
    for row, question in enumerate(questions):
        *answers, _ = by_enumeration(model, question)
        assert scores.answers[row, : len(answers)].exp().tolist() == pytest.approx(answers, rel=1e-4, abs=1e-6)
    left = {name: EncodedQuestion((1,), *case[:1], abstentions=case[1]).answers_only() for name, case in CASES.items()}
    assert {name: question.abstentions for name, question in left.items() if question.abstentions} == {
        "far below": ((3, 4),), "own, other, own": ((3, 4, 6),),
    }  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
def test_gradients_are_those_of_the_enumeration(packed):
    question = EncodedQuestion((2,), *CASES["own, other, own"][:1], abstentions=CASES["own, other, own"][1])
    owner = {form: n for n, forms in enumerate((*question.answers, question.abstentions)) for form in forms}
    model = tiny_model(2.0)
    scores = score_prepared(model, prepare([question], packed))
    (scores.answers[0, 0] + 2 * scores.answers[0, 1] + 3 * scores.abstentions[0]).backward()
    got = model.model.layers[0].input_layernorm.weight.grad.clone()
    model.zero_grad()
    texts = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LONGEST)))
    log_probs = model(torch.nn.functional.pad(texts, (1, 0), value=2)).logits[:, :-1].log_softmax(-1)
    p = log_probs.gather(2, texts[:, :, None]).sum((1, 2)).exp()
    given = [
        next((owner[t[:n]] for n in range(LONGEST, 0, -1) if t[:n] in owner), -1) for t in map(tuple, texts.tolist())
    ]
    sums = [p[torch.tensor(given) == n].sum().log() for n in range(3)]
    (sums[0] + 2 * sums[1] + 3 * sums[2]).backward()
    torch.testing.assert_close(got, model.model.layers[0].input_layernorm.weight.grad, rtol=1e-3, atol=1e-4)


def events_by_enumeration(model, question):
    """
    Pr of what is said as far as it decides the answer: all texts of four tokens, each cut off behind the first token
    that is no beginning of a longer form; behind a beginning, tokens that no form goes on with are one event.
    """
    forms = [form for forms in (*question.answers, question.abstentions) for form in forms]
    beginnings = {form[:length] for form in forms for length in range(1, len(form))}
    texts = list(itertools.product(range(VOCABULARY), repeat=LONGEST))
    with torch.no_grad():
        log_probs = model(torch.tensor([question.prompt + text for text in texts])).logits.double().log_softmax(-1)
    start, found = len(question.prompt) - 1, {}
    for row, text in enumerate(texts):
        end = 1
        while text[:end] in beginnings:
            end += 1
        event = text[:end]
        if end > 1 and event not in forms:
            event = (*event[:-1], "other")
        p = math.exp(sum(float(log_probs[row, start + n, token]) for n, token in enumerate(text)))
        found[event] = found.get(event, 0.0) + p
    return found


@pytest.mark.parametrize("case", ["plain", "forms", "begins another", "far below", "abstention begins", "nothing"])
@pytest.mark.parametrize("packed", [True, False])
def test_the_kl_is_that_of_all_that_decides_the_answer(case, packed):
    model, base = tiny_model(), tiny_model(scale=5.0)
    answers, abstentions = CASES[case]
    questions = [EncodedQuestion(prompt, answers, abstentions=abstentions) for prompt in ((1, 2), (1, 2, 3), (5,))]
    scores, before = (score_prepared(m, prepare(questions, packed)) for m in (model, base))
    for question, kl in zip(questions, answers_kl(scores, before).tolist(), strict=True):
        p, q = events_by_enumeration(model, question), events_by_enumeration(base, question)
        assert sum(p.values()) == pytest.approx(1)
        assert kl == pytest.approx(sum(x * math.log(x / q[event]) for event, x in p.items()), rel=1e-4)
    assert answers_kl(before, before).tolist() == [0.0] * 3


def test_what_is_all_but_ruled_out_has_finite_values_and_gradients():
    """A model that always goes on from "physician" to "assistant": the log of what is left does not cancel."""
    model = tiny_model()
    model.lm_head.weight.data *= 100
    with torch.no_grad():
        first = model(torch.tensor([[1, 2]])).logits[0, -1].double().log_softmax(-1)
        second = model(torch.tensor([[1, 2, token] for token in range(VOCABULARY)])).logits[:, -1].double()
    begin = int(second.log_softmax(-1).amax(-1).argmax())  # where the next token is surest
    second = second[begin].log_softmax(-1)
    likeliest = int(second.argmax())
    others = [token for token in range(VOCABULARY) if token != likeliest]
    left = float(second[others].logsumexp(-1))
    assert left < -20  # beyond what a difference of float32 numbers could tell
    question = EncodedQuestion((1, 2), (((begin,),), ((begin, likeliest),)))
    scores = score_prepared(model, prepare([question], True))
    assert float(scores.answers[0, 0].detach()) == pytest.approx(float(first[begin]) + left, rel=1e-4)
    scores.answers.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_token_that_a_model_rules_out_leaves_finite_gradients():
    model = tiny_model()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    model.lm_head.bias.data[3] = -torch.inf
    scores = score_prepared(model, prepare([EncodedQuestion((1, 2), (((3,),), ((4,), (3, 4))))], True))
    ruled_out, other = scores.answers[0].detach().exp().tolist()
    assert ruled_out < 1e-37 and other > 0
    scores.answers.exp().sum().backward()
    assert all(p.grad.isfinite().all() for name, p in model.named_parameters() if name != "lm_head.bias")


def test_forms_share_what_they_have_in_common_and_only_what_is_needed_is_read():
    many = (((3,), (3, 4), (3, 4, 5)), ((2, 3, 4), (2, 3, 5), (2, 4)))
    assert answer_terms(many).places == ((), (2,), (2, 3))  # (3, 4) begins with (3,), which is the same answer
    packed = pack([EncodedQuestion((1, 2), many)])
    assert packed.input_ids.shape == (1, 4) and packed.keep == 3
    assert answer_terms(((), ())).places == ((),)


def test_one_text_is_no_two_answers():
    for answers, abstentions in (((((3,),), ((4,), (3,))), ()), ((((3,),), ((4,),)), ((4,),))):
        with pytest.raises(ValueError, match="form of the answers"):
            answer_terms(answers, abstentions)
    with pytest.raises(ValueError, match="without a token"):
        answer_terms((((),),))


def test_rows_with_forms_are_encoded_in_all_of_them():
    tokenizer = tiny_tokenizer()
    row = {"prompt": "The nurse said that", "answers": [" he", " she"], "forms": [[" he", "he", " he ."], [" she"]],
           "abstentions": [" they", " is"]}  # fmt: skip

    def tokens(text):
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    question = encode_row(tokenizer, row)
    assert question.answers == ((tokens("he"), tokens("he .")), (tokens("she"),))  # "he" and " he" are the same tokens
    assert question.abstentions == (tokens("they"), tokens("is"))
    without = encode_row(tokenizer, {"prompt": row["prompt"], "answers": row["answers"], "forms": None})
    assert without == encode_question(tokenizer, row["prompt"], row["answers"])
    assert question.prompt_only() == encode_row(tokenizer, {"prompt": row["prompt"]})
    for wrong in ({"forms": [[" he"], [" she", "he"]]}, {"abstentions": ["she"]}):
        with pytest.raises(ValueError, match="have the same tokens"):
            encode_row(tokenizer, {**row, **wrong})
