"""Registers "DSO" with PEFT. PEFT has no discovery of plug-ins, so importing `peft_dso` is what does it."""

from __future__ import annotations

import enum
from typing import Any

from peft import mapping
from peft.utils import PeftType


class DSOPeftType(str, enum.Enum):
    """The member that PEFT's own `PeftType` lacks; a `str` enum because transformers reads `.value` from it."""

    DSO = "DSO"


# A PEFT that has the method itself comes first.
DSO: Any = getattr(PeftType, "DSO", DSOPeftType.DSO)


def register(config_cls: type, model_cls: type) -> None:
    """
    Enter the method into the four tables of `peft.mapping`. Safe to call again (module reload).

    `peft.utils.register_peft_method` cannot be used: it refuses names that are not in PEFT's closed enum
    (peft/utils/peft_types.py).

    Args:
        config_cls (`type`): the `PeftConfig` subclass.
        model_cls (`type`): the `BaseTuner` subclass.
    """
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[DSO] = config_cls
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[DSO] = model_cls
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[DSO] = model_cls.prefix  # type: ignore[attr-defined]
