"""Whether somebody looks on. Then operators are called, which can be traced; else the kernels themselves, which cost
less Python."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

looked_on = torch._C._len_torch_dispatch_stack
"""How many dispatch modes are active."""
PLAIN, STRIDED = (Tensor, nn.Parameter), torch.strided
STAND_INS = ("torch._subclasses.fake_tensor", "torch._subclasses.functional_tensor")
"""Where the classes are whose tensors have no memory, and are what others will be."""


def watched(a: Tensor, b: Tensor) -> bool:
    """Whether what is done with two tensors is traced or only thought of: by ``torch.compile``, by a dispatch mode
    (``FakeTensorMode``, ``make_fx``), with tensors that stand for others, or on the meta device.

    Asked for every product, so that it asks little; for whatever else is not plain, operators have the words.
    """
    return (
        is_dynamo_compiling()
        or looked_on() > 0
        or type(a) not in PLAIN
        or type(b) not in PLAIN
        or a.is_meta
        or b.is_meta
        or a.layout is not STRIDED
        or b.layout is not STRIDED
    )


def stands_in(tensor: Tensor) -> bool:
    """Whether it is a ``FakeTensor``, or what ``torch.compile`` puts around one."""
    return type(tensor).__module__ in STAND_INS
