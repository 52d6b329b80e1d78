"""Configuration of the DSO tuner."""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from huggingface_hub import constants, file_exists, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft.config import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from .card import introduce
from .registration import DSO


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

    Raises:
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
        values = (
            self.steering_strength.values() if isinstance(self.steering_strength, dict) else [self.steering_strength]
        )
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"steering_strength must be a finite number, got {value!r}.")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """
        As in PEFT. [`~peft.PeftModel.save_pretrained`] comes by here after it has written the tensors and the card.

        Raises:
            ValueError: the tensors were written as a pickle (`safe_serialization=False`), which is never read.
        """
        if os.path.isfile(os.path.join(save_directory, WEIGHTS_NAME)):
            raise ValueError(
                f"{save_directory} holds {WEIGHTS_NAME}, a pickle. DSO adapters are saved and read as safetensors "
                "only: delete it and save with safe_serialization=True."
            )
        weights = os.path.join(save_directory, SAFETENSORS_WEIGHTS_NAME)
        self.weights_sha256 = _sha256(weights) if os.path.isfile(weights) else None
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.weights_sha256 = None  # it belongs to that file alone
        card = Path(save_directory) / "README.md"
        if card.is_file():
            introduce(card, self.steering_strength)

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
        where = (pretrained_model_name_or_path, subfolder, kwargs)
        file = _local_file(SAFETENSORS_WEIGHTS_NAME, *where)
        if file is None and _has_file(WEIGHTS_NAME, *where):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds {WEIGHTS_NAME}, a pickle, and no {SAFETENSORS_WEIGHTS_NAME}. "
                "DSO adapters are read from safetensors only: ask its author to save it with save_pretrained."
            )
        if file is not None and config.weights_sha256 and _sha256(file) != config.weights_sha256:
            if os.path.isdir(pretrained_model_name_or_path) or kwargs.get("local_files_only"):
                again = file
            else:  # what lies in the cache may be broken: once more
                again = _local_file(SAFETENSORS_WEIGHTS_NAME, *where, force_download=True) or file
            if _sha256(again) != config.weights_sha256:
                raise ValueError(
                    f"{SAFETENSORS_WEIGHTS_NAME} of {pretrained_model_name_or_path} is not what was saved with "
                    "adapter_config.json: its sha256 differs (weights_sha256). It was cut off or changed: get it "
                    "again, or, if it was changed on purpose, remove weights_sha256 from adapter_config.json."
                )
        return config


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hub_path(name: str, subfolder: Optional[str]) -> str:
    return f"{subfolder}/{name}" if subfolder else name


def _has_file(name: str, folder_or_repo: str, subfolder: Optional[str], kwargs: dict[str, Any]) -> bool:
    """Whether a local folder, or else a repository of the Hub, holds a file."""
    if os.path.isdir(folder_or_repo):
        return os.path.isfile(os.path.join(folder_or_repo, subfolder or "", name))
    path = _hub_path(name, subfolder)
    where = {key: kwargs[key] for key in ("revision", "cache_dir") if kwargs.get(key) is not None}
    if isinstance(try_to_load_from_cache(folder_or_repo, path, **where), str):
        return True
    if constants.HF_HUB_OFFLINE or kwargs.get("local_files_only"):
        return False
    return file_exists(folder_or_repo, path, revision=kwargs.get("revision"), token=kwargs.get("token"))


def _local_file(
    name: str, folder_or_repo: str, subfolder: Optional[str], kwargs: dict[str, Any], **options: Any
) -> Optional[str]:
    """The path of a file of a local folder, or of the Hub's cache after a download; `None` where there is none."""
    if os.path.isdir(folder_or_repo):
        path = os.path.join(folder_or_repo, subfolder or "", name)
        return path if os.path.isfile(path) else None
    where = {
        key: kwargs[key]
        for key in ("revision", "cache_dir", "token", "force_download", "local_files_only")
        if kwargs.get(key) is not None
    }
    try:
        return hf_hub_download(folder_or_repo, _hub_path(name, subfolder), **{**where, **options})
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
