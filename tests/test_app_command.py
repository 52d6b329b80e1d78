"""The command that opens the page: what it refuses, and how it says so; and the reports that it shows."""

import json
import socket

import pytest
from models import build, tiny_tokenizer
from peft import get_peft_model
from test_app import example_report

from peft_dso import DSOConfig, cli
from peft_dso.evaluation import Report, StrengthResult, save_report
from peft_dso.models import load_base


pytest.importorskip("gradio")

from peft_dso.app.report_tab import Shown
from peft_dso.app.reports import BUDGETS, find_report, from_budget, value_at


def test_the_report_beside_an_adapter_is_found(tmp_path):
    assert find_report(tmp_path) is None
    save_report(Report({"test": [StrengthResult(0.5, {})]}), tmp_path / "dso_report.json")
    assert find_report(tmp_path).sets["test"][0].strength == 0.5


def test_a_strength_from_a_budget():
    results = sorted(example_report().sets["test"], key=lambda r: r.strength)
    most_kl, most_bias, least_accuracy = BUDGETS
    assert value_at(results, "bias", 0.25) == pytest.approx(0.35)
    assert value_at(results, "bias", 1.5) != value_at(results, "bias", 1.5)  # nan: not measured
    # kl is 0, 0.025, 0.1 at 0, 0.5, 1: 0.04 is reached at 0.5 + 0.5 * 0.015 / 0.075
    assert from_budget(results, most_kl, 0.04) == pytest.approx(0.6)
    assert from_budget(results, most_bias, 0.15) == pytest.approx(0.75)
    assert from_budget(results, least_accuracy, 0.94) == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"the best bias there is 0\.100"):
        from_budget(results, most_bias, 0.05)
    with pytest.raises(ValueError, match="no kl"):
        from_budget(example_report(kl=False).sets["test"], most_kl, 0.05)
    with pytest.raises(ValueError, match="must be a number, got None"):
        from_budget(results, most_kl, None)
    pictures, numbers = Shown(example_report(), "test").at(0.25)
    assert "the strength is 0.25" in pictures and pictures.count("<img") == 2
    assert "0.25 (now, in between)" in numbers and "0.350" in numbers and "0.500 ± 0.010" in numbers


@pytest.mark.parametrize("port", ["0", "-1", "70000", "web"])
def test_a_port_that_cannot_be_is_refused(port, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["app", "--port", port])
    assert f"{port!r} is no port: give a number from 1 to 65535" in capsys.readouterr().err


def test_a_place_that_is_taken_or_unknown_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["app", "--port", str(port)]) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
    assert cli.main(["app", "--host", "no address"]) == 1
    assert "--host" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("adapter_model.safetensors", None, "no adapter_model.safetensors"),
        ("adapter_model.safetensors", b"cut off", "cannot be read"),
        ("adapter_config.json", b"{", "cannot be read"),
        ("dso_report.json", b"{", "dso_report.json is not a report"),
    ],
)
def test_an_adapter_with_a_broken_file_is_named(file, content, said, tmp_path, capsys):
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    model, tokenizer = get_peft_model(build("llama"), DSOConfig(init_weights=False)), tiny_tokenizer()
    model.save_pretrained(adapter)
    model.unload().save_pretrained(base), tokenizer.save_pretrained(base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"weights_sha256": None, "vectors_sha256": None}  # an adapter without checksums
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / file).write_bytes(content) if content else (adapter / file).unlink()
    assert cli.main(["app", "--model", str(base), "--adapter", str(adapter), "--no-browser"]) == 1
    error = capsys.readouterr().err
    assert said in error and str(adapter) in error


@pytest.mark.parametrize(
    ("options", "said"), [({"device": "cuda:99"}, "no device 'cuda:99'"), ({"dtype": "float99"}, "dtype='float99'")]
)
def test_a_device_or_dtype_that_cannot_be_is_named(options, said):
    with pytest.raises((RuntimeError, ValueError), match=said):
        load_base("anything", **options)
