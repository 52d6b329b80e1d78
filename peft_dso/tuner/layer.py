"""The DSO layer: a norm with an affine pair behind it, h' = h + w (a * h + b) (paper, section 3)."""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from .affine import DSOAffine, Expected
from .config import DSOConfig
from .devices import execution_device
from .merging import fold_into_norm
from .norms import is_norm, norm_width
from .turns import Turn


class DSOLayer(nn.Module, BaseTunerLayer):
    """
    Wraps a norm and steers its output.

    The pairs of several active adapters add. Nothing is precomputed: two fused multiply-adds on the activations cost
    less than what it takes to notice every way in which a kept `1 + w a` can go stale.

    Args:
        base_layer (`nn.Module`): a norm over the last dimension, or another tuner's layer around one.
        adapter_name (`str`): name of the first adapter.
        config (`DSOConfig`): its configuration.
        strength (`float`): the strength to start with.
        rows (`str`): how the rows of a batch stand in the input: `"first"` (the first dimension), `"flat"` (the first
            dimension too, but two-dimensional inputs are sequences laid end to end, as OPT feeds its second norm),
            `"second"` (the second, as in XLNet and FSMT), or `"none"` (a tower's patches; no strength per row is
            possible).
        expected (`Expected`, *optional*): the vectors are about to be loaded.
        device (`torch.device`, *optional*): where a norm computes that has neither weights nor a hook to tell.

    Raises:
        TypeError: `base_layer` is no norm over the last dimension.
    """

    adapter_layer_names = ("dso_affine",)

    # For the type checker, to which nn.Module says that any attribute may be a tensor. From BaseTunerLayer:
    active_adapters: Any
    merged_adapters: Any
    get_base_layer: Any
    _active_adapter: Any
    _get_base_layer_device_and_dtype: Any
    # nn.ModuleDict of DSOAffine by adapter:
    dso_affine: Any

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: DSOConfig,
        strength: float = 1.0,
        rows: str = "first",
        expected: Optional[Expected] = None,
        device: Optional[torch.device] = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.dso_affine = nn.ModuleDict()
        norm = self.get_base_layer()
        width = norm_width(norm) if is_norm(norm) else None
        if width is None:
            raise TypeError(f"DSO steers norms over the last dimension; {type(norm).__name__} is none.")
        self.in_features = self.out_features = width
        self.rows = rows
        self.row_repeats = 1
        self.turn = Turn()
        self.merged_adapters: list[str] = []
        self._unmerged: Optional[tuple[torch.Tensor, Optional[torch.Tensor]]] = None
        self._trainable: Optional[dict[str, bool]] = None
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, strength, expected, device)

    def update_layer(
        self,
        adapter_name: str,
        config: DSOConfig,
        strength: float = 1.0,
        expected: Optional[Expected] = None,
        device: Optional[torch.device] = None,
    ) -> None:
        """Add the adapter `adapter_name` to this site; it becomes trainable if it is active."""
        affine = DSOAffine(self.out_features, config, strength)
        if expected is not None:
            affine.expect_values(expected)
        self.dso_affine[adapter_name] = affine
        self._move_adapter_to_device_of_base_layer(adapter_name, device)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Optional[torch.device] = None) -> None:
        """As in PEFT, to where the norm computes, which is not where offloaded weights are."""
        if adapter_name not in self.dso_affine:
            return
        affine = self.dso_affine[adapter_name]
        target = execution_device(self.get_base_layer()) or device or affine.strength.device
        if target.type != "meta":
            affine.strength = affine.strength.to(target)  # PEFT leaves a pair alone whose vectors are on meta
        super()._move_adapter_to_device_of_base_layer(adapter_name, target)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the steering on or off; switching it on again restores which adapters were trainable."""
        kept, self._trainable = self._trainable, None
        if kept is None and not enabled:
            kept = self._trainability()
        super().enable_adapters(enabled)  # which, when enabled, makes every active adapter trainable
        if not enabled:
            self._trainable = kept
        elif kept is not None:
            for name in kept.keys() & self.dso_affine.keys():
                self.dso_affine[name].requires_grad_(kept[name])

    def set_adapter(self, adapter_names: Any, inference_mode: bool = False) -> None:
        """Choose the active adapters; what is chosen while the steering is off holds when it is on again."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        if self._trainable is not None:
            self._trainable = self._trainability()

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        """Freeze adapters or let them be trained; what is set while the steering is off holds when it is on again."""
        super().set_requires_grad(adapter_names, requires_grad=requires_grad)
        if self._trainable is not None:
            names = {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)
            self._trainable.update(dict.fromkeys(names & self.dso_affine.keys(), requires_grad))

    def _trainability(self) -> dict[str, bool]:
        return {name: any(p.requires_grad for p in affine.parameters()) for name, affine in self.dso_affine.items()}

    def active_affines(self) -> list[DSOAffine]:
        """The pairs of the active adapters that this site has."""
        return [self.dso_affine[name] for name in self.active_adapters if name in self.dso_affine]

    @property
    def eps(self) -> float:
        """
        Not a number, equal to no other: the fused path of `nn.TransformerEncoderLayer`, which computes with the
        weights of its norms and calls none, is taken only where both have the same.
        """
        return math.nan

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        The steered output of the norm.

        Args:
            *args, **kwargs: the norm's own, of which the first is its input, shape `(batch, ..., d)`.

        Returns:
            `torch.Tensor`: h + w (a * h + b), of the shape and dtype of the norm's own output h.

        Raises:
            ValueError: the strength is set per row and the batch has another number of rows.
        """
        if self._disable_adapters:
            if self.merged_adapters:
                self.unmerge()
            return self.base_layer(*args, **kwargs)
        h = self.base_layer(*args, **kwargs)
        affines, plain = self.active_affines(), h
        if self.merged_adapters:
            affines = [a for a in affines if not any(a is self.dso_affine[n] for n in self.merged_adapters)]
            plain = self._plain_output(*args, **kwargs) if affines else h
        steered = h
        for affine in affines:
            strength = affine.strength
            if torch.is_grad_enabled():
                strength = strength.clone()  # autograd keeps this one: the strength may be set before backward
            if strength.dim():
                strength = self._per_row(strength, h)
            steered = torch.addcmul(steered, affine(plain), strength)
        return steered.to(h.dtype)

    def _plain_output(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the norm gives without what is merged into it: the other adapters steer that."""
        kept = {
            name: original.to(getattr(self.base_layer, name))
            for name, original in zip(("weight", "bias"), self._unmerged or (), strict=True)
            if original is not None
        }
        return torch.func.functional_call(self.base_layer, kept, args, kwargs)

    def _per_row(self, strength: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Strengths of shape `(rows,)` laid out against `h`: ones in its shape, but where the rows stand."""
        where = 1 if self.rows == "second" else 0
        rows, found = strength.shape[0], h.shape[where]
        if found != rows:
            expanded = found == rows * self.row_repeats
            flattened = self.rows == "flat" and h.dim() == 2 and found % rows == 0
            if not (expanded or flattened):
                raise ValueError(
                    f"The strength is set for {rows} rows and the batch has {found}. Set one strength per row of the "
                    "batch, or a number. (With beams or several returned sequences, call generate of the PeftModel, "
                    "or give each row's strength once per beam.)"
                )
            strength = strength.repeat_interleave(found // rows)
        return strength.view(*[1] * where, -1, *[1] * (h.dim() - 1 - where))

    # --- merging -----------------------------------------------------------------------------------------------------

    def _mergeable(self, adapter_names: Optional[list[str]]) -> list[str]:
        names = check_adapters_to_merge(self, adapter_names) if adapter_names != [] else []
        return [name for name in names if name in self.dso_affine]

    def folded_weights(self, adapter_names: list[str]) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """
        Weight and bias of the norm with the steering of `adapter_names` folded in: for a norm that multiplies by g,
        g (1 + w a); for one that multiplies by 1 + g (Gemma), (1 + g)(1 + w a) - 1; for a bias c,
        c (1 + w a) + w b. Computed in float32 or wider and cast to the norm's dtype.

        Args:
            adapter_names (`list[str]`): adapters of this site; their effects add.

        Returns:
            The weight, shape `(d,)`, and the bias, shape `(d,)`, or `None` where the norm has none.

        Raises:
            ValueError: a shift has no bias to go to, a slope no weight, the norm is not of a known form, or another
                adapter acts between the norm and the steering.
        """
        if self.base_layer is not self.get_base_layer():
            raise ValueError(
                f"another adapter ({type(self.base_layer).__name__}) acts between the norm and the steering. Merge "
                "that one before the DSO adapter is added, or keep both unmerged."
            )
        slope, shift = (
            sum(parts) for parts in zip(*(self.dso_affine[n].folded() for n in adapter_names), strict=True)
        )
        return fold_into_norm(self.get_base_layer(), slope, shift, self._unmerged)

    def merge(self, safe_merge: bool = False, adapter_names: Optional[list[str]] = None) -> None:
        """
        Fold the steering at its current strength into the norm's weight and bias. The originals are kept.

        Args:
            safe_merge (`bool`, defaults to `False`): refuse results that are not finite.
            adapter_names (`list[str]`, *optional*): which adapters; default the active ones.

        Raises:
            ValueError: as [`~DSOLayer.folded_weights`], or, with `safe_merge`, a result is not finite.
        """
        names = self._mergeable(adapter_names)
        if not names:
            return
        weight, bias = self.folded_weights(self.merged_adapters + names)
        if safe_merge and not all(t.isfinite().all() for t in (weight, bias) if t is not None):
            raise ValueError(f"NaN or infinity in the merged weights. The adapter {names[0]} seems to be broken.")
        norm = self.get_base_layer()
        if self._unmerged is None:
            self._unmerged = (norm.weight.detach().clone(), None if bias is None else norm.bias.detach().clone())
        with torch.no_grad():
            norm.weight.copy_(weight)
            if bias is not None:
                norm.bias.copy_(bias)
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Put the norm's original weight and bias back, bit for bit."""
        if self._unmerged is not None:
            norm = self.get_base_layer()
            for parameter, original in zip((norm.weight, getattr(norm, "bias", None)), self._unmerged, strict=True):
                if original is not None:
                    with torch.no_grad():
                        parameter.copy_(original)
        self._unmerged = None
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "dso." + super().__repr__()
