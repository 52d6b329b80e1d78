"""The model card of an adapter, read back as the Hub reads it."""

import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from models import VISION_MODELS, build, randomize, tiny_questions, tiny_tokenizer
from peft import get_peft_model
from trainers import RIGHT, leaning

from peft_dso import DSOConfig
from peft_dso.evaluation import save_report, sweep
from peft_dso.evaluation.measures import MEASURES
from peft_dso.export import model_card, save_card
from peft_dso.inspect import describe


def saved(base, folder, task_type="CAUSAL_LM", name="user/base"):
    base.name_or_path = base.config._name_or_path = name
    model = get_peft_model(base, DSOConfig(task_type=task_type, init_weights=False)).eval()
    model.save_pretrained(folder)
    return model


def test_one_entry_for_each_set_and_strength(tmp_path):
    torch.manual_seed(0)
    model = saved(leaning(), tmp_path / "adapter")
    sets = {"frames": tiny_questions() + RIGHT, "occupations": tiny_questions()[:4]}
    report = sweep(model, tiny_tokenizer(), sets, (0.0, 0.5, 1.0), neutral=["A man is a clerk ."])
    save_report(report, tmp_path / "report.json")
    path = save_card(tmp_path / "adapter", tmp_path / "report.json", repo_id="user/adapter", license="mit")
    data = ModelCard.load(path).data.to_dict()
    entries = data["model-index"][0]["results"]
    told = {(e["dataset"]["args"]["set"], e["dataset"]["args"]["strength"]) for e in entries}
    assert len(entries) == 6 and told == {(name, w) for name in sets for w in (0.0, 0.5, 1.0)}
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "adapter"
    read = {(r.dataset_args["set"], r.dataset_args["strength"], r.metric_type): r.metric_value for r in results}
    expected = {
        (s, r.strength, key): round(m.value, 4)
        for s, found in report.sets.items()
        for r in found
        for key, m in r.measures.items()
        if MEASURES[key].published
    }
    assert len(results) == len(read) and read == pytest.approx(expected)
    assert "neutral_kl" in {r.metric_type for r in results}
    # What is measured stands beside the adapter from now on.
    assert "at strengths 0, 0.5, 1" in describe(tmp_path / "adapter")


def loading_code(card):
    return re.search(r"```python\n(.*?)```", str(card), re.DOTALL).group(1)


def run_code(code, base, adapter):
    """The code of a card, with folders in place of the names on the Hub."""
    variables = {}
    exec(code.replace('"user/base"', repr(str(base))).replace('"user/adapter"', repr(str(adapter))), variables)
    return variables["model"]


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_the_loader_of_a_text_model_works(tmp_path, task_type):
    base = randomize(build("llama"))
    base.save_pretrained(tmp_path / "base")
    model = saved(base, tmp_path / "adapter", task_type, str(tmp_path / "base") if task_type else "user/base")
    card = model_card(tmp_path / "adapter", repo_id="user/adapter")
    loaded = run_code(loading_code(card).replace("BASE MODEL", "user/base"), tmp_path / "base", tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


def test_the_loader_of_a_vision_language_model_works(tmp_path):
    make, model_class, _ = VISION_MODELS["llava"]
    torch.manual_seed(0)
    base = model_class(make()).eval()
    base.save_pretrained(tmp_path / "base")
    model = saved(base, tmp_path / "adapter")
    card = model_card(tmp_path / "adapter", repo_id="user/adapter")
    assert "AutoModelForImageTextToText" in loading_code(card)
    assert yaml.safe_load(card.data.to_yaml())["pipeline_tag"] == "image-text-to-text"
    loaded = run_code(loading_code(card), tmp_path / "base", tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(input_ids=ids).logits, model(input_ids=ids).logits)
