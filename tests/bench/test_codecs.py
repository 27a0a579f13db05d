"""`python -m bench codec`: codecs in turns, with warm and cold caches; and the guard over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bench import commands, terminal
from bench.report import codec_tables
from bench.run import codec_smoke, codecs, smoke
from bench.run.codecs import CODECS, Coder
from bench.workloads import users
from tests.support import bench_results
from tests.support.permissions import needs_torch

QUICK = 0.02
ONE = ["codec", "--workloads", "49 B", "--evicted", "0", "--turns", "2", "--scale", str(QUICK)]


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(commands.app, [*arguments, "--folder", str(folder)])
    return result.exit_code, result.output.replace("\n", " ")


@needs_torch
def test_results_have_a_row_for_each_codec(tmp_path: Path) -> None:
    code, output = run(tmp_path, *ONE, "--only", "shmcast", "--only", "pickle", "--only", "marshal")
    assert code == 0, output
    result = json.loads((tmp_path / "codec.json").read_text())
    assert [row["codec"] for row in result["rows"]] == ["shmcast", "pickle", "marshal"]
    assert result["suite"] == "codec"
    assert set(result["peers"]) == {"shmcast", "pickle", "marshal"}
    for row in result["rows"]:
        assert set(row) == set(bench_results.a_codec_row("pickle", 1.0))
        assert row["is_same"]
        assert row["turns"] == 2
        for figure in ("encode", "decode", "both"):
            low, middle, high = (row[f"{figure}_p50{end}_us"] for end in ("_low", "", "_high"))
            assert 0 < low <= middle <= high
    report = (tmp_path / "report.md").read_text()
    assert "## codec" in report
    assert "| 49 B |" in report


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--workloads", "TYPO"], "'TYPO' is none of"),
        (["--only", "TYPO"], "'TYPO' is none of"),
        (["--evicted", "7"], "7 MiB is none of"),
    ],
)
def test_a_name_that_is_none_ends_it(tmp_path: Path, arguments: list[str], why: str) -> None:
    code, output = run(tmp_path, "codec", *arguments)
    assert code == 2
    assert why in output
    assert not [*tmp_path.iterdir()]


def test_results_are_replaced_only_when_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "codec.json").write_text("good")
    code, output = run(tmp_path, *ONE, "--only", "pickle")
    assert code == 2
    assert "--overwrite" in output
    assert (tmp_path / "codec.json").read_text() == "good"


def test_what_a_codec_cant_take_is_told_and_the_others_are_measured() -> None:
    (case,) = codecs.cases(["all kinds"], [0])
    rows, skipped = codecs.measure(case, ["pickle", "marshal", "msgspec typed"], 1, QUICK)
    assert [row["codec"] for row in rows] == ["pickle"]
    assert skipped["marshal: all kinds"].startswith("ValueError: unmarshallable")
    assert skipped["msgspec typed: all kinds"].startswith("Unable: ")


def test_a_codec_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_workload: Any) -> Coder:
        raise ImportError("No module named 'ormsgpack'")

    monkeypatch.setitem(CODECS, "ormsgpack", codecs.Codec("ormsgpack", "", "nowhere", missing))
    (case,) = codecs.cases(["49 B"], [0])
    rows, skipped = codecs.measure(case, ["ormsgpack"], 1, QUICK)
    assert (rows, [*skipped]) == ([], ["ormsgpack"])
    assert CODECS["ormsgpack"].version == "nowhere: not installed"


def test_messages_that_arrive_as_other_types_are_marked() -> None:
    (case,) = codecs.cases(["decode 8"], [0])
    rows, _ = codecs.measure(case, ["pickle", "msgspec untyped", "msgspec typed"], 1, QUICK)
    assert [row["is_same"] for row in rows] == [True, False, True]


def test_memory_is_written_between_calls() -> None:
    for mebibytes in codecs.EVICTED_MIB:
        evict = codecs._eviction(mebibytes)
        evict()
        (case,) = codecs.cases(["49 B"], [mebibytes])
        rows, _ = codecs.measure(case, ["pickle"], 1, QUICK)
        assert rows[0]["messages"] >= codecs.WARM_UP


def test_every_message_is_taken_in_turn() -> None:
    seen: list[int] = []
    run = codecs._Run(Coder(lambda n: seen.append(n) or b"", lambda _data: None), [*range(50)], 0)  # type: ignore[func-returns-value]
    run.turn(QUICK)
    assert seen[1:50] == [*range(49)]
    assert len({*seen}) == 50


def test_users_messages_are_the_same_each_time() -> None:
    first, second = users.messages(), users.messages()
    assert [*first] == [*second]
    assert [repr(first[name])[:2000] for name in ("30 records", "300 new strings")] == [
        repr(second[name])[:2000] for name in ("30 records", "300 new strings")
    ]
    for name in ("300 new strings", "10 new records", "100 new dataclasses"):
        assert len({repr(message) for message in first[name]}) == len(first[name]) > 10


# Tables


def test_a_table_says_how_many_times_as_fast_as_pickle_and_what_cant() -> None:
    rows: Any = bench_results.codec()
    table = codec_tables.table(rows)
    assert table.split("\n")[2] == (
        "| decode 64 | 4.0, 5.00x | 20.0 | 25.0, 0.80x | 10.0*, 2.00x |"
    )
    assert table.split("\n")[3] == "| a record | 2.0, 1.50x | 3.0 | can't | can't |"
    caches = codec_tables.of_caches(rows, ["decode 64"])
    assert caches.split("\n")[2] == "| decode 64 | 20.0 | 4.0, 5.00x | 60.0 | 12.0, 5.00x |"
    with pytest.raises(LookupError):
        codec_tables.table(rows, 64)


# The guard


def test_the_guard_names_each_case_that_misses_its_bound() -> None:
    cases = tuple(codecs.cases(["49 B", "0.5 KB"], [0]))
    bounds = [codec_smoke.CodecBound(cases, 1e6), codec_smoke.CodecBound(cases, 1e-6)]
    console = terminal.console()
    missed = codec_smoke.missed(console, bounds, QUICK)
    assert [sentence.partition(",")[0] for sentence in missed] == ["49 B", "0.5 KB"]
    assert all("times as fast as pickle, not 1e+06, in 3 tries" in each for each in missed)


def test_a_codec_that_misses_its_bound_fails_the_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, none = tmp_path / "codec_bounds.json", tmp_path / "bounds.json"
    path.write_text(json.dumps([{"workloads": ["49 B"], "evicted_mib": 0, "at_least": 2.0}]))
    none.write_text("[]")
    for factor, fails in ((1.9, True), (2.1, False)):
        row = bench_results.a_codec_row
        rows = [row("shmcast", 10.0), row("pickle", factor * 10.0)]
        monkeypatch.setattr(codecs, "measure", lambda *_, rows=rows: (rows, {}))
        if fails:
            with pytest.raises(typer.Exit):
                smoke.main(none, path)
        else:
            smoke.main(none, path)


def test_the_committed_bounds_are_those_that_were_promised() -> None:
    bounds = codec_smoke.read(codec_smoke.BOUNDS)
    by_name = {
        (case.workload.name, case.evicted_mib): bound.at_least
        for bound in bounds
        for case in bound.cases
    }
    for name in ("decode 8", "decode 64", "decode 256"):
        assert by_name[name, 0] >= 3
        assert by_name[name, 8] >= 3
    for name in users.messages():
        assert by_name[name, 0] >= 0.95
