"""The place of demo/model.py in earlier versions; import it from there."""

from .demo.model import *  # noqa: F403
