"""The DSO tuner: puts a [`DSOLayer`] around each targeted norm."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from . import strength as _strength
from .affine import Expected
from .arithmetic import add_weighted, check_sum, prune, sum_config
from .calls import KEYWORD, allow_keyword, call_settings, has_settings, refuse_keyword
from .config import DSOConfig
from .devices import check_hooks, execution_device
from .files import pair_vectors
from .layer import DSOLayer
from .loading import check_fits, check_whole, taken
from .mergeable import check_merge, check_unload
from .sites import (
    check_fingerprint,
    check_sites,
    default_site_names,
    find_sites,
    fingerprint,
    rows_of,
    site_table,
)
from .targets import is_target
from .units import shift_unit


class DSOModel(BaseTuner):
    """
    Steers a frozen model with an affine pair behind each norm (DSO, arXiv 2512.15926).

    Args:
        model ([`~transformers.PreTrainedModel`]): The model to be adapted.
        config ([`DSOConfig`]): The configuration of the DSO model.
        adapter_name (`str`): The name of the adapter, defaults to `"default"`.
        low_cpu_mem_usage (`bool`, *optional*, defaults to `False`):
            Create empty adapter weights on meta device. Useful to speed up the loading process.

    Returns:
        `torch.nn.Module`: The DSO model.

    Raises:
        ValueError: the config matches no norm or something else than a norm, or the base model is not the one that the
            config was made for.

    Example:

        ```py
        >>> from transformers import AutoModelForCausalLM
        >>> from peft import get_peft_model
        >>> import peft_dso

        >>> model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct")
        >>> model = get_peft_model(model, peft_dso.DSOConfig(task_type="CAUSAL_LM"))
        >>> model.set_steering_strength(0.4)
        ```

    **Attributes**:
        - **model** ([`~transformers.PreTrainedModel`]) -- The model to be adapted.
        - **peft_config** ([`DSOConfig`]): The configuration of the DSO model.
    """

    prefix: str = "dso_"
    tuner_layer_cls = DSOLayer
    target_module_mapping: dict[str, list[str]] = {}
    _expected: Optional[Expected] = None

    # --- injection ---------------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: DSOConfig, model_config: dict[str, Any]) -> DSOConfig:
        found = fingerprint(self.model)
        expected = peft_config.base_fingerprint
        if expected is not None:
            check_fingerprint(found, expected, peft_config.base_model_name_or_path)
        sites = find_sites(self.model, peft_config)  # raises before anything is changed
        check_sites(self.model, [site.name for site in sites])
        check_hooks(self.model, [site.name for site in sites])
        # A fingerprint comes with a saved config, whose vectors must follow (see Expected).
        self._expected = Expected(peft_config.vectors_sha256) if expected and peft_config.inference_mode else None
        peft_config.base_fingerprint = found
        if peft_config.target_modules is None:
            peft_config.target_modules = default_site_names(self.model)  # type: ignore[assignment]  # a set, as in PEFT
        if isinstance(peft_config.steering_strength, dict):
            _strength.check_patterns(peft_config.steering_strength, [site.name for site in sites])
        return peft_config

    def _check_tied_modules(self, model: nn.Module, peft_config: DSOConfig) -> None:
        view = copy.copy(peft_config)
        if isinstance(view.target_modules, str):
            view.target_modules = None  # PEFT would run the pattern on names of embeddings, without a limit
        super()._check_tied_modules(model, view)

    @staticmethod
    def _check_target_module_exists(peft_config: DSOConfig, key: str) -> Any:
        return is_target(peft_config, key)

    def _create_and_replace(
        self,
        peft_config: DSOConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: Optional[str] = None,
    ) -> None:
        device = execution_device(target, parent, self.model)
        strength: Any = peft_config.steering_strength
        if isinstance(strength, dict):
            strength = _strength.pattern_value(strength, current_key)
            strength = 1.0 if strength is None else strength
        if isinstance(target, DSOLayer):
            target.update_layer(adapter_name, peft_config, strength, self._expected, device)
            return
        refuse_keyword(self.model)
        rows = rows_of(self.model, current_key)
        layer = DSOLayer(target, adapter_name, peft_config, strength, rows, self._expected, device)
        layer.turn = next((m.turn for m in self.model.modules() if isinstance(m, DSOLayer)), layer.turn)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """
        Put a layer in the place of a norm, or the norm back. PEFT would go on to give the new one the old one's weight
        and device, which are here what they should be: not every norm has a weight, and it may be offloaded.
        """
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """A pair is float32 from the start (see [`DSOAffine`]), so that only the opposite cast is left to do."""
        for layer in self.model.modules() if not autocast_adapter_dtype else ():
            if isinstance(layer, DSOLayer) and adapter_name in layer.dso_affine:
                dtype = layer._get_base_layer_device_and_dtype(layer.get_base_layer())[1]
                for parameter in layer.dso_affine[adapter_name].parameters():
                    parameter.data = parameter.data.to(dtype)

    def print_steering_sites(self, adapter_name: Optional[str] = None) -> None:
        """
        Print the norms that an adapter steers and the number of parameters at each, as PEFT's
        `print_trainable_parameters` prints the total.

        Args:
            adapter_name (`str`, *optional*): which adapter; default the first active one.

        Raises:
            ValueError: there is no such adapter.
        """
        chosen = _strength._selected(self.model, adapter_name or self.active_adapters[0])
        print(site_table(self.model, {site: affine for (site, _), affine in chosen.items()}))

    # --- strength ----------------------------------------------------------------------------------------------------

    def set_steering_strength(self, strength: _strength.Strength, adapter_name: Optional[str] = None) -> None:
        """See [`set_steering_strength`]."""
        _strength.set_steering_strength(self.model, strength, adapter_name)

    def get_steering_strength(self, adapter_name: Optional[str] = None) -> Any:
        """See [`get_steering_strength`]."""
        return _strength.get_steering_strength(self.model, adapter_name)

    def steering_strength(self, strength: _strength.Strength, adapter_name: Optional[str] = None) -> Any:
        """See [`steering_strength`]: a context manager that restores the strength."""
        return _strength.steering_strength(self.model, strength, adapter_name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in PEFT; `steering_strength=` is the strength of this call, as in [`~peft.PeftModel`]'s."""
        if KEYWORD not in kwargs or has_settings(self.model):
            return super().forward(*args, **kwargs)
        with call_settings(self.model, self.peft_config, (), {KEYWORD: kwargs[KEYWORD]}):
            return super().forward(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """What `PeftModel` runs `forward` and `generate` in: see [`~calls.call_settings`]."""
        with call_settings(self.model, self.peft_config, args, kwargs):
            yield

    # --- merging -----------------------------------------------------------------------------------------------------

    def merge_adapter(self, adapter_names: Optional[list[str]] = None, safe_merge: bool = False) -> None:
        """
        Merge at the current strength. Exact where the norm has a bias (LayerNorm); for an RMSNorm only slopes can be
        merged, and a shift is refused.

        Args:
            adapter_names (`list[str]`, *optional*): which adapters; default the active ones.
            safe_merge (`bool`, defaults to `False`): refuse results that are not finite.

        Raises:
            ValueError: there is no such adapter, or a site cannot take the steering; the model is unchanged then.
        """
        check_merge(self.model, adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Optional[list[str]] = None,
    ) -> nn.Module:
        check_unload(self.model)
        if merge:
            check_merge(self.model, adapter_names)
        else:  # what is merged is not the base model
            for layer in _strength.dso_layers(self.model).values():
                layer.unmerge()
        base = super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
        )
        allow_keyword(self.model)
        return base

    # --- adapters made from adapters ---------------------------------------------------------------------------------

    def add_weighted_adapter(self, adapters: list[str], weights: list[float], adapter_name: str) -> None:
        """
        Add an adapter whose pairs are the weighted sum of others' pairs. Exact: at strength 1 it does what the others
        do together at strengths equal to the weights.

        Args:
            adapters (`list[str]`): names of the adapters to combine.
            weights (`list[float]`): one finite number for each.
            adapter_name (`str`): name of the new adapter. It is not made active.

        Raises:
            ValueError: an adapter is unknown, the new name is taken, or the weights do not fit.
        """
        check_sum(self.peft_config, adapters, weights, adapter_name)
        layers = _strength.dso_layers(self.model)
        sites = [site for site, layer in layers.items() if any(name in layer.dso_affine for name in adapters)]
        self.peft_config[adapter_name] = sum_config([self.peft_config[name] for name in adapters], sites)
        try:
            self.inject_adapter(self.model, adapter_name)
        except Exception:  # such as a name that torch cannot give a module
            del self.peft_config[adapter_name]
            raise
        for site in sites:
            pairs = dict(layers[site].dso_affine.items())
            add_weighted(pairs[adapter_name], [pairs.get(name) for name in adapters], weights)

    def prune(self, keep: float, adapter_name: Optional[str] = None) -> int:
        """
        Set the weakest neurons of an adapter exactly to zero (the paper's sparsity figure keeps 60 %). A neuron is one
        feature of one site; its weight is |a| + |b| / g, g the norm's gain (see [`shift_unit`]). benchmarks/README.md
        shows what pruning costs.

        Args:
            keep (`float`): share of the neurons to keep, in [0, 1].
            adapter_name (`str`, *optional*): which adapter; default the first active one.

        Returns:
            `int`: the number of neurons that are not zero now.

        Raises:
            ValueError: `keep` is outside [0, 1] or the adapter is unknown.
        """
        chosen = _strength._selected(self.model, adapter_name or self.active_adapters[0])
        layers = _strength.dso_layers(self.model)
        units = [shift_unit(layers[site].get_base_layer()) for site, _ in chosen]
        return prune(list(chosen.values()), units, keep)

    # --- loading -----------------------------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: DSOConfig, adapter_name: str, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Note which vectors are [`taken`]: the configuration that is saved with them holds their sha256."""
        tensors: dict[str, torch.Tensor] = super()._get_adapter_state_dict(
            model=model, config=config, adapter_name=adapter_name, **kwargs
        )
        vectors = pair_vectors(tensors)
        if kwargs["state_dict"]:  # some processes have no tensors at all
            check_whole(model, adapter_name, len(vectors), kwargs["unwanted_adapter_names"])
        config.__dict__["_taken"] = taken(model, adapter_name, vectors, copied=bool(kwargs["state_dict"]))
        return tensors

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: DSOConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Check that the tensors fit before any of them is loaded: PEFT itself lets missing and surplus ones pass."""
        remapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        check_fits(model, adapter_name, state_dict, remapped)
        return remapped
