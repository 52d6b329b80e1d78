"""An adapter's folder, on this machine or on the Hub: its files are found, hashed, checked and read here."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
from huggingface_hub import ModelCard, ModelCardData, constants, file_exists, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft.config import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file

from .registration import DSO


CARD = "README.md"
IMPORT = "import peft_dso"
PAIR = ".dso_affine."  # between the name of a site and that of a vector, in the keys of the weights


# --- hashes ----------------------------------------------------------------------------------------------------------


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def vectors_sha256(vectors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """
    The sha256 of an adapter's vectors, whatever the sites are called: a loader may rename them (PEFT's `key_mapping`,
    transformers' conversions) and hand over nothing but values.

    Args:
        vectors (`Iterable[tuple[str, torch.Tensor]]`): `"slope"` or `"shift"`, and its values of shape `(d,)`; in any
            order, on any device.

    Returns:
        `str`: in hexadecimal.
    """
    parts = []
    for name, tensor in vectors:
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        parts.append(f"{name} {tensor.dtype} {hashlib.sha256(values).hexdigest()}")
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def pair_vectors(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """The vectors among the tensors of a file, for [`vectors_sha256`]."""
    return [(key.rpartition(".")[2], tensor) for key, tensor in tensors.items() if PAIR in key]


class Taken(NamedTuple):
    """
    The vectors that were last taken from a model to be saved.

    Args:
        vectors (`list[tuple[str, torch.Tensor]]`): for [`vectors_sha256`]; where they can be, the parameters
            themselves, which may be trained on before they are written.
        when (`float`): seconds since the epoch.
        sha256 (`str`): of the vectors at that time.
    """

    vectors: list[tuple[str, torch.Tensor]]
    when: float
    sha256: str


def weights_hashes(
    folder: str | os.PathLike[str], taken: Optional[Taken] = None
) -> tuple[Optional[str], Optional[str]]:
    """
    The sha256 of a folder's adapter_model.safetensors and of the vectors in it; `None` and `None` without the file.

    Args:
        folder (`str`): the folder.
        taken (`Taken`, *optional*): the vectors that are being saved. transformers writes them after the
            configuration: a file that is older, and holds others, is not theirs.

    Returns:
        The two, the first `None` where the file is still to be written.

    Raises:
        ValueError: the folder holds the weights as a pickle.
    """
    if os.path.isfile(os.path.join(folder, WEIGHTS_NAME)):
        raise ValueError(
            f"{folder} holds {WEIGHTS_NAME}, a pickle. DSO adapters are saved and read as safetensors "
            "only: delete it and save with safe_serialization=True."
        )
    weights = os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)
    coming = vectors_sha256(taken.vectors) if taken else None
    if taken and coming != taken.sha256:
        coming = None  # trained on since: a copy from then may be written, or what they are now
    if not os.path.isfile(weights):
        return None, coming
    vectors = pair_vectors(load_file(weights))
    found = vectors_sha256(vectors) if vectors else None
    if taken and found not in (coming, taken.sha256) and os.path.getmtime(weights) < taken.when:
        return None, coming
    return file_sha256(weights), found


# --- checks ----------------------------------------------------------------------------------------------------------


def check_weights(
    folder_or_repo: str, expected: Optional[str], subfolder: Optional[str], options: Mapping[str, Any]
) -> None:
    """
    Refuse weights that are a pickle, or not those that were saved with the configuration.

    Args:
        folder_or_repo (`str`): a local folder, or the name of a repository on the Hub.
        expected (`str`, *optional*): the sha256 of the safetensors file.
        subfolder (`str`, *optional*): where in it the adapter is.
        options (`Mapping[str, Any]`): of `from_pretrained`: `revision`, `cache_dir`, `token`, `force_download`,
            `local_files_only`.

    Raises:
        ValueError: there is a pickle (adapter_model.bin) and no safetensors file, or that file's sha256 differs.
    """
    where = (folder_or_repo, subfolder, options)
    file = _local_file(SAFETENSORS_WEIGHTS_NAME, *where)
    if file is None:
        if _has_file(WEIGHTS_NAME, *where):
            raise ValueError(
                f"{folder_or_repo} holds {WEIGHTS_NAME}, a pickle, and no {SAFETENSORS_WEIGHTS_NAME}. "
                "DSO adapters are read from safetensors only: ask its author to save it with save_pretrained."
            )
        return
    if not expected or file_sha256(file) == expected:
        return
    if not os.path.isdir(folder_or_repo) and not options.get("local_files_only"):
        # What lies in the cache may be broken: once more.
        file = _local_file(SAFETENSORS_WEIGHTS_NAME, *where, force_download=True) or file
    if file_sha256(file) != expected:
        raise ValueError(
            f"{SAFETENSORS_WEIGHTS_NAME} of {folder_or_repo} is not what was saved with adapter_config.json: its "
            "sha256 differs (weights_sha256). It was cut off or changed: get it again, or, if it was changed on "
            "purpose, remove weights_sha256 and vectors_sha256 from adapter_config.json."
        )


def _hub_path(name: str, subfolder: Optional[str]) -> str:
    return f"{subfolder}/{name}" if subfolder else name


def _has_file(name: str, folder_or_repo: str, subfolder: Optional[str], options: Mapping[str, Any]) -> bool:
    """Whether a local folder, or else a repository of the Hub, holds a file."""
    if os.path.isdir(folder_or_repo):
        return os.path.isfile(os.path.join(folder_or_repo, subfolder or "", name))
    path = _hub_path(name, subfolder)
    where = {key: options[key] for key in ("revision", "cache_dir") if options.get(key) is not None}
    if isinstance(try_to_load_from_cache(folder_or_repo, path, **where), str):
        return True
    if constants.HF_HUB_OFFLINE or options.get("local_files_only"):
        return False
    return file_exists(folder_or_repo, path, revision=options.get("revision"), token=options.get("token"))


def _local_file(
    name: str, folder_or_repo: str, subfolder: Optional[str], options: Mapping[str, Any], **more: Any
) -> Optional[str]:
    """The path of a file of a local folder, or of the Hub's cache after a download; `None` where there is none."""
    if os.path.isdir(folder_or_repo):
        path = os.path.join(folder_or_repo, subfolder or "", name)
        return path if os.path.isfile(path) else None
    where = {
        key: options[key]
        for key in ("revision", "cache_dir", "token", "force_download", "local_files_only")
        if options.get(key) is not None
    }
    try:
        return hf_hub_download(folder_or_repo, _hub_path(name, subfolder), **{**where, **more})
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None


# --- reading ---------------------------------------------------------------------------------------------------------


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names of modules by as a model has them: layers.2 before layers.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_adapter(folder: str | os.PathLike[str]) -> tuple[PeftConfig, dict[str, dict[str, torch.Tensor]]]:
    """
    The configuration and the vectors of the adapter in a folder, without its base model.

    Args:
        folder (`str`): with adapter_config.json and adapter_model.safetensors.

    Returns:
        The [`DSOConfig`], and by site, in the order of the blocks, its `slope` and `shift`, each of shape `(d,)`.

    Raises:
        ValueError: the folder holds no DSO adapter in safetensors, or not the one that was saved.
    """
    path = Path(folder)
    if not (path / CONFIG_NAME).is_file():
        raise ValueError(f"{path} holds no {CONFIG_NAME}: give the folder of a saved adapter.")
    config: Any = PeftConfig.from_pretrained(path)
    if config.peft_type != DSO:
        raise ValueError(f"{path} holds an adapter of type {config.peft_type}, not DSO.")
    check_weights(str(path), config.weights_sha256, None, {})
    file = path / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        raise ValueError(f"{path} holds no {SAFETENSORS_WEIGHTS_NAME}.")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {error}. Was it cut off? Save or download it again.") from None
    sites: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(tensors, key=natural):
        site, dot, vector = key.rpartition(PAIR)
        if dot:
            sites.setdefault(site.removeprefix("base_model.model."), {})[vector] = tensors[key]
    if not sites:
        raise ValueError(f"{file} holds no slope and no shift.")
    return config, sites


# --- the card that PEFT writes ---------------------------------------------------------------------------------------


def _is_fresh(text: str) -> bool:
    """Whether a card is the empty template that PEFT starts from, and not what somebody wrote."""
    template = ModelCard.from_template(ModelCardData()).text.strip().splitlines()
    opening = "\n".join(template[:3])  # its title and the first remark
    return "library_name: peft" in text and opening in text and IMPORT not in text


def introduce(folder: str | os.PathLike[str], strength: float | Mapping[str, float]) -> None:
    """
    Put at the top of the card that PEFT has just written what it lacks: the import that a loader needs first, and how
    to steer. A README.md that is anything else is left as it is.

    Args:
        folder (`str`): of an adapter.
        strength (`float` or `Mapping[str, float]`): the one that the adapter is published with.
    """
    path = Path(folder) / CARD
    if not path.is_file() or not _is_fresh(path.read_bytes().decode(errors="replace")):
        return
    card = ModelCard.load(path)
    tags: Any = card.data.get("tags") or []
    card.data["tags"] = sorted({*tags, "dso", "steering"})
    card.text = f"""
This is a steering adapter of the type DSO ([arXiv 2512.15926](https://arxiv.org/abs/2512.15926)).

```python
{IMPORT}  # first: it registers the adapter type (pip install peft_dso)
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "this/repository")
model.set_steering_strength({strength!r})  # the strength it is published with; 0 is the base model
```

Nothing about its bias or its abilities has been measured here; `peft-dso card` writes a card with what was.

{card.text.lstrip()}"""
    card.save(path)
