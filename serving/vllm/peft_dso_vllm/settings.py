"""What the server was started with: `"dso"` of vLLM's `--additional-config`, the one place that all processes see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .adapters import Adapter, locate, read_adapter
from .params import StrengthError, as_strength, cache_salt, is_field, requested


KEY = "dso"
RESUMABLE = "A resumable request cannot be steered: its parameters may change while its KV cache stays."
EXAMPLE = '--additional-config \'{"dso": {"adapters": {"NAME": "FOLDER OR REPOSITORY"}}}\''


@dataclass
class Settings:
    """
    The adapters by slot, and what a request gets that names none.

    Args:
        slots (`list[Adapter | None]`): the adapter in each slot.
        default (`dict[str, float]`): strengths by adapter, without zeros, of a request without the field.
        unnamed (`str`, *optional*): the adapter that a plain number means.
        changeable (`bool`): whether clients may load and unload adapters: where "slots" was written.
    """

    slots: list[Adapter | None]
    default: dict[str, float]
    unnamed: str | None
    changeable: bool = False

    def copy(self) -> Settings:
        """What is loaded now."""
        return replace(self, slots=list(self.slots))

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The loaded adapters by name."""
        return {adapter.name: adapter for adapter in self.slots if adapter is not None}

    def place(self, adapters: list[Adapter]) -> list[int]:
        """
        Put adapters into free slots.

        Returns:
            `list[int]`: the slots.

        Raises:
            ValueError: a name is taken, or there are not enough free slots.
        """
        taken = [a.name for a in adapters if a.name in self.adapters]
        if taken:
            raise ValueError(f"There is an adapter {taken[0]!r} already. Unload it first, or choose another name.")
        free = [slot for slot, adapter in enumerate(self.slots) if adapter is None]
        if len(free) < len(adapters):
            raise ValueError(
                f"{len(adapters)} slots are needed and {len(free)} of {len(self.slots)} are free. Unload an adapter, "
                'or start the server with more "slots".'
            )
        chosen = free[: len(adapters)]
        for slot, adapter in zip(chosen, adapters, strict=False):
            self.slots[slot] = adapter
        return chosen

    def occupied(self, name: str) -> list[int]:
        """
        The slots of an adapter and of its published form.

        Raises:
            ValueError: there is no such adapter, or the default needs it.
        """
        names = (name, f"{name}:published")
        found = [slot for slot, adapter in enumerate(self.slots) if adapter is not None and adapter.name in names]
        if not found:
            raise ValueError(f"There is no adapter {name!r}. Loaded: {', '.join(sorted(self.adapters)) or 'none'}.")
        if any(one in self.default for one in names):
            raise ValueError(f"{name!r} is what a request without dso_strength gets, so that it cannot be unloaded.")
        return found

    def strengths(self, fields: Mapping[str, Any] | None) -> dict[str, float]:
        """
        What a request is steered with.

        Args:
            fields (`Mapping[str, Any]`, *optional*): the extra arguments of its sampling parameters.

        Returns:
            `dict[str, float]`: strengths by adapter, without zeros.

        Raises:
            StrengthError: see [`requested`].
        """
        found = requested(fields or {}, self.adapters, self.unnamed)
        return dict(self.default) if found is None else found

    def row(self, fields: Mapping[str, Any] | None) -> list[float]:
        """The strength in each slot; arguments and errors as [`strengths`]."""
        strengths = self.strengths(fields)
        return [strengths.get(adapter.name, 0.0) if adapter is not None else 0.0 for adapter in self.slots]

    def identities(self, strengths: Mapping[str, float]) -> dict[str, str]:
        """What identifies the content of each adapter that a request is steered with."""
        return {name: adapter.identity for name, adapter in self.adapters.items() if name in strengths}

    def salt(self, strengths: Mapping[str, float], salt: str | None) -> str | None:
        """See [`cache_salt`]."""
        return cache_salt(strengths, self.identities(strengths), salt)


def refuse_fields(fields: Mapping[str, Any] | None) -> None:
    """
    What a server without adapters does with a request.

    Raises:
        StrengthError: the request asks for a strength.
    """
    for key in fields or {}:
        if is_field(key):
            raise StrengthError(f"{key!r}: this server steers nothing. Start it with {EXAMPLE}.", str(key))


def pinned(raw: Any) -> dict[str, Any]:
    """
    Resolve what the user wrote to folders and checksums, once, so that every process serves the same files.

    Args:
        raw (`Any`): the value of `"dso"`: `adapters` (by name a folder, a repository, or a mapping of `path`,
            `revision` and `subfolder`), and if wanted `default` (a number or strengths by adapter) and `slots`.

    Returns:
        `dict[str, Any]`: `slots`, `default`, `unnamed` and `changeable` of [`Settings`], of plain JSON values. A value
            that has been pinned is returned as it is.

    Raises:
        ValueError: something in it is unknown or not usable.
    """
    if not isinstance(raw, dict) or not raw:
        raise ValueError(f'"{KEY}" of --additional-config must be a mapping, got {raw!r}. Example: {EXAMPLE}')
    if "pinned" in raw:
        return raw
    for key in raw:
        if key not in ("adapters", "default", "slots"):
            raise ValueError(f'"{KEY}" of --additional-config: unknown key {key!r}; known: adapters, default, slots.')
    adapters: list[Adapter] = []
    published: dict[str, float] = {}
    sources = raw.get("adapters") or {}
    if not isinstance(sources, dict):
        raise ValueError(f'"adapters" must be a mapping from name to folder or repository, got {sources!r}.')
    for name, source in sources.items():
        for adapter in open_adapter(name, source):
            adapters.append(adapter)
            published = {adapter.name: adapter.strength}  # of a pair, the second is what was published
    default = raw.get("default")
    if default is None and len(sources) > 1:
        raise ValueError(
            f'There are several adapters ({", ".join(sources)}): say with "default" what a request without '
            'dso_strength gets, such as {"NAME": 0.4}, or {} for the base model.'
        )
    names = [adapter.name for adapter in adapters]
    if default is None:
        default, unnamed = published, next(iter(sources), None)
    else:
        default, unnamed = _default(default, names, list(sources))
    slots = raw.get("slots", len(adapters))
    if isinstance(slots, bool) or not isinstance(slots, int) or slots < max(len(adapters), 1):
        raise ValueError(f'"slots" must be at least the number of adapters, {max(len(adapters), 1)}, got {slots!r}.')
    return {
        "pinned": True,
        "slots": [adapter.to_json() for adapter in adapters] + [None] * (slots - len(adapters)),
        "default": {name: value for name, value in default.items() if value != 0},
        "unnamed": unnamed,
        "changeable": "slots" in raw,
    }


def _default(default: Any, names: list[str], sources: list[str]) -> tuple[dict[str, float], str | None]:
    """The default's strengths, and the one adapter that it names, which a plain number means."""
    if not isinstance(default, dict):
        if len(sources) != 1:
            raise ValueError(f'"default" is {default!r}: with several adapters, give strengths by name.')
        default = {sources[0]: default}
    for name in default:
        if name not in names:
            raise ValueError(f'"default" names the adapter {name!r}; there are: {", ".join(names) or "none"}.')
    strengths = {name: as_strength(value, f"default {name}") for name, value in default.items()}
    named = [name.removesuffix(":published") for name in default]
    unnamed = sources[0] if len(sources) == 1 else named[0] if len(named) == 1 else None
    return strengths, unnamed


def open_adapter(name: str, source: Any) -> list[Adapter]:
    """
    An adapter as it takes up slots: two where it was published with strengths by layer, since requests may ask for it
    at one strength everywhere or as it was published (`NAME:published`).

    Args:
        name (`str`): the name that requests use.
        source (`Any`): a folder, a repository, or a mapping of `path`, `revision` and `subfolder`.

    Returns:
        `list[Adapter]`: the adapter, and perhaps its published form.

    Raises:
        ValueError: see [`locate`] and [`read_adapter`].
    """
    where = source if isinstance(source, dict) else {"path": source}
    known = set(where) <= {"path", "revision", "subfolder"}
    if not known or not where.get("path") or not all(isinstance(v, str | None) for v in where.values()):
        raise ValueError(
            f"The adapter {name!r} must be a folder, a repository, or a mapping with texts as path, revision and "
            f"subfolder, got {source!r}."
        )
    adapter = read_adapter(name, locate(where["path"], where.get("revision"), where.get("subfolder")))
    return [adapter, adapter.published()] if isinstance(adapter.strength, dict) else [adapter]


def settings_of(vllm_config: Any) -> Settings | None:
    """
    The settings of an engine.

    Args:
        vllm_config (`VllmConfig`): its configuration.

    Returns:
        `Settings`: a new object for each call; `None` where the engine steers nothing.

    Raises:
        ValueError: see [`pinned`]; or a file has changed since it was pinned.
    """
    additional = vllm_config.additional_config
    if not isinstance(additional, dict) or KEY not in additional:
        return None
    raw = pinned(additional[KEY])
    slots = [Adapter(**entry) if entry is not None else None for entry in raw["slots"]]
    return Settings(slots, dict(raw["default"]), raw["unnamed"], raw["changeable"])
