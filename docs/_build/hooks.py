"""What pages of the documentation are made of that lies elsewhere: files of the repository, and the commands' help."""

import argparse
import re
from pathlib import Path


ROOT = Path(__file__).parents[2]
INCLUDE = re.compile(r"^\{\{ include (\S+) \}\}$", re.M)
# A link to a file of the repository, which is no page here; other pages and the web are left alone.
REPOSITORY_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")


def on_page_markdown(markdown, **kwargs):
    markdown = INCLUDE.sub(lambda m: included(m[1]), markdown)
    return markdown.replace("{{ help }}", command_help()) if "{{ help }}" in markdown else markdown


def included(name):
    """A file of the repository, its links to other files as code."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return REPOSITORY_LINK.sub(lambda m: m[1] if m[1].startswith("`") else f"`{m[1]}`", text)


def command_help():
    """The help of every command."""
    from peft_dso.cli import _parser

    (commands,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    parts = []
    for name, parser in commands.choices.items():
        parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)
        parts.append(f"## peft-dso {name}\n\n```text\n{parser.format_help().strip()}\n```\n")
    return "\n".join(parts)
