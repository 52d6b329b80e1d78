"""What a request asks for: the strength of each adapter, out of the extra arguments of its sampling parameters."""

from __future__ import annotations

import hashlib
import reprlib
import struct
from collections.abc import Collection, Mapping
from typing import Any


FIELD = "dso_strength"
# What the package calls the strength: as a key of a request it is a mistake, not somebody else's field.
MISTAKEN = "steering_strength"
# Beyond it nothing is said that makes sense, and what overflows in one request stays in the blocks of the cache that
# other requests get after it.
LARGEST = 10.0
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


class StrengthError(ValueError):
    """
    A request asks for something that cannot be done.

    Args:
        message (`str`): what is wrong, and the remedy.
        parameter (`str`): the field that is wrong.
    """

    def __init__(self, message: str, parameter: str = FIELD) -> None:
        super().__init__(message)
        self.parameter = parameter.encode("ascii", "backslashreplace").decode()[:120]


def shown(value: Any) -> str:
    """What stands in a request, for an error: shortened, since it may be of any length and depth."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes out
        return f"one {type(value).__name__}"


def is_field(key: Any) -> bool:
    """Whether a key of a request is about steering, rightly or wrongly spelt."""
    return isinstance(key, str) and (key.lower().startswith("dso") or key == MISTAKEN)


def as_strength(value: Any, parameter: str = FIELD) -> float:
    """
    One strength, rounded to float32 as the model sees it, so that equal strengths share a prefix cache.

    Args:
        value (`Any`): what stands in the request.
        parameter (`str`): where it stands, for the error.

    Returns:
        `float`: the strength; -0.0 is 0.

    Raises:
        StrengthError: it is not a number, or further from 0 than `LARGEST`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise StrengthError(f"{parameter} must be a number such as 0.4, got {shown(value)}.", parameter)
    if not -LARGEST <= value <= LARGEST:
        raise StrengthError(
            f"{parameter} must be from -{LARGEST:g} to {LARGEST:g} (1 is what was trained), got {shown(value)}.",
            parameter,
        )
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded + 0.0


def requested(fields: Mapping[str, Any], adapters: Collection[str], unnamed: str | None) -> dict[str, float] | None:
    """
    The strengths that a request names.

    The field is a number (for the one adapter), a mapping from adapter to number, or one field per adapter called
    `dso_strength:NAME`, which is the only form that fits a flat mapping such as `vllm_xargs`. Adapters that a request
    does not name are off for it.

    Args:
        fields (`Mapping[str, Any]`): the extra arguments of the request; those of others are passed over.
        adapters (`Collection[str]`): names of the adapters that are loaded.
        unnamed (`str`, *optional*): the adapter that a plain number means.

    Returns:
        `dict[str, float]`: strengths by adapter, without zeros; `None` where the request names none.

    Raises:
        StrengthError: a value is no finite number, an adapter is unknown, named twice or not named where there are
            several, or a key is misspelt.
    """
    found: dict[str, float] = {}
    loaded = ", ".join(sorted(adapters)) or "none"

    def put(name: str, value: Any, parameter: str) -> None:
        if name not in adapters:
            raise StrengthError(f"There is no adapter {shown(name)}. Loaded: {loaded}.", parameter)
        if name in found:
            raise StrengthError(f"The strength of {name!r} is given twice. Give it once.", parameter)
        found[name] = as_strength(value, parameter)

    asked = False
    for key, value in fields.items():
        if not is_field(key):
            continue
        asked = True
        if key.startswith(FIELD + ":"):
            put(key[len(FIELD) + 1 :], value, key)
        elif key != FIELD:
            raise StrengthError(f"Unknown field {shown(key)}. The strength is {FIELD!r} or '{FIELD}:NAME'.", key)
        elif isinstance(value, Mapping):
            for name, one in value.items():
                put(name, one, f"{FIELD}:{name}")
        elif unnamed is not None:
            put(unnamed, value, FIELD)
        elif not adapters or as_strength(value) != 0:
            raise StrengthError(
                f"{FIELD} is a number, but adapters loaded: {loaded}. Name the one that is meant: "
                f'"{FIELD}:NAME": 0.4, or "{FIELD}": {{"NAME": 0.4}}.'
            )
    return {name: value for name, value in found.items() if value != 0} if asked else None


def cache_salt(strengths: Mapping[str, float], identities: Mapping[str, str], salt: str | None) -> str | None:
    """
    The salt that keeps the KV cache of one steering from requests with another one.

    Args:
        strengths (`Mapping[str, float]`): strengths by adapter.
        identities (`Mapping[str, str]`): what identifies the content of each adapter.
        salt (`str`, *optional*): the request's own salt.

    Returns:
        `str`: the salt; the request's own one where nothing is steered, so that strength 0 shares the base's cache.
    """
    parts = sorted((identities[name], float(value).hex()) for name, value in strengths.items() if value != 0)
    if not parts:
        return salt
    digest = hashlib.sha256(repr((parts, salt)).encode()).hexdigest()
    return f"dso-{digest}"
