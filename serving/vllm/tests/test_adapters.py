"""Adapters that are not what they say: each is refused by what is wrong with it, before any engine is asked."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from peft_dso_vllm.adapters import read_vectors
from peft_dso_vllm.settings import open_adapter
from test_features import changed


SLOPE = "base_model.model.model.layers.0.input_layernorm.dso_affine.slope"


def opened(source) -> None:
    for adapter in open_adapter("bad", source):
        read_vectors(adapter)


def slope(values: torch.Tensor):
    return lambda tensors: {**tensors, SLOPE: values}


@pytest.fixture
def fair(references):
    return references["llama"]["adapters"]["fair"]


@pytest.mark.parametrize(
    "tensors, config, message",
    [
        (slope(torch.full((64,), torch.nan)), {}, "is not a vector of finite"),
        (slope(torch.full((64,), 1e300, dtype=torch.float64)), {}, "is not a vector of finite"),
        (slope(torch.full((64,), torch.inf).to(torch.float8_e5m2)), {}, "is not a vector of finite"),
        (slope(torch.ones(64, dtype=torch.int32)), {}, "is not a vector of finite"),
        (slope(torch.ones(8, 8)), {}, "is not a vector of finite"),
        (slope(torch.tensor(1.0)), {}, "is not a vector of finite"),
        (lambda tensors: {**tensors, "lm_head": torch.ones(64)}, {}, "no vector of a DSO adapter"),
        (lambda tensors: {}, {}, "holds no vectors"),
        (None, {"base_fingerprint": [1]}, "base_fingerprint .* must be a mapping"),
        (None, {"weights_sha256": "0" * 64}, "its sha256 differs"),
        (None, {"weights_sha256": 5}, "its sha256 differs"),
        (None, {"steering_strength": "much"}, "steering_strength must be a number"),
        (None, {"steering_strength": {"layers.0": None}}, "steering_strength layers.0 must be a number"),
        (None, {"steering_strength": {"(": 1.0}}, "is not usable"),
        (None, {"steering_strength": {"(x+x+)+y": 1.0}}, "matches none of the sites"),
        (None, {"steering_strength": {"nowhere": 1.0}}, "matches none of the sites"),
        (None, {"peft_type": "LORA"}, "of the kind 'LORA'"),
        (None, {"peft_type": ["DSO"]}, "not DSO"),
        (None, {"modules_to_save": ["lm_head"]}, "whole modules cannot be served"),
    ],
)
def test_what_is_in_the_folder(fair, tmp_path, tensors, config, message):
    opened(fair)
    with pytest.raises(ValueError, match=message):
        opened(changed(fair, tmp_path / "changed", tensors, **config))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("adapter_config.json", b"[" * 10**5, "is not JSON"),
        ("adapter_config.json", b"\xff\xfe\x00", "is not JSON"),
        ("adapter_config.json", b"[]", "not DSO"),
        ("adapter_config.json", b"", "is not JSON"),
        ("adapter_model.safetensors", b"\xff" * 64, "is not a safetensors file"),
        ("adapter_model.safetensors", b"", "is not a safetensors file"),
        ("adapter_model.safetensors", (10**9).to_bytes(8, "little") + b"{}", "is not a safetensors file"),
        ("adapter_model.safetensors", b"\x80\x04\x95", "is not a safetensors file"),
    ],
)
def test_files_that_are_something_else(fair, tmp_path, name, content, message):
    folder = Path(changed(fair, tmp_path / "changed", weights_sha256=None))
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        opened(str(folder))


def test_a_pickle_and_a_pipe_are_never_read(fair, tmp_path):
    pickled, piped = (Path(changed(fair, tmp_path / name)) for name in ("pickled", "piped"))
    shutil.move(pickled / "adapter_model.safetensors", pickled / "adapter_model.bin")
    (piped / "adapter_config.json").unlink()
    os.mkfifo(piped / "adapter_config.json")  # reading it would wait for ever
    with pytest.raises(ValueError, match="a pickle, which is never read: save it as safetensors"):
        opened(str(pickled))
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        opened(str(piped))


@pytest.mark.parametrize(
    "source, message",
    [
        ("/etc/../etc", "holds no adapter_config.json"),
        ("../../../../etc/passwd", "is no folder here"),
        ("/dev/zero", "is no folder here"),
        ("\0", "is no folder here"),
        ("http://localhost/adapter", "is no folder here"),
        ("x" * 10**5, "is no folder here"),
        ("", "must be a folder, a repository"),
        (5, "must be a folder, a repository"),
        ({"path": {"path": "FAIR"}}, "must be a folder, a repository"),
        ({"path": "FAIR", "subfolder": "../fair"}, "must lie inside"),
        ({"path": "FAIR", "subfolder": "/etc"}, "must lie inside"),
        ({"path": "FAIR", "subfolder": 5}, "must be a folder, a repository"),
        ({"path": "FAIR", "revision": ["main"]}, "must be a folder, a repository"),
    ],
)
def test_where_an_adapter_lies(fair, source, message):
    if isinstance(source, dict) and source["path"] == "FAIR":
        source = {**source, "path": fair}
    with pytest.raises(ValueError, match=message):
        opened(source)
