"""Objects with tensors for a device group, for which gloo's CPU stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from shmcast._devices.manifest import PACK_BYTES
from tests.support.objects import DTYPES, LAYOUTS, Batch, Frozen, Pair, tensor

CPU = {"cpu"}
LARGE = (PACK_BYTES // 4 + 1,)
SECONDS = 30.0


def every_kind() -> Any:
    return {(str(d), layout): tensor(d, layout=layout) for d in DTYPES for layout in LAYOUTS}


def every_container() -> Any:
    tagged = tensor()
    tagged.tag = {"of": tensor(shape=(3,))}  # type: ignore[attr-defined]
    return {
        "step": 7,
        "nested": [{"deep": (tensor(), [tensor(torch.bool)])}, b"x" * 100_000],
        "pair": Pair(tensor(torch.int64), "right"),
        "batch": Batch(tensor(), {"more": Frozen(tensor(shape=LARGE))}),
        "parameter": torch.nn.Parameter(tensor()),
        "frozen": torch.nn.Parameter(tensor(torch.uint8), requires_grad=False),
        "leaf": tensor().requires_grad_(),
        "computed": tensor().requires_grad_() * 2,
        "conj": tensor(torch.complex64).conj(),
        "neg": tensor(torch.complex64).conj().imag,
        "tagged": tagged,
        "large": [tensor(shape=LARGE), tensor(shape=(3, *LARGE), layout="transposed")],
        5: tensor(shape=(0, 3)),
        None: torch.Size([1, 2]),
    }


MAKERS: dict[str, Callable[[], Any]] = {
    "every dtype and layout": every_kind,
    "every container": every_container,
    "a bare tensor": tensor,
    "an empty one only": lambda: tensor(shape=(0,)),
    "a single small one": lambda: [tensor(shape=(1,))],
    "no tensor": lambda: {"a": [1, 2, 3]},
    "many large": lambda: [tensor(shape=LARGE) + i for i in range(9)],
}
