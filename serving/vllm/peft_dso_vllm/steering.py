"""The steering of one worker's model: which norms, with which vectors, and the strengths of each batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from .adapters import Adapter, read_vectors
from .batch import Strengths
from .norms import block_norms, install_norm, load_slot, norm_width
from .settings import Settings


# Padding of a batch for graphs or collectives may go past the most tokens that are scheduled.
SPARE_ROWS = 512


def _makes_graphs(config: Any) -> bool:
    """Whether the model is compiled or captured, by the engine's `CompilationConfig`."""
    from vllm.config import CompilationMode, CUDAGraphMode

    return config.mode != CompilationMode.NONE or config.cudagraph_mode != CUDAGraphMode.NONE


class Steering:
    """
    The steering of one worker's model.

    Args:
        runner (`GPUModelRunner`): of either kind, with its model loaded.
        settings (`Settings`): what the engine was started with.

    Raises:
        ValueError: an adapter does not fit the model.
    """

    def __init__(self, runner: Any, settings: Settings) -> None:
        self.runner = runner
        self.settings = settings
        self.model: nn.Module = runner.get_model()
        self.norms: dict[str, nn.Module] = {}
        slots = len(settings.slots)
        self.strengths = Strengths(runner.max_num_tokens + SPARE_ROWS, slots, runner.device)
        self._rows: dict[Any, tuple[Any, np.ndarray]] = {}
        self._indexed = np.zeros((runner.max_num_reqs, slots), dtype=np.float32)
        self.problems: list[str] = []
        self.absent: set[str] = set()
        self.blocks = self._blocks()
        vectors = {slot: self._vectors(a) for slot, a in enumerate(settings.slots) if a is not None}
        wanted = {name for sites in vectors.values() for name in sites}
        if None in settings.slots:
            wanted |= set(self.blocks)  # an adapter that is loaded later may steer any of them
        modules = dict(self.model.named_modules())
        eager = not _makes_graphs(runner.vllm_config.compilation_config)
        for name in sorted(wanted):
            install_norm(modules[name], slots, self.strengths, eager)
            self.norms[name] = modules[name]
        for slot, sites in vectors.items():
            load_slot(self.norms, slot, sites)

    # --- what fits the model -----------------------------------------------------------------------------------------

    def _backbone(self) -> tuple[str, nn.Module]:
        """The language backbone and the prefix of its names: all of a text model, a part of a multimodal one."""
        language = getattr(self.model, "get_language_model", None)
        found = language() if callable(language) else self.model
        for name, module in self.model.named_modules():
            if module is found:
                return (f"{name}." if name else ""), module
        return "", self.model

    def _blocks(self) -> dict[str, nn.Module]:
        prefix, backbone = self._backbone()
        width = self.runner.model_config.hf_text_config.hidden_size
        return {prefix + name: norm for name, norm in block_norms(backbone, width).items()}

    def _name(self, site: str) -> str:
        """The name that vLLM gives to a module of transformers."""
        mapper = getattr(self.model, "hf_to_vllm_mapper", None)
        mapped = mapper.map_name(f"{site}.weight") if mapper is not None else None
        return mapped.removesuffix(".weight") if mapped else site

    def _vectors(self, adapter: Adapter) -> dict[str, dict[str, torch.Tensor]]:
        """
        The vectors of an adapter for this worker's part of the model, by vLLM's names.

        Sites that are not here are noted as absent: with pipeline parallelism another worker has them, which only the
        engine can tell.
        """
        from vllm.model_executor.models.utils import PPMissingLayer

        prefix, _ = self._backbone()
        modules = dict(self.model.named_modules())
        missing = tuple(f"{name}." for name, module in modules.items() if isinstance(module, PPMissingLayer))
        here: dict[str, dict[str, torch.Tensor]] = {}
        for site, pair in read_vectors(adapter).items():
            name = self._name(site)
            module = modules.get(name)
            if module is None or isinstance(module, PPMissingLayer):
                if not f"{name}.".startswith(missing or ("\n",)):
                    raise ValueError(
                        f"The adapter {adapter.name!r} steers {site!r}, which this model of vLLM "
                        f"({type(self.model).__name__}) does not have. Serve it on the model it was trained on, or "
                        "export a checkpoint at one strength (peft-dso export)."
                    )
                self.absent.add(name)
                continue
            width = norm_width(module)
            if width is None or any(vector.shape[0] != width for vector in pair.values()):
                raise ValueError(
                    f"The adapter {adapter.name!r} has {next(iter(pair.values())).shape[0]} features at {site!r}, "
                    f"which is {type(module).__name__} of width {width} here. It was made for another base model."
                )
            if not name.startswith(prefix):
                raise ValueError(
                    f"The adapter {adapter.name!r} steers {site!r}, outside the language backbone: what a picture or "
                    "a sound is read with is shared by requests, so no strength per request is possible there."
                )
            here[name] = pair
        return here

    # --- loading while the server runs -------------------------------------------------------------------------------

    def load(self, slot: int, adapter: Adapter) -> None:
        """
        Put an adapter into a slot.

        Raises:
            ValueError: it does not fit the model, or steers a norm that was not made steerable at the start.
        """
        vectors = self._vectors(adapter)
        for name in vectors:
            if name not in self.norms:
                raise ValueError(
                    f"The adapter {adapter.name!r} steers {name!r}, which is not steerable in this server: it is no "
                    "norm of a block. Name this adapter when the server is started."
                )
        load_slot(self.norms, slot, vectors)
        self._assign(slot, adapter)

    def unload(self, slot: int) -> None:
        """Empty a slot."""
        load_slot(self.norms, slot, {})
        self._assign(slot, None)

    def _assign(self, slot: int, adapter: Adapter | None) -> None:
        self.settings.slots[slot] = adapter
        self._rows.clear()

    # --- strengths ---------------------------------------------------------------------------------------------------

    def _row(self, params: Any) -> np.ndarray:
        fields = params.extra_args if params is not None else None
        return np.array(self.settings.row(fields), dtype=np.float32)

    def write_v1(self, scheduler_output: Any, counts: np.ndarray) -> None:
        """Write the strengths of a batch of the V1 runner, which keeps the parameters of its requests."""
        ids = self.runner.input_batch.req_ids
        rows = []
        for request_id in ids:
            params = self.runner.requests[request_id].sampling_params
            known = self._rows.get(request_id)
            if known is None or known[0] is not params:
                known = self._rows[request_id] = (params, self._row(params))
            rows.append(known[1])
        self.strengths.write(np.stack(rows), counts)
        if len(self._rows) > 2 * self.runner.max_num_reqs:
            self._rows = {request_id: self._rows[request_id] for request_id in ids}

    def add_v2(self, index: int, data: Any) -> None:
        """Note the strengths of a request of the V2 runner, which does not keep its parameters."""
        self._indexed[index] = self._row(data.sampling_params)

    def write_v2(self, input_batch: Any) -> None:
        """Write the strengths of a batch of the V2 runner."""
        rows = self._indexed[input_batch.idx_mapping_np]
        self.strengths.write(rows, input_batch.num_scheduled_tokens[: len(rows)])

    def report(self) -> dict[str, Any]:
        """What the engine puts together from all workers."""
        return {
            "norms": sorted(self.norms),
            "blocks": sorted(self.blocks),
            "absent": sorted(self.absent),
            "problems": self.problems,
        }
