"""What the page asks of a model: answers and texts at each person's own strength; and the page's parts as text."""

import math
import re
import threading

import pytest
import torch
from models import build, randomize, tiny_tokenizer, tokenizer_of
from peft import get_peft_model
from PIL import Image
from vision import build_vision

from peft_dso import DSOConfig, set_steering_strength
from peft_dso.evaluation import Report, StrengthResult
from peft_dso.evaluation.measures import Measure


pytest.importorskip("gradio")

from peft_dso.app import build as build_page
from peft_dso.app import recipes
from peft_dso.app.engine import SteeredModel
from peft_dso.app.page import answer_list
from peft_dso.app.turns import Turns


CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}said that{% endif %}"


def steered_model(name="llama", seed=0, scale=1.0, adapters=("fair",)):
    torch.manual_seed(seed)
    model = randomize(build(name))
    for parameter in model.parameters():
        parameter.data *= 12 if parameter.dim() >= 2 else 1
    model = get_peft_model(model, DSOConfig(init_weights=False, task_type="CAUSAL_LM"), adapters[0])
    for other in adapters[1:]:
        model.add_adapter(other, DSOConfig(init_weights=False, task_type="CAUSAL_LM"))
    return model.eval()


@torch.no_grad()
def plainly(model, tokenizer, prompt, answer, strengths):
    """Pr[answer | prompt], one forward pass per token, at strengths that are set for all rows."""
    for name, value in strengths.items():
        set_steering_strength(model, value, name)
    ids, p = tokenizer(prompt)["input_ids"], 1.0
    for token in tokenizer(answer, add_special_tokens=False)["input_ids"]:
        p *= float(model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)[token])
        ids = [*ids, token]
    return p


@torch.no_grad()
def written_alone(model, tokenizer, prompt, strength, length=12):
    set_steering_strength(model, strength)
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=length, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_text_ends_where_learned_positions_end():
    model, tokenizer = steered_model("gpt2"), tiny_tokenizer()
    model.generation_config.eos_token_id = model.get_base_model().generation_config.eos_token_id = None
    positions = model.config.max_position_embeddings
    prompt = " ".join(["nurse"] * (positions - 8))
    *_, (base, steered) = SteeredModel(model, tokenizer).write((prompt,) * 2, {"fair": 1.0}, max_new_tokens=48)
    for text in (base, steered):
        assert 0 < len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 8


def test_answers_are_what_the_model_says_at_either_strength():
    model, tokenizer = steered_model(adapters=("fair", "other")), tiny_tokenizer()
    steered = SteeredModel(model, tokenizer)
    answers = [" he", " she was late", " she was"]
    compared = steered.compare("The nurse said that", answers, {"fair": 0.7, "other": -0.4})
    for strengths, found in (
        ({"fair": 0.0, "other": 0.0}, compared.base),
        ({"fair": 0.7, "other": -0.4}, compared.steered),
    ):
        he, late, was = (plainly(model, tokenizer, "The nurse said that", a, strengths) for a in answers)
        # "she was late" is not "she was" too
        assert found == pytest.approx([he, late, was - late, 1 - he - was], rel=1e-3)
    assert compared.words == ("he", "she was late", "she was", "other words")
    assert compared.base != pytest.approx(compared.steered, rel=0.05) and compared.kl > 0.01


def test_a_model_without_the_last_logits_answers_too():
    model, tokenizer = steered_model("gpt2"), tiny_tokenizer()
    compared = SteeredModel(model, tokenizer).compare("The nurse said that", [" he", " she was"], {"fair": 1.0})
    assert compared.steered[1] == pytest.approx(
        plainly(model, tokenizer, "The nurse said that", " she was", {"fair": 1.0}), rel=1e-4
    )


def test_texts_are_those_of_either_strength_alone():
    model, tokenizer = steered_model(), tiny_tokenizer()
    steered = SteeredModel(model, tokenizer)
    prompts = ("The nurse said that", "because The driver was late when a man said that")  # padded to one length
    *_, last = steered.write(prompts, {"fair": 0.8}, max_new_tokens=12)
    assert last == (written_alone(model, tokenizer, prompts[0], 0), written_alone(model, tokenizer, prompts[1], 0.8))
    assert last[1] != written_alone(model, tokenizer, prompts[1], 0.0)


def test_people_at_opposite_strengths_are_not_mixed():
    """Texts at several strengths and answers in between, all at once, are those of each alone."""
    model, tokenizer = steered_model(), tiny_tokenizer()
    wanted = {w: written_alone(model, tokenizer, "The nurse said that", w, 24) for w in (0.0, -1.0, 0.5, 1.0)}
    assert len(set(wanted.values())) == 4
    steered = SteeredModel(model, tokenizer)
    alone = {w: steered.compare("The clerk said that", [" he", " she"], {"fair": w}).steered for w in (-1.0, 1.0)}
    wrong, turns = [], []

    def person(strength):
        steps = list(steered.write(("The nurse said that",) * 2, {"fair": strength}, max_new_tokens=24))
        if steps[-1] != (wanted[0.0], wanted[strength]):
            wrong.append((strength, steps[-1]))

    def asker(strength):
        for _ in range(10):
            said = steered.compare("The clerk said that", [" he", " she"], {"fair": strength}).steered
            turns.append(any(thread.is_alive() for thread in writers))
            if said != pytest.approx(alone[strength], rel=1e-5):
                wrong.append((strength, said))

    writers = [threading.Thread(target=person, args=(w,)) for w in (-1.0, 0.5, 1.0)]
    askers = [threading.Thread(target=asker, args=(w,)) for w in (-1.0, 1.0)]
    for thread in writers + askers:
        thread.start()
    for thread in writers + askers:
        thread.join(120)
    assert not wrong and any(turns)


def test_turns_come_in_order_and_leave_the_model_as_it_was():
    model = steered_model()
    set_steering_strength(model, 0.25)
    turns, order = Turns(model, ["fair"]), []
    inside, go = threading.Event(), threading.Event()

    def first():
        with turns.take({"fair": [1.0]}):
            inside.set()
            go.wait(30)
            turns.pass_on({"fair": [1.0]})
            order.append(("first", model.get_steering_strength()))

    def second():
        with turns.take({"fair": [2.0, 3.0]}):
            order.append(("second", model.get_steering_strength()))

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert inside.wait(30)
    two.start()
    while len(turns._waiting) < 2:
        pass
    go.set()
    one.join(30), two.join(30)
    assert order == [("second", [2.0, 3.0]), ("first", [1.0])]
    assert model.get_steering_strength() == 0.25
    with pytest.raises(ValueError), turns.take({"fair": []}):
        pass
    with turns.take({"fair": [1.0]}):  # the failed turn has ended
        pass


def test_a_text_that_nobody_reads_ends():
    model, tokenizer = steered_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = None
    steered = SteeredModel(model, tokenizer, longest_text=4000)
    before = threading.active_count()
    texts = steered.write(("The nurse said that",) * 2, {"fair": 1.0}, max_new_tokens=4000)
    next(texts)
    assert threading.active_count() > before
    texts.close()
    steered.compare("The nurse said that", [" he", " she"], {"fair": 1.0})  # comes to its turn
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon and "generate" in thread.name:
            thread.join(30)
            assert not thread.is_alive()


def test_what_cannot_be_done_is_said():
    steered = SteeredModel(steered_model(), tiny_tokenizer(), longest_prompt=20)
    for prompt, answers, strengths, images, said in (
        ("  ", [" he"], {}, [], "prompt is empty"),
        ([{"role": "user", "content": ""}], [" he"], {}, [], "prompt is empty"),
        ("The " * 30, [" he"], {}, [], "30 tokens, and at most 20 are read here: shorten it."),
        ("T" * 1281, [" he"], {}, [], "1281 letters, and at most 20 tokens"),
        ([{"role": "user", "content": "T" * 641}] * 2, [" he"], {}, [], "or begin the conversation anew"),
        ("The nurse", [], {}, [], "no answer"),
        ("The nurse", [" he", " he"], {}, [], "same tokens"),
        ("The nurse", [" he"], {"fair": float("nan")}, [], "must be a number, got nan"),
        ("The nurse", [" he"], {"unfair": 1.0}, [], "no adapter 'unfair'"),
        ([{"role": "user", "content": "The nurse"}], [" he"], {}, [Image.new("RGB", (8, 8))], "reads text only"),
        ([{"role": "user", "content": "The nurse"}], [" he"], {}, [], "no chat template"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            steered.compare(prompt, answers, strengths, images)
    with pytest.raises(ValueError, match="temperature=-1"):
        steered.write(("The", "The"), {}, temperature=-1)
    with pytest.raises(ValueError, match="no DSO adapter"):
        SteeredModel(build("llama"), tiny_tokenizer())
    with pytest.raises(ValueError, match="13 answers"):
        answer_list(",".join("abcdefghijklm"), False)
    assert answer_list(" he, she ,", False) == [" he", " she"] and answer_list("A", True) == ["A"]


def test_sampling_samples():
    steered = SteeredModel(steered_model(), tiny_tokenizer())
    torch.manual_seed(0)
    said = {list(steered.write(("The",) * 2, {}, max_new_tokens=8, temperature=1.5))[-1] for _ in range(4)}
    assert len(said) > 1


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_pictures(kind):
    model, processor = build_vision(kind)
    for parameter in model.parameters():
        parameter.data *= 6 if parameter.dim() >= 2 else 1
    model = get_peft_model(model, DSOConfig(init_weights=False), "fair").eval()
    steered = SteeredModel(model, processor)
    assert steered.sees and steered.chats
    prompt = [{"role": "user", "content": "Who is the nurse ?"}]
    dark, light = (Image.new("RGB", (24, 24), color) for color in ((10, 20, 30), (250, 240, 10)))
    said = [steered.compare(prompt, ["A", "B"], {"fair": 1.0}, [image]) for image in (dark, light)]
    assert said[0].base != pytest.approx(said[1].base, rel=1e-3)  # it looks
    assert said[0].base != pytest.approx(said[0].steered, rel=1e-3)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who is the nurse ?"}]}],
        add_generation_prompt=True,
    )
    inputs = dict(processor(text=[text], images=[[dark]], return_tensors="pt", add_special_tokens=False))
    tokens = [processor.tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in "AB"]
    *_, last = steered.write((prompt, prompt), {"fair": 1.0}, max_new_tokens=6, images=[dark])
    for strength, found, written in ((0.0, said[0].base, last[0]), (1.0, said[0].steered, last[1])):
        set_steering_strength(model, strength)
        with torch.no_grad():
            p = model(**inputs).logits[0, -1].softmax(-1)
            out = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert found[:2] == pytest.approx([float(p[t]) for t in tokens], rel=1e-3)
        assert written == processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def example_report(kl=True):
    def results(w, bias, accuracy):
        measures = {"bias": Measure(bias, 0.01, 40), "accuracy": Measure(accuracy, 0.02, 40)}
        if kl:
            measures["kl"] = Measure(w * w / 10, 0.001, 40)
        for name, value in (("noise_floor", 0.01), ("noise_floor_first_choice", 0.02), ("accuracy_bound", 0.1)):
            measures[name] = Measure(value, float("nan"), 40)
        return StrengthResult(w, measures, {"nurse": bias, "clerk": -bias / 2})

    return Report({"test": [results(1.0, 0.1, 0.90), results(0.0, 0.5, 1.0), results(0.5, 0.2, 0.98)]})


def test_the_lines_reproduce_the_bars(tmp_path, capsys):
    tokenizer = tokenizer_of("The nurse said that he she was late , .")
    model = steered_model(adapters=("fair", "other"))
    base = randomize(build("llama"))
    for parameter in base.parameters():
        parameter.data *= 12 if parameter.dim() >= 2 else 1
    base.save_pretrained(tmp_path / "base"), tokenizer.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path)
    adapters = {name: str(tmp_path / name) for name in ("fair", "other")}
    strengths, answers = {"fair": 0.3, "other": 1.0}, [" he", " she was"]
    compared = SteeredModel(model, tokenizer).compare("The nurse said that", answers, strengths)
    exec(recipes.python_lines(str(tmp_path / "base"), adapters, strengths, "The nurse said that", answers), {})
    base_line, steered_line = re.findall(r"\[\[(.*?)\]\]", capsys.readouterr().out)
    for line, expected in ((base_line, compared.base), (steered_line, compared.steered)):
        assert [float(value) for value in line.split(",")] == pytest.approx(expected[:2], rel=1e-4)
    one = recipes.server_request("base", {"fair": "user/fair"}, {"fair": 0.3}, "The nurse's")
    assert '"dso_strength": 0.3' in one and "/v1/completions" in one and "The nurse'\\''s" in one
    two = recipes.server_request("base", adapters, strengths, [{"role": "user", "content": "Hello"}])
    assert '"dso_strength": {"fair": 0.3, "other": 1.0}' in two and "/v1/chat/completions" in two


def test_a_page_of_a_plain_model_with_its_adapter():
    page = build_page(steered_model("gpt2"), tiny_tokenizer(), reports={"fair": example_report()})
    labels = {c["props"].get("label") for c in page.config["components"]}
    assert {"Strength of fair", "Prompt", "Answers", "Text", "Report", "Layers", "Reproduce"} <= labels
    assert "Conversation" not in labels  # no chat template
    for highest in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"highest={highest}"):
            build_page(steered_model(), tiny_tokenizer(), highest=highest)
