"""A steered model as a stock checkpoint that plain transformers loads, and the proof that it is the same model."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import nn
from transformers.models.auto import modeling_auto

from ..objective.penalties import kl_divergence
from ..tuner import get_steering_strength
from ..tuner.strength import dso_layers
from .fold import Folded, fold_strength


PROMPTS = (
    "The nurse said that",
    "The doctor spoke with the farmer because",
    "In the morning the city is quiet, and",
    "Water boils at a temperature of",
)
NEW_TOKENS = 16
# What loads a model of each kind, and transformers' table of it; the first that knows the model is named.
LOADERS = {
    "AutoModelForImageTextToText": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
MOST_KL = 1e-2  # nats per token: bfloat16 costs some 5e-6


@dataclass
class ExportReport:
    """
    How the exported checkpoint compares with the steered model.

    Args:
        architecture (`str`): class of the exported model.
        strength (`Any`): the strength that is folded in.
        difference (`float`): largest absolute difference of the logits on the prompts, both in float32.
        difference_saved (`float`): the same in the dtype that was saved.
        dtype (`str`): that dtype.
        same_greedy (`int`): prompts for which both write the same greedy tokens, in float32.
        prompts (`int`): number of prompts.
        dropped (`list[str]`): norms whose shift was left out.
        dropped_kl (`float`): KL(steered || exported) in nats per token on the prompts, in float32: what that costs.
        loader (`str`): the class of transformers that loads it.
    """

    architecture: str
    strength: Any
    difference: float
    difference_saved: float
    dtype: str
    same_greedy: int
    prompts: int
    dropped: list[str] = field(default_factory=list)
    dropped_kl: float = 0.0
    loader: str = "AutoModelForCausalLM"

    def lines(self) -> list[str]:
        """The report as text, a sentence a line."""
        text = [
            f"{self.architecture} at strength {self.strength}, saved as {self.dtype}",
            f"largest difference of the logits to the steered model: {self.difference:.2g} in float32, "
            f"{self.difference_saved:.2g} in {self.dtype}",
            f"the same greedy tokens (float32) on {self.same_greedy} of {self.prompts} prompts",
            f"loaded by transformers.{self.loader}.from_pretrained",
        ]
        if self.dropped:
            text.append(
                f"shifts left out at {len(self.dropped)} norms ({', '.join(self.dropped[:4])}"
                f"{', ...' if len(self.dropped) > 4 else ''}): KL {self.dropped_kl:.4g} nats per token"
            )
        return text


def export_checkpoint(
    model: nn.Module,
    processor: Any,
    out: str | os.PathLike[str],
    *,
    prompts: Sequence[str] = PROMPTS,
    drop_shift: bool = False,
    max_shard_size: str = "5GB",
    description: Optional[str] = None,
) -> ExportReport:
    """
    Write a steered model at its present strength as a stock checkpoint: weights, config, generation config, tokenizer
    and a model card, and compare what is loaded from there with the steered model.

    Args:
        model (`nn.Module`): a `PeftModel` with an active DSO adapter; not changed.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): goes along.
        out (`str`): a new or empty folder.
        prompts (`Sequence[str]`): to compare on.
        drop_shift (`bool`, defaults to `False`): see [`fold_strength`].
        max_shard_size (`str`, defaults to `"5GB"`): largest file of weights.
        description (`str`, *optional*): what the adapter is, for the card.

    Returns:
        `ExportReport`: the comparison.

    Raises:
        ValueError: the folder holds something, there is no prompt, the adapter is switched off, a shift has no home,
            the base model is quantised or offloaded, or what is loaded from there is not the steered model. Nothing is
            left in the folder then.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: choose another one, so that nothing is overwritten.")
    if not prompts:
        raise ValueError("Give at least one prompt to compare the exported model on.")
    if any(layer.disable_adapters for layer in dso_layers(model).values()):
        raise ValueError("The adapter is switched off: export the model outside of disable_adapter().")
    folder.parent.mkdir(parents=True, exist_ok=True)
    was_training = model.training
    model.eval()
    try:
        folded = fold_strength(model, drop_shift)
        # Written beside the folder and moved there at the end, so that whatever fails leaves nothing in it.
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            report = _write_and_compare(model, folded, processor, Path(made), prompts, max_shard_size)
            _card(model, report, description).save(Path(made) / "README.md")
            folder.mkdir(exist_ok=True)
            for path in Path(made).iterdir():
                os.replace(path, folder / path.name)
    finally:
        model.train(was_training)
    return report


def _write_and_compare(
    model: Any, folded: Folded, processor: Any, folder: Path, prompts: Sequence[str], max_shard_size: str
) -> ExportReport:
    """Write the folded model, and compare what is loaded from there with the steered one."""
    kind: Any = type(folded.model)
    dtype = str(folded.model.dtype).removeprefix("torch.")
    folded.model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    loader = loader_name(folded.model)
    del folded.model
    tokenizer = getattr(processor, "tokenizer", processor)
    encoded = [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in prompts]
    steered_saved = _logits(model, encoded)
    steered_model = copy.deepcopy(model).float()
    steered, steered_greedy = _logits(steered_model, encoded), _greedy(steered_model, encoded)
    del steered_model
    exported_model = kind.from_pretrained(folder, dtype=dtype).to(next(model.parameters()).device).eval()
    exported_saved = _logits(exported_model, encoded)
    exported_model = exported_model.float()
    exported, exported_greedy = _logits(exported_model, encoded), _greedy(exported_model, encoded)
    pairs = list(zip(steered, exported, strict=True))
    kl = float(torch.cat([_kl(one, two) for one, two in pairs]).mean())
    if not folded.dropped and not kl <= MOST_KL:
        raise ValueError(
            f"What was written is not the steered model: KL {kl:.3g} nats per token between them on the prompts. "
            f"transformers does not save and load {kind.__name__} faithfully here; nothing was kept."
        )
    return ExportReport(
        kind.__name__,
        get_steering_strength(model),
        max(float((a - b).abs().max()) for a, b in pairs),
        max(float((a - b).abs().max()) for a, b in zip(steered_saved, exported_saved, strict=True)),
        dtype,
        sum(torch.equal(a, b) for a, b in zip(steered_greedy, exported_greedy, strict=True)),
        len(prompts),
        folded.dropped,
        kl if folded.dropped else 0.0,
        loader,
    )


def _kl(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    return kl_divergence(one.log_softmax(-1), two.log_softmax(-1)).flatten()


def loader_name(model: Any) -> str:
    """The class of transformers that loads a model: an auto class where one knows it, otherwise its own."""
    own = type(model).__name__
    for loader, classes in LOADERS.items():
        known = classes.get(model.config.model_type, ())
        if own in ([known] if isinstance(known, str) else known):
            return loader
    return own


@torch.no_grad()
def _logits(model: Any, encoded: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of each prompt, float32, shape `(1, tokens, vocabulary)`."""
    device, found = next(model.parameters()).device, []
    for ids in encoded:
        more = {"decoder_input_ids": ids.to(device)} if getattr(model.config, "is_encoder_decoder", False) else {}
        found.append(model(input_ids=ids.to(device), **more).logits.float().cpu())
    return found


@torch.no_grad()
def _greedy(model: Any, encoded: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    device = next(model.parameters()).device
    text = model.config.get_text_config()  # a vision-language model's own config has no tokens
    pad = model.generation_config.pad_token_id or getattr(text, "pad_token_id", None) or 0
    return [
        model.generate(
            input_ids=ids.to(device),
            attention_mask=torch.ones_like(ids).to(device),
            do_sample=False,
            num_beams=1,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=pad,
        ).cpu()
        for ids in encoded
    ]


def _card(model: Any, report: ExportReport, description: Optional[str]) -> ModelCard:
    base = getattr(model.config, "_name_or_path", "") or None
    # A folder of this machine is no name that others could follow.
    base = None if base and os.path.isdir(base) else base
    data = ModelCardData(base_model=base, library_name="transformers", tags=["dso", "fairness", "steering"])
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        "# A steered model as a plain checkpoint",
        "",
        f"The base model {base or '(not named)'} with a steering adapter of the type DSO folded into its weights. It",
        "loads with plain transformers; the strength is fixed. " + (description or ""),
        "",
        "```python",
        f"from transformers import {report.loader}",
        "",
        f'model = {report.loader}.from_pretrained("this/repository")',
        "```",
        "",
        "How it compares with the model that it was made from, as measured when it was written:",
        "",
        *(f"- {line}" for line in report.lines()),
        "",
        "```json",
        json.dumps(asdict(report), indent=1),
        "```",
        "",
    ]
    return ModelCard("\n".join(lines))
