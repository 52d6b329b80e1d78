"""
A second device for machines that have none: tensors whose values lie in the main memory, but which say that they are
elsewhere and refuse to be mixed with tensors that are not, and that cannot be float64 (as on MPS).
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


# For the rest of the process: run what needs it in a process of its own.
_setup_privateuseone_for_python_backend("elsewhere")
ELSEWHERE = torch.device("elsewhere:0")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)


class Elsewhere(torch.Tensor):
    @staticmethod
    def __new__(cls, values, requires_grad=False):
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=ELSEWHERE, requires_grad=requires_grad,
        )  # fmt: skip
        made.values_here = values
        return made

    def __repr__(self):
        return f"Elsewhere({self.values_here!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    away = [t for t in tensors if isinstance(t, Elsewhere)]
    # As on an accelerator: a number of the main memory may be mixed in, a vector may not.
    here = [t for t in tensors if not isinstance(t, Elsewhere) and t.dim()]
    if away and here and func not in _MOVES:
        raise RuntimeError(f"{func}: tensors on {ELSEWHERE} and on {here[0].device}")
    target = kwargs.get("device")
    to = bool(away) if target is None else torch.device(target).type == ELSEWHERE.type
    if target is not None and torch.device(target).type == ELSEWHERE.type:
        kwargs = {**kwargs, "device": "cpu"}
    unwrap = lambda t: t.values_here if isinstance(t, Elsewhere) else t  # noqa: E731
    out = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    if func is torch.ops.aten.copy_.default or (func._schema.name[-1] == "_" and args):
        return args[0]
    if not to or func in _READS:
        return out
    if any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in tree_flatten(out)[0]):
        raise TypeError(f"{func}: a tensor on {ELSEWHERE} cannot be float64")
    return tree_map(lambda t: Elsewhere(t) if isinstance(t, torch.Tensor) else t, out)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """`torch.tensor` makes its tensor below the reach of a dispatch mode."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == ELSEWHERE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(ELSEWHERE)
        return func(*args, **kwargs)


@contextmanager
def a_device_elsewhere():
    """Within it, `.to(ELSEWHERE)` and `device=ELSEWHERE` work."""
    with _Functions(), _Dispatch():
        yield
