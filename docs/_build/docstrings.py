"""
A griffe extension: the docstrings of this package are in Hugging Face's form, which mkdocstrings reads as Google's once
types that stand in the signature anyway are left out of `Args`, and references such as [`DSOConfig`] are links.
"""

import re

import griffe


ARGUMENT = re.compile(r"^(\s+\*{0,2}\w+) \(.*?\):(?=\s|$)")
REFERENCE = re.compile(r"\[`([^`\]]+)`\](?![\[(])")
KIND = re.compile(r"^(\s+)`([^`]+)`(,|:)")


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites docstrings as they are loaded."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = google(obj.docstring.value)


def google(text: str) -> str:
    """A docstring in Hugging Face's form as one in Google's."""
    section, lines = "", []
    for line in text.splitlines():
        if re.fullmatch(r"\s*(Args|Attributes|Returns|Yields|Raises):", line):
            section = line.strip()
        if section in ("Args:", "Attributes:"):
            line = ARGUMENT.sub(r"\1:", line)
        if section in ("Returns:", "Yields:"):
            line = KIND.sub(lambda m: f"{m[1]}{m[2]}{':' if m[3] == ':' else ','}", line)
        lines.append(REFERENCE.sub(lambda m: f"`{m[1].lstrip('~').rpartition('.')[2] or m[1]}`", line))
    return "\n".join(lines)
