"""The model card of an adapter, read back as the Hub reads it."""

import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from models import VISION_MODELS, build, randomize, tiny_questions, tiny_tokenizer
from peft import PeftConfig, get_peft_model
from trainers import RIGHT, leaning

from peft_dso import DSOConfig, cli, export
from peft_dso.app.reports import find_report
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


@pytest.mark.parametrize("name", ["llava", "smolvlm", "gemma3", "qwen2_5_vl"])
def test_the_loader_of_a_vision_language_model_works(tmp_path, name):
    make, model_class, _ = VISION_MODELS[name]
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


def test_the_loader_of_an_encoder_decoder_works(tmp_path):
    base = randomize(build("t5"))
    base.save_pretrained(tmp_path / "base")
    model = saved(base, tmp_path / "adapter", "SEQ_2_SEQ_LM")
    loaded = run_code(loading_code(model_card(tmp_path / "adapter", repo_id="user/adapter")), tmp_path / "base",
                      tmp_path / "adapter")  # fmt: skip
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        together = [m.eval()(input_ids=ids, decoder_input_ids=ids).logits for m in (loaded, model)]
    assert torch.equal(*together)


def test_what_a_card_says_stays_when_it_is_written_again(tmp_path):
    saved(leaning(), tmp_path)
    save_card(tmp_path, license="mit", trained_on="Two frames.\n\nAnd no more.")
    text = save_card(tmp_path, repo_id="user/adapter").read_text()
    assert "license: mit" in text and "Two frames.\n\nAnd no more." in text and '"user/adapter"' in text
    text = save_card(tmp_path, license="apache-2.0", trained_on="One.").read_text()
    assert "license: apache-2.0" in text and "\nOne.\n" in text and "Two frames" not in text


def test_pushing_leaves_an_edited_card_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "push_adapter", lambda folder, *args, **kwargs: "pushed")
    saved(leaning(), tmp_path)
    call = ["card", str(tmp_path), "--repo-id", "user/adapter"]
    assert cli.main([*call, "--license", "mit"]) == 0
    card = tmp_path / "README.md"
    edited = card.read_text() + "\nBy hand.\n"
    card.write_text(edited)
    assert cli.main([*call, "--push"]) == 0 and card.read_text() == edited
    assert cli.main([*call, "--push", "--trained-on", "More."]) == 0 and "More." in card.read_text()


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
    saved(leaning(), tmp_path)
    main = "import sys; from peft_dso.cli import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", main, "card", str(tmp_path), "--repo-id", "user/adapter", "--push"],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1 and "the Hub cannot be reached" in run.stderr and "Traceback" not in run.stderr


def test_a_report_and_a_picture_of_other_vectors_are_not_shown(tmp_path):
    model = saved(leaning(), tmp_path / "adapter")
    report = sweep(model, tiny_tokenizer(), {"a": tiny_questions()}, (0.0, 1.0))
    report.description["vectors_sha256"] = PeftConfig.from_pretrained(tmp_path / "adapter").vectors_sha256
    (tmp_path / "measured").mkdir()
    save_report(report, tmp_path / "measured" / "report.json")
    (tmp_path / "measured" / "sweep.png").write_bytes(b"picture")
    text = save_card(tmp_path / "adapter", tmp_path / "measured").read_text()
    assert "sweep.png" in text and "at strengths 0, 1" in describe(tmp_path / "adapter") and "sha256" not in text
    assert find_report(tmp_path / "adapter") is not None
    # A report without a picture does not keep the picture of the one before.
    (tmp_path / "measured" / "sweep.png").unlink()
    assert "sweep.png" not in save_card(tmp_path / "adapter", tmp_path / "measured").read_text()

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".dso_affine." in name:
                parameter.add_(1)
    model.save_pretrained(tmp_path / "adapter")
    assert "nothing: the report in the folder is of other vectors" in describe(tmp_path / "adapter")
    assert "Nothing: no sweep" in save_card(tmp_path / "adapter").read_text()
    assert find_report(tmp_path / "adapter") is None
    with pytest.raises(ValueError, match="of another adapter"):
        save_card(tmp_path / "adapter", tmp_path / "measured")


def test_modules_that_no_strength_turns_are_named(tmp_path):
    model = get_peft_model(build("llama"), DSOConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"]))
    model.save_pretrained(tmp_path)
    text = str(model_card(tmp_path))
    assert "lm_head, which no strength turns" in text and "`model.set_steering_strength(0)`, or" not in text
    (count, of) = re.search(r"([\d,]+) of ([\d,]+) neurons are left", text).groups()
    assert count == of == f"{2 * 2 * model.config.hidden_size:,}"  # two norms in each of two blocks, still zero
