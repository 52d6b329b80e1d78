"""Hostile adapters: whatever stands in the two files, loading either refuses with an ordinary error or is right."""

import copy
import dataclasses
import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import build
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError

from peft_dso import DSOConfig, DSOLayer


BASE = build("llama")
IDS = torch.tensor([[4, 5, 6, 7]])
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, OSError, SafetensorError, RuntimeError)
FIELDS = [field.name for field in dataclasses.fields(DSOConfig)]
examples = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    get_peft_model(copy.deepcopy(BASE), DSOConfig(init_weights=False, task_type="CAUSAL_LM")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def good(folder):
    return (folder / "adapter_config.json").read_text(), (folder / "adapter_model.safetensors").read_bytes()


def load_or_refuse(folder):
    """The loaded model, or None; a loaded one must be the base at strength 0 and hold finite float vectors."""
    base = copy.deepcopy(BASE)
    try:
        model = PeftModel.from_pretrained(base, folder).eval()
        layers = [module for module in model.modules() if isinstance(module, DSOLayer)]
        if not layers:  # another, valid type of adapter
            return None
        model.set_steering_strength(0.0)
    except REFUSALS:
        return None
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, BASE(IDS).logits)
    for layer in layers:
        assert all(p.isfinite().all() for p in layer.parameters())
    return model


@pytest.mark.slow
@examples
@given(changes=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=10), json_values, min_size=1, max_size=3))
def test_configs(folder, good, changes):
    config, weights = good
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text(json.dumps({**json.loads(config), **changes}))
    load_or_refuse(folder)


@pytest.mark.slow
@examples
@given(text=st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1")))
def test_configs_that_are_no_json(folder, good, text):
    (folder / "adapter_model.safetensors").write_bytes(good[1])
    (folder / "adapter_config.json").write_text(text)
    assert load_or_refuse(folder) is None


def with_header(weights, change):
    size = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights[8 + size :]


@pytest.mark.slow
@examples
@given(
    place=st.integers(0, 7),
    key=st.sampled_from(["dtype", "shape", "data_offsets", None]),
    value=json_values | st.lists(st.integers(-(2**63), 2**63), max_size=3) | st.sampled_from(["F64", "BOOL", "../x"]),
)
def test_headers(folder, good, place, key, value):
    config, weights = good

    def change(header):
        name = sorted(n for n in header if n != "__metadata__")[place]
        if key is None:
            header[str(value)] = header.pop(name)
        else:
            header[name][key] = value

    (folder / "adapter_config.json").write_text(
        json.dumps({**json.loads(config), "weights_sha256": None, "vectors_sha256": None})
    )
    changed = with_header(weights, change)
    (folder / "adapter_model.safetensors").write_bytes(changed)
    if load_or_refuse(folder) is not None:
        assert key == "data_offsets" or changed == with_header(weights, lambda header: None)


@pytest.mark.slow
@examples
@given(cut=st.integers(0, 3000), byte=st.integers(0, 255), where=st.integers(0, 3000))
def test_bytes(folder, good, cut, byte, where):
    """Cut off or changed anywhere: the checksum tells."""
    config, weights = good
    changed = bytearray(weights)
    changed[where % len(weights)] ^= byte
    changed = bytes(changed[: len(weights) - cut]) if cut < len(weights) else b""
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(changed)
    assert (load_or_refuse(folder) is not None) == (changed == weights)


def test_another_type_runs_nothing_of_dso(folder, good):
    (folder / "adapter_model.safetensors").write_bytes(good[1])
    for kind in ("LORA", "NOTHING", 3, None):
        (folder / "adapter_config.json").write_text(json.dumps({**json.loads(good[0]), "peft_type": kind}))
        assert load_or_refuse(folder) is None
