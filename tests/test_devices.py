"""Another device, no device, and weights that are elsewhere until they are needed."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
import torch
from models import build, randomize
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from peft_dso import DSOConfig, DSOLayer
from peft_dso.export import fold_strength
from peft_dso.objective import sparsity


HERE = Path(__file__).parent


def ids(rows=2):
    return torch.randint(3, 64, (rows, 5), generator=torch.Generator().manual_seed(1))


def test_a_device_that_refuses_to_be_mixed():
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore",
            str(HERE / "elsewhere_cases.py"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]


def test_sparsity_of_vectors_that_are_not_here():
    for missing in (torch.zeros(4, device="meta"), torch.zeros(0)):
        with pytest.raises(ValueError, match="offloaded or partitioned"):
            sparsity([(torch.ones(4),), (missing,)])


def test_a_model_on_meta_keeps_its_strength():
    with torch.device("meta"):
        model = get_peft_model(build("llama").to("meta"), DSOConfig(init_weights=False, steering_strength=0.25))
        assert model(ids()).logits.is_meta
    assert model.get_steering_strength() == 0.25
    model.set_steering_strength([0.1, 0.7])
    values = get_peft_model(build("llama"), DSOConfig(init_weights=False)).state_dict()
    model.to_empty(device="cpu")
    assert model.get_steering_strength() == [0.1, 0.7]
    model.load_state_dict(values)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    base, folder = randomize(build("llama")), tmp_path_factory.mktemp("saved")
    base.save_pretrained(folder / "base")
    model = get_peft_model(copy.deepcopy(base), DSOConfig(init_weights=False, task_type="CAUSAL_LM")).eval()
    model.save_pretrained(folder / "adapter")
    return base, model, folder


def offloaded(kind, saved, tmp_path):
    base = copy.deepcopy(saved[0])
    if kind == "cpu":
        return accelerate.cpu_offload(base, execution_device="cpu")
    if kind == "cpu with buffers":
        return accelerate.cpu_offload(base, execution_device="cpu", offload_buffers=True)
    if kind == "disk":
        return accelerate.disk_offload(base, tmp_path, execution_device="cpu")
    where = {"model.layers.1": "disk", **dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0",
                                                        "model.norm", "lm_head"), "cpu")}  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(saved[2] / "base", device_map=where, offload_folder=tmp_path)


def injected(base, folder):
    model = get_peft_model(base, DSOConfig.from_pretrained(folder))
    set_peft_model_state_dict(model, load_peft_weights(folder))
    return model.eval()


@pytest.mark.parametrize("kind", ["cpu", "cpu with buffers", "disk", "map"])
@torch.no_grad()
def test_offloaded_bases(kind, saved, tmp_path):
    _, steered, folder = saved
    loads = [injected]
    if kind != "map":  # PeftModel.from_pretrained takes the hooks of a device map away
        loads += [PeftModel.from_pretrained]
    for load in loads:
        model = load(offloaded(kind, saved, tmp_path), folder / "adapter")
        for strength in (1.0, [0.1, 0.7]):
            for each in (model, steered):
                each.set_steering_strength(strength)
            assert torch.equal(model(ids()).logits, steered(ids()).logits)
        model.set_steering_strength(0.0)
        steered.set_steering_strength(0.0)
        assert torch.equal(model(ids()).logits, steered(ids()).logits)
    if kind == "map":
        with pytest.raises(ValueError, match=r"offloaded.*without offloading"):
            PeftModel.from_pretrained(offloaded(kind, saved, tmp_path), folder / "adapter")


@pytest.mark.parametrize("kind", ["cpu", "map"])
@torch.no_grad()
def test_transformers_cannot_load_onto_an_offloaded_base_and_it_is_said(kind, saved, tmp_path):
    model = offloaded(kind, saved, tmp_path)
    model.load_adapter(str(saved[2] / "adapter"))
    with pytest.raises(ValueError, match="without offloading"):
        model(ids())


@torch.no_grad()
def test_offloading_a_model_that_is_steered_already(saved):
    _, steered, folder = saved
    model = PeftModel.from_pretrained(copy.deepcopy(saved[0]), folder / "adapter")
    accelerate.cpu_offload(model, execution_device="cpu")
    assert all(p.is_meta for m in model.modules() if isinstance(m, DSOLayer) for p in m.parameters())
    for strength in (0.5, [0.1, 0.7]):
        model.set_steering_strength(strength)
        steered.set_steering_strength(strength)
        assert torch.equal(model(ids()).logits, steered(ids()).logits)


def test_nothing_is_merged_or_exported_from_weights_that_are_elsewhere(saved, tmp_path):
    model = get_peft_model(offloaded("cpu", saved, tmp_path), DSOConfig(learn_shift=False, init_weights=False))
    with pytest.raises(ValueError, match="offload"):
        model.merge_adapter()
    with pytest.raises(ValueError, match="offload"):
        fold_strength(model)
