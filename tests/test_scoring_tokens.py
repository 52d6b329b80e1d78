"""Answers as a model says them behind a prompt, for every family of tokenizers, against token by token passes."""

import math

import pytest
import torch
import transformers as tf
from models import TEXT, randomize
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from peft_dso.scoring import encode_question, encode_row, score


TEXTS = [
    "The nurse said that he was late.", "The nurse said that she was late.", "The driver said: she left.",
    "Who left? The nurse", "the teacher", "Teacher", "A teacher", "that (she) or (he) left\n", "USER: who? BOT: x 1 X",
] * 20  # fmt: skip
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|bot|>"]
LETTERS = sorted(set("".join(TEXTS)) - {" ", "\n"})
MARK = "\u2581"


def wrapped(inner, **special):
    found = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special}
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, **found)


def byte_level(**special):
    """As of GPT-2, Llama 3 and Qwen."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return wrapped(inner, **special)


def prepended():
    """As of Llama 2, Mistral 0.1 and Phi-3: a mark before every text, bytes for what is unknown."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    inner.pre_tokenizer = pre_tokenizers.Split(MARK, "merged_with_next")
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    inner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=[MARK, *LETTERS])
    )
    inner.pre_tokenizer = None
    inner.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrapped(inner)


def unigram(scheme="always"):
    """As of sentencepiece's Unigram: T5's and XGLM's, or Llama's with the mark before the first text alone."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    inner.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=[MARK, *LETTERS]
        ),
    )
    return wrapped(inner)


def word_piece():
    """As of BERT: lower case, no spaces, a mark on what continues a word; it closes every text."""
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL))
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return wrapped(inner, eos_token=None, sep_token="</s>")


FAMILIES = {
    "byte-level": byte_level,
    "no unknown": lambda: byte_level(unk_token=None),
    "prepended": prepended,
    "unigram": unigram,
    "unigram, first": lambda: unigram("first"),
    "unigram, never": lambda: unigram("never"),
    "wordpiece": word_piece,
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def tokenizer(request):
    return FAMILIES[request.param]()


def read_back(tokenizer, tokens):
    return tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False).replace("<s>", "").strip().lower()


@pytest.mark.parametrize("prompt", ["The nurse said that", "Who left? The", "that ("])
def test_an_answer_has_the_tokens_that_it_has_behind_its_prompt(tokenizer, prompt):
    answers = ["he", "she"] if prompt.endswith("(") else [" he", " she", " teacher", " driver left"]
    question = encode_question(tokenizer, prompt, answers)
    alone = list(tokenizer(prompt)["input_ids"])
    assert list(question.prompt) == (alone[:-1] if tokenizer.sep_token else alone)  # what closes a text does not
    for answer, (tokens,) in zip(answers, question.answers, strict=True):
        whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        assert list(tokens) == whole[start:]
        assert read_back(tokenizer, question.prompt + tokens) == read_back(tokenizer, whole)


def test_the_measured_probability_is_that_of_the_text(tokenizer):
    """Token by token, from one forward pass each over the tokens of prompt and answer."""
    torch.manual_seed(0)
    model = randomize(tf.LlamaForCausalLM(tf.LlamaConfig(**{**TEXT, "vocab_size": len(tokenizer)}))).eval()
    prompt, answers = "The nurse said that", [" he", " she", " teacher"]
    ((_, scores),) = score(model, [encode_question(tokenizer, prompt, answers)])
    start = list(tokenizer(prompt)["input_ids"])
    start = start[:-1] if tokenizer.sep_token else start
    cut = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    for answer, got in zip(answers, scores.answers[0].tolist(), strict=True):
        tokens, total = list(start), 0.0
        for token in tokenizer(prompt + answer, add_special_tokens=False)["input_ids"][cut:]:
            with torch.no_grad():
                total += float(model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)[token])
            tokens.append(token)
        assert got == pytest.approx(total, abs=1e-4) and math.isfinite(got)


@pytest.mark.parametrize(
    "prompt, answers", [("The nurse said that ", ["he", "she"]), ("The nurse said t", ["hat he", "hat she"])]
)
def test_where_prompt_and_answer_merge_the_prompt_stays_as_it_is_given(tokenizer, prompt, answers):
    given = tokenizer(prompt)["input_ids"]
    question = encode_question(tokenizer, prompt, answers)
    assert list(question.prompt) == (given[:-1] if tokenizer.sep_token else given)
    for answer, (tokens,) in zip(answers, question.answers, strict=True):
        read = read_back(tokenizer, question.prompt + tokens)
        keeps_spaces = not tokenizer.sep_token
        assert read == (prompt + answer).lower() or not keeps_spaces
        assert read.replace(" ", "") == (prompt + answer).lower().replace(" ", "")


def test_merges_are_the_case_that_is_tested():
    for name in ("byte-level", "prepended"):
        tokenizer = FAMILIES[name]()
        before, whole = (tokenizer(t)["input_ids"] for t in ("The nurse said that ", "The nurse said that he"))
        assert whole[: len(before)] != before, name


@pytest.mark.parametrize("end", ["<|bot|>", "<|bot|>\n", "BOT:", "BOT: "])
def test_behind_a_chat_template(tokenizer, end):
    tokenizer.chat_template = (
        "<s>{% for m in messages %}USER: {{ m.content }}{% endfor %}{{ '" + repr(end)[1:-1] + "' }}"
    )
    row = {"prompt": [{"role": "user", "content": "who?"}], "answers": ["teacher", "nurse"],
           "forms": [["teacher", "Teacher", " teacher", "the teacher"], ["nurse"]]}  # fmt: skip
    question = encode_row(tokenizer, row)
    text = "<s>USER: who?" + end
    assert list(question.prompt) == tokenizer(text, add_special_tokens=False)["input_ids"]
    first, *_ = question.answers[0]
    whole = tokenizer(text + "teacher", add_special_tokens=False)["input_ids"]
    if whole[: len(question.prompt)] == list(question.prompt):
        assert list(question.prompt + first) == whole
    else:  # the prompt ends with a space
        assert read_back(tokenizer, question.prompt + first).replace(" ", "").endswith("teacher")
    assert len(set(question.answers[0])) == len(question.answers[0]) >= 2


def test_nothing_is_silently_unknown(caplog):
    for tokenizer in (word_piece(), unigram()):
        with pytest.raises(ValueError, match="' 你好' cannot be said"):
            encode_question(tokenizer, "The nurse said", [" he", " 你好"])
    left_out = Tokenizer(models.BPE())  # without a token for what it does not know
    left_out.pre_tokenizer = pre_tokenizers.Whitespace()
    left_out.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=100, special_tokens=["<s>"]))
    left_out = tf.PreTrainedTokenizerFast(tokenizer_object=left_out, bos_token="<s>")
    assert left_out(" he你好")["input_ids"] == left_out(" he")["input_ids"]
    with pytest.raises(ValueError, match="' he你好' cannot be said"):
        encode_question(left_out, "The nurse said", [" he你好", " she"])
    with pytest.raises(ValueError, match="'Teacher' and 'teacher' have the same tokens"):
        encode_question(word_piece(), "who?", ["Teacher", "teacher"])
    # Another form, or a way not to answer, that cannot be said is left out.
    question = encode_question(
        word_piece(), "who?", ["nurse", "teacher"], forms=[["nurse", "你好"], ["teacher"]], abstentions=["你", "left"]
    )
    assert [len(forms) for forms in question.answers] == [1, 1] and len(question.abstentions) == 1
