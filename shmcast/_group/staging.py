"""Device tensors of a dict on their way between two ranks: by way of host memory."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple


class Staged(NamedTuple):
    """A tensor that was on a device."""

    tensor: Any
    """On the CPU."""
    device_type: str
    """As in `torch.device`."""


def staged(d: dict[Any, Any]) -> dict[Any, Any]:
    """Return the dict with those of its values on the CPU that are tensors on a device."""
    torch = sys.modules.get("torch")
    if torch is None:
        return d
    return {
        key: Staged(value.cpu(), value.device.type)
        if isinstance(value, torch.Tensor) and not value.is_cpu
        else value
        for key, value in d.items()
    }


def unstaged(d: Any) -> Any:
    """Put such values on this process's current device; the way back of `staged`."""
    if isinstance(d, dict):
        for key, value in d.items():
            if isinstance(value, Staged):
                d[key] = value.tensor.to(value.device_type)
    return d
