"""What libraries may say while a command runs."""

import logging
import warnings

import pytest

from peft_dso.cli.libraries import libraries_at


def heard(level):
    """What is shown of four warnings, each as it would come from a module."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with libraries_at(level):
            for text, category, module in (
                ("old name", FutureWarning, "trl.trainer.base"),
                ("no config", UserWarning, "peft.utils.other"),
                ("ours", UserWarning, "peft_dso.tuner.model"),
                ("yours", UserWarning, "__main__"),
            ):
                warnings.warn_explicit(text, category, "file.py", 1, module=module)
    return [str(warning.message) for warning in shown]


def test_libraries_are_quiet_and_the_package_is_not():
    assert heard("error") == ["ours", "yours"]


@pytest.mark.parametrize("level", ["warning", "info", "debug"])
def test_more_is_heard_where_it_is_asked_for(level):
    assert heard(level) == ["old name", "no config", "ours", "yours"]


def test_what_was_set_before_is_set_again(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    logger = logging.getLogger("trl")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    with libraries_at("error"):
        assert logger.level == logging.ERROR
    assert logger.level == logging.WARNING
