"""Tables of the benchmarks fit a terminal of 80 columns: no line is broken, nothing is cut."""

from __future__ import annotations

from typing import cast

import pytest
from typer.testing import CliRunner

from bench import commands
from bench.engines import runs as engines
from bench.report import report, results
from bench.run import deaths, harness, job, replies, smoke
from bench.run.case import Case
from bench.run.suites import SUITES
from bench.transports import registry
from tests.support.bench_results import a_rate, a_row
from tests.support.terminal import rendered


@pytest.mark.parametrize("case", [Case("49 B", 8, 10.0), Case("49 B", 1, 0)], ids=str)
def test_each_transport_of_a_case_has_one_line(case: Case) -> None:
    names = [*registry.peers()]
    make = a_rate if case.is_rate else a_row
    rows = [cast("harness.Row", make(name, 98_765.4)) for name in names]
    lines = rendered(commands.table(case, rows))
    assert str(case) in lines[0]
    for name in names:
        assert sum(line.startswith(f"{name}  ") for line in lines) == 1


def test_the_measured_cases_fit() -> None:
    shown = results.load(report.RESULTS / report.SHOWN)
    for suite in shown.suites.values():
        for case, own in results.by_case(suite.rows).items():
            rows = [cast("harness.Row", row) for row in own.values()]
            lines = rendered(commands.table(case, rows))
            title = 2 if "line" in rows[0] else 1
            assert len(lines) == len(own) + title + 3  # two lines of headings, a rule
    for ranks in job.RANKS:
        own_rows = [dict(row) for row in shown["job"].job if row["ranks"] == ranks]
        assert len(rendered(job.table(ranks, own_rows))) == len(own_rows) + 4


def test_each_bound_has_one_line() -> None:
    bounds = smoke.read(smoke.BOUNDS)
    made = smoke.table()
    for bound in bounds:
        smoke.add(made, bound, 123.456)
    lines = rendered(made)
    assert len(lines) == len(bounds) + 2
    assert all(line.rstrip().endswith("123") for line in lines[2:])


def test_the_list_names_every_suite_and_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(commands.app, ["list"], catch_exceptions=False).output.splitlines()
    assert all(len(line) <= 80 for line in shown)
    others = [f"bench {one.SUITE}" for one in (deaths, engines, replies)]
    for name in [*SUITES, job.SUITE, *others, *registry.peers()]:
        assert any(line.startswith(f"{name}  ") for line in shown), name
