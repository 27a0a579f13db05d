"""What pickle refuses is encoded by the fallback, which is imported only then."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import shmcast
from shmcast import ObjectCodec, Reader, Writer
from shmcast._codecs import fallback
from tests.support.subprocess_programs import ROOT

cloudpickle: Any = pytest.importorskip("cloudpickle")
SECONDS = 30.0


@dataclass
class Call:
    """As engines send it to their workers: a method's name, or a function."""

    method: str | Callable[..., Any]
    args: tuple[Any, ...] = ()


def arrived(obj: Any, codec: ObjectCodec) -> Any:
    return codec.decode([bytearray(frame) for frame in codec.encode(obj)])


@pytest.mark.parametrize("module", ["cloudpickle", cloudpickle], ids=["name", "module"])
def test_local_functions_and_classes_arrive(module: Any) -> None:
    codec = ObjectCodec(fallback=module)
    offset = 3

    class Local:
        value = 5

    got = arrived(Call(lambda x: x + offset, (Local(), Local)), codec)
    assert got.method(4) == 7
    assert type(got.args[0]).value == 5
    assert arrived(Call("step", (1,)), codec) == Call("step", (1,))


def test_one_object_in_two_places_is_one_object_there_too() -> None:
    shared = [1]
    first, second, function = arrived(
        [shared, shared, lambda: shared], ObjectCodec(fallback="cloudpickle")
    )
    assert first is second
    assert function() is first


def test_readers_need_no_fallback_of_their_own() -> None:
    codec = ObjectCodec(fallback="cloudpickle")
    with Writer(1, codec=codec) as writer, Reader(writer.handle, 0) as reader:
        for obj in (lambda: 1, {"a": lambda: 2}, 3):
            writer.send(obj)
        assert reader.recv(SECONDS)() == 1
        assert reader.recv(SECONDS)["a"]() == 2
        assert reader.recv(SECONDS) == 3


def test_what_the_fallback_refuses_too_is_its_error() -> None:
    lock = threading.Lock()
    with Writer(1, codec=ObjectCodec(fallback="cloudpickle")) as writer:
        with pytest.raises(shmcast.EncodeError, match=r"in `list\[1\]`: TypeError: cannot pickle"):
            writer.send([1, lock])
        # Pickle would end at the function, which is not to blame here.
        with pytest.raises(shmcast.EncodeError) as caught:
            writer.send([lambda: 1, lock])
        assert "in `" not in str(caught.value)
        assert "cannot pickle '_thread.lock' object; nothing was sent" in str(caught.value)


def untouchable() -> Any:
    """Return a fallback that fails the test if it is asked."""
    module = types.ModuleType("untouchable")
    vars(module).update(dumps=pytest.fail, loads=pytest.fail)
    return module


class Raises:
    def __reduce__(self) -> Any:
        raise ValueError("no")


def test_errors_of_a_reduction_are_no_refusals() -> None:
    codec = ObjectCodec(fallback=untouchable())
    with pytest.raises(ValueError, match="no"):
        codec.encode([Raises()])


def test_a_fallback_that_is_none_is_told_when_the_codec_is_made() -> None:
    with pytest.raises(shmcast.MissingDependency, match="pip install no_such_pickle"):
        ObjectCodec(fallback="no_such_pickle")
    with pytest.raises(shmcast.MissingDependency, match="fallback='a b'"):
        ObjectCodec(fallback="a b")
    with pytest.raises(shmcast.MissingDependency, match="no_such"):
        ObjectCodec(fallback="no_such.pickle")
    with pytest.raises(shmcast.InvalidArgument, match=r"no module with dumps\(\)"):
        ObjectCodec(fallback=types.ModuleType("empty"))
    with pytest.raises(shmcast.InvalidArgument, match="allow"):
        ObjectCodec(allow=[Call], fallback="cloudpickle")
    with pytest.raises(shmcast.InvalidArgument, match=r"no module with dumps\(\)"):
        arrived(lambda: 1, ObjectCodec(fallback="math"))  # (not looked at before)


@pytest.mark.parametrize("module", ["cloudpickle", cloudpickle, cloudpickle.cloudpickle])
def test_a_codec_with_a_fallback_can_be_pickled(module: Any) -> None:
    codec = pickle.loads(pickle.dumps(ObjectCodec(fallback=module)))  # noqa: S301
    assert codec.fallback == getattr(module, "__name__", module)
    assert arrived(lambda: 5, codec)() == 5


def test_a_reader_without_the_module_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = ObjectCodec(fallback="cloudpickle")
    frames: list[Any] = [bytearray(frame) for frame in codec.encode(lambda: 1)]
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(shmcast.MissingDependency, match="run `pip install cloudpickle` on every"):
        codec.decode(frames)


def test_without_a_fallback_nothing_changes() -> None:
    with pytest.raises(Exception, match=r"Can't (pickle|get) local object"):
        ObjectCodec().encode(lambda: 1)
    assert ObjectCodec().fallback is None


def test_an_allow_list_refuses_what_a_fallback_has_made() -> None:
    frames: list[Any] = [
        bytearray(f) for f in ObjectCodec(fallback="cloudpickle").encode(lambda: 1)
    ]
    with pytest.raises(Exception, match=f"names {fallback.__name__}.loads, which .* not allow"):
        ObjectCodec(allow=[Call]).decode(frames)


PROGRAM = """
import sys
import shmcast
codec = shmcast.ObjectCodec(fallback="cloudpickle")
codec.decode([bytearray(frame) for frame in codec.encode({"step": 1, "of": [shmcast.Node]})])
assert "cloudpickle" not in sys.modules
codec.encode(lambda: 1)
assert "cloudpickle" in sys.modules
"""


def test_it_is_imported_when_it_is_needed() -> None:
    subprocess.run(  # noqa: S603
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env={**os.environ}, timeout=50, check=True
    )
