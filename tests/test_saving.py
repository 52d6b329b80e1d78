"""What is saved with what: by PEFT, and by transformers' own save_pretrained, which writes the configuration first."""

import copy
import json
import pickle

import pytest
import torch
from models import build
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from peft_dso import DSOConfig
from peft_dso.export import fold_strength


def filled(model, value):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".dso_affine." in name:
                parameter.fill_(value)


def read(folder):
    model = PeftModel.from_pretrained(build("llama"), folder)
    model(input_ids=torch.tensor([[1, 2, 3]]))  # the first use checks the values
    return {float(p.flatten()[0]) for n, p in model.named_parameters() if ".dso_affine." in n}


@pytest.mark.parametrize("times", [1, 2])
def test_transformers_saves_into_the_same_folder_again(tmp_path, times):
    model = build("llama")
    model.add_adapter(DSOConfig(task_type="CAUSAL_LM"))
    for value in (0.25, 0.5)[:times]:
        filled(model, value)
        model.save_pretrained(tmp_path)
    assert read(tmp_path) == {value}
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["vectors_sha256"]
    # And a file that was changed is still found out.
    other = get_peft_model(build("llama"), DSOConfig(task_type="CAUSAL_LM"))
    filled(other, 0.125)
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "adapter_model.safetensors").replace(tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="not those that were saved|not what was saved"):
        read(tmp_path)


def test_peft_saves_both_hashes(tmp_path):
    model = get_peft_model(build("llama"), DSOConfig(task_type="CAUSAL_LM"))
    for value in (0.25, 0.5):
        filled(model, value)
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "adapter_config.json").read_text())
        assert saved["weights_sha256"] and saved["vectors_sha256"] and read(tmp_path) == {value}


def test_weights_that_are_written_by_hand_go_with_their_configuration(tmp_path):
    model = get_peft_model(build("llama"), DSOConfig(task_type="CAUSAL_LM"))
    filled(model, 0.25)
    model.save_pretrained(tmp_path / "one")
    filled(model, 0.5)
    model.save_pretrained(tmp_path / "two")
    (tmp_path / "two" / "adapter_model.safetensors").replace(tmp_path / "one" / "adapter_model.safetensors")
    model.peft_config["default"].save_pretrained(tmp_path / "one")
    assert read(tmp_path / "one") == {0.5}


def test_vectors_that_were_looked_at_before_they_were_trained(tmp_path):
    """Somebody's own saving: the configuration first, then the vectors as they are, or a copy of the earlier ones."""
    model = get_peft_model(build("llama"), DSOConfig(task_type="CAUSAL_LM"))
    filled(model, 0.5)
    earlier = {name: vector.clone() for name, vector in get_peft_model_state_dict(model).items()}
    model.to(torch.float64).to(torch.float32)  # the parameters' storage is another one now
    filled(model, 0.25)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for one in (model, copied):
        one.peft_config["default"].save_pretrained(tmp_path)
        assert not json.loads((tmp_path / "adapter_config.json").read_text())["vectors_sha256"]  # which, is not known
        for vectors, value in ((earlier, 0.5), (get_peft_model_state_dict(one), 0.25)):
            save_file(vectors, tmp_path / "adapter_model.safetensors")
            assert read(tmp_path) == {value}
        (tmp_path / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize("name", ["slope", "1", "layers"])
def test_a_name_that_hides_vectors_of_another_adapter_is_refused(tmp_path, name):
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False), adapter_name=name)
    model.add_adapter("both", DSOConfig(init_weights=False))
    with pytest.raises(ValueError, match=f"'both' would be saved with . of its 8 vectors.*{name}"):
        model.save_pretrained(tmp_path)


def test_what_was_trained_beside_the_pairs_is_not_exported():
    model = get_peft_model(build("llama"), DSOConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"]))
    with pytest.raises(ValueError, match="modules_to_save"):
        fold_strength(model)
