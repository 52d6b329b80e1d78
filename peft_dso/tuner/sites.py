"""Which norms are steered: found by what a module is and where it stands, not by a list of names per architecture."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional

import regex
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from .config import DSOConfig
from .norms import check_axis, is_norm, norm_width, without_width
from .targets import is_target


# What linear layers of all kinds call the numbers of their inputs and outputs.
WIDTHS = (("in_features", "out_features"), ("infeatures", "outfeatures"))

# The models of transformers that turn sequences and rows around inside.
SEQUENCE_FIRST = ("xlnet", "fsmt")


@dataclass(frozen=True)
class Site:
    """
    A norm that can be steered.

    Args:
        name (`str`): full name of the module in the model.
        module_class (`str`): class of the norm.
        width (`int`): number of features `d` of its output.
    """

    name: str
    module_class: str
    width: int


def _ancestors(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The modules that hold `name`, the nearest first, the model itself last."""
    parts = name.split(".")[:-1]
    while parts:
        yield model.get_submodule(".".join(parts))
        parts.pop()
    yield model


def in_language_backbone(model: nn.Module, name: str) -> bool:
    """
    Whether a module stands in the part of the model that reads text: the nearest model of transformers around it does
    not say that it reads images or sound only (`input_modalities`) and, in a composite model, carries the text
    configuration. A model that is not of transformers is language throughout.
    """
    config: Any = getattr(model, "config", None)
    for module in _ancestors(model, name):
        if isinstance(module, PreTrainedModel):
            modalities = module.input_modalities
            if "text" not in ([modalities] if isinstance(modalities, str) else modalities):
                return False
            if module is model or not getattr(config, "sub_configs", None):
                continue
            towers = {
                type(getattr(config, key, None))
                for key in config.sub_configs
                if getattr(config, key, None) is not None and getattr(config, key) is not config.get_text_config()
            }
            if type(module.config) in towers - {type(config.get_text_config())}:
                return False
    return True


def rows_of(model: nn.Module, name: str) -> str:
    """How the rows of a batch stand in the input of a norm: see [`DSOLayer`]."""
    if not in_language_backbone(model, name):
        return "none"
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        attention: Any = getattr(next(_ancestors(model, name)), "self_attn", None)
        return "second" if getattr(attention, "batch_first", True) is False else "first"  # torch's own blocks say
    return "second" if model_type in SEQUENCE_FIRST else "flat"


def _is_block_norm(model: nn.Module, name: str) -> bool:
    """
    Whether a norm stands on the residual stream of a block: its parent is an element of a module list (a Llama layer,
    a sublayer of T5) or lies in one and holds fewer than two projections, or it is itself an element of a list of the
    model (XLM keeps its blocks as a list per part). An attention with query and key norms holds more; a final norm
    lies in no module list.
    """
    parent, *rest = _ancestors(model, name)
    if isinstance(parent, nn.ModuleList) and isinstance(rest[0], PreTrainedModel):
        return True
    if rest and isinstance(rest[0], (nn.ModuleList, nn.Sequential)):
        return True
    if _is_projection(parent) or sum(map(_is_projection, parent.children())) > 1:
        return False
    return any(isinstance(module, nn.ModuleList) for module in rest)


def _is_projection(module: nn.Module) -> bool:
    """
    Whether a module is a linear layer, one of a quantised model included: those are classes of their own, which say
    how wide they are (BitNet, AWQ, HQQ) or hold a matrix (EETQ, GPTQ).
    """
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    if is_norm(module) or not all(map(is_norm, module.children())):  # BitNet's may hold a norm
        return False
    if any(hasattr(module, i) and hasattr(module, o) for i, o in WIDTHS):
        return True
    matrices = (getattr(module, name, None) for name in ("weight", "qweight"))
    return any(isinstance(matrix, torch.Tensor) and matrix.dim() == 2 for matrix in matrices)


def all_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Every norm of the model by name, steered ones included, without the norms inside a tuner layer."""
    norms: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside) and inside:
            continue
        if isinstance(module, BaseTunerLayer):
            inside += (name + ".",)
        if name and is_norm(module):
            norms[name] = module
    return norms


def default_site_names(model: nn.Module) -> set[str]:
    """All norms of each block of the language backbone (paper, section 3; `target_modules=None`)."""
    return {n for n in all_norms(model) if _is_block_norm(model, n) and in_language_backbone(model, n)}


def find_sites(model: nn.Module, config: Optional[DSOConfig] = None) -> list[Site]:
    """
    Which norms a config would steer, without changing the model.

    Args:
        model (`nn.Module`): a model, with or without adapters.
        config (`DSOConfig`, *optional*): the configuration; default `DSOConfig()`.

    Returns:
        `list[Site]`: the sites in the order of the model.

    Raises:
        ValueError: the config matches nothing, or something that is not a norm.
    """
    config = config or DSOConfig()
    norms = all_norms(model)
    if config.target_modules is None:
        names = default_site_names(model)
        probe = DSOConfig(
            target_modules=sorted(names),
            exclude_modules=config.exclude_modules,
            layers_to_transform=config.layers_to_transform,
            layers_pattern=config.layers_pattern,
            modules_to_save=config.modules_to_save,
        )
        matches = [name for name in norms if is_target(probe, name)]
    else:
        inside = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, BaseTunerLayer))
        matches = [
            name
            for name, _ in model.named_modules()
            if name and not (inside and name.startswith(inside)) and is_target(config, name)
        ]
    wrong = [name for name in matches if name not in norms]
    if wrong:
        raise ValueError(
            f"DSO steers norms over the last dimension, but target_modules={config.target_modules!r} matches "
            f"{wrong[0]!r} ({type(model.get_submodule(wrong[0])).__name__}). Norms of this model: {_listing(norms)}."
        )
    if not matches:
        raise ValueError(
            f"No norm to steer: target_modules={config.target_modules!r}, exclude_modules={config.exclude_modules!r}, "
            f"layers_to_transform={config.layers_to_transform!r} match none in {type(model).__name__}. "
            f"Norms of this model: {_listing(norms)}.{without_width(model)}"
        )
    sites = []
    for name in matches:
        module = norms[name]
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        sites.append(Site(name, type(base).__name__, norm_width(base) or 0))
    return sites


def check_sites(model: nn.Module, names: Collection[str]) -> None:
    """
    Refuse sites that stand in two places, of which only the first would be steered (a norm of a block that is itself
    used twice, as Zamba's, is in one), and norms over another dimension than the last.

    Args:
        model (`nn.Module`): the model.
        names (`Collection[str]`): of the sites.

    Raises:
        ValueError: there is such a site.
    """
    for name in names:
        module = model.get_submodule(name)
        check_axis(module.get_base_layer() if isinstance(module, BaseTunerLayer) else module, name)
    modules = dict(model.named_modules(remove_duplicate=False))
    places: dict[int, dict[tuple[int, str], str]] = {id(modules[name]): {} for name in names}
    for name, module in modules.items():
        if id(module) in places:
            parent, _, last = name.rpartition(".")
            places[id(module)].setdefault((id(modules[parent]), last), name)
    for found in places.values():
        if len(found) > 1:
            raise ValueError(
                f"{' and '.join(found.values())} are one and the same norm, of which only the first would be steered. "
                "Give each its own copy (copy.deepcopy), or leave it out with exclude_modules."
            )


def _listing(norms: dict[str, nn.Module], most: int = 12) -> str:
    """Names of norms with the block numbers folded, so that a hundred of them still fit a message."""
    folded = list(dict.fromkeys(regex.sub(r"\.\d+\.", ".{i}.", name) for name in norms))
    return (", ".join(folded[:most]) + (", ..." if len(folded) > most else "")) if folded else "none"


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """
    What identifies a base model well enough to refuse another one: `model_type` of the language backbone,
    `hidden_size`, and the number of sites that it has by default (whichever of them are steered).
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return {
        "model_type": getattr(text, "model_type", None),
        "hidden_size": getattr(text, "hidden_size", None),
        "num_sites": len(default_site_names(model)),
    }


def check_fingerprint(found: Mapping[str, Any], expected: Mapping[str, Any], name: Optional[str]) -> None:
    """
    Refuse a base model that is not the one an adapter was made for.

    Args:
        found (`Mapping[str, Any]`): the [`fingerprint`] of the base model.
        expected (`Mapping[str, Any]`): the one in the adapter's configuration.
        name (`str`, *optional*): what the base model of the adapter is called.

    Raises:
        ValueError: they differ.
    """
    differing = [
        f"{key} {expected[key]!r}, here {found.get(key)!r}" for key in expected if expected[key] != found.get(key)
    ]
    if differing:
        raise ValueError(
            f"This DSO adapter was made for another base model: {'; '.join(differing)}. Load it on "
            f"{name or 'the model it was trained on'}, or, for a new adapter, make a new DSOConfig."
        )


def site_table(model: nn.Module, pairs: Mapping[str, nn.Module]) -> str:
    """
    The sites of an adapter as text, a line for each.

    Args:
        model (`nn.Module`): the model with the layers.
        pairs (`Mapping[str, DSOAffine]`): the adapter's pairs by site.

    Returns:
        `str`: site, class of the norm and number of parameters; the sums last.
    """
    counts = {site: sum(p.numel() for p in pair.parameters()) for site, pair in pairs.items()}
    width, layers = max(map(len, counts)), dict(model.named_modules())
    lines = [
        f"{site:{width}}  {type(layers[site].get_base_layer()).__name__:24}  {count:>9,}"
        for site, count in counts.items()
    ]
    return "\n".join([*lines, f"{len(counts)} sites, {sum(counts.values()):,} parameters"])
