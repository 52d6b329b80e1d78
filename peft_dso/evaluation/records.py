"""A report as flat records, one per set, strength and measure: what CSV and the comparison of methods are made of."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Optional

from .sweep import Report


@dataclass(frozen=True)
class Record:
    """
    One measured value.

    Args:
        set (`str`): the set of questions.
        strength (`float`): the strength.
        measure (`str`): see [`~peft_dso.evaluation.measures.MEASURES`]; floors and bounds are measures too.
        value (`float`): NaN where nothing could be measured.
        standard_error (`float`): NaN where there is none.
        n (`int`): number of questions.
        method (`str`, *optional*): what was turned, where several are compared.
    """

    set: str
    strength: float
    measure: str
    value: float
    standard_error: float
    n: int
    method: Optional[str] = None


def records_of(report: Report, method: Optional[str] = None) -> list[Record]:
    """
    The records of a report.

    Args:
        report (`Report`): the results.
        method (`str`, *optional*): what to note as the method.

    Returns:
        `list[Record]`: by set, strength and measure, in their order.
    """
    return [
        Record(name, result.strength, key, m.value, m.standard_error, m.n, method)
        for name, results in report.sets.items()
        for result in results
        for key, m in result.measures.items()
    ]


def plain(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_records(records: Iterable[Record], path: str | os.PathLike[str]) -> None:
    """
    Write records: a JSON list for `.json`, else CSV, where the method has a column if there is one.

    Args:
        records (`Iterable[Record]`): the records.
        path (`str`): where to write.
    """
    found = list(records)
    columns = [f.name for f in fields(Record) if f.name != "method" or any(r.method is not None for r in found)]
    lines = [{key: value for key, value in asdict(record).items() if key in columns} for record in found]
    if Path(path).suffix == ".json":
        Path(path).write_text(json.dumps(plain(lines), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for line in lines:
            cells = [line[key] for key in columns]
            writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells])


def load_records(path: str | os.PathLike[str]) -> list[Record]:
    """
    Read what [`save_records`] wrote.

    Args:
        path (`str`): a file of JSON or CSV.

    Returns:
        `list[Record]`: the records.

    Raises:
        ValueError: the file holds no records.
    """

    def number(value: Any) -> float:
        return math.nan if value in (None, "") else float(value)

    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = json.load(file) if Path(path).suffix == ".json" else list(csv.DictReader(file))
        return [
            Record(
                str(line["set"]),
                number(line["strength"]),
                str(line["measure"]),
                number(line["value"]),
                number(line["standard_error"]),
                int(line["n"]),
                line.get("method") or None,
            )
            for line in lines
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} holds no records of peft_dso: {error!r}.") from None
