"""docs/private-members.md names every private member of other libraries that the package overrides or reads."""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

import peft_dso


ROOT = Path(peft_dso.__file__).parent
DOCUMENT = ROOT.parent / "docs" / "private-members.md"
LIBRARIES = ("peft", "trl", "transformers", "accelerate", "torch")


def private(name):
    return isinstance(name, str) and re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


def library_bases():
    """The classes of other libraries that classes of the package inherit from."""
    bases = {PeftModel, PreTrainedModel}  # they call what a tuner defines by name
    for info in pkgutil.walk_packages(peft_dso.__path__, "peft_dso."):
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # an extra that is not installed
            continue
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__.startswith("peft_dso"):
                bases |= {base for base in value.__mro__ if base.__module__.partition(".")[0] in LIBRARIES}
    return bases


def private_members(bases):
    """Private methods and attributes of classes, those that are only set on `self` included."""
    names = set()
    for base in bases:
        names |= set(filter(private, vars(base)))
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    return set(filter(private, names))


def found_in_package():
    inherited = private_members(library_bases())
    defined, used = set(), set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Attribute):
                (defined if isinstance(node.ctx, ast.Store) else used).add(node.attr)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
                used.add(getattr(node.args[1], "value", None))
    defined, used = set(filter(private, defined)), set(filter(private, used))
    return (defined & inherited) | (used - defined)


def documented():
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", DOCUMENT.read_text(), re.M)
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_the_document_lists_what_the_package_uses():
    found, listed = found_in_package(), set(documented())
    assert found - listed == set(), "used, and not in docs/private-members.md"
    assert listed - found == set(), "in docs/private-members.md, and not used"


def test_the_installed_libraries_have_them():
    for name, module in documented().items():
        assert module.partition(".")[0] in LIBRARIES
        assert re.search(rf"\b{name}\b", inspect.getsource(importlib.import_module(module))), f"{module} has no {name}"
