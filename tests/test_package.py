"""What the package promises about itself: its public names, what importing it costs, and who imports whom."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import peft_dso


ROOT = Path(peft_dso.__file__).parent
# What each part may import besides itself.
_MEASURING = {"answers", "questions", "scoring", "objective", "tuner"}
_EVERYTHING = _MEASURING | {"baselines", "evaluation", "export", "training", "inspect", "models", "demo"}
LAYERS = {
    "": {"tuner", "objective", "training"},
    "objective": {"answers"},
    "questions": {"answers"},
    "scoring": {"answers", "questions"},
    "evaluation": _MEASURING,
    "baselines": _MEASURING | {"evaluation", "export", "inspect", "training"},
    "export": _MEASURING | {"evaluation", "inspect"},
    "training": _MEASURING | {"export"},
    "inspect": {"evaluation", "objective", "tuner"},
    "demo": _EVERYTHING,
    "models": {"demo", "tuner"},
    "app": _MEASURING | {"evaluation", "inspect", "models"},
    "cli": _EVERYTHING | {"", "app"},
    # the places of earlier versions
    "metrics": {"evaluation"},
    "rewards": {"objective"},
    "penalties": {"objective"},
    "quickstart": {"demo"},
    "quickstart_model": {"demo"},
}


def fresh(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_every_public_name_is_there():
    assert sorted(peft_dso.__all__) == peft_dso.__all__
    for name in peft_dso.__all__:
        assert getattr(peft_dso, name) is not None and name in dir(peft_dso)
    with pytest.raises(AttributeError, match="Nothing"):
        peft_dso.Nothing  # noqa: B018


def test_importing_costs_what_peft_costs():
    """No trl, datasets, matplotlib or gradio until used, and no module that importing peft would not bring."""
    listed = "import sys, {}; print(sorted({{name.partition('.')[0] for name in sys.modules}}))"
    own = set(ast.literal_eval(fresh(listed.format("peft_dso"))))
    peft = set(ast.literal_eval(fresh(listed.format("peft"))))
    assert own - peft <= {"peft_dso", "regex", "_regex"} | {name for name in own if name.startswith("_")}
    assert not own & {"trl", "datasets", "matplotlib", "gradio"}


def test_importing_registers_the_type():
    out = fresh("import peft_dso; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as m; print(m['DSO'].__name__)")
    assert "DSOConfig" in out


def test_what_is_missing_is_named():
    code = "import sys; sys.modules['trl'] = None; import peft_dso\ntry: peft_dso.DSOTrainer\n"
    code += "except ImportError as error: print(error)"
    assert "pip install 'peft_dso[train]'" in fresh(code)


def imports():
    """Per module of the package the modules of the package that its code imports, at any depth of the code."""
    modules = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[:-1]
        name = ".".join(package if parts[-1] == "__init__" else parts)
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package[: len(package) - node.level + 1]
                target = (*base, *(node.module.split(".") if node.module else ()))
                for alias in node.names:
                    inner = ROOT.joinpath(*target, alias.name)
                    is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                    found.add(".".join((*target, alias.name) if is_module else target))
        modules[name] = found - {name, ""}
    return modules


def test_imports_have_no_cycle_and_keep_their_direction():
    modules = imports()
    tuple(TopologicalSorter(modules).static_order())  # raises CycleError
    for name, found in modules.items():
        top = name.partition(".")[0]
        allowed = LAYERS.get(top, set()) | {top}
        wrong = {target for target in found if target.partition(".")[0] not in allowed}
        assert not wrong, f"{name} imports {wrong}"


def test_no_assert_and_no_print_in_the_library():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), path
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                # print_steering_sites is the twin of PEFT's print_trainable_parameters.
                assert "cli" in path.parts or path.name == "model.py", path
