"""Configuration of the DSO tuner."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
from peft.config import PeftConfig

from .files import check_weights, introduce, weights_hashes
from .registration import DSO


LARGEST = torch.finfo(torch.float32).max  # a strength is float32


@dataclass
class DSOConfig(PeftConfig):
    """
    This is the configuration class to store the configuration of a [`DSOModel`].

    Each steered norm ("site") of width `d` gets a slope `a` and a shift `b`, both of shape `(d,)`, and its output `h`
    becomes `h + w * (a * h + b)` with the steering strength `w` (DSO, arXiv 2512.15926, section 3).

    Args:
        target_modules (`Union[list[str], str]`, *optional*):
            The names of the norms to steer: a list of full names or suffixes, or a regex as a string. Default: all
            norms of each block of the language backbone, found by structure; not the final norm, not the query/key
            norms, and no norm of a vision or audio tower.
        exclude_modules (`Union[list[str], str]`, *optional*):
            Names (suffixes or a regex) of norms that are left alone although `target_modules` matches them.
        layers_to_transform (`Union[list[int], int]`, *optional*):
            Steer only the blocks with these indices, whichever way the targets are given.
        layers_pattern (`Union[list[str], str]`, *optional*):
            The name of the module list that holds the blocks, when the first numbered one of a name is not meant.
        modules_to_save (`list[str]`, *optional*):
            Modules apart from the sites that are trained and saved in full.
        init_weights (`bool`, defaults to `True`):
            Start at zero, which is the base model. `False` draws random vectors; it is meant for tests.
        learn_slope (`bool`, defaults to `True`):
            Whether the sites have a slope.
        learn_shift (`bool`, defaults to `True`):
            Whether the sites have a shift.
        steering_strength (`Union[float, dict[str, float]]`, defaults to `1.0`):
            The strength that the adapter is loaded with: what a publisher recommends. A number for all sites or a
            dictionary from layer pattern to number (see [`set_steering_strength`]).
        base_fingerprint (`dict[str, Any]`, *optional*):
            What the base model looked like: `model_type`, `hidden_size` and `num_sites`, the norms in its blocks.
            Filled in when the adapter is created; a base model that differs is refused when the adapter is loaded.
        weights_sha256 (`str`, *optional*):
            Of adapter_model.safetensors, filled in when the adapter is saved; a file that differs is refused.
        vectors_sha256 (`str`, *optional*):
            Of the vectors in it, for loaders that do not say which file they read (transformers' `load_adapter`, PEFT
            with a `config` of the caller's): vectors that differ are refused, at the latest on their first use, unless
            transformers loads them to be trained further.

    Raises:
        TypeError: one of the fields that are filled in holds something of another type.
        ValueError: a strength is not finite, neither slope nor shift is learned, or `layers_pattern` is given without
            `layers_to_transform`.
    """

    target_modules: Optional[Union[list[str], str]] = field(
        default=None,
        metadata={"help": "Names, suffixes or a regex of the norms to steer. Default: all norms of each block."},
    )
    exclude_modules: Optional[Union[list[str], str]] = field(
        default=None, metadata={"help": "Names, suffixes or a regex of norms to leave alone."}
    )
    layers_to_transform: Optional[Union[list[int], int]] = field(
        default=None, metadata={"help": "Indices of the blocks to steer. Default: all."}
    )
    layers_pattern: Optional[Union[list[str], str]] = field(
        default=None, metadata={"help": "Name of the module list that `layers_to_transform` counts in."}
    )
    modules_to_save: Optional[list[str]] = field(
        default=None, metadata={"help": "Modules apart from the sites that are trained and saved in full."}
    )
    init_weights: bool = field(default=True, metadata={"help": "Start at zero (the base model); False is for tests."})
    learn_slope: bool = field(default=True, metadata={"help": "Whether the sites have a slope (a)."})
    learn_shift: bool = field(default=True, metadata={"help": "Whether the sites have a shift (b)."})
    steering_strength: Union[float, dict[str, float]] = field(
        default=1.0, metadata={"help": "The strength (w) that the adapter is loaded with."}
    )
    base_fingerprint: Optional[dict[str, Any]] = field(
        default=None, metadata={"help": "Filled in on creation: model_type, hidden_size and num_sites of the base."}
    )
    weights_sha256: Optional[str] = field(
        default=None, metadata={"help": "Filled in on saving: sha256 of the file with the vectors."}
    )

    vectors_sha256: Optional[str] = field(
        default=None, metadata={"help": "Filled in on saving: sha256 of the vectors themselves."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = DSO
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as every PEFT config does
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if not (self.learn_slope or self.learn_shift):
            raise ValueError("learn_slope and learn_shift are both False: nothing would be learned. Set one of them.")
        for name in self.modules_to_save or ():
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"modules_to_save holds {name!r}, which is not the name of a module.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(
                f"layers_pattern={self.layers_pattern!r} needs layers_to_transform: it only says where they count."
            )
        for name, kind in (("base_fingerprint", dict), ("weights_sha256", str), ("vectors_sha256", str)):
            if not isinstance(getattr(self, name), (kind, type(None))):
                raise TypeError(
                    f"{name} is filled in by peft_dso and must be a {kind.__name__}: {getattr(self, name)!r}."
                )
        values = (
            self.steering_strength.values() if isinstance(self.steering_strength, dict) else [self.steering_strength]
        )
        for value in values:
            # Not math.isfinite, which cannot take every int.
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
                raise ValueError(f"steering_strength must be a finite number of float32, got {value!r}.")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """
        As in PEFT. [`~peft.PeftModel.save_pretrained`] comes by here after it has written the tensors and the card,
        transformers' `save_pretrained` before.

        Raises:
            ValueError: the tensors were written as a pickle (`safe_serialization=False`), which is never read.
        """
        self.weights_sha256, self.vectors_sha256 = weights_hashes(save_directory, self.__dict__.pop("_taken", None))
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.weights_sha256 = self.vectors_sha256 = None  # they belong to that file alone
        introduce(save_directory, self.steering_strength)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: Optional[str] = None, **kwargs: Any
    ) -> DSOConfig:
        """
        As in PEFT. [`~peft.PeftModel.from_pretrained`] comes by here before it loads anything.

        Raises:
            ValueError: there is a pickle (adapter_model.bin) and no safetensors file, or that file is not the one
                that was saved with the configuration.
        """
        config: DSOConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        check_weights(str(pretrained_model_name_or_path), config.weights_sha256, subfolder, kwargs)
        return config
