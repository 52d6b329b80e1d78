"""The place of objective/rewards.py in earlier versions; import it from there."""

from .objective.rewards import *  # noqa: F403
