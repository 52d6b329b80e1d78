"""The DSO layer: a norm with an affine pair behind it, h' = h + w (a * h + b) (paper, section 3)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from .config import DSOConfig
from .files import vectors_sha256
from .sites import is_norm, norm_width


@dataclass
class Expected:
    """
    What is still to be loaded into the pairs of an adapter. What loads it need not notice a missing or a broken tensor
    (transformers' `load_adapter` only reports it), so that the first use checks the values.

    Args:
        sha256 (`str`, *optional*): of the vectors that were saved (see [`~files.vectors_sha256`]).
        affines (`list[DSOAffine]`): the pairs of the adapter, at all sites.
    """

    sha256: Optional[str] = None
    affines: list[DSOAffine] = field(default_factory=list)

    def check(self) -> None:
        """
        Raises:
            ValueError: a value is NaN or infinite, or the vectors are not those that were saved.
        """
        vectors = [(name, p) for affine in self.affines for name, p in affine.named_parameters()]
        for name, parameter in vectors:
            if not parameter.isfinite().all():
                raise ValueError(
                    f"The DSO adapter was not loaded whole, or is broken: a {name} is missing or holds NaN or "
                    "infinity. Load it from a complete folder."
                )
        self.compare(vectors)
        for affine in self.affines:
            affine.expected = None

    def compare(self, vectors: Sequence[tuple[str, torch.Tensor]]) -> None:
        """
        Compare vectors with those that were saved, once: afterwards the adapter may be changed.

        Raises:
            ValueError: they differ.
        """
        # A process of several may hold a part of them only; a cast to another dtype has other bytes.
        whole = all(type(v.data) is torch.Tensor and not v.is_meta and v.numel() for _, v in vectors)
        if not whole or any(v.dtype != torch.float32 for _, v in vectors):
            return
        if self.sha256 and vectors_sha256(vectors) != self.sha256:
            raise ValueError(
                "The vectors of the DSO adapter are not those that were saved with adapter_config.json: their sha256 "
                "differs (vectors_sha256). The file was changed, or something else was loaded into the adapter: get "
                "it again, or, if it was changed on purpose, remove weights_sha256 and vectors_sha256 from "
                "adapter_config.json."
            )
        self.sha256 = None


class DSOAffine(nn.Module):
    """
    One adapter's pair at one site, and the strength that scales it.

    All of it stays float32 when the model around it is cast: a slope is a small deviation, and in bfloat16 it would
    not move at usual learning rates.

    Args:
        width (`int`): number of features `d`.
        config (`DSOConfig`): says which of the two vectors there are and how they start.
        strength (`float`): the strength to start with.

    Attributes:
        slope (`nn.Parameter`, *optional*): a, shape `(d,)`, float32.
        shift (`nn.Parameter`, *optional*): b, shape `(d,)`, float32.
        strength (`torch.Tensor`): w, float32, shape `()` or `(rows,)`; not saved.
    """

    slope: Optional[nn.Parameter]
    shift: Optional[nn.Parameter]
    strength: torch.Tensor

    def __init__(self, width: int, config: DSOConfig, strength: float) -> None:
        super().__init__()
        for name, learned in (("slope", config.learn_slope), ("shift", config.learn_shift)):
            vector = torch.zeros(width, dtype=torch.float32)
            if not config.init_weights:
                vector.normal_(std=0.1)
            self.register_parameter(name, nn.Parameter(vector) if learned else None)
        self.register_buffer("strength", torch.tensor(float(strength), dtype=torch.float32), persistent=False)
        self.expected: Optional[Expected] = None

    def expect_values(self, expected: Expected) -> None:
        """Make the pair unusable until values are loaded into it (see [`Expected`])."""
        self.expected = expected
        expected.affines.append(self)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(torch.nan)

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        """a * h + b for `h` of shape `(..., d)`, in float32 or the wider dtype of `h`."""
        if self.shift is None:
            return h * self.slope  # type: ignore[operator]  # one of the two is there
        if self.slope is None:
            return self.shift
        return torch.addcmul(self.shift, h, self.slope)

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        w a and w b, each of shape `(d,)`, detached.

        Raises:
            ValueError: there is a strength per row, which no single vector can express.
        """
        if self.strength.dim():
            raise ValueError(
                f"The strength is set per row ({self.strength.tolist()}): merging needs one number. "
                "Call set_steering_strength with a number first."
            )
        vectors = [p for p in (self.slope, self.shift) if p is not None]
        zero = torch.zeros_like(vectors[0]).detach()
        slope = zero if self.slope is None else self.strength * self.slope.detach()
        shift = zero if self.shift is None else self.strength * self.shift.detach()
        return slope, shift

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> DSOAffine:
        def move_only(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            if moved.dtype == tensor.dtype:
                return moved
            # Not a cast back of the cast, which has lost digits by then. A tensor without values has none to lose.
            return torch.empty_like(tensor, device=moved.device) if moved.is_meta else tensor.to(moved.device)

        super()._apply(move_only, recurse)
        return self


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
            dimension too, but two-dimensional inputs are sequences laid end to end, as OPT feeds its second norm), or
            `"none"` (a tower's patches; no strength per row is possible).
        expected (`Expected`, *optional*): the vectors are about to be loaded.

    Raises:
        TypeError: `base_layer` is no norm over the last dimension.
    """

    adapter_layer_names = ("dso_affine",)

    # For the type checker, to which nn.Module says that any attribute may be a tensor. From BaseTunerLayer:
    active_adapters: Any
    merged_adapters: Any
    get_base_layer: Any
    set_adapter: Any
    _active_adapter: Any
    _get_base_layer_device_and_dtype: Any
    _move_adapter_to_device_of_base_layer: Any
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
        self.merged_adapters: list[str] = []
        self._unmerged: Optional[tuple[torch.Tensor, Optional[torch.Tensor]]] = None
        self._trainable: Optional[dict[str, bool]] = None
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, strength, expected)

    def update_layer(
        self, adapter_name: str, config: DSOConfig, strength: float = 1.0, expected: Optional[Expected] = None
    ) -> None:
        """Add the adapter `adapter_name` to this site; it becomes trainable if it is active."""
        affine = DSOAffine(self.out_features, config, strength)
        if expected is not None:
            affine.expect_values(expected)
        device = self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        if device is not None and device.type != "meta":
            affine.strength = affine.strength.to(device)
        self.dso_affine[adapter_name] = affine
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the steering on or off; switching it on again restores which adapters were trainable."""
        if not enabled and self._trainable is None:
            self._trainable = {
                name: any(p.requires_grad for p in affine.parameters()) for name, affine in self.dso_affine.items()
            }
        super().enable_adapters(enabled)
        if enabled and self._trainable is not None:
            for name in self._trainable.keys() & self.dso_affine.keys():
                self.dso_affine[name].requires_grad_(self._trainable[name])
            self._trainable = None

    def active_affines(self) -> list[DSOAffine]:
        """The pairs of the active adapters that this site has."""
        return [self.dso_affine[name] for name in self.active_adapters if name in self.dso_affine]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        The steered output of the norm.

        Args:
            x (`torch.Tensor`): input of the norm, shape `(batch, ..., d)`.

        Returns:
            `torch.Tensor`: h + w (a * h + b), of the shape and dtype of the norm's own output h.

        Raises:
            ValueError: the strength is set per row and the batch has another number of rows.
        """
        if self._disable_adapters:
            if self.merged_adapters:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        h = self.base_layer(x, *args, **kwargs)
        if self.merged_adapters:
            return h
        steered = h
        for affine in self.active_affines():
            if affine.expected is not None and not torch.compiler.is_compiling():
                affine.expected.check()
            strength = affine.strength
            if strength.dim():
                strength = self._per_row(strength, h)
            steered = torch.addcmul(steered, affine.delta(h), strength)
        return steered.to(h.dtype)

    def _per_row(self, strength: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Strengths of shape `(rows,)` laid out against `h`, as shape `(h.shape[0], 1, ...)`."""
        rows, found = strength.shape[0], h.shape[0]
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
        return strength.view(-1, *[1] * (h.dim() - 1))

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
            ValueError: a shift has no bias to go to, a slope no weight, or the norm is not of a known form.
        """
        slope, shift = (sum(parts) for parts in zip(*(self.dso_affine[n].folded() for n in adapter_names)))
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
            self._unmerged = (norm.weight.data, None if bias is None else norm.bias.data)
        norm.weight.data = weight
        if bias is not None:
            norm.bias.data = bias
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Put the norm's original weight and bias back, bit for bit."""
        if self._unmerged is not None:
            norm = self.get_base_layer()
            for parameter, original in zip((norm.weight, getattr(norm, "bias", None)), self._unmerged):
                if original is not None:
                    parameter.data = original.to(parameter.device, parameter.dtype)
        self._unmerged = None
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "dso." + super().__repr__()


def fold_into_norm(
    norm: Any,
    slope: torch.Tensor,
    shift: torch.Tensor,
    original: Optional[tuple[torch.Tensor, Optional[torch.Tensor]]] = None,
) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
    """
    Weight and bias of a norm with w a and w b folded in (see [`DSOLayer.folded_weights`]).

    Args:
        norm (`nn.Module`): the norm.
        slope (`torch.Tensor`): w a, shape `(d,)`.
        shift (`torch.Tensor`): w b, shape `(d,)`.
        original (`tuple`, *optional*): its weight and bias, if it holds others at the moment.

    Returns:
        The weight, shape `(d,)`, and the bias, shape `(d,)`, or `None` where the norm has none.

    Raises:
        ValueError: a shift has no bias to go to, a slope no weight, or the norm is not of a known form.
    """
    weight, bias = original or (getattr(norm, "weight", None), getattr(norm, "bias", None))
    if weight is None:
        raise ValueError(f"{type(norm).__name__} has no weight that a slope could be merged into.")
    if bias is None and bool(shift.any()):
        raise ValueError(
            f"{type(norm).__name__} has no bias, so the shift has nowhere to go. Keep the adapter unmerged, train "
            "with DSOConfig(learn_shift=False), export a checkpoint whose readers take the shift (peft-dso export), "
            "or set the strength to 0 to merge nothing."
        )
    offset = _weight_offset(norm)
    wide = torch.promote_types(weight.dtype, torch.float32)
    new_weight = (weight.detach().to(wide) + offset) * (1 + slope) - offset
    new_bias = None if bias is None else bias.detach().to(wide) * (1 + slope) + shift
    return new_weight.to(weight.dtype), None if new_bias is None else new_bias.to(weight.dtype)


def _weight_offset(norm: nn.Module) -> float:
    """
    0 for a norm that multiplies by its weight, 1 for one that multiplies by 1 + weight: found by running a copy on
    weights of 0 and 1, because class names do not tell.

    Raises:
        ValueError: the norm does neither.
    """
    if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) and type(norm).forward in (
        nn.LayerNorm.forward,
        nn.RMSNorm.forward,
    ):
        return 0.0
    probe: Any = copy.deepcopy(norm).float()
    bias = getattr(probe, "bias", None)
    x = torch.linspace(-1.0, 2.0, probe.weight.shape[0], device=probe.weight.device)[None]
    outputs = []
    with torch.no_grad():
        if bias is not None:
            bias.zero_()
        for value in (0.0, 1.0):
            probe.weight.fill_(value)
            outputs.append(probe(x))
    at_zero, at_one = outputs
    if not at_zero.any():
        return 0.0
    if torch.allclose(at_one, 2 * at_zero):
        return 1.0
    raise ValueError(
        f"{type(norm).__name__} multiplies neither by its weight nor by 1 + weight: nothing to merge into."
    )
