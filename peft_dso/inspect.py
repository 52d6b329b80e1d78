"""What a saved adapter changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

from .evaluation import Report, format_table, load_report, warnings_of
from .objective.penalties import sparsity
from .tuner.files import read_adapter


__all__ = ["REPORT", "VECTORS", "describe", "read_adapter", "report_of"]
REPORT = "dso_report.json"  # beside the adapter: what was measured of it
VECTORS = "vectors_sha256"  # in the description of a report: the vectors that were measured


def describe(folder: str | os.PathLike[str]) -> str:
    """
    Describe the adapter in a folder as text: base model, strength, and per site how many neurons it changes and how
    large its slope and shift are.

    Args:
        folder (`str`): with adapter_config.json and adapter_model.safetensors.

    Returns:
        `str`: several lines.

    Raises:
        ValueError: the folder holds no DSO adapter in safetensors.
    """
    path = Path(folder)
    config, sites = read_adapter(path)
    zeros, l1 = sparsity([tuple(vectors.values()) for vectors in sites.values()])
    base = config.base_fingerprint or {}
    lines = [
        f"base model    {config.base_model_name_or_path or 'not named'} ({base.get('model_type') or 'unknown type'})",
        f"strength      {config.steering_strength}",
        f"sites         {len(sites)}",
        f"parameters    {sum(t.numel() for v in sites.values() for t in v.values()):,}",
        f"zero neurons  {zeros:.1%}",
        f"|a|+|b|       {l1:.4g}",
        "",
        f"{'site':{max(map(len, sites))}}  changed  max |a|  max |b|",
    ]
    for site, vectors in sites.items():
        changed = 1 - sparsity([tuple(vectors.values())])[0]
        sizes = [f"{float(vectors[v].abs().max()):7.4f}" if v in vectors else "      -" for v in ("slope", "shift")]
        lines.append(f"{site:{max(map(len, sites))}}  {changed:7.1%}  {'  '.join(sizes)}")
    lines += ["", *_measured(path, config)]
    return "\n".join(lines)


def report_of(folder: str | os.PathLike[str], config: Any) -> Optional[Report]:
    """
    The report that lies beside an adapter.

    Args:
        folder (`str`): of the adapter.
        config (`DSOConfig`): the adapter's.

    Returns:
        `Report` or `None`: `None` without one, and where it says that other vectors were measured.
    """
    file = Path(folder) / REPORT
    report = load_report(file) if file.is_file() else None
    return report if report is not None and is_of(report, config) else None


def is_of(report: Report, config: Any) -> bool:
    """Whether a report is of the vectors that an adapter's config names; one that names none is taken for such."""
    return report.description.get(VECTORS) in (None, getattr(config, VECTORS, None))


def _measured(path: Path, config: Any) -> list[str]:
    """What was measured of the adapter, if a report lies beside it."""
    report, lines = report_of(path, config), []
    if report is None:
        why = "the report in the folder is of other vectors" if (path / REPORT).is_file() else f"there is no {REPORT}"
        return [f"measured      nothing: {why} (peft-dso sweep writes one)"]
    for name, results in report.sets.items():
        lines += [f"measured      {name}, at strengths {', '.join(f'{r.strength:g}' for r in results)}"]
        lines += [format_table(results)]
    return [*lines, *warnings_of(report)]
