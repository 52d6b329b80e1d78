"""Log-probabilities of answers, against one plain forward pass per prompt and answer."""

import math

import pytest
import torch
from models import TEXT_MODELS, build, randomize, tiny_tokenizer, tokenizer_of

from peft_dso.scoring import (
    EncodedQuestion,
    PicturedQuestion,
    batches,
    encode_question,
    pack,
    reads_tries,
    score,
    score_packed,
    score_plain,
)


def questions(count=12, seed=0):
    """Prompts that share beginnings, one that is the beginning of another, and answers of one form and of several."""
    generator = torch.Generator().manual_seed(seed)
    stem = (5, 6, 7)
    found = [EncodedQuestion(stem, (((9,),), ((10, 11), (30,)), ((10, 12, 13),)))]
    for _ in range(count):
        tail = tuple(
            torch.randint(3, 64, (int(torch.randint(1, 6, (), generator=generator)),), generator=generator).tolist()
        )
        found.append(EncodedQuestion(stem[: len(tail) % 4] + tail, (((20,),), ((21, 22),))))
    return found


@torch.no_grad()
def by_hand(model, question):
    """log Pr[answer | prompt] token by token, each from a forward pass of its own."""
    values = []
    for forms in question.answers:  # none of them begins with another
        total = 0.0
        for form in forms:
            tokens, value = list(question.prompt), 0.0
            for token in form:
                value += float(model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)[token])
                tokens.append(token)
            total += math.exp(value)
        values.append(math.log(total))
    decision = model(torch.tensor([list(question.prompt)])).logits[0, -1].double().log_softmax(-1)
    return values, decision


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma2"])
@pytest.mark.parametrize("packed", [True, False])
def test_scores_are_those_of_single_passes(name, packed):
    model, asked = randomize(build(name)), questions()
    seen = set()
    for numbers, scores in score(model, asked, packed=packed, batch_tokens=24):
        for row, number in enumerate(numbers):
            values, decision = by_hand(model, asked[number])
            got = scores.answers[row]
            torch.testing.assert_close(
                got[: len(values)].double(), torch.tensor(values).double(), rtol=1e-4, atol=1e-4
            )
            assert (got[len(values) :] == -torch.inf).all()
            torch.testing.assert_close(scores.decision[row].double(), decision, rtol=1e-4, atol=1e-4)
            seen.add(number)
    assert seen == set(range(len(asked)))


def test_packing_computes_a_shared_prefix_once():
    alike = [EncodedQuestion((5, 6, 7, last), (((9,),), ((10,),))) for last in range(20, 30)]
    packed = pack(alike)
    assert packed.input_ids.shape == (1, 13)  # three shared tokens and ten of their own
    assert packed.keep == 10
    assert packed.position_ids.max() == 3
    # A longer row than allowed is divided; a question longer than a row has one of its own.
    assert len(pack(alike, row_tokens=8).input_ids) == 2
    assert pack([EncodedQuestion(tuple(range(3, 23)), (((40,),), ((41,),)))], row_tokens=8).input_ids.shape == (1, 20)


def test_gradients_are_those_of_plain_scoring():
    asked = questions(5)
    gradients = []
    for call in (lambda m: score_packed(m, pack(asked)), lambda m: score_plain(m, asked)):
        model = randomize(build("llama"))
        scores = call(model)
        present = scores.answers.isfinite()
        (scores.answers[present].sum() + scores.decision.square().sum()).backward()
        gradients.append(model.model.layers[0].input_layernorm.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(TEXT_MODELS) - {"t5"}))
def test_a_model_that_cannot_read_a_trie_is_found_out(name):
    """Whatever the answer, what `score` gives is right."""
    model, asked = randomize(build(name)), questions(6)
    for numbers, scores in score(model, asked):
        for row, number in enumerate(numbers):
            torch.testing.assert_close(
                scores.decision[row].double(), by_hand(model, asked[number])[1], rtol=1e-3, atol=1e-3
            )


def test_position_free_models_do_not_read_tries():
    import transformers as tf

    torch.manual_seed(0)
    config = tf.BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2)
    model = tf.BloomForCausalLM(config).eval()
    assert not reads_tries(model, questions(6))
    assert reads_tries(build("llama"), questions(6))


def test_dropout_is_off_while_scoring_and_back_on_after_an_exception():
    model = randomize(build("gpt2")).train()  # dropout 0.1
    asked = questions(3)
    first, second = ([s.answers for _, s in score(model, asked)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=False)) and model.training
    with pytest.raises(ValueError, match="no question"):
        next(score(model, []))
    assert model.training


def test_batches_hold_every_question_once():
    asked = questions(40)
    for tokens in (1, 7, 1000):
        numbers = [n for batch in batches(asked, tokens) for n in batch]
        assert sorted(numbers) == list(range(len(asked)))
    assert len(batches(asked, 1000)) == 1


def test_batches_are_as_few_as_can_be_and_even():
    apart = [EncodedQuestion((*[first] * 10,), (((1,),), ((2,),))) for first in range(30)]
    # 14 questions of 10 tokens fit into 140: three batches, and not of 14, 14 and 2.
    assert [len(batch) for batch in batches(apart, 140)] == [10, 10, 10]
    assert pack(apart, row_tokens=140).input_ids.shape == (3, 100)
    # What an answer has beyond its first token, and what a picture takes, counts; what neighbours share does not.
    longer = [EncodedQuestion(q.prompt, (((1, 3),), ((2, 4, 5),))) for q in apart]
    assert [len(batch) for batch in batches(longer, 130)] == [10, 10, 10]
    assert len(batches(longer, 129)) == 4
    pictured = [PicturedQuestion(q.prompt, q.answers, "", (None,), None) for q in apart]
    assert {len(batch) for batch in batches(pictured, 2 * (10 + 64))} == {2}
    alike = [EncodedQuestion((5, 6, 7, last), (((9,),), ((10,),))) for last in range(20, 30)]
    assert len(batches(alike, 13)) == 1 and len(batches(alike, 12)) == 2


def test_encoding_refuses_what_cannot_be_scored():
    tokenizer = tiny_tokenizer()
    question = encode_question(tokenizer, "The nurse said that", [" he", " she"])
    assert tokenizer.decode(question.prompt) == "The nurse said that"
    assert [tokenizer.decode(form) for (form,) in question.answers] == ["he", "she"]
    with pytest.raises(ValueError, match="no token"):
        encode_question(tokenizer, " ", [" he", " she"])
    with pytest.raises(ValueError, match="no token"):
        encode_question(tokenizer, "The", [" he", " "])
    with pytest.raises(ValueError, match="' doctor' cannot be said"):
        encode_question(tokenizer, "The", [" doctor", " doctors"])  # both unknown to this tokenizer
    with pytest.raises(ValueError, match="' he' and 'he' have the same tokens"):
        encode_question(tokenizer, "The", [" he", "he"])
    with pytest.raises(ValueError, match="chat template"):
        encode_question(tokenizer, [{"role": "user", "content": "The nurse"}], [" he", " she"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} said that{% endif %}"
    )
    assert encode_question(tokenizer, [{"role": "user", "content": "The nurse"}], [" he", " she"]) == question


def test_an_end_of_text_after_the_prompt_is_dropped():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of("The nurse he she")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    assert encode_question(tokenizer, "The nurse", [" he", " she"]).prompt == (4, 5)
