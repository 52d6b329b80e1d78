"""The place of demo/quickstart.py in earlier versions; import it from there."""

from .demo.quickstart import *  # noqa: F403
