"""The place of evaluation/measures.py in earlier versions; import it from there."""

from .evaluation.measures import *  # noqa: F403
