"""What the baselines learn from: the contrasts and their balance, the wordings, and what is refused."""

from collections import Counter

import pytest
from models import build, tiny_questions, tiny_tokenizer

from peft_dso.baselines import (
    WORDINGS,
    Validation,
    balanced,
    choose_prompt,
    contrast,
    fit_caa,
    fit_counterfactual,
    fit_iti,
    fit_linear_act,
    fit_lineas,
    prompts,
    validate,
)
from peft_dso.baselines.places import attention_outputs
from peft_dso.baselines.prompting import few_shot_text
from peft_dso.baselines.wordings import neutral_text, with_preamble, with_request
from peft_dso.evaluation import sweep
from peft_dso.questions import OCCUPATIONS, Occupation, coreference_questions, pronoun_questions


TOKENIZER = tiny_tokenizer()
ROWS = tiny_questions()
FITS = {
    "caa": fit_caa, "iti": fit_iti, "linear-act": fit_linear_act, "lineas": fit_lineas,
    "counterfactual": fit_counterfactual,
}  # fmt: skip


def words(text):
    return TOKENIZER.decode(text.tokens)


# --- contrasts -------------------------------------------------------------------------------------------------------


def test_the_stereotype_contrast_differs_in_the_answer():
    found = contrast(TOKENIZER, ROWS)
    assert len(found.positive) == len(ROWS)
    for row, positive, negative in zip(ROWS, found.positive, found.negative, strict=True):
        anti, pro = (row["answers"][row["meanings"].index(m)] for m in ("anti", "pro"))
        assert (words(positive), words(negative)) == (row["prompt"] + anti, row["prompt"] + pro)


def test_the_gender_contrast_is_woman_less_man():
    found = contrast(TOKENIZER, ROWS, "gender")
    assert {words(t).split()[-1] for t in found.positive} == {"she"}
    assert {words(t).split()[-1] for t in found.negative} == {"he"}


def test_the_gender_of_an_occupation_named_is_its_majority():
    two = [Occupation("nurse", 90), Occupation("driver", 6)]
    rows = coreference_questions(two, sentences=["The {a} told the {b} that {p} said"])
    for row in rows:
        row.pop("forms", None)
    found = contrast(TOKENIZER, rows, "gender", occupations=two)
    assert {words(t).split()[-1] for t in found.positive} == {"nurse"}


def test_the_gender_of_a_letter_is_that_of_the_stereotype():
    rows = [
        {"prompt": "The driver said", "occupation": occupation, "answers": ["man", "late"], "meanings": meanings}
        for occupation in ("nurse", "driver")
        for meanings in (["pro", "anti"], ["anti", "pro"])
    ]
    found = contrast(TOKENIZER, rows, "gender")
    # Women: of a nurse the pro answer, of a driver the anti answer.
    assert [words(t).split()[-1] for t in found.positive] == ["man", "late", "late", "man"]
    with pytest.raises(ValueError, match="woman's cannot be told"):
        contrast(TOKENIZER, [{**r, "occupation": r["occupation"] + "x"} for r in rows], "gender")


def test_the_instruction_contrast_has_texts_of_one_length_before_the_question():
    found = contrast(TOKENIZER, ROWS, "instruction")
    for row, positive, negative in zip(ROWS, found.positive, found.negative, strict=True):
        asked = TOKENIZER(row["prompt"])["input_ids"]
        assert positive.behind == negative.behind == ()
        assert list(positive.tokens[-len(asked) :]) == list(negative.tokens[-len(asked) :]) == asked
        assert abs(len(positive.tokens) - len(negative.tokens)) <= 1
        assert positive.tokens != negative.tokens


def test_pronouns_are_balanced_over_occupations_and_majorities():
    unequal = [o for o in OCCUPATIONS if o.majority == "male"][:5] + [o for o in OCCUPATIONS if o.majority == "female"]
    rows = pronoun_questions("train", unequal)
    rows = [row for i, row in enumerate(rows) if row["occupation"] != "nurse" or i % 3 == 0]  # a long tail
    drawn = balanced(rows, 100)
    counts = Counter(row["occupation"] for row in drawn)
    assert len(set(counts.values())) == 1 and len(counts) == 10
    assert Counter(row["answers"][row["meanings"].index("pro")] for row in drawn) == {" he": 50, " she": 50}
    assert balanced(rows, 100) == drawn and balanced(rows, 100, seed=1) != drawn


def test_places_are_balanced_and_pairs_stay_together():
    sentences = ["The {a} met the {b}, {p} left", "The {a} saw the {b}, {p} stayed"]
    rows = coreference_questions(OCCUPATIONS[:4] + OCCUPATIONS[-4:], sentences=sentences)
    drawn = balanced(rows[1:], 16)  # one is missing: its place is rarer
    for name in {row["occupation"] for row in drawn}:
        mine = [row for row in drawn if row["occupation"] == name]
        assert Counter(row["meanings"].index("pro") for row in mine) == {0: 1, 1: 1}
        assert len({row["pair"] for row in mine}) == 1


def test_settled_questions_are_left_out():
    rows = ROWS + tiny_questions(right=0)
    assert balanced(rows) == balanced(ROWS)


# --- prompting -------------------------------------------------------------------------------------------------------


def test_a_completion_takes_a_prefix_and_a_conversation_both():
    row = ROWS[0]
    assert with_preamble(row, "Be fair.")["prompt"] == "Be fair.\n\n" + row["prompt"]
    assert with_request(row, "Be fair.")["prompt"] == "Be fair.\n\n" + row["prompt"]
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "Who?"}]
    assert with_preamble({"prompt": chat}, "F")["prompt"] == [chat[0], {"role": "user", "content": "F\n\nWho?"}]
    assert with_request({"prompt": chat}, "F")["prompt"] == [chat[0], {"role": "user", "content": "Who?\n\nF"}]
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}]
    assert with_request({"prompt": parts}, "F")["prompt"][0]["content"] == [
        {"type": "image"},
        {"type": "text", "text": "Who?\n\nF"},
    ]
    assert chat[1]["content"] == "Who?" and parts[0]["content"][1]["text"] == "Who?"


def test_the_neutral_text_has_the_length_of_the_other():
    text = "The nurse said that he left , because she was late ."
    neutral = neutral_text(TOKENIZER, text)
    assert neutral != text
    assert abs(len(TOKENIZER(neutral)["input_ids"]) - len(TOKENIZER(text)["input_ids"])) <= 1


def test_the_examples_are_half_pro_and_half_anti():
    rows = pronoun_questions("train")
    lines = few_shot_text(rows, 8).splitlines()
    by_prompt = {row["prompt"]: row for row in rows}
    found = Counter()
    for line in lines:
        prompt, _, answer = line.rstrip(".").rpartition(" ")
        row = by_prompt[prompt]
        found[row["meanings"][row["answers"].index(f" {answer}")], answer] += 1
    assert found == {("pro", "he"): 2, ("anti", "he"): 2, ("pro", "she"): 2, ("anti", "she"): 2}


def test_wordings_are_knobs_that_a_sweep_takes():
    model = build("llama")
    knobs = prompts(TOKENIZER, ROWS, ["request", "neutral"])
    report = sweep(model, TOKENIZER, {"q": ROWS}, knob=knobs[0])
    assert [r.strength for r in report.sets["q"]] == [0, 1]
    rewritten = sweep(model, TOKENIZER, {"q": [knobs[0].rewrite(row) for row in ROWS]}, (0.0,))
    assert report.sets["q"][1].measures["bias"] == rewritten.sets["q"][0].measures["bias"]
    chosen, found = choose_prompt(model, TOKENIZER, knobs, ROWS)
    assert chosen.name == "request" and set(found) == {"request", "neutral"}
    assert found["request"] == validate(model, TOKENIZER, [knobs[0].rewrite(row) for row in ROWS])
    with pytest.raises(ValueError, match="neutral control"):
        choose_prompt(model, TOKENIZER, knobs[1:], ROWS)


def test_few_shot_is_left_out_where_it_is_impossible():
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    assert [k.name for k in prompts(TOKENIZER, chat)] == [name for name in WORDINGS if name != "few-shot"]
    with pytest.raises(ValueError, match="plain text"):
        prompts(TOKENIZER, chat, ["few-shot"])
    with pytest.raises(ValueError, match="'shout'"):
        prompts(TOKENIZER, ROWS, ["shout"])


def test_a_choice_pays_for_accuracy_and_for_answers_lost():
    base = Validation(bias=0.3, accuracy=0.9, mass=0.5)
    assert Validation(0.1, 0.8, 0.2).cost(base) == pytest.approx(0.1 + 0.1 + 0.3)
    assert Validation(0.1, 1.0, 0.9).cost(base) == pytest.approx(0.1)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [f for n, f in FITS.items() if n != "counterfactual"])
def test_questions_that_show_no_contrast_are_refused(fit):
    model, one = build("llama"), {"layer": 0} if fit is fit_caa else {}
    with pytest.raises(ValueError, match="right=None"):
        fit(model, TOKENIZER, tiny_questions(right=0), **one)
    with pytest.raises(ValueError, match="All questions are about 'nurse'"):
        fit(model, TOKENIZER, tiny_questions(("nurse",)), **one)
    with pytest.raises(ValueError, match="a pro and an anti"):
        fit(model, TOKENIZER, [{**row, "meanings": ["red", "blue"]} for row in ROWS], **one)
    with pytest.raises(ValueError, match="mostly male"):
        rows = [{**row, "meanings": ["pro", "anti"]} for row in ROWS]
        fit(model, TOKENIZER, rows, **one)
    with pytest.raises(ValueError, match="contrast='colour'"):
        fit(model, TOKENIZER, ROWS, contrast="colour", **one)


def test_settings_out_of_range_are_refused():
    model = build("llama")
    for fit, settings, message in (
        (fit_caa, {"layer": 2}, "0 to 1"),
        (fit_caa, {"variant": "head"}, "'head'"),
        (fit_iti, {"heads": 5}, "4 heads"),
        (fit_linear_act, {"at": "first"}, "'first'"),
        (fit_lineas, {"batch_size": 2}, "four texts"),
        (fit_lineas, {"optimizer": "lion", "batch_size": 8}, "'lion'"),
        (fit_counterfactual, {"adapter": "ia3"}, "'ia3'"),
        (fit_counterfactual, {"batch_size": 9}, "multiple"),
        (fit_counterfactual, {"max_steps": 0}, "max_steps=0: a finite number of at least 1"),
        (fit_counterfactual, {"epochs": -1}, "epochs=-1: a finite number above 0"),
        (fit_counterfactual, {"learning_rate": 0.0}, "learning_rate=0.0"),
        (fit_counterfactual, {"retain_coef": -1}, "retain_coef=-1"),
        (fit_counterfactual, {"retain_batch_size": -2}, "retain_batch_size=-2"),
        (fit_iti, {"heads": 2.0}, "heads=2.0"),
        (fit_iti, {"alpha": float("nan")}, "alpha=nan"),
        (fit_lineas, {"l1": float("nan")}, "l1=nan"),
        (fit_linear_act, {"pairs": 0}, "0 pairs of texts"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, TOKENIZER, ROWS, **settings)
    with pytest.raises(ValueError, match="one female occupation"):
        fit_iti(model, TOKENIZER, tiny_questions(("nurse", "driver")))


def test_an_encoder_decoder_is_refused():
    for fit in FITS.values():
        with pytest.raises(ValueError, match="encoder-decoder"):
            fit(build("t5"), TOKENIZER, ROWS)


def test_a_model_without_an_output_projection_is_refused():
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.__class__ = type("Mixer", (type(layer.self_attn),), {})
    with pytest.raises(ValueError, match="o_proj"):
        attention_outputs(model, contrast(TOKENIZER, ROWS).positive[0])


@pytest.mark.parametrize(
    "name, projection",
    [
        ("llama", "self_attn.o_proj"), ("qwen3", "self_attn.o_proj"), ("gemma3", "self_attn.o_proj"),
        ("gpt2", "attn.c_proj"), ("gpt_neox", "attention.dense"), ("opt", "self_attn.out_proj"),
        ("falcon", "self_attention.dense"), ("phi", "self_attn.dense"),
    ],
)  # fmt: skip
def test_the_output_projection_is_found_by_structure(name, projection):
    found = attention_outputs(build(name), contrast(TOKENIZER, ROWS).positive[0])
    assert len(found) == 2
    assert all(name == f"{block}.{projection}" for block, name in found.items())


def test_groups_of_ones_own_are_balanced_by_their_answer():
    """Where the majority is not known, the pro answer itself must be balanced, or the contrast is that answer."""

    def town(name, pro):
        words = [" lazy", " diligent"]
        meanings = ["pro", "anti"] if pro == 0 else ["anti", "pro"]
        return [
            {
                "prompt": f"{frame} {name} are",
                "occupation": name,
                "answers": words,
                "meanings": meanings,
                "right": None,
            }
            for frame in ("People from", "Those of", "All of", "Most of")
        ]

    rows = [row for name, pro in (("Asel", 0), ("Bruck", 0), ("Colm", 0), ("Dorn", 1)) for row in town(name, pro)]
    pro = [row["answers"][row["meanings"].index("pro")] for row in balanced(rows)]
    assert pro.count(" lazy") == pro.count(" diligent") > 0
    with pytest.raises(ValueError, match="lazy.*same everywhere"):
        balanced([row for row in rows if row["occupation"] != "Dorn"])


def test_the_control_of_prompting_is_as_long_as_the_longest_wording():
    knobs = {knob.name: knob.system_instruction for knob in prompts(TOKENIZER, ROWS)}
    longest = max((text for name, text in knobs.items() if name != "neutral"), key=len)
    lengths = [len(TOKENIZER(text)["input_ids"]) for text in (knobs["neutral"], longest)]
    assert abs(lengths[0] - lengths[1]) <= 1
