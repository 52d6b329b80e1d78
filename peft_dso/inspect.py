"""What a saved adapter changes."""

from __future__ import annotations

import os
from pathlib import Path

from .evaluation import format_table, load_report, warnings_of
from .objective.penalties import sparsity
from .tuner.files import read_adapter


__all__ = ["REPORT", "describe", "read_adapter"]
REPORT = "dso_report.json"  # beside the adapter: what was measured of it


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
    lines += ["", *_measured(path)]
    return "\n".join(lines)


def _measured(path: Path) -> list[str]:
    """What was measured of the adapter, if a report lies beside it."""
    file = path / REPORT
    if not file.is_file():
        return [f"measured      nothing: there is no {REPORT} in the folder (peft-dso sweep writes it)"]
    report, lines = load_report(file), []
    for name, results in report.sets.items():
        lines += [f"measured      {name}, at strengths {', '.join(f'{r.strength:g}' for r in results)}"]
        lines += [format_table(results)]
    return [*lines, *warnings_of(report)]
