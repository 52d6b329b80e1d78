"""
Folding the steering at one strength into the weights of a stock model.

A norm of weight g steered by a slope a and a shift b at strength w gives h (1 + w a) + w b. The slope goes into the
norm's own weight. The shift goes into the norm's bias where it has one; otherwise into biases of the linear layers
that read the norm's output: W (h + w b) = W h + w W b.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from ..tuner import DSOLayer
from ..tuner.devices import check_present, execution_device
from ..tuner.merging import check_unshared, fold_into_norm
from ..tuner.strength import dso_layers


# The linear layers that read each norm of a Llama block. Qwen2 and Mistral blocks are the same, and stock Llama has
# switches for the biases (attention_bias, mlp_bias).
READERS: dict[str, tuple[str, ...]] = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
AS_LLAMA = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
# What a LlamaConfig takes over from the others.
_KEPT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_parameters", "attention_dropout",
)  # fmt: skip


@dataclass
class Folded:
    """
    A stock model with the steering in its weights.

    Args:
        model (`PreTrainedModel`): no tuner layer is left in it.
        dropped (`list[str]`): the norms whose shift had no home and was left out.
    """

    model: PreTrainedModel
    dropped: list[str] = field(default_factory=list)


def fold_strength(model: nn.Module, drop_shift: bool = False) -> Folded:
    """
    A stock copy of a steered model, at the strength that is set.

    LayerNorm models stay what they are. Llama models get the biases that their config has switches for; Qwen2 (and
    Qwen2.5) and Mistral without a sliding window become Llama models. An adapter without shifts folds into any model.

    Args:
        model (`nn.Module`): a `PeftModel` with active DSO adapters, or a plain model with one loaded; not changed.
        drop_shift (`bool`, defaults to `False`): leave out shifts that have no home, instead of refusing.

    Returns:
        `Folded`: the copy, on the model's device and in its dtype, and what was left out.

    Raises:
        ValueError: a shift has no home, the strength is set per row, an adapter is merged, a weight is offloaded or
            tied to another module's, or the model is quantised or has adapters of another kind.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = dso_layers(base)
    check_present(base, "Nothing can be folded")
    _check_plain(base)
    for name, layer in layers.items():
        if layer.merged_adapters:
            raise ValueError(f"An adapter is merged into {name!r}. Call unmerge_adapter() first.")
    check_unshared(base, {name: layer.get_base_layer() for name, layer in layers.items()})
    wanted = {name: _effect(layer) for name, layer in layers.items()}
    homes = {name: _home(base, name, layer) for name, layer in layers.items()}
    homeless = [name for name, (_, shift) in wanted.items() if shift.any() and not homes[name]]
    if homeless and not drop_shift:
        listed = ", ".join(homeless[:4]) + (f" and {len(homeless) - 4} more" if len(homeless) > 4 else "")
        raise ValueError(
            f"The shift behind {listed} has no home in a stock {type(base).__name__}: no layer that reads it has a "
            "bias. Drop these shifts (drop_shift=True, --drop-shift), which costs some of the steering, or train with "
            "DSOConfig(learn_shift=False)."
        )
    biases = _reader_biases(base, {n: s for n, (_, s) in wanted.items() if s.any() and homes[n] == "readers"})
    plain = _without_tuners(base)
    modules = dict(plain.named_modules())
    with torch.no_grad():
        for name, layer in layers.items():
            slope, shift = wanted[name]
            kept = shift if homes[name] == "bias" else torch.zeros_like(shift)
            weight, bias = fold_into_norm(layer.get_base_layer(), slope, kept)
            modules[name].weight.copy_(weight)
            if bias is not None:
                modules[name].bias.copy_(bias)
    return Folded(_as_llama(plain, biases) if biases else plain, homeless)


def _check_plain(model: Any) -> None:
    """
    Raises:
        ValueError: the weights are quantised, or split over processes: no stock checkpoint can be written of them.
    """
    for name, parameter in model.named_parameters():
        # A tensor subclass made of other tensors is one of torchao's formats, or a DTensor.
        if not parameter.is_floating_point() or hasattr(parameter, "__tensor_flatten__"):
            raise ValueError(
                f"{name!r} is quantised or split over processes. Load the base model unquantised and whole "
                "(dtype='bfloat16' saves memory), with the same adapter, and export that."
            )


def _effect(layer: DSOLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """w a and w b of a site, summed over the active adapters, shape `(d,)`."""
    parts = [affine.folded() for affine in layer.active_affines()]
    if layer.disable_adapters or not parts:
        zero = torch.zeros(layer.out_features, device=execution_device(layer))
        return zero, zero
    slope, shift = (torch.stack(vectors).sum(0) for vectors in zip(*parts, strict=True))
    return slope, shift


def _home(model: Any, name: str, layer: DSOLayer) -> str:
    """Where a site's shift can go: `"bias"` (the norm's own), `"readers"` (biases of a Llama block), or nowhere."""
    if getattr(layer.get_base_layer(), "bias", None) is not None:
        return "bias"
    block, _, last = name.rpartition(".")
    if not isinstance(model, AS_LLAMA) or last not in READERS or _slides(model.config):
        return ""
    return "readers" if block.rpartition(".")[0] == "model.layers" else ""


def _slides(config: Any) -> bool:
    """Whether a layer of the model looks back through a window, which Llama has not."""
    kinds = getattr(config, "layer_types", None) or []
    used = getattr(config, "use_sliding_window", True)  # Mistral's window has no switch
    window = getattr(config, "sliding_window", None) is not None and used
    return any(kind != "full_attention" for kind in kinds) if kinds else window


def _reader_biases(model: Any, shifts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Biases of the layers that read the shifted norms: w W b, in float32 or wider."""
    biases = {}
    for name, shift in shifts.items():
        block, _, last = name.rpartition(".")
        for reader in READERS[last]:
            linear = model.get_submodule(f"{block}.{reader}")
            if not isinstance(linear, nn.Linear) or type(linear.weight) is not nn.Parameter:
                raise ValueError(
                    f"{block}.{reader} is {type(linear).__name__}: only plain linear layers can be folded into. Load "
                    "the base model unquantised and without other adapters."
                )
            wide = torch.promote_types(linear.weight.dtype, torch.float32)
            bias = linear.weight.detach().to(wide) @ shift.to(wide)
            if linear.bias is not None:
                bias = bias + linear.bias.detach().to(wide)
            biases[f"{block}.{reader}.bias"] = bias.to(linear.weight.dtype)
    return biases


def _without_tuners(model: Any) -> Any:
    """A copy of a model whose steered norms are the norms themselves."""
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, DSOLayer):
            parent, _, last = name.rpartition(".")
            setattr(plain.get_submodule(parent), last, module.base_layer)
    trained = [name for name, module in plain.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    if trained:
        raise ValueError(
            f"{trained[0]!r} was trained beside the pairs (modules_to_save), which cannot be folded. Use "
            "merge_and_unload(), or train without it."
        )
    left = [name for name, module in plain.named_modules() if hasattr(module, "base_layer")]
    if left:
        raise ValueError(f"{left[0]!r} carries an adapter of another kind. Merge or unload it first.")
    for key in ("peft_config", "_hf_peft_config_loaded"):
        if key in plain.__dict__:
            delattr(plain, key)
    return plain.requires_grad_(True)


def _as_llama(plain: Any, biases: Mapping[str, torch.Tensor]) -> LlamaForCausalLM:
    """The model as a stock Llama whose projections have biases, those of `biases` or zero."""
    config = plain.config
    kept = {key: getattr(config, key) for key in _KEPT if getattr(config, key, None) is not None}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    state = dict(plain.state_dict())
    made = LlamaForCausalLM(
        LlamaConfig(
            **kept,
            head_dim=head,
            attention_bias=any(".self_attn." in key for key in biases)
            or "model.layers.0.self_attn.q_proj.bias" in state,
            mlp_bias=any(".mlp." in key for key in biases) or "model.layers.0.mlp.gate_proj.bias" in state,
            dtype=plain.dtype,
        )
    ).to(plain.device)
    for parameter in made.parameters():  # and no buffer: rotary frequencies stay float32
        parameter.data = parameter.data.to(plain.dtype)
    state.update(biases)
    for key, tensor in made.state_dict().items():
        if key.endswith(".bias") and key not in state:
            state[key] = torch.zeros_like(tensor)
    made.load_state_dict(state)
    made.tie_weights()
    made.generation_config = copy.deepcopy(plain.generation_config)
    return made.eval()
