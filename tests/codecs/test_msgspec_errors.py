"""`MsgspecCodec`: what can't travel is named, with the field that it is in."""

from __future__ import annotations

import sys
import threading
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
import torch

import shmcast
from shmcast import MsgspecCodec, Reader, Writer
from tests.support.subprocess_programs import run_to_its_end
from tests.support.typed_roles import (
    SECONDS,
    Opaque,
    Plain,
    Request,
    Step,
    parts,
    step,
    transfer,
)

# What can't be sent


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (
            Step(1, [Request("a", [1]), Request("b", [2, 5j])]),  # type: ignore[list-item]
            r"\$\.cached\[1\]\.new_block_ids\[1\] = 5j \(Request\.new_block_ids is declared as "
            r"list\[int\]\): .*builtins\.complex",
        ),
        (
            Step(1, spec={"a": [2**64]}),
            r"\$\.spec\['a'\]\[0\] = 18446744073709551616 \(Step\.spec is declared as dict\[str, "
            r"list\[int\]\]\): .*ints",
        ),
        (
            Step(1, bitmask=np.array([None])),
            r"\$\.bitmask = <numpy\.ndarray> \(Step\.bitmask is declared as .*\): .*dtype object",
        ),
        (
            Step(np.int64(1)),  # type: ignore[arg-type]
            r"\$\.number = <numpy\.int64> \(Step\.number is declared as int\)",
        ),
        (Step(1, finished={b"a", 5j}), r"\$\.finished\[\d\] = 5j "),  # type: ignore[arg-type]
        (Step(1, spec={5j: [1]}), r"\$\.spec\.key\(5j\) = 5j "),  # type: ignore[dict-item]
        (Plain([1], {"deep": (1, {2, "\ud800"})}), r"\$\.scale\['deep'\]\[1\]\[\d\] = "),  # type: ignore[arg-type]
        (threading.Lock(), r"\$ = <.*lock.* \(the message is declared as Step\): .*_thread\.lock"),
        (int, r"\$ = <class 'int'> \(the message is declared as Step\): "),
    ],
    ids=[
        "list", "dict", "array", "scalar", "set", "key", "dataclass", "message", "class",
    ],
)  # fmt: skip
def test_what_cannot_be_encoded_is_named_with_its_path_before_anything_is_sent(
    sent: Any, error: str
) -> None:
    with (
        Writer(1, codec=MsgspecCodec(Step)) as writer,
        Reader(writer.handle, 0, codec=MsgspecCodec(Step)) as reader,
    ):
        with pytest.raises(shmcast.EncodeError, match=f"writer: can't encode .*{error}.*nothing"):
            writer.send(sent)
        writer.send(step(1))
        assert parts(reader.recv(SECONDS)) == parts(step(1))
        assert writer.statistics().messages == 1


def tagged() -> torch.Tensor:
    tensor = torch.zeros(3)
    tensor.tag = "more than its elements"  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (torch.zeros(3, device="meta"), "tensor of torch.float32 on meta"),
        (torch.eye(3).to_sparse(), "on cpu, torch.sparse_coo: only dense ones"),
        (tagged(), "without attributes of their own"),
        (torch.nn.Parameter(torch.zeros(3)), "torch.nn.parameter.Parameter .*not exactly"),
        (np.ma.masked_array([1], [True]), "MaskedArray .*not exactly a numpy.ndarray"),
    ],
    ids=["device", "sparse", "attributes", "Parameter", "masked"],
)
def test_arrays_that_are_more_than_elements_in_host_memory_are_errors(
    value: Any, error: str
) -> None:
    with pytest.raises(msgspec.EncodeError, match=rf"^\$\['a'\] = <.*{error}"):
        MsgspecCodec(dict[str, Any]).encode({"a": value})


def test_an_object_that_is_part_of_itself_is_named() -> None:
    inner: dict[str, Any] = {}
    inner["again"] = inner
    too_deep = "recursion|Stack overflow"  # the latter from Python 3.14 on
    with pytest.raises(msgspec.EncodeError, match=rf"^\$\[1\]\['again'\] = .*({too_deep})"):
        MsgspecCodec(list[Any]).encode([1, inner])


def test_a_value_of_another_type_than_declared_is_the_readers_error_and_the_next_arrives() -> None:
    codec = MsgspecCodec(dict[str, Request])
    with Writer(1, codec=codec) as writer, Reader(writer.handle, 0, codec=codec) as reader:
        writer.send({"a": Request("a", [1, "x"])})  # type: ignore[list-item]
        with pytest.raises(
            shmcast.DecodeError, match=r"Expected `int`, got `str` - at `\$\[\.\.\.\]\[1\]\[1\]`"
        ):
            reader.recv(SECONDS)
        writer.send({"a": Request("a", [1])})
        assert reader.recv(SECONDS) == {"a": Request("a", [1])}


def test_constraints_are_checked_where_a_message_arrives() -> None:
    few = Annotated[list[int], msgspec.Meta(max_length=2)]
    with pytest.raises(msgspec.ValidationError, match="length <= 2"):
        transfer([1, 2, 3], few)


# What is no type for it


class Within(msgspec.Struct):
    good: Step
    bad: list[Opaque | None]


class Undefined(msgspec.Struct):
    bad: Missing  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("message_type", "error"),
    [
        (
            Within,
            r"MsgspecCodec\(Within\): Within\.bad has .*typed_roles\.Opaque, which msgspec can",
        ),
        (dict[str, Opaque], r"typed_roles\.Opaque"),
        (list[np.float32], r"numpy\.float32"),
        (torch.nn.Parameter, r"torch\.nn\.parameter\.Parameter"),
        (np.ndarray | torch.Tensor, r"numpy\.ndarray \| torch\.Tensor.* not supported"),
        (Undefined, "'Missing' is not defined"),
        (5, r"MsgspecCodec\(5\): .*(not supported|must be a type)"),
    ],
    ids=str,
)
def test_a_type_that_cannot_travel_is_named_at_once(message_type: Any, error: str) -> None:
    with pytest.raises(shmcast.InvalidArgument, match=error):
        MsgspecCodec(message_type)


def test_without_msgspec_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(shmcast.MissingDependency, match=r"pip install 'shmcast\[msgspec\]'"):
        MsgspecCodec(int)


LIGHT = """
import sys, shmcast
assert not {"msgspec", "numpy", "torch"} & set(sys.modules)
shmcast.MsgspecCodec(list[int])
assert not {"numpy", "torch"} & set(sys.modules)
print("done")
"""


def test_msgspec_is_imported_when_it_is_used_and_numpy_and_torch_are_not() -> None:
    ran = run_to_its_end(LIGHT)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")
