"""The command that opens the page: what it refuses, and how it says so."""

import json
import socket

import pytest
from models import build, tiny_tokenizer
from peft import get_peft_model

from peft_dso import DSOConfig, cli
from peft_dso.evaluation import Report, StrengthResult, save_report
from peft_dso.models import load_base


pytest.importorskip("gradio")

from peft_dso.app.reports import find_report


def test_the_report_beside_an_adapter_is_found(tmp_path):
    assert find_report(tmp_path) is None
    save_report(Report({"test": [StrengthResult(0.5, {})]}), tmp_path / "dso_report.json")
    assert find_report(tmp_path).sets["test"][0].strength == 0.5


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
