"""The adapter that is trained: what it must be, and its pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import torch
from accelerate.utils import DistributedType, is_peft_model
from peft import PeftConfig
from torch import nn

from ..objective import soft_threshold_, sparsity
from ..tuner import DSOConfig, DSOLayer, is_norm
from .units import like


def has_adapters(model: Any) -> bool:
    """Whether a model is a PeftModel, perhaps wrapped for several devices; a name is none."""
    return not isinstance(model, str) and bool(is_peft_model(model))


def check_adapter(model: Any) -> dict[str, torch.Tensor]:
    """That a PeftModel holds a trainable DSO adapter "default"; returns copies of its vectors."""
    config = model.peft_config.get("default")
    if not isinstance(config, DSOConfig):
        raise ValueError(
            "The model must hold a DSO adapter called 'default'; it holds "
            + ", ".join(f"{name!r} ({c.peft_type})" for name, c in model.peft_config.items())
            + "."
        )
    vectors = {name: p for name, p in model.named_parameters() if ".dso_affine.default." in name}
    if not any(p.requires_grad for p in vectors.values()):
        raise ValueError("The adapter is frozen. Load it with PeftModel.from_pretrained(..., is_trainable=True).")
    return {name: p.detach().clone() for name, p in vectors.items()}


def adapter_config(model: Any, peft_config: Optional[PeftConfig]) -> Optional[PeftConfig]:
    """The configuration of a new adapter; a model that has one needs none."""
    if has_adapters(model):
        return peft_config
    if peft_config is not None and not isinstance(peft_config, DSOConfig):
        raise ValueError(f"peft_config must be a DSOConfig, got {type(peft_config).__name__}.")
    return DSOConfig(task_type="CAUSAL_LM") if peft_config is None else peft_config


def restore_adapter(model: Any, trained: Mapping[str, torch.Tensor]) -> None:
    """
    Undo what TRL does to a PeftModel: a reference that is not the base, and pairs in bfloat16.

    Args:
        model (`PeftModel`): the model, unwrapped.
        trained (`Mapping[str, torch.Tensor]`): its vectors as they were, by name (see [`check_adapter`]).
    """
    if "ref" in model.peft_config:
        # TRL's copy of the loaded adapter. The reference of DSO is the base model: without "ref", TRL disables the
        # adapter instead.
        model.delete_adapter("ref")
    for name, parameter in model.named_parameters():
        if ".dso_affine." in name and parameter.dtype != torch.float32:
            # TRL casts what is trained on a quantised base to bfloat16, where a slope does not move.
            parameter.data = trained.get(name, parameter.data).to(parameter.device, torch.float32)


def check_l1(l1_coef: float, distributed: Any) -> None:
    """Refuse the l1 step where the backend would undo it."""
    if l1_coef > 0 and distributed == DistributedType.DEEPSPEED:
        raise ValueError(
            f"l1_coef={l1_coef!r} has no effect with DeepSpeed, whose optimizer writes its own copy of the vectors "
            "over the zeros. Set l1_coef=0 and prune(keep=...) the trained adapter, or launch without it."
        )


def check_vllm(model: Any, peft_config: Optional[PeftConfig]) -> None:
    """TRL merges the adapter before each vLLM rollout; what cannot be merged would be lost."""
    config: Any = model.peft_config["default"] if has_adapters(model) else peft_config
    norms = [m for m in model.modules() if is_norm(m)] if isinstance(model, nn.Module) else []
    home = bool(norms) and all(getattr(norm, "bias", None) is not None for norm in norms)
    if config.learn_shift and not home:
        raise ValueError(
            "use_vllm=True merges the adapter into the model for each rollout, and a shift cannot be merged into an "
            "RMSNorm. Generate with transformers (use_vllm=False), or train with DSOConfig(learn_shift=False)."
        )


def adapter_layers(model: nn.Module) -> list[DSOLayer]:
    """The steered norms of the adapter "default", in the model's order."""
    return [m for m in model.modules() if isinstance(m, DSOLayer) and "default" in m.dso_affine]


Units = tuple[Optional[torch.Tensor], Optional[torch.Tensor]]  # of a slope and a shift, None for 1


class PairSteps:
    """
    What an optimizer does not do to the pairs of an adapter: steps in units, and the l1 term's proximal step.

    Args:
        layers (`list[DSOLayer]`): the steered norms.
        l1_coef (`float`): coefficient of the l1 term, in which slopes and shifts count in their units.
        l1_until (`float`): share of the training in which it acts; afterwards the zeros stay zero and the others are
            free of its pull (relaxed lasso, Meinshausen 2007).
    """

    def __init__(self, layers: list[DSOLayer], l1_coef: float, l1_until: float) -> None:
        self.affines = [layer.dso_affine["default"] for layer in layers]
        self.norms = [layer.get_base_layer() for layer in layers]
        self.units: Sequence[Units] = [(None, None)] * len(layers)  # see [`~SteppingTrainer.measure_units`]
        self.l1_coef, self.l1_until = l1_coef, l1_until
        self._kept: Optional[list[tuple[nn.Parameter, torch.Tensor]]] = None

    def _vectors(self) -> Iterator[tuple[nn.Parameter, Optional[torch.Tensor]]]:
        for affine, units in zip(self.affines, self.units, strict=True):
            for vector, unit in zip((affine.slope, affine.shift), units, strict=True):
                if vector is not None:
                    yield vector, unit

    def scaled(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """The vectors whose unit is not 1, with their units."""
        return ((vector, unit) for vector, unit in self._vectors() if unit is not None)

    def before_step(self, progress: float) -> None:
        """Note what the l1 steps have left, once they are over (`progress` is the share of the training done)."""
        self._kept = None
        if self.l1_coef and progress >= self.l1_until:
            kept = [(p, p != 0) for affine in self.affines for p in affine.parameters()]
            # In a training of few steps none may have been taken yet: zeros that are no work of the l1 steps are free.
            if any(there.any() for _, there in kept):
                self._kept = kept

    @torch.no_grad()
    def after_step(self, rate: float) -> None:
        """The proximal step of `rate * l1_coef`, or, once they are over, keep the zeros."""
        if self._kept is not None:
            for parameter, kept in self._kept:
                parameter.mul_(kept)
        elif self.l1_coef:
            for vector, unit in self._vectors():
                soft_threshold_([vector], rate * self.l1_coef * (1.0 if unit is None else like(unit, vector)))

    def sparsity(self) -> tuple[float, float]:
        """See [`~peft_dso.objective.sparsity`]."""
        return sparsity([tuple(affine.parameters()) for affine in self.affines])
