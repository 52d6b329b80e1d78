"""
Fit methods on the same questions and measure them on the same held-out ones.

Whatever is done is kept in a folder per method and seed (the adapter, `fit.json`, `report.json`) and not done again: a
comparison that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from ..evaluation import Report, load_report, save_report, sweep
from ..export.card import save_card
from ..inspect import REPORT, VECTORS
from ..questions import OCCUPATIONS, Occupation
from ..scoring.keys import digest
from ..tuner.sites import fingerprint
from .adapters import biases_meant
from .claims import check_free, claim, weights_mark
from .dso import fit_dso
from .fits import Comparison, Fit, label_of, seeds_of
from .methods import METHODS, Method, chosen_methods
from .parts import Parts, check_model, check_parts
from .prompting import WORDINGS, askable_wordings, choose_prompt, prompts


__all__ = ["Comparison", "Fit", "compare"]
Load = Callable[[], tuple[Any, Any]]
Say = Callable[[str], Any]
KL = "of all tokens that decide an answer"  # in the description of each report


def compare(
    load: Load,
    parts: Parts,
    out: str | os.PathLike[str],
    methods: Optional[Sequence[str]] = None,
    *,
    seeds: int = 1,
    neutral: Optional[Sequence[str]] = None,
    occupations: Sequence[Occupation] = OCCUPATIONS,
    settings: Optional[Mapping[str, Mapping[str, Any]]] = None,
    description: Optional[Mapping[str, Any]] = None,
    say: Say = lambda line: None,
    progress: bool = False,
) -> Comparison:
    """
    Compare methods.

    Args:
        load (`Callable`): gives a fresh base model and its tokenizer or processor.
        parts (`Parts`): the questions (see [`parts_of`]).
        out (`str`): the folder; each fitted method lies in `out/METHOD`, of further seeds in `out/METHOD-seed1`.
        methods (`Sequence[str]`, *optional*): of `METHODS`; default all.
        seeds (`int`, defaults to 1): fits per method, which shows how much they differ. Those of earlier calls
            in the folder stay.
        neutral (`Sequence[str]`, *optional*): texts that have nothing to do with the questions, for the KL on them.
        occupations (`Sequence[Occupation]`): who knows the majority where the answers do not say a gender.
        settings (`Mapping[str, Mapping[str, Any]]`, *optional*): by method, settings of its fit.
        description (`Mapping[str, Any]`, *optional*): what to note, such as the model's name. A folder that was made
            with another one, other questions or other settings is refused.
        say (`Callable`): gets a line for each step.
        progress (`bool`, defaults to `False`): progress bars of the measurements.

    Returns:
        `Comparison`: what was found, in this call and by earlier ones in the folder; a method that fails is among its
        `failures`, and the others go on.

    Raises:
        ValueError: a method is unknown, the questions or the model cannot be compared on, the folder holds another
            comparison, or something else lies where a method is to be put. Nothing has been fitted then.
    """
    chosen = chosen_methods(methods)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"seeds={seeds!r}: give a whole number of at least 1.")
    check_parts(parts, chosen, occupations)
    folder = Path(out)
    jobs = [(method, seed) for method in chosen for seed in seeds_of(folder, method, seeds)]
    check_free(folder, [label_of(*job) for job in jobs])
    model, processor = load()
    check_model(model, processor, parts, chosen)
    wordings: list[str] = []
    if any(method.fit is None for method in chosen):
        asked = [*parts.validation, *parts.test]
        wordings = askable_wordings(model, processor, parts.train, asked, occupations=occupations, say=say)
    base = {**fingerprint(model), "dtype": str(model.dtype), "weights": weights_mark(model)}
    del model
    changes = {name: dict(value) for name, value in (settings or {}).items()}
    counted = {
        "questions to fit on": len(parts.train),
        "questions to choose by": len(parts.validation),
        "questions to measure on": len(parts.test),
        "neutral texts": len(neutral or ()),
    }
    found = Comparison(description={**(description or {}), **counted})
    claim(
        folder,
        {
            "description": dict(description or {}),
            "base": base,
            **{name: digest(rows) for name, rows in vars(parts).items()},
            "neutral": digest(list(neutral or ())),
            "occupations": digest([vars(occupation) for occupation in occupations]),
        },
    )
    work = _Work(load, parts, folder, neutral, occupations, wordings, say, progress, description or {})
    for number, (method, seed) in enumerate(jobs):
        label = label_of(method, seed)
        say(f"[{number + 1}/{len(jobs)}] {label}: {method.description}")
        try:
            if method.fit is None:
                work.prompt(method, found)
            else:
                work.one(method, label, seed, changes.get(method.name, {}), found)
        except Exception as error:  # whatever it is, the others go on
            found.failures[label] = f"{type(error).__name__}: {error}"
            say(f"    failed: {found.failures[label]}")
    for method in METHODS.values():
        if method not in chosen:
            try:
                work.found_before(method, found)
            except Exception as error:
                say(f"{method.name}: left out, and to be deleted, since it cannot be read: {error}")
    return found


def _show_measured(method: Method, folder: Path, trained_on: str) -> None:
    """Put what was measured of DSO's pairs where `peft-dso inspect` and cards look for it, and into DSO's own card."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config["peft_type"] != "DSO" or (folder / REPORT).is_file():
        return
    shutil.copyfile(folder / "report.json", folder / REPORT)
    if method.fit is fit_dso:
        save_card(folder, trained_on=trained_on)


@dataclass
class _Work:
    """What fits and measures one method after the other."""

    load: Load
    parts: Parts
    folder: Path
    neutral: Optional[Sequence[str]]
    occupations: Sequence[Occupation]
    wordings: Sequence[str]
    say: Say
    progress: bool
    named: Mapping[str, Any]  # the model and the questions, as the caller names them

    @property
    def trained_on(self) -> str:
        """For the card of an adapter."""
        return f"{len(self.parts.train)} questions" + (
            f" ({self.named['questions']})." if "questions" in self.named else "."
        )

    def one(self, method: Method, label: str, seed: int, changes: Mapping[str, Any], found: Comparison) -> None:
        """Fit and measure, as far as it is not done."""
        folder = self.folder / label
        settings = {**method.settings, **changes}
        fit = self._fitted(method, folder, seed, settings)
        path = folder / "report.json"
        report = self._read(path) if path.is_file() else None
        if report is not None and {r.strength for r in report.sets["test"]} != set(method.strengths):
            self.say("    measured at other strengths before")
            report = None
        if report is not None:
            self.say("    measured already")
        else:
            model, processor = self.load()
            # What is measured is what was saved.
            with biases_meant():
                model = PeftModel.from_pretrained(model, folder).eval()
            vectors = getattr(model.peft_config["default"], VECTORS, None)  # of DSO's pairs
            report = self._measured(model, processor, method.strengths)
            report.description.update({} if vectors is None else {VECTORS: vectors})
            save_report(report, path)
            (folder / REPORT).unlink(missing_ok=True)  # of what was measured before
        _show_measured(method, folder, self.trained_on)
        found.reports.setdefault(method.name, []).append(report)
        found.fits.setdefault(method.name, []).append(fit)

    def found_before(self, method: Method, found: Comparison) -> None:
        """Take in what an earlier comparison in the folder has measured of a method that is not asked for now."""
        if method.fit is None:
            folder = self.folder / method.name
            if (folder / "fit.json").is_file():
                chosen = json.loads((folder / "fit.json").read_text(encoding="utf-8"))["chosen"]
                for wording in WORDINGS:
                    if (folder / f"{wording}.json").is_file():
                        self._take_wording(method, wording, chosen, self._read(folder / f"{wording}.json"), found)
            return
        reports, fits = [], []
        for folder in (self.folder / method.name, *sorted(self.folder.glob(f"{method.name}-seed*"))):
            if (folder / "fit.json").is_file() and (folder / "report.json").is_file():
                noted = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
                reports.append(self._read(folder / "report.json"))
                fits.append(Fit(**noted["fit"]))
                _show_measured(method, folder, self.trained_on)
                self.say(f"{folder.name}: from an earlier comparison")
        if reports:
            found.reports[method.name], found.fits[method.name] = reports, fits

    @staticmethod
    def _take_wording(method: Method, wording: str, chosen: str, report: Report, found: Comparison) -> None:
        note = "chosen on the validation part" if wording == chosen else ""
        found.reports[f"{method.name}: {wording}"] = [report]
        found.fits[f"{method.name}: {wording}"] = [Fit(0.0, 0, note)]

    def _fitted(self, method: Method, folder: Path, seed: int, settings: dict[str, Any]) -> Fit:
        """The record of the fit in a folder; it is fitted first where there is none."""
        path = folder / "fit.json"
        made_with = json.loads(json.dumps({"settings": settings, "seed": seed}, default=str))
        if path.is_file():
            noted = json.loads(path.read_text(encoding="utf-8"))
            if noted["made_with"] != made_with:
                raise ValueError(
                    f"{folder} was fitted with {noted['made_with']}, and {made_with} is asked for: delete it to fit "
                    "it anew."
                )
            if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
                raise ValueError(f"{folder} has no {SAFETENSORS_WEIGHTS_NAME}: delete the folder to fit anew.")
            self.say("    fitted already")
            return Fit(**noted["fit"])
        model, processor = self.load()
        lines: list[str] = []

        def step(line: str) -> None:
            lines.append(line)
            self.say(f"    {line}")

        more: dict[str, Any] = {"validation": self.parts.validation} if method.chooses else {}
        if method.contrasts:
            more["occupations"] = self.occupations
        if method.fit is None:
            raise TypeError(f"{method.name} is not fitted.")
        begin = time.monotonic()
        fitted = method.fit(model, processor, self.parts.train, seed=seed, progress=step, **more, **settings)
        seconds = time.monotonic() - begin
        # Whole or not at all: a folder with a record in it is a finished fit.
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with biases_meant():
            fitted.save_pretrained(unfinished)
        vectors = load_file(unfinished / SAFETENSORS_WEIGHTS_NAME)
        note = next((line for line in reversed(lines) if line.startswith("chose")), "")
        fit = Fit(round(seconds, 1), sum(int(v.count_nonzero()) for v in vectors.values()), note, seed)
        noted = {"fit": asdict(fit), "made_with": made_with}
        (unfinished / "fit.json").write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()  # it is empty, or it is not ours
        unfinished.rename(folder)
        self.say(f"    fitted in {fit.seconds:.0f} s, {fit.parameters:,} parameters")
        return fit

    def _measured(self, model: Any, processor: Any, strengths: Sequence[float], knob: Any = None) -> Report:
        sets = {"test": self.parts.test, "validation": self.parts.validation}
        report = sweep(model, processor, sets, strengths, knob=knob, neutral=self.neutral, progress=self.progress)
        report.description.update({key: self.named[key] for key in ("model", "questions") if key in self.named}, kl=KL)
        return report

    def _read(self, path: Path) -> Report:
        """A report of this call or an earlier one."""
        report = load_report(path)
        if report.description.get("kl") != KL:
            self.say(
                f"    {path} is of version 0.1.0: its KL is that of the first token of an answer alone, which is less "
                "where answers begin alike. Delete it to measure again."
            )
        return report

    def prompt(self, method: Method, found: Comparison) -> None:
        """Measure the wordings, and mark the one that validates best."""
        model, processor = self.load()
        if not self.wordings:
            raise ValueError("The model has positions for no wording of the longest question: shorten the questions.")
        knobs = prompts(processor, self.parts.train, self.wordings, occupations=self.occupations)
        folder = self.folder / method.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "fit.json"
        if path.is_file():
            chosen = json.loads(path.read_text(encoding="utf-8"))["chosen"]
        else:
            chosen = choose_prompt(model, processor, knobs, self.parts.validation)[0].name
            path.write_text(json.dumps({"chosen": chosen}) + "\n", encoding="utf-8")
        self.say(f"    chose the wording {chosen!r}")
        for knob in knobs:
            report_path = folder / f"{knob.name}.json"
            if report_path.is_file():
                self.say(f"    {knob.name}: measured already")
                report = self._read(report_path)
            else:
                self.say(f"    {knob.name}")
                report = self._measured(model, processor, method.strengths, knob)
                save_report(report, report_path)
            self._take_wording(method, knob.name, chosen, report, found)
