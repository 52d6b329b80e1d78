"""What PEFT's own model card of an adapter lacks: the import that a loader needs first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard


IMPORT = "import peft_dso"


def introduce(path: Path, strength: float | Mapping[str, float]) -> None:
    """
    Put at the top of a card how to load and steer the adapter, unless the card says it already.

    Args:
        path (`Path`): README.md in the folder of an adapter, as PEFT has written it.
        strength (`float` or `Mapping[str, float]`): the one that the adapter is published with.
    """
    card = ModelCard.load(path)
    if IMPORT in card.text:
        return
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
