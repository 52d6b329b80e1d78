"""The quick start: a real pretrained model from PyPI, debiased in minutes."""
