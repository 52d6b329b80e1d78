"""The affine pair of one adapter at one site, and what is still to be loaded into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import nn

from .config import DSOConfig
from .devices import REMEDY
from .files import vectors_sha256


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

    def check(self, affine: DSOAffine) -> None:
        """
        Check a pair that is about to be used.

        Raises:
            ValueError: a value is NaN or infinite or not there, or the vectors are not those that were saved.
        """
        for name, parameter in affine.named_parameters():
            if parameter.is_meta:
                raise ValueError(
                    f"The {name} of the DSO adapter has no values: it was loaded onto an offloaded base model, which "
                    f"transformers' load_adapter cannot do. {REMEDY}"
                )
            if not parameter.isfinite().all():
                raise ValueError(
                    f"The DSO adapter was not loaded whole, or is broken: a {name} is missing or holds NaN or "
                    f"infinity. Load it from a complete folder. If a part of the base model is offloaded: {REMEDY}"
                )
        self.compare([(name, p) for other in self.affines for name, p in other.named_parameters()])
        affine.expected = None

    def compare(self, vectors: Sequence[tuple[str, torch.Tensor]]) -> None:
        """
        Compare vectors with those that were saved, once: afterwards the adapter may be changed.

        Raises:
            ValueError: they differ.
        """
        # A process of several may hold a part of them only; a cast to another dtype has other bytes.
        whole = all(type(v.data) is torch.Tensor and not v.is_meta and v.numel() for _, v in vectors)
        if not whole or any(v.dtype != torch.float32 or not v.isfinite().all() for _, v in vectors):
            return  # what is not finite is refused at its own site
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
        # Never on meta, whatever device is the default: a strength without a value could not be read back.
        value = torch.tensor(float(strength), dtype=torch.float32, device="cpu")
        self.register_buffer("strength", value, persistent=False)
        self.expected: Optional[Expected] = None

    def expect_values(self, expected: Expected) -> None:
        """Make the pair unusable until values are loaded into it (see [`Expected`])."""
        self.expected = expected
        expected.affines.append(self)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(torch.nan)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """
        a * h + b for `h` of shape `(..., d)`, in float32 or the wider dtype of `h`.

        A module's call, so that hooks which bring offloaded vectors to the device of `h` run.
        """
        if self.expected is not None and not h.is_meta:
            _check_once_uncompiled(self)
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
            if tensor is self.strength:  # it keeps its value, also through `to("meta")` and `to_empty`
                return tensor if moved.is_meta else tensor.to(moved.device)
            if moved.dtype == tensor.dtype:
                return moved
            # Not a cast back of the cast, which has lost digits by then. A tensor without values has none to lose.
            return torch.empty_like(tensor, device=moved.device) if moved.is_meta else tensor.to(moved.device)

        super()._apply(move_only, recurse)
        return self


@torch.compiler.disable
def _check_once_uncompiled(affine: DSOAffine) -> None:
    """
    The check of [`Expected`], which looks at values. A compiled model leaves its graph for it, on its first use; one
    that must not (`fullgraph=True`) has to be run once uncompiled.
    """
    if torch.compiler.is_compiling():  # within the graph after all: this is torch.export
        raise RuntimeError("The values of the DSO adapter have not been checked yet. Run the model once, then export.")
    if affine.expected is not None:
        affine.expected.check(affine)
