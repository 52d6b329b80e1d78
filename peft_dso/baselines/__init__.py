"""
The methods that DSO is compared with, each fitted from DSO's own questions and held as an ordinary PEFT adapter:
DSO's pairs, or a stock LoRA. One file per method, with its formula and source. Prompting is a rewriting of the
question.
"""

from .activations import Text, encode_text, read_activations
from .caa import fit_caa
from .contrasts import CONTRASTS, Contrast, balanced, contrast
from .counterfactual import counterfactual_loss, fit_counterfactual
from .dso import fit_dso
from .iti import fit_iti
from .linear_act import fit_linear_act, transport_map
from .lineas import fit_lineas, joint_loss
from .prompting import WORDINGS, choose_prompt, prompts
from .validation import Validation, validate


__all__ = [
    "CONTRASTS",
    "WORDINGS",
    "Contrast",
    "Text",
    "Validation",
    "balanced",
    "choose_prompt",
    "contrast",
    "counterfactual_loss",
    "encode_text",
    "fit_caa",
    "fit_counterfactual",
    "fit_dso",
    "fit_iti",
    "fit_linear_act",
    "fit_lineas",
    "joint_loss",
    "prompts",
    "read_activations",
    "transport_map",
    "validate",
]
