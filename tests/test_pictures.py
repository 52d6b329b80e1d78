"""Questions with pictures, through the real processor classes, on tiny vision-language models."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from models import build, tiny_tokenizer
from peft import get_peft_model
from PIL import Image
from vision import KINDS, build_vision, picture_questions

from peft_dso import DSOConfig, DSOLayer, DSOTrainer, DSOTrainerConfig
from peft_dso.evaluation import sweep
from peft_dso.questions import social_counterfactuals
from peft_dso.scoring import encode_question, encode_row, score, score_batch


TEXT_ROW = {
    "prompt": [{"role": "user", "content": "Who is the nurse, A or B?"}],
    "occupation": "nurse",
    "answers": ["A", "B"],
    "meanings": ["pro", "anti"],
    "right": None,
}


def loud(name):
    """Models whose pictures show in their answers."""
    model, processor = build_vision(name)
    for parameter in model.parameters():
        parameter.data *= 6 if parameter.dim() >= 2 else 1
    return model, processor


@torch.no_grad()
def by_hand(model, processor, row):
    """
    log Pr[answer | prompt], a row at a time and without padding, straight through the processor; of an answer that
    another begins with ("A ." of "A . B"), that it is not the other.
    """
    images = list(row.get("images") or [])
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": row["prompt"][0]["content"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    more = {"images": [images]} if images else {}
    inputs = dict(processor(text=[text], return_tensors="pt", add_special_tokens=False, **more))
    values = []
    for answer in row["answers"]:
        total, step = 0.0, {**inputs}
        for token in processor.tokenizer(answer, add_special_tokens=False)["input_ids"]:
            logits = model(**step, use_cache=False).logits[0, -1]
            total += float(logits.double().log_softmax(-1)[token])
            tail = {"input_ids": token, "attention_mask": 1}
            step = {
                key: torch.cat([value, torch.full((1, 1), tail.get(key, 0))], 1)
                if value.shape == inputs["input_ids"].shape or key in tail or key.endswith("token_type_ids")
                else value
                for key, value in step.items()
            }
        values.append(total)
    longer = [[o for o in range(len(values)) if o != n and row["answers"][o].startswith(answer + " ")]
              for n, answer in enumerate(row["answers"])]  # fmt: skip
    return [
        math.log(math.exp(v) - sum(math.exp(values[o]) for o in others))
        for v, others in zip(values, longer, strict=True)
    ]


@pytest.mark.parametrize("name", KINDS)
def test_scores_of_a_mixed_batch_are_those_of_single_rows(name):
    """One and two pictures a row, of different sizes, and a row of text among them; answers of one and two tokens."""
    model, processor = loud(name)
    rows = picture_questions() + picture_questions(one_picture=True)[:3] + [TEXT_ROW]
    rows[2] = {**rows[2], "answers": ["A . B", "B", "A ."]}
    rows.insert(1, TEXT_ROW)
    rows = [{key: value for key, value in row.items() if key not in ("forms", "abstentions")} for row in rows]
    encoded = [encode_row(processor, row) for row in rows]
    expected = [by_hand(model, processor, row) for row in rows]
    with torch.no_grad():
        together = score_batch(model, encoded, packed=False)
    for place, values in enumerate(expected):
        got = together.answers[place, : len(values)].double()
        torch.testing.assert_close(got, torch.tensor(values, dtype=torch.float64), rtol=1e-3, atol=1e-3)
        assert (together.answers[place, len(values) :] == -torch.inf).all()
        # Where the answer is decided: an answer of one token is read from there.
        (token,) = processor.tokenizer(rows[place]["answers"][1], add_special_tokens=False)["input_ids"]
        assert float(together.decision[place, token]) == pytest.approx(values[1], abs=1e-3)
    seen = {}
    for numbers, scores in score(model, encoded, batch_tokens=200):
        seen.update(zip(numbers, scores.answers, strict=False))
    for place, values in enumerate(expected):
        assert seen[place][: len(values)].tolist() == pytest.approx(values, abs=1e-3)
    assert len({round(v[0], 4) for v in expected}) > 4  # the pictures show


def test_a_prompt_that_is_read_at_once_is_followed_token_by_token():
    """PaliGemma's prompt sees all of itself, and nothing of the answers: they are scored as a generation says them."""
    model, processor = loud("paligemma")
    row = {**picture_questions(one_picture=True)[0], "answers": ["person A", "person B", "nurse"]}
    question = encode_row(processor, {k: v for k, v in row.items() if k not in ("forms", "abstentions")})
    inputs = processor(
        text=[question.text], images=[[*question.images]], return_tensors="pt", add_special_tokens=False
    )
    inputs.pop("labels", None)
    ((_, scores),) = score(model, [question])
    start = inputs["input_ids"].shape[1]
    for column, (form,) in enumerate(question.answers):
        said = model.generate(
            **inputs, max_new_tokens=len(form), do_sample=False, eos_token_id=None, output_logits=True,
            return_dict_in_generate=True, prefix_allowed_tokens_fn=lambda _, ids, form=form: [form[len(ids) - start]],
        )  # fmt: skip
        steps = zip(said.logits, form, strict=True)
        expected = sum(float(logits[0].double().log_softmax(-1)[token]) for logits, token in steps)
        assert float(scores.answers[0, column]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("rollouts", ["enumerate", "sample"])
@pytest.mark.parametrize("name", KINDS)
def test_training_steers_the_language_backbone_alone(tmp_path, name, rollouts):
    model, processor = loud(name)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    rows = picture_questions(one_picture=True) if rollouts == "sample" else picture_questions() + [TEXT_ROW]
    job = DSOTrainer(
        model=model,
        args=DSOTrainerConfig(
            str(tmp_path), max_steps=2, per_device_train_batch_size=8, questions_per_occupation=2, report_to=[],
            rollouts=rollouts, num_generations=2, max_completion_length=2, retain_batch_size=2, learning_rate=1e-2,
            save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1, l1_coef=0.0,
        ),
        train_dataset=rows + picture_questions(ambiguous=False),
        processing_class=processor,
    )  # fmt: skip
    steered = [n for n, m in job.model.named_modules() if isinstance(m, DSOLayer)]
    assert steered and not any("vision" in n or "visual" in n for n in steered)
    start = {n: p.clone() for n, p in job.model.named_parameters() if p.requires_grad}
    job.train()
    end = dict(job.model.named_parameters())
    assert all("dso_affine" in n for n in start) and any(not torch.equal(start[n], end[n]) for n in start)
    after = {
        n.removeprefix("base_model.model.").replace(".base_layer", ""): p
        for n, p in job.model.state_dict().items()
        if "dso_affine" not in n
    }
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    logged = {key for entry in job.state.log_history for key in entry}
    # The sampled words give no answer, and so no bias.
    assert {*({"per_occupation_bias", "kl"} if rollouts == "enumerate" else {"sampled_kl"}), "retain_kl"} <= logged


def test_enumerated_training_makes_it_fair(tmp_path):
    model, processor = loud("llava")
    rows = picture_questions(count=16)

    def bias(model):
        return sweep(model, processor, {"a": rows}, (1.0,)).sets["a"][0].measures["bias"].value

    job = DSOTrainer(
        model=model,
        args=DSOTrainerConfig(
            str(tmp_path), max_steps=40, per_device_train_batch_size=16, questions_per_occupation=8, report_to=[],
            learning_rate=2e-2, save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, max_kl_ratio=None,
            beta=0.0, l1_coef=0.0, neutral_coef=0.0, reward_smoothing=0.1, decoding_temperatures=[1.0],
            question_share=0.0, step_unit="plain",
        ),
        train_dataset=rows,
        processing_class=processor,
    )  # fmt: skip
    start = bias(job.model)
    job.train()
    assert start > 0.01 and bias(job.model) < start / 3


def test_a_sweep_on_pictures_also_in_words():
    model, processor = loud("llava")
    steered = get_peft_model(model, DSOConfig(init_weights=False, task_type="CAUSAL_LM")).eval()
    rows = picture_questions() + picture_questions(ambiguous=False) + [TEXT_ROW]
    result = sweep(steered, processor, {"a": rows}, (0.0, 1.0)).sets["a"]
    assert result[0].measures["kl"].value == 0 and result[1].measures["kl"].value > 0
    assert {"bias", "position", "accuracy"} <= result[1].measures.keys()
    words = sweep(steered, processor, {"a": rows}, (1.0,), answers="text", max_new_tokens=2).sets["a"][0]
    assert 0 <= words.measures["abstention"].value <= 1


def test_what_cannot_be_read_is_refused(tmp_path):
    model, processor = build_vision("llava")
    row = picture_questions()[0]
    with pytest.raises(ValueError, match="Picture 1 of the prompt"):
        encode_row(processor, {**row, "images": [row["images"][0], None]})
    with pytest.raises(ValueError, match="reads text only"):
        encode_row(processor.tokenizer, row)
    with pytest.raises(ValueError, match="must be a list of messages"):
        encode_question(processor, "Who?", ["A", "B"], row["images"])
    structured = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}]
    with pytest.raises(ValueError, match="1 places for pictures and the row 2"):
        encode_question(processor, structured, ["A", "B"], row["images"])
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode_row(processor, row)

    def train(model, processor, rows):
        args = DSOTrainerConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_steps=1)
        return DSOTrainer(model, args, rows, processing_class=processor)

    _, processor = build_vision("llava")
    with pytest.raises(ValueError, match="no image token"):
        train(build("llama"), tiny_tokenizer(), picture_questions())
    with pytest.raises(ValueError, match="picture 0 is missing"):
        train(model, processor, [{**r, "images": [None, *r["images"]]} for r in picture_questions()])
    with pytest.raises(ValueError, match="both image and images"):
        train(model, processor, [{**r, "image": Image.new("RGB", (2, 2))} for r in picture_questions()])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_the_way_of_the_real_models(tmp_path, name):
    """examples/social_counterfactuals.py on tiny models of its two architectures, on rows of the dataset's form."""
    path = Path(__file__).parents[1] / "examples" / "social_counterfactuals.py"
    spec = importlib.util.spec_from_file_location("social_counterfactuals_example", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    dataset = [
        {"image": Image.new("RGB", (16 + 4 * k, 24), (90 * i, 90 * j, 20 * k)), "counterfactual_set": f"{i}_{k}",
         "caption": f"A photo of a tall {gender} {occupation}", "a1_type": "physical", "a1": "tall",
         "a2_type": "gender", "a2": gender}
        for k in range(4)
        for i, occupation in enumerate(("nurse", "driver", "wizard"))
        for j, gender in enumerate(("male", "female"))
    ]  # fmt: skip
    model, processor = loud(name)
    report = example.run(
        model, processor, list(social_counterfactuals(dataset)), tmp_path, pairs=8, max_steps=2,
        per_device_train_batch_size=4, questions_per_occupation=2, retain_batch_size=2, logging_steps=1,
        gradient_checkpointing=True, disable_tqdm=True,
    )  # fmt: skip
    (results,) = report.sets.values()
    assert len(results) == 6 and {"bias", "accuracy", "kl"} <= results[-1].measures.keys()
    assert (tmp_path / "adapter_model.safetensors").is_file() and (tmp_path / "sweep.png").is_file()
