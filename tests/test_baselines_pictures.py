"""Every method fitted on questions about pictures: a vision-language model's language backbone alone is steered."""

from functools import partial

import numpy as np
import pytest
import torch
from fitting import heard
from models import randomize
from PIL import Image
from vision import build_vision

from peft_dso.baselines import balanced, fit_caa, fit_counterfactual, fit_dso, fit_iti, fit_linear_act, fit_lineas
from peft_dso.baselines.adapters import pairs_of
from peft_dso.evaluation import knob_of, sweep
from peft_dso.questions import Occupation, image_pair_questions


OCCUPATIONS = [Occupation("nurse", 90), Occupation("clerk", 80), Occupation("driver", 6), Occupation("farmer", 20)]
PEOPLE = [
    {"image": Image.new("RGB", (16, 16), (60 * i, 90 * j, 40)), "occupation": occupation.name, "gender": gender}
    for i, occupation in enumerate(OCCUPATIONS)
    for j, gender in enumerate(("male", "female"))
]
QUESTIONS = balanced(image_pair_questions(PEOPLE, OCCUPATIONS, count=32), occupations=OCCUPATIONS)
READ = {"contrast": "stereotype", "occupations": OCCUPATIONS}
TRAINED = {"max_steps": 4, "bf16": False}
DSO = {"per_device_train_batch_size": 8, "questions_per_occupation": 4, "neutral_coef": 0.0, "learning_rate": 0.1}
METHODS = {
    "caa": partial(fit_caa, layer=0, **READ),
    "caa-residual": partial(fit_caa, layer=0, variant="residual", **READ),
    "iti": partial(fit_iti, heads=2, **READ),
    "linear-act": partial(fit_linear_act, **READ),
    "lineas": partial(fit_lineas, steps=2, batch_size=4, learning_rate=0.1, **READ),
    "counterfactual": partial(fit_counterfactual, batch_size=8, learning_rate=0.1, **TRAINED),
    "counterfactual-pairs": partial(fit_counterfactual, adapter="pairs", batch_size=8, learning_rate=0.1, **TRAINED),
    "dso": partial(fit_dso, **DSO, **TRAINED),
}


def model_of(name):
    """A tiny model whose layers say enough that a mistake with them shows."""
    model, processor = build_vision(name)
    randomize(model)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
        if not parameter.any():  # Gemma 3's projection of pictures begins at 0
            torch.nn.init.normal_(parameter)
    return model, processor


def inputs_of(processor, row, answer=""):
    """What the processor makes of one question with an answer behind it, by itself."""
    said = [
        {
            "role": "user",
            "content": [
                *[{"type": "image"} for _ in row["images"]],
                {"type": "text", "text": row["prompt"][0]["content"]},
            ],
        }
    ]
    text = processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True) + answer
    return processor(text=[text], images=[row["images"]], return_tensors="pt", add_special_tokens=False)


def said(model, site, inputs):
    """What a module says of the last token."""
    inputs = dict(inputs)
    return heard(model, model.get_submodule(site), inputs.pop("input_ids"), **inputs)[-1]


def test_caa_on_pictures_is_the_mean_difference():
    model, processor = model_of("llava")
    fitted = fit_caa(model, processor, QUESTIONS, layer=1, **READ)
    plain, _ = model_of("llava")
    assert pairs_of(fitted)
    for site, pair in pairs_of(fitted).items():
        assert ".language_model." in f".{site}."
        ends = {
            meaning: np.mean(
                [
                    said(plain, site, inputs_of(processor, row, row["answers"][row["meanings"].index(meaning)]))
                    for row in QUESTIONS
                ],
                axis=0,
            )
            for meaning in ("anti", "pro")
        }
        np.testing.assert_allclose(pair.shift.detach(), ends["anti"] - ends["pro"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "method"),
    [("llava", method) for method in METHODS]
    + [(name, method) for name in ("gemma3", "qwen2_5_vl") for method in ("caa-residual", "iti", "counterfactual")],
)
def test_every_method_is_fitted_on_pictures_and_steers_the_language_backbone_alone(name, method):
    model, processor = model_of(name)
    plain, _ = model_of(name)
    fitted = METHODS[method](model, processor, QUESTIONS)
    adapted = {key for key, _ in fitted.named_parameters() if "dso_affine" in key or "lora_" in key}
    assert adapted and [key for key in adapted if "language_model" not in key] == []
    row = QUESTIONS[0]
    inputs = inputs_of(processor, row)
    knob = knob_of(fitted)
    said = {}
    for strength in (0.0, 1.0):
        with knob.at(strength), torch.no_grad():
            said[strength] = fitted(**inputs).logits[0, -1]
    with torch.no_grad():
        base = plain(**inputs).logits[0, -1]
    assert torch.allclose(said[0.0], base, atol=1e-5)
    assert (said[1.0] - base).abs().max() > 1e-4
    (results,) = sweep(fitted, processor, {"test": QUESTIONS}, (0, 1)).sets.values()
    assert results[0].measures["kl"].value == 0 and results[1].measures["kl"].value > 0
