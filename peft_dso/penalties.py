"""The place of objective/penalties.py in earlier versions; import it from there."""

from .objective.penalties import *  # noqa: F403
