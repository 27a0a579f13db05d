"""shmcast takes the place of an engine's queue where it knows it, and only if it was asked to."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import pickle
import re
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType

import pytest

from shmcast.compat import sglang, vllm
from shmcast.compat._groups.pyobj import Broadcast, PointToPoint
from shmcast.compat._queues import ring_queue, stand_in
from tests.support import engine_functions, engine_queue

_NAME = "vllm.distributed.device_communicators.shm_broadcast"
_IMPORTERS = ("vllm.v1.executor.multiproc_executor", "vllm.v1.executor.ray_executor_v2")
_FUNCTIONS = "sglang.srt.utils.common"
_GROUPS = "sglang.srt.distributed.parallel_state"
_METHODS = ("barrier", "all_gather_object")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Make an engine of vLLM's module names, in whose queue nothing has been replaced."""
    module = engine_queue.module()
    package = ModuleType("vllm")
    package.__dict__["__version__"] = "0.99.0"
    importers = [ModuleType(name) for name in _IMPORTERS]
    for importer in importers:
        names = {"MessageQueue": module.MessageQueue, "Own": module.MessageQueue, "unrelated": 1}
        vars(importer).update(names)
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, _NAME, module)
    for each in (package, *importers):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    for parent in ("vllm.distributed", "vllm.distributed.device_communicators"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setattr(vllm, "_stand_in", dataclasses.replace(vllm._stand_in))
    return module


def test_it_is_put_wherever_the_engine_has_its_own(own: ModuleType) -> None:
    theirs = own.MessageQueue
    assert vllm.install()
    assert own.MessageQueue is vllm.MessageQueue is not theirs
    for importer in map(sys.modules.__getitem__, _IMPORTERS):
        assert vars(importer)["MessageQueue"] is vars(importer)["Own"] is vllm.MessageQueue
    assert vllm.install()  # again: nothing more
    assert theirs in vllm.MessageQueue.__bases__


def test_a_handle_leads_there_by_pickle(own: ModuleType) -> None:
    assert vllm.install()
    queue = own.MessageQueue(1, 1)
    handle = pickle.loads(pickle.dumps(queue.handle))  # noqa: S301 (our own bytes)
    reader = own.MessageQueue.create_from_handle(handle, 0)
    queue.enqueue([1])
    assert reader.dequeue() == [1]


def test_a_handle_puts_all_in_place_where_nobody_asked_for_it(own: ModuleType) -> None:
    theirs = own.MessageQueue
    assert vllm.install()
    queue = own.MessageQueue(1, 1)
    pickled = pickle.dumps(queue.handle)
    importer = vars(sys.modules[_IMPORTERS[0]])
    vars(own)["MessageQueue"] = importer["MessageQueue"] = theirs  # as in a new process
    handle = pickle.loads(pickled)  # noqa: S301 (our own bytes)
    assert own.MessageQueue is importer["MessageQueue"] is vllm.MessageQueue
    reader = importer["MessageQueue"].create_from_handle(handle, 0)
    queue.enqueue([1])
    assert reader.dequeue() == [1]


def test_the_engines_own_constructors_make_ours(own: ModuleType) -> None:
    assert vllm.install()
    for make in (
        own.MessageQueue.create_from_process_group,
        own.MessageQueue.create_from_process_group_single_reader,
    ):
        # (They look for the class by its name in their module, which in this stub is another one.)
        assert type(make(None, 1 << 20, 10)) is engine_queue.MessageQueue


@pytest.mark.parametrize("change", ["parameter", "default", "method", "none", "field"])
def test_a_queue_that_is_not_known_is_refused_in_one_warning(
    own: ModuleType, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    class Changed(own.MessageQueue):  # type: ignore[misc, name-defined]
        pass

    for name, what in vars(own.MessageQueue).items():
        if callable(what) or isinstance(what, staticmethod):
            setattr(Changed, name, what)
    told = change
    if change == "parameter":
        Changed.dequeue = lambda self, timeout=None, cancel=None, indefinite=False: None
        told = "dequeue(self, timeout, cancel, indefinite)"
    elif change == "default":
        Changed.enqueue = lambda self, obj, timeout=60: None
        told = "(enqueue(timeout=60))"
    elif change == "method":
        Changed.peek = lambda self: None
        told = "peek(self)"
    elif change == "none":
        del Changed.shutdown
        told = "no shutdown()"
    else:
        own.Handle = engine_queue.Handle  # type: ignore[attr-defined]
        told = "a handle of local_reader_ranks, "
    own.MessageQueue = Changed  # type: ignore[attr-defined]
    assert not vllm.install()
    assert own.MessageQueue is Changed
    [record] = caplog.records
    text = record.getMessage()
    assert "vLLM 0.99.0 has what this version of shmcast does not know" in text
    assert told in text
    assert text.endswith("vLLM's own is used")


def test_the_plugin_does_nothing_unless_it_is_asked_to(
    own: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = own.MessageQueue
    for value in (None, "0", ""):
        if value is None:
            monkeypatch.delenv("SHMCAST_VLLM", raising=False)
        else:
            monkeypatch.setenv("SHMCAST_VLLM", value)
        vllm.plugin()
        assert own.MessageQueue is theirs
    monkeypatch.setenv("SHMCAST_VLLM", "1")
    vllm.plugin()
    assert own.MessageQueue is not theirs


def test_each_process_says_once_that_it_has_such_a_queue(
    own: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(stand_in, "_told_in", {})
    monkeypatch.setenv("SHMCAST_VLLM", "1")
    vllm.plugin()
    assert not caplog.records  # the engine's log may not have begun
    queues = [own.MessageQueue(1, 1) for _ in range(2)]
    queues += [own.MessageQueue.create_from_handle(queue.handle, 0) for queue in queues]
    [record] = caplog.records
    assert record.getMessage() == "shmcast carries the messages between vLLM's processes"
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a fork
    vllm._stand_in.tell_once()
    assert len(caplog.records) == 2


def test_a_warning_before_the_engine_has_a_log_looks_like_its_own() -> None:
    program = "from shmcast.compat import vllm; vllm.plugin()"
    told = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program],
        env=os.environ | {"SHMCAST_VLLM": "true"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    text = "SHMCAST_VLLM='true' is neither 0 nor 1: vLLM's own is used"
    place = r"\[stand_in\.py:\d+\]"
    assert re.fullmatch(rf"\(MainProcess pid=\d+\) WARNING \d\d-\d\d [\d:]+ {place} {text}\n", told)


@pytest.mark.parametrize("value", ["true", "yes", " 1"])
def test_the_plugin_tells_of_a_value_that_is_none(
    own: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    theirs = own.MessageQueue
    monkeypatch.setenv("SHMCAST_VLLM", value)
    vllm.plugin()
    [record] = caplog.records
    text = f"SHMCAST_VLLM={value!r} is neither 0 nor 1: vLLM's own is used"
    assert record.getMessage() == text
    assert own.MessageQueue is theirs


@pytest.mark.parametrize("lacking", ["MessageQueue", "LONG_WAIT_TIME_LOG_MSG", "the module"])
def test_the_plugin_says_in_one_warning_what_is_not_there(
    own: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lacking: str,
) -> None:
    monkeypatch.setenv("SHMCAST_VLLM", "1")
    if lacking == "the module":
        monkeypatch.delitem(sys.modules, _NAME)
        lacking = "shm_broadcast"
    else:
        delattr(own, lacking)
    vllm.plugin()
    [record] = caplog.records
    text = record.getMessage()
    assert text.startswith("shmcast: vLLM 0.99.0 has what this version of shmcast does not know (")
    assert lacking in text
    assert text.endswith("vLLM's own is used")
    assert record.exc_info is None


def test_a_fork_knows_nothing_of_its_parents_queues(own: ModuleType) -> None:
    assert vllm.install()
    queue = own.MessageQueue(1, 1)
    assert queue in ring_queue._queues()
    pid = os.fork()
    if pid == 0:
        os._exit(len(ring_queue._queues()))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert queue in ring_queue._queues()
    queue.shutdown()


def test_the_plugin_is_registered_with_the_engine() -> None:
    [plugin] = [p for p in entry_points(group="vllm.general_plugins") if p.name == "shmcast"]
    assert plugin.load() is vllm.plugin


def test_the_engine_is_not_imported_before_it_is_needed() -> None:
    program = """
import sys
from shmcast.compat import vllm
assert not {"vllm", "torch", "shmcast.compat._queues.ring_queue"} & {*sys.modules}
try:
    vllm.Missing
except AttributeError as error:
    print(error)
"""
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.stdout == "module 'shmcast.compat.vllm' has no attribute 'Missing'\n", ran.stderr


@pytest.fixture
def own_functions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Make an engine of SGLang's module names and shapes."""
    package = ModuleType("sglang")
    package.__dict__["__version__"] = "0.99.0"
    fields = [(name, object, None) for name in sglang.KNOWN.handle[0]]
    handle = dataclasses.make_dataclass("Handle", fields)
    queue = type("MessageQueue", (), {})
    for name, [parameters] in sglang.KNOWN.methods.items():

        def method(*_: object) -> None:
            pass

        kinds = [inspect.Parameter(each, inspect.Parameter.POSITIONAL_ONLY) for each in parameters]
        vars(method)["__signature__"] = inspect.Signature(kinds)
        setattr(queue, name, method)
    queues, functions, groups = map(ModuleType, (sglang._MODULE, _FUNCTIONS, _GROUPS))
    queues.__dict__.update(
        MessageQueue=queue,
        Handle=handle,
        logger=engine_queue.ENGINE.logger,
        SGLANG_RINGBUFFER_WARNING_INTERVAL=60,
    )
    functions.__dict__.update(
        broadcast_pyobj=engine_functions.own_broadcast,
        point_to_point_pyobj=engine_functions.own_point_to_point,
    )
    methods = vars(engine_functions.OwnCoordinator)
    coordinator = type("GroupCoordinator", (), {name: methods[name] for name in _METHODS})
    groups.__dict__.update(GroupCoordinator=coordinator)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
        monkeypatch.delitem(sys.modules, name)
    for module in (package, queues, functions, groups):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for end in [at for at, letter in enumerate(module.__name__) if letter == "."]:
            parent = module.__name__[:end]
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setattr(sglang, "_stand_in", dataclasses.replace(sglang._stand_in))
    return functions


def test_functions_are_put_in_place_with_the_queue(own_functions: ModuleType) -> None:
    assert sglang.install()
    queues = sys.modules[sglang._MODULE]
    assert vars(queues)["MessageQueue"] is sglang.MessageQueue
    assert isinstance(own_functions.broadcast_pyobj, Broadcast)
    assert isinstance(own_functions.point_to_point_pyobj, PointToPoint)
    for name in ("broadcast_pyobj", "point_to_point_pyobj"):
        face = inspect.signature(getattr(sglang, name))
        assert tuple(face.parameters) == sglang.KNOWN_FUNCTIONS[f"{_FUNCTIONS}:{name}"]
        put = getattr(own_functions, name)
        defaults = [each.default for each in inspect.signature(put).parameters.values()]
        assert defaults == [each.default for each in face.parameters.values()]


def test_methods_are_put_in_place_with_the_queue(own_functions: ModuleType) -> None:
    coordinator = vars(sys.modules[_GROUPS])["GroupCoordinator"]
    theirs = [inspect.signature(getattr(coordinator, name)).parameters for name in _METHODS]
    assert sglang.install()
    for name, parameters in zip(_METHODS, theirs, strict=True):
        put = getattr(coordinator, name)
        assert put.__module__ == "shmcast.compat._groups.coordinator"
        assert [*inspect.signature(put).parameters] == [*parameters]


@pytest.mark.parametrize("change", ["parameter", "none"])
def test_a_method_that_is_not_known_leaves_all_as_it_is(
    own_functions: ModuleType, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    coordinator = vars(sys.modules[_GROUPS])["GroupCoordinator"]

    def barrier(self: object, timeout: float) -> None:
        pass

    if change == "parameter":
        coordinator.barrier = barrier
    else:
        del coordinator.barrier
    assert not sglang.install()
    assert own_functions.broadcast_pyobj is engine_functions.own_broadcast
    [record] = caplog.records
    told = "GroupCoordinator.barrier(self, timeout)"
    assert (
        told if change == "parameter" else "no GroupCoordinator.barrier()"
    ) in record.getMessage()


def _other_parameters(data: object, rank: int, device: object) -> None:
    pass


def _other_default(
    data: object, rank: int, dist_group: object = None, src: int = 1, force_cpu_device: bool = True
) -> None:
    pass


@pytest.mark.parametrize(
    ("broadcast_pyobj", "told"),
    [(_other_parameters, "data, rank, device"), (_other_default, "src=1")],
)
def test_a_function_that_is_not_known_leaves_all_as_it_is(
    own_functions: ModuleType,
    caplog: pytest.LogCaptureFixture,
    broadcast_pyobj: object,
    told: str,
) -> None:
    own_functions.broadcast_pyobj = broadcast_pyobj  # type: ignore[attr-defined]
    assert not sglang.install()
    assert own_functions.broadcast_pyobj is broadcast_pyobj
    assert own_functions.point_to_point_pyobj is engine_functions.own_point_to_point
    [record] = caplog.records
    assert "SGLang 0.99.0 has" in record.getMessage()
    assert f"(broadcast_pyobj({told}))" in record.getMessage()


def test_sglangs_plugin_is_registered_and_asks_its_own_variable(
    own_functions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    [plugin] = [p for p in entry_points(group="sglang.srt.plugins") if p.name == "shmcast"]
    monkeypatch.setenv("SHMCAST_VLLM", "1")
    plugin.load()()
    assert own_functions.broadcast_pyobj is engine_functions.own_broadcast
    monkeypatch.setenv("SHMCAST_SGLANG", "1")
    plugin.load()()
    assert own_functions.broadcast_pyobj is not engine_functions.own_broadcast


@pytest.mark.skipif(find_spec("sglang") is None, reason="SGLang is not installed")
def test_the_installed_sglang_is_known() -> None:
    program = """
import warnings
warnings.simplefilter("ignore")
from shmcast.compat import sglang
assert sglang.install()
from sglang.srt.distributed.device_communicators.shm_broadcast import MessageQueue
queue = MessageQueue(1, 1)
reader = MessageQueue.create_from_handle(queue.export_handle(), 0)
queue.enqueue([1])
print(reader.dequeue(), type(queue).__module__)
"""
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.stdout.splitlines()[-1:] == ["[1] shmcast.compat.sglang"], ran.stderr
