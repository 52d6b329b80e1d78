"""What the libraries underneath may say on the screen."""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


LEVELS = ("debug", "info", "warning", "error")
LIBRARIES = ("accelerate", "datasets", "gradio", "huggingface_hub", "peft", "torch", "torchao", "transformers", "trl")


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """Add the option to a command."""
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default="error",
        help="what libraries may say; from warning on their deprecations too, from info on a trainer's raw metrics "
        "(default: %(default)s)",
    )


@contextmanager
def libraries_at(level: str) -> Iterator[None]:
    """
    Within it, libraries say nothing below a level. What the package itself warns of is always shown.

    Args:
        level (`str`): one of `LEVELS`.
    """
    os.environ["TRANSFORMERS_VERBOSITY"] = level  # read where transformers is imported
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        if level == "error":
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", module=rf"({'|'.join(LIBRARIES)})(\.|$)")
        for logger in loggers:
            logger.setLevel(level.upper())
        try:
            yield
        finally:
            for logger, old in zip(loggers, before, strict=True):
                logger.setLevel(old)
