"""Reads an adapter's folder: the file format is that of `peft_dso`, which is not needed here."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .params import as_strength


if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
KEY = re.compile(r"(?:base_model\.model\.)?(?P<site>.+)\.dso_affine\.(?P<vector>slope|shift)")
PATTERN_SECONDS = 1.0  # for all patterns of an adapter together
MOST_PATTERNS = 64
LARGEST = {CONFIG: 2**20, WEIGHTS: 256 * 2**20}  # bytes; a pair behind every norm of the largest models takes 40 MiB


@dataclass(frozen=True)
class Adapter:
    """
    What every process must know of an adapter; the vectors are read by the workers alone.

    Args:
        name (`str`): the name that requests use.
        path (`str`): its folder.
        sha256 (`str`): of adapter_model.safetensors.
        strength (`float` or `dict[str, float]`): what it was published with: a number, or numbers by layer pattern.
        base (`dict[str, Any]`): fingerprint of the base model; empty where the adapter has none.
        profile (`dict[str, float]`, *optional*): strengths by layer pattern that are multiplied into the vectors.
    """

    name: str
    path: str
    sha256: str
    strength: Any
    base: dict[str, Any]
    profile: dict[str, float] | None = None

    @property
    def identity(self) -> str:
        """What identifies its content, whatever it is called."""
        return self.sha256 + (json.dumps(self.profile, sort_keys=True) if self.profile else "")

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that `Adapter(**...)` reads again, in another process."""
        return asdict(self)

    def published(self) -> Adapter:
        """The adapter whose strength 1 is the strength by layer that this one was published with."""
        return replace(self, name=f"{self.name}:published", strength=1.0, profile=dict(self.strength))


def file_sha256(path: str) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(source: str, revision: str | None = None, subfolder: str | None = None) -> str:
    """
    The local folder of an adapter, downloaded from the Hub where it is not one already.

    Args:
        source (`str`): a folder, or a repository of the Hub.
        revision (`str`, *optional*): branch, tag or commit.
        subfolder (`str`, *optional*): where in it the adapter lies.

    Returns:
        `str`: a folder with adapter_config.json and adapter_model.safetensors.

    Raises:
        ValueError: there is no such folder or repository, or it lacks one of the files.
    """
    # What is outside is named by the path itself, where a server's log shows it.
    if subfolder is not None and (os.path.isabs(subfolder) or ".." in subfolder.split("/")):
        raise ValueError(f"The subfolder {subfolder!r} must lie inside {source!r}: give a relative path without '..'.")
    if os.path.isdir(source):
        folder = os.path.abspath(os.path.join(source, subfolder or ""))
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            paths = [
                hf_hub_download(source, f"{subfolder}/{name}" if subfolder else name, revision=revision)
                for name in (CONFIG, WEIGHTS)
            ]
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"The adapter {source!r} is no folder here, and the Hub does not give it as safetensors: {error}"
            ) from error
        folder = os.path.dirname(paths[0])
    for name in (CONFIG, WEIGHTS):
        if not os.path.isfile(os.path.join(folder, name)):
            pickled = os.path.isfile(os.path.join(folder, PICKLE))
            more = f" It holds {PICKLE}, a pickle, which is never read: save it as safetensors." if pickled else ""
            raise ValueError(f"{folder} holds no {name}, so it is no DSO adapter.{more}")
    return folder


def read_adapter(name: str, folder: str, sha256: str | None = None) -> Adapter:
    """
    Read and check everything about an adapter but the vectors.

    Args:
        name (`str`): the name that requests use.
        folder (`str`): from [`locate`].
        sha256 (`str`, *optional*): what another process found; a file that differs is refused.

    Returns:
        `Adapter`: the adapter.

    Raises:
        ValueError: the name or the configuration is not usable, or the file is not the one that was saved.
    """
    if not re.fullmatch(r"[\w./@-]+", name):
        raise ValueError(f"The adapter's name {name!r} may hold letters, digits and the signs _ . / @ - only.")
    for file_name, most in LARGEST.items():
        if (size := os.path.getsize(os.path.join(folder, file_name))) > most:
            raise ValueError(f"{file_name} in {folder} has {size} bytes: that of a DSO adapter has at most {most}.")
    try:
        with open(os.path.join(folder, CONFIG), encoding="utf-8") as file:
            config = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{CONFIG} in {folder} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "DSO":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{folder} is an adapter of the kind {kind!r}, not DSO. Serve a LoRA with --lora-modules.")
    base = config.get("base_fingerprint") or {}
    if not isinstance(base, dict):
        raise ValueError(f"base_fingerprint in {CONFIG} of {folder} must be a mapping, got {base!r}.")
    if config.get("modules_to_save"):
        raise ValueError(f"{folder} has modules_to_save={config['modules_to_save']}: whole modules cannot be served.")
    found = file_sha256(os.path.join(folder, WEIGHTS))
    for expected in (config.get("weights_sha256"), sha256):
        if expected and expected != found:
            raise ValueError(
                f"{WEIGHTS} in {folder} is not what was saved with {CONFIG}: its sha256 differs (weights_sha256). It "
                "was cut off or changed: get it again, or, if it was changed on purpose, remove weights_sha256."
            )
    strength = config.get("steering_strength", 1.0)
    if isinstance(strength, dict):
        if len(strength) > MOST_PATTERNS:
            raise ValueError(f"steering_strength in {CONFIG} of {folder} has more than {MOST_PATTERNS} patterns.")
        strength = {pattern: as_strength(value, f"steering_strength {pattern}") for pattern, value in strength.items()}
    else:
        strength = as_strength(strength, "steering_strength")
    return Adapter(name, folder, found, strength, base)


def read_vectors(adapter: Adapter) -> dict[str, dict[str, torch.Tensor]]:
    """
    Read the vectors of an adapter.

    Args:
        adapter (`Adapter`): from [`read_adapter`].

    Returns:
        `dict[str, dict[str, torch.Tensor]]`: by site, "slope" and "shift" or one of them, float32, shape `(d,)`.

    Raises:
        ValueError: the file changed since it was read first, or holds something else than finite vectors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = os.path.join(adapter.path, WEIGHTS)
    with open(path, "rb") as file:
        content = file.read()
    # Of the bytes that are parsed, not of the file once more: it may be replaced in between.
    if hashlib.sha256(content).hexdigest() != adapter.sha256:
        raise ValueError(f"{path} changed since the server was started: its sha256 differs. Start the server again.")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    sites: dict[str, dict[str, torch.Tensor]] = {}
    deadline = time.monotonic() + PATTERN_SECONDS
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{path} holds {key!r}, which is no vector of a DSO adapter.")
        # In float32, as it is used: beyond its range, a wider number is infinite.
        values = tensor.to(torch.float32)
        if tensor.dim() != 1 or not tensor.is_floating_point() or not bool(torch.isfinite(values).all()):
            raise ValueError(f"{key!r} of {path} is not a vector of finite floating-point numbers.")
        site = match["site"]
        factor = 1.0 if adapter.profile is None else _profile_value(adapter.profile, site, deadline)
        sites.setdefault(site, {})[match["vector"]] = values * factor
    if not sites:
        raise ValueError(f"{path} holds no vectors.")
    for pattern in adapter.profile or {}:
        if all(math.isnan(_profile_value({pattern: 1.0}, site, deadline, math.nan)) for site in sites):
            raise ValueError(f"steering_strength of {adapter.path}: {pattern!r} matches none of the sites.")
    return sites


def _profile_value(profile: dict[str, float], site: str, deadline: float, default: float = 1.0) -> float:
    """The value of the first pattern that matches whole dotted parts of a site's name, as in `peft_dso`."""
    import regex

    for pattern, value in profile.items():
        try:
            left = max(deadline - time.monotonic(), 1e-6)
            if regex.fullmatch(rf"(.*\.)?(?:{pattern})(\..*)?", site, timeout=left):
                return value
        except (TimeoutError, regex.error) as error:
            raise ValueError(f"steering_strength: the pattern {pattern!r} is not usable: {error}") from error
    return default
