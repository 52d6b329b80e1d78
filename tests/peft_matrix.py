"""
A pytest plugin that makes PEFT's own custom-model tests run on rows of DSO.

The tests come from the source distribution of the installed PEFT (see test_peft_matrix.py); nothing of them is copied.
Their lists of cases are module attributes that the parametrize marks refer to, so that changing a list in place before
the tests are collected changes the cases.
"""

import sys
import types

import peft_dso


# testing_common.py imports it at its top, for tests that are not run here.
sys.modules.setdefault("diffusers", types.SimpleNamespace(StableDiffusionPipeline=None))


ROWS = [
    ("LayerNorm 1 DSO", "MLP_LayerNorm", peft_dso.DSOConfig, {"target_modules": "layernorm0"}),
    ("LayerNorm 2 DSO", "MLP_LayerNorm", peft_dso.DSOConfig, {"target_modules": ["layernorm0", "layernorm1"]}),
    ("LayerNorm 3 DSO", "MLP_LayerNorm", peft_dso.DSOConfig, {"target_modules": ["layernorm1"], "learn_slope": False}),
    (
        "LayerNorm 4 DSO",
        "MLP_LayerNorm",
        peft_dso.DSOConfig,
        {"target_modules": ["layernorm0"], "modules_to_save": ["lin1"]},
    ),
]


def pytest_pycollect_makeitem(collector, name, obj):
    module = collector.module
    if getattr(module, "_dso_rows", False):
        return
    module._dso_rows = True
    module.TEST_CASES[:] = ROWS
    module.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = []
    module.ALL_PEFT_CONFIG_CLASSES[:] = []
