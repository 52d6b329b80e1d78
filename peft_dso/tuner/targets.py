"""Whether the name of a module is one that a configuration means."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Optional, Union

import regex
from peft.tuners.tuners_utils import check_target_module_exists

from .config import DSOConfig


# A pattern comes with an adapter that somebody else may have written: matching one name may take this long.
PATTERN_SECONDS = 1.0


def pattern_matches(pattern: str, name: str, where: str) -> bool:
    """
    `re.fullmatch` with a time limit.

    Raises:
        ValueError: the pattern is no valid regex, or takes longer than a second on one name.
    """
    try:
        return regex.fullmatch(pattern, name, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise ValueError(
            f"{where}: the pattern {pattern!r} took longer than {PATTERN_SECONDS:g} s on {name!r}. "
            "Give a simpler pattern or a list of names."
        ) from None
    except regex.error as error:
        raise ValueError(f"{where}: {pattern!r} is not a valid regular expression: {error}.") from None


def _block_index(name: str, layers_pattern: Optional[Union[list[str], str]]) -> Optional[int]:
    """The index of the block that a module stands in: the first number of its name, or the one after a pattern."""
    parts = name.split(".")
    patterns = [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern
    for before, part in pairwise(parts):
        if part.isdecimal() and (not patterns or any(pattern_matches(p, before, "layers_pattern") for p in patterns)):
            return int(part)
    return None


def is_target(config: DSOConfig, name: str) -> Any:
    """
    PEFT's matching of one name against a config, with two differences: `layers_to_transform` also holds when the
    targets are a regex or full names (PEFT passes over it there, peft/tuners/tuners_utils.py), and a regex has a time
    limit.

    Args:
        config (`DSOConfig`): the configuration.
        name (`str`): full name of a module.

    Returns:
        What PEFT returns: something true for a target.

    Raises:
        ValueError: a pattern is invalid or takes too long.
    """
    # PEFT gets each pattern's result as a list of this one name: it must not run the pattern itself, without a limit.
    view = SimpleNamespace(modules_to_save=config.modules_to_save)
    for where in ("target_modules", "exclude_modules"):
        value = getattr(config, where)
        if isinstance(value, str):
            value = {name} if pattern_matches(value, name, where) else set()
        setattr(view, where, value)
    matched = check_target_module_exists(view, name)
    if not matched or config.layers_to_transform is None:
        return matched
    wanted = config.layers_to_transform
    wanted = [wanted] if isinstance(wanted, int) else wanted
    return matched if not wanted else _block_index(name, config.layers_pattern) in wanted
