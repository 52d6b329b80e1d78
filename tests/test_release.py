"""What a release is: one version everywhere, links that work on PyPI, files that come along."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import peft_dso


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def sections():
    """The heading, the date and the number of entries of each part of CHANGELOG.md."""
    parts = re.split(r"^## (.*)\n", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1:]
    found = []
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        version, date = re.fullmatch(r"\[(.+?)\](?: - (\d{4}-\d\d-\d\d))?", heading).groups()
        found.append((version, date, len(re.findall(r"^- \S", text, re.M))))
    return found


def test_version_changelog_and_citation_agree():
    """A release has its heading with a date and is cited as such; what becomes one stands under Unreleased."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version, _, dev = peft_dso.__version__.partition(".dev")
    assert str(citation["version"]) == version
    parts = sections()
    coming, released = [part for part in parts if part[0] == "Unreleased"], [p for p in parts if p[0] != "Unreleased"]
    assert parts == coming[:1] + released and all(date and entries for _, date, entries in released)
    dates = [date for _, date, _ in released]
    assert dates == sorted(dates, reverse=True)
    if dev:
        (_, date, entries), *_ = coming
        assert entries and date is None and version not in [name for name, _, _ in released]
    else:
        assert released[0][0] == version and str(citation.get("date-released")) == released[0][1]


def test_the_citation_is_whole():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert paper["url"] == PROJECT["urls"]["Paper"] == "https://arxiv.org/abs/2512.15926"
    assert len(paper["authors"]) == 7 and citation["license"] == PROJECT["license"]


def shown_on_pypi():
    """README.md as the build changes it for the description of the package."""
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]
    text = (ROOT / hook["fancy-pypi-readme"]["fragments"][0]["path"]).read_text()
    for change in hook["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    return text


def test_what_pypi_shows_has_no_link_into_the_repository():
    """A relative link or picture would lead nowhere there."""
    found = re.findall(r"\]\(([^)\s]+)\)|<img", shown_on_pypi())
    assert "https://arxiv.org/abs/2512.15926" in found
    assert all(link.startswith("https://") for link in found)


def test_extras_name_each_other_and_exist():
    extras = PROJECT["optional-dependencies"]
    for needs in extras.values():
        for need in needs:
            if need.startswith("peft_dso["):
                assert set(re.search(r"\[(.*)\]", need)[1].split(",")) <= extras.keys()
    assert {"app", "docs", "train", "eval", "quickstart"} <= extras.keys()


def test_the_workflow_tests_what_the_classifiers_promise():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    promised = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert promised and set(promised) <= set(matrix)
    publish = workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and set(publish["needs"]) == {"build", "docs"}


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_they_need(tmp_path):
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    installed = set(zipfile.ZipFile(wheel).namelist())
    assert {"peft_dso/app/style.css", "peft_dso/py.typed", "peft_dso/cli/app.py"} <= installed
    assert not [name for name in installed if name.startswith(("tests/", "docs/"))]
    folder = ROOT / "peft_dso" / "demo" / "adapter"
    if folder.exists():
        assert {f"peft_dso/demo/adapter/{file.name}" for file in folder.iterdir()} <= installed
    (metadata,) = (name for name in installed if name.endswith("METADATA"))
    description = zipfile.ZipFile(wheel).read(metadata).decode().partition("\n\n")[2]
    assert description.strip() == shown_on_pypi().strip()
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/test_release.py", "CITATION.cff", "docs/index.md", "mkdocs.yml", "CHANGELOG.md"} <= sources
    twine = pytest.importorskip("twine.commands.check")
    assert not twine.check([str(wheel), str(sdist)], strict=True)
