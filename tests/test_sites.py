"""Which norms are steered by default: exactly those of the language backbone's blocks."""

import pytest
import torch
from models import TEXT_MODELS, VISION_MODELS, build
from peft import get_peft_model
from torch import nn
from transformers import NanoChatConfig, NanoChatForCausalLM
from transformers.integrations.bitnet import BitLinear
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm
from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.squeezebert.modeling_squeezebert import SqueezeBertLayerNorm

from peft_dso import DSOConfig, find_sites
from peft_dso.tuner import is_norm
from peft_dso.tuner.sites import fingerprint


NOT_BLOCK = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "final", "model.norm", "ln_f", "vision", "visual")


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_models(name):
    model = build(name)
    sites = find_sites(model)
    assert len(sites) == TEXT_MODELS[name][3], [site.name for site in sites]
    if name != "opt":  # whose second norm of each block is called final_layer_norm
        assert not [s.name for s in sites if any(part in s.name for part in NOT_BLOCK)]
    assert all(site.width == 16 for site in sites)
    steered = get_peft_model(model, DSOConfig())
    assert sum(p.numel() for p in steered.parameters() if p.requires_grad) == len(sites) * 2 * 16


@pytest.mark.parametrize("name", VISION_MODELS)
def test_vision_language_models(name):
    config, model_class, count = VISION_MODELS[name]
    with torch.device("meta"):
        model = model_class(config())
    sites = find_sites(model)
    assert len(sites) == count, [site.name for site in sites]
    assert not [s.name for s in sites if any(part in s.name for part in NOT_BLOCK)]
    # The towers do have norms of blocks: they are left out, and can be asked for.
    others = [n for n, m in model.named_modules() if is_norm(m) and ("vision" in n or "visual" in n)]
    assert others
    assert [s.name for s in find_sites(model, DSOConfig(target_modules=[others[0]]))] == [others[0]]


class Packed(nn.Module):
    """A quantised linear layer as GPTQ and EETQ have them: a matrix of integers under one of two names."""

    def __init__(self, name, **widths):
        super().__init__()
        self.register_buffer(name, torch.zeros(16, 2, dtype=torch.int32))
        vars(self).update(widths)


@pytest.mark.parametrize(
    "linear",
    [
        lambda i, o: BitLinear(i, o, False),
        lambda i, o: BitLinear(i, o, False, use_rms_norm=True),
        lambda i, o: Packed("qweight"),
        lambda i, o: Packed("weight"),
        lambda i, o: Packed("W_q", in_features=i, out_features=o),
        lambda i, o: Packed("W_q", infeatures=i, outfeatures=o),
    ],
    ids=["bitnet", "bitnet_norm", "qweight", "weight", "in_features", "infeatures"],
)
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_a_quantised_model_has_the_sites_of_the_model(name, linear):
    """Its linear layers are no nn.Linear: query and key norms stand beside them all the same."""
    model = build(name)
    expected, before = [site.name for site in find_sites(model)], fingerprint(model)
    for n, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, last = n.rpartition(".")
            setattr(model.model.get_submodule(parent), last, linear(module.in_features, module.out_features))
    assert [site.name for site in find_sites(model)] == expected and fingerprint(model) == before


def names(model, **config):
    return [site.name for site in find_sites(model, DSOConfig(**config))]


def test_layers_to_transform_holds_for_every_kind_of_target():
    model = build("llama")
    block = ["model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm"]
    assert names(model, layers_to_transform=[1]) == block
    assert names(model, layers_to_transform=1, layers_pattern="layers") == block
    assert names(model, layers_to_transform=[1], layers_pattern=["h", "layer."]) == block
    assert names(model, target_modules=r".*input_layernorm", layers_to_transform=[1]) == block[:1]
    assert names(model, target_modules=["input_layernorm"], layers_to_transform=[0]) == [
        "model.layers.0.input_layernorm"
    ]
    assert names(model, target_modules=block, layers_to_transform=[1]) == block
    injected = get_peft_model(model, DSOConfig(target_modules=r".*input_layernorm", layers_to_transform=[1]))
    assert [n for n, _ in injected.named_parameters() if "dso_" in n and "layers.0" in n] == []


def test_exclusion_and_what_is_left_out_by_default():
    model = build("qwen3")
    assert len(names(model, exclude_modules=["input_layernorm"])) == 2
    assert len(names(model, exclude_modules=r".*layers\.0\..*")) == 2
    assert names(model, target_modules=["model.norm"]) == ["model.norm"]
    assert len(names(model, target_modules=["q_norm"])) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target_modules": ["nothing"]}, "No norm to steer.*input_layernorm"),
        ({"target_modules": ["q_proj"]}, "q_proj.*Linear"),
        ({"layers_to_transform": [7]}, "No norm to steer"),
        ({"target_modules": "("}, "not a valid regular expression"),
        ({"target_modules": r"(?:a?|b?|.){60}\d\d\d"}, "took longer"),
        ({"exclude_modules": r"(?:a?|b?|.){60}\d\d\d"}, "took longer"),
        ({"target_modules": r"(\w+\.?)+$!"}, "No norm to steer"),  # Python's own re would run for years
    ],
)
def test_refusals_name_the_value_and_leave_the_model_alone(config, message):
    model = build("llama")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, DSOConfig(**config))
    assert [name for name, _ in model.named_modules()] == before


def test_a_model_without_norms():
    with pytest.raises(ValueError, match="Norms of this model: none"):
        find_sites(nn.Sequential(nn.Linear(2, 2)))


def test_a_norm_that_does_not_say_its_width_is_named():
    with torch.device("meta"):
        config = NanoChatConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
        model = NanoChatForCausalLM(config)
    with pytest.raises(ValueError, match="NanoChatRMSNorm: no weight and no width, which cannot be steered"):
        find_sites(model)


def test_what_is_a_norm():
    assert is_norm(nn.LayerNorm(4)) and is_norm(nn.RMSNorm(4)) and is_norm(nn.LayerNorm(4, elementwise_affine=False))
    for other in (nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.Linear(4, 4), nn.InstanceNorm1d(4), nn.LayerNorm((2, 4)),
                  DetrFrozenBatchNorm2d(4)):  # fmt: skip
        assert not is_norm(other)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(lambda: ConvNextLayerNorm(8, data_format="channels_first"), (1, 8, 2, 3)),
     (lambda: SqueezeBertLayerNorm(8), (1, 8, 3))],
    ids=["convnext", "squeezebert"],
)  # fmt: skip
def test_norms_over_another_dimension_are_refused(norm, shape):
    model = nn.ModuleList([nn.Sequential(nn.LayerNorm(8)), nn.Sequential(norm())])
    assert model[1](torch.randn(shape)).shape == shape
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=r"'1\.0' \(\w+LayerNorm\) does not normalise the last dimension.*exclude"):
        get_peft_model(model, DSOConfig())
    assert [name for name, _ in model.named_modules()] == before
    get_peft_model(model, DSOConfig(exclude_modules=["1.0"]))
    get_peft_model(nn.ModuleList([nn.Sequential(ConvNextLayerNorm(8))]), DSOConfig())  # channels last


def test_a_wide_norm_is_tried_on_little(monkeypatch):
    made = []
    real = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *args, **kwargs: made.append(real(*args, **kwargs)) or made[-1])
    model = nn.ModuleList([nn.Sequential(LlamaRMSNorm(4096))])
    made.clear()
    get_peft_model(model, DSOConfig())
    assert made and max(values.numel() for values in made) <= 4 * 4096


@pytest.mark.parametrize(
    "wrong",
    [
        {"steering_strength": float("nan")},
        {"steering_strength": float("inf")},
        {"steering_strength": 1e39},  # infinite as float32
        {"steering_strength": -(10**400)},
        {"steering_strength": {"layers.0": 10**400}},
        {"steering_strength": "much"},
        {"steering_strength": {"layers.0": float("nan")}},
        {"learn_slope": False, "learn_shift": False},
        {"layers_pattern": "layers"},
        {"modules_to_save": ["(a+)+$"]},
    ],
)
def test_config_refuses(wrong):
    with pytest.raises(ValueError):
        DSOConfig(**wrong)


def test_config_takes_the_largest_strength():
    largest = torch.finfo(torch.float32).max
    assert DSOConfig(steering_strength=-largest).steering_strength == -largest
    assert get_peft_model(build("llama"), DSOConfig(steering_strength=largest)).get_steering_strength() < float("inf")


def test_print_steering_sites(capsys):
    model = get_peft_model(build("llama"), DSOConfig())
    model.print_steering_sites()
    printed = capsys.readouterr().out
    assert "model.layers.1.post_attention_layernorm" in printed and "4 sites, 128 parameters" in printed
