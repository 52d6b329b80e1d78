"""What is loaded must fit: PEFT itself lets missing and surplus tensors pass."""

import json
import subprocess
import sys

import pytest
import torch
from models import TEXT, build, randomize
from peft import PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from peft_dso import DSOConfig, DSOLayer, find_sites
from peft_dso.tuner.files import read_adapter


KEY = "base_model.model.model.layers.1.input_layernorm.dso_affine.slope"


@pytest.fixture
def folder(tmp_path):
    get_peft_model(build("llama"), DSOConfig(init_weights=False, task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    return tmp_path


def edit(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    edit_config(folder, weights_sha256=None, vectors_sha256=None)  # as somebody would who changes the file on purpose


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_changed_file_is_refused(folder):
    """A flipped byte may well give finite numbers of the right shape."""
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="sha256 differs"):
        PeftModel.from_pretrained(build("llama"), folder)
    edit_config(folder, weights_sha256=None, vectors_sha256=None)
    PeftModel.from_pretrained(build("llama"), folder)


def flip(folder):
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_loaders_that_do_not_say_which_file_they_read_notice_it_too(folder):
    """transformers' `load_adapter`, and PEFT with a config of the caller's."""
    x = torch.arange(3, 8)[None]
    expected = PeftModel.from_pretrained(build("llama"), folder)(x).logits

    def by_transformers():
        model = build("llama")
        model.load_adapter(str(folder))
        return model

    def by_config():
        return PeftModel.from_pretrained(build("llama"), folder, config=PeftConfig.from_pretrained(folder))

    for load in (by_transformers, by_config):
        torch.testing.assert_close(load()(x).logits, expected)
    flip(folder)
    for load in (by_transformers, by_config):
        with pytest.raises(ValueError, match="vectors_sha256"):
            load()(x)
    with pytest.raises(ValueError, match="weights_sha256"):
        read_adapter(folder)


@torch.no_grad()
def test_a_model_that_is_compiled_at_once_notices_it_too(folder):
    x = torch.arange(3, 8)[None]
    expected = PeftModel.from_pretrained(build("llama"), folder)(x).logits
    for changed in (False, True):
        torch._dynamo.reset()
        model = build("llama")
        model.load_adapter(str(folder))
        compiled = torch.compile(model, backend="eager")
        if not changed:
            torch.testing.assert_close(compiled(x).logits, expected)
            flip(folder)
            continue
        for _ in range(2):
            with pytest.raises(ValueError, match="vectors_sha256"):
                compiled(x)
        with pytest.raises(RuntimeError, match="Run the model once, then export"):
            torch.export.export(model, (x,), {"use_cache": False}, strict=False)


@torch.no_grad()
def test_a_model_whose_values_are_checked_is_one_graph(folder):
    x = torch.arange(3, 8)[None]
    by_transformers = build("llama")
    by_transformers.load_adapter(str(folder))
    with pytest.raises(Exception, match="_check_once_uncompiled"):
        torch.compile(by_transformers, backend="eager", fullgraph=True)(x, use_cache=False)
    by_transformers(x)
    for model in (by_transformers, PeftModel.from_pretrained(build("llama"), folder).get_base_model()):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, use_cache=False).logits, model(x).logits)


def test_an_adapter_may_be_changed_once_it_is_loaded(folder):
    model = PeftModel.from_pretrained(build("llama"), folder)
    model.base_model.prune(0.5)
    model(torch.arange(3, 8)[None])
    pruned = {key: value / 2 for key, value in load_file(folder / "adapter_model.safetensors").items()}
    set_peft_model_state_dict(model, pruned)
    model(torch.arange(3, 8)[None])
    model.save_pretrained(folder)
    PeftModel.from_pretrained(build("llama"), folder, config=PeftConfig.from_pretrained(folder))


def test_sites_come_in_the_order_of_the_blocks(tmp_path):
    model = get_peft_model(other(num_hidden_layers=12), DSOConfig(init_weights=False))
    model.save_pretrained(tmp_path)
    config, sites = read_adapter(tmp_path)
    assert list(sites) == [site.name for site in find_sites(other(num_hidden_layers=12))]
    assert isinstance(config, DSOConfig) and set(sites["model.layers.10.input_layernorm"]) == {"slope", "shift"}


def test_only_the_card_that_peft_has_just_made_is_introduced(tmp_path):
    get_peft_model(build("llama"), DSOConfig()).save_pretrained(tmp_path / "fresh")
    card = (tmp_path / "fresh" / "README.md").read_text()
    assert card.count("import peft_dso  # first") == 1 and "- dso" in card
    DSOConfig().save_pretrained(tmp_path / "fresh")
    assert (tmp_path / "fresh" / "README.md").read_text() == card
    for i, mine in enumerate(
        [b"# My project\n", b"---\nlibrary_name: peft\n---\n# Mine", b"---\n: [\n---\n", b"\xff\r\n"]
    ):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "README.md").write_bytes(mine)
        DSOConfig().save_pretrained(folder)
        assert (folder / "README.md").read_bytes() == mine


CHANGES = {
    "missing": (lambda t: t.pop(KEY), r"input_layernorm.*slope is missing"),
    "surplus": (
        lambda t: t.update({KEY.replace("layers.1", "layers.7"): torch.zeros(16)}),
        r"layers\.7.*does not belong",
    ),
    "shape": (lambda t: t.update({KEY: torch.zeros(8)}), r"shape \(8,\) instead of \(16,\)"),
    "two dimensions": (lambda t: t.update({KEY: torch.zeros(1, 16)}), r"shape \(1, 16\) instead of \(16,\)"),
    "integers": (lambda t: t.update({KEY: torch.zeros(16, dtype=torch.int64)}), "not floating-point"),
    "nan": (lambda t: t[KEY].__setitem__(3, float("nan")), "NaN or infinity"),
    "infinity": (lambda t: t[KEY].__setitem__(3, float("inf")), "NaN or infinity"),
}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("kind", CHANGES)
def test_tensors_that_do_not_fit(folder, kind, low_cpu_mem_usage):
    change, message = CHANGES[kind]
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(build("llama"), folder, low_cpu_mem_usage=low_cpu_mem_usage)


@pytest.mark.parametrize("kind", ["missing", "shape", "two dimensions", "nan", "infinity"])
def test_tensors_that_do_not_fit_through_transformers(folder, kind):
    """`load_adapter` of transformers only reports what is missing: the first use refuses it."""
    edit(folder, CHANGES[kind][0])
    model = build("llama")
    with pytest.raises((ValueError, RuntimeError), match="not loaded whole|ignore_mismatched_sizes"):
        model.load_adapter(str(folder))
        model(torch.arange(3, 8)[None])


def test_a_saved_config_without_its_vectors_does_not_steer_silently(folder):
    model = inject_adapter_in_model(PeftConfig.from_pretrained(folder), build("llama"))
    with pytest.raises(ValueError, match="not loaded whole"):
        model(torch.arange(3, 8)[None])
    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    model(torch.arange(3, 8)[None])


def other(**changes):
    return LlamaForCausalLM(LlamaConfig(**{**TEXT, **changes}))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: other(hidden_size=32), r"another base model: hidden_size 16, here 32"),
        (lambda: other(num_hidden_layers=3), r"num_sites 4, here 6"),
        (lambda: other(num_hidden_layers=1), r"num_sites 4, here 2"),
        (lambda: build("qwen2"), r"model_type 'llama', here 'qwen2'"),
        (lambda: build("gpt2"), r"model_type 'llama', here 'gpt2'"),
    ],
)
def test_another_base_model_is_refused(folder, base, message):
    model = base()
    names = [n for n, _ in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, folder)
    assert names == [n for n, _ in model.named_modules()]  # nothing was changed before the refusal


def test_no_safetensors(folder):
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises((ValueError, OSError), match=r"safetensors|adapter_model"):
        PeftModel.from_pretrained(build("llama"), folder)


def test_a_pickle_is_not_read(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises((ValueError, OSError), match=r"safetensors"):
        PeftModel.from_pretrained(build("llama"), folder)


def test_a_broken_safetensors_file(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(Exception, match=r"(?i)safetensor|header|deserializ|incomplete"):
        PeftModel.from_pretrained(build("llama"), folder)


def test_config_from_json(folder):
    config = PeftConfig.from_pretrained(folder)
    assert isinstance(config, DSOConfig) and config.peft_type == "DSO"
    assert config.base_fingerprint == {"model_type": "llama", "hidden_size": 16, "num_sites": 4}
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "DSO"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steering_strength": float("nan")}, "finite"),
        ({"steering_strength": {"layers.0": float("inf")}}, "finite"),
        ({"learn_slope": False, "learn_shift": False}, "nothing would be learned"),
        ({"target_modules": r"(?:a?|b?|.){60}\d\d\d"}, "target_modules|pattern|time"),
        ({"target_modules": ["../../etc/passwd"]}, "no norm|match"),
    ],
)
def test_hostile_configs(folder, changes, message):
    edit_config(folder, base_fingerprint=None, **changes)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(build("llama"), folder)


@pytest.mark.parametrize("wrong", [{"base_fingerprint": [True]}, {"weights_sha256": 3}, {"vectors_sha256": {}}])
def test_what_is_filled_in_has_a_type(folder, wrong):
    edit_config(folder, **wrong)
    with pytest.raises(TypeError, match=next(iter(wrong))):
        PeftModel.from_pretrained(build("llama"), folder)


def test_without_norms_and_with_nothing_matched():
    linear = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="norm"):
        get_peft_model(linear, DSOConfig())
    with pytest.raises(ValueError, match=r"q_proj"):
        get_peft_model(build("llama"), DSOConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"nowhere[\s\S]*input_layernorm"):
        get_peft_model(build("llama"), DSOConfig(target_modules=["nowhere"]))


def test_a_fresh_process_loads_it(folder):
    base = randomize(build("llama"))
    base.save_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, folder).eval()
    x = torch.arange(3, 8)[None]
    code = f"""
import torch, peft_dso
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({str(folder / "base")!r})
model = PeftModel.from_pretrained(base, {str(folder)!r}).eval()
print(float(model(torch.arange(3, 8)[None]).logits.double().sum()))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch.testing.assert_close(float(found.stdout), float(model(x).logits.double().sum()), rtol=1e-5, atol=1e-5)
    assert sum(isinstance(m, DSOLayer) for m in model.modules()) == 4
