import ctypes
import ctypes.util
import gc
import os


# Before any library is imported: no network, no telemetry, no progress bars in the output of tests.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_runtest_teardown(item):
    """Give back what a large test has freed: the C library keeps it otherwise, and the tests add up to 8 GB."""
    if item.get_closest_marker("slow"):
        gc.collect()
        trim = getattr(ctypes.CDLL(ctypes.util.find_library("c")), "malloc_trim", None)  # of glibc alone
        if trim is not None:
            trim(0)
