"""What the report says of results, and that the documents say what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.report import (
    charts,
    doc_blocks,
    losses,
    overview,
    plots,
    report,
    results,
    summary,
    tables,
)
from bench.report.plots import PICTURES
from tests.support.bench_results import ALL, MACHINE, PEERS, a_rate, a_row, large, nodes, peers
from tests.support.permissions import needs_checkout
from tests.support.terminal import rendered


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of all suites."""
    for name, rows in ALL.items():
        suite = {
            "suite": name,
            "machine": MACHINE,
            "peers": {t: {"settings": f"{t} as it | comes.", "version": "1.0"} for t in PEERS},
            "skipped": {"vLLM": "not installed"},
            "rows": rows(),
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(suite))
    return tmp_path


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_table_has_a_line_for_each_case_and_a_column_for_each_transport() -> None:
    head, _rules, *lines = cells(tables.compare(peers()))
    assert head == ["message, readers, gap", *PEERS]
    assert [line[0] for line in lines] == [
        "49 B, 1 reader, 0.3 ms",
        "49 B, 1 reader, 1 ms",
        "49 B, 1 reader, 10 ms",
        "16 MiB, 1 reader, 1 ms",
        "49 B, 8 readers, 1 ms",
        "49 B, 1 reader, back to back",
    ]
    assert lines[1][1:] == ["8.0 / 24.0", "**7.0 / 21.0**", "12.0 / 36.0", "600 / 1,800"]
    assert lines[4][2] == ""
    assert lines[5][4] == "1,667 /s"


def test_the_factor_over_shmcast_has_an_interval_and_holds_for_rates_too() -> None:
    table = tables.compare(peers(), tables.slowdown, ["gloo"], bold=False)
    _head, _rules, *lines = cells(table)
    assert [line[1:] for line in lines] == [["75.0 (61.4 to 91.7)"]] * 6


def test_every_case_that_a_peer_wins_is_told() -> None:
    rows = [
        a_row("shmcast", 10),
        a_row("shmcast spin", 5),
        a_row("MPI", 8),
        a_row("gloo", 9, p99_us=1.0, p99_high_us=2.0),
        a_row("shmcast", 10, gap_ms=10.0),
        a_row("MPI", 9.9, gap_ms=10.0),
        a_row("shmcast", 10, readers=8),
        a_row("MPI", 20, readers=8),
        a_rate("shmcast", 1000),
        a_rate("MPI", 2000),
    ]
    assert losses.losses(rows).split("\n") == [
        "- 49 B, 1 reader, 1 ms: MPI 8.0 µs, shmcast 10.0 µs: 1.25 times as fast. "
        "shmcast spin 5.0 µs.",
        "- 49 B, 1 reader, 1 ms, p99: gloo 1.0 µs, shmcast 30.0 µs: 30.0 times as fast.",
        "- 49 B, 1 reader, 10 ms: MPI 9.9 µs, shmcast 10.0 µs: 1.01 times as fast "
        "(the 95 % intervals overlap).",
        "- 49 B, 1 reader, 10 ms, p99: MPI 29.7 µs, shmcast 30.0 µs: 1.01 times as fast "
        "(the 95 % intervals overlap).",
        "- 49 B, 1 reader, back to back: MPI 2,000 /s, shmcast 1,000 /s: 2.00 times as fast.",
    ]


def lost(folder: Path, name: str, rows: list[results.Row], skipped: dict[str, str]) -> list[Any]:
    """Return the lines of the overview for a folder with one suite of such rows."""
    made = {"suite": name, "machine": MACHINE, "peers": {}, "skipped": skipped, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(made))
    lines = overview.table(results.load(folder)).split("\n")[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_overview_has_every_figure_that_a_peer_wins_of_every_suite(tmp_path: Path) -> None:
    p999: results.Row = {"p999_us": 50.0, "p999_low_us": 40.0, "p999_high_us": 60.0}  # type: ignore[typeddict-item]
    least: results.Row = {"p999_us": 5.0, "p999_low_us": 4.0, "p999_high_us": 6.0}  # type: ignore[typeddict-item]
    rows: list[results.Row] = [
        {**a_row("shmcast", 10), **p999},
        a_row("shmcast spin", 5),
        {**a_row("MPI", 20), **least},
        a_row("gloo", 8),
        a_rate("shmcast", 1000),
        a_rate("gloo", 2000),
        a_row("shmcast", 10, readers=8),
        a_row("MPI", 20, readers=8),
    ]
    lines = lost(tmp_path, "peers", rows, {"NCCL": "no | GPU\nhere"})
    assert lines[:5] == [
        [
            "peers",
            "49 B, 1 reader, 1 ms",
            "p50",
            "gloo",
            "8.0 µs",
            "10.0 µs",
            "1.25 (1.02 to 1.53)",
        ],
        [
            *("peers", "49 B, 1 reader, 1 ms", "p99", "gloo", "24.0 µs", "30.0 µs"),
            "1.25 (1.02 to 1.53)",
        ],
        [
            *("peers", "49 B, 1 reader, 1 ms", "p99.9", "MPI", "5.0 µs", "50.0 µs"),
            "10.0 (6.67 to 15.0)",
        ],
        [
            *("peers", "49 B, 1 reader, back to back", "rate", "gloo", "2,000 /s", "1,000 /s"),
            "2.00 (1.64 to 2.44)",
        ],
        ["peers", "NCCL", "not measured: no / GPU here", "", "", "", ""],
    ]
    assert {line[0] for line in lines} == {*results.ORDER}
    assert all(line[2] == "not run" for line in lines[5:])


def test_the_overview_says_where_there_was_nothing_to_lose(tmp_path: Path) -> None:
    won = [a_row("shmcast", 5), a_row("MPI", 20)]
    assert lost(tmp_path, "peers", won, {})[0][1:3] == ["all 1 cases", "nowhere"]
    alone = [a_row("shmcast", 5)]
    told = lost(tmp_path, "peers", alone, {})[0]
    assert told[1:3] == ["49 B, 1 reader, 1 ms", "no peer beside shmcast, or no shmcast"]
    nothing: list[results.Row] = []
    assert lost(tmp_path, "peers", nothing, {"MPI": "none"})[0][2] == "no case was measured"


def test_where_the_cpus_were_is_told(folder: Path) -> None:
    rows = [a_row("shmcast", 5, line="moved", line_before_ns=40.0, line_after_ns=180.0)]
    assert "| 49 B, 1 reader, 1 ms | moved | 40.0 | 180 |" in tables.lines(rows)
    assert tables.lines([a_row("shmcast", 5)]) == ""


def test_what_is_no_broadcast_wins_nothing() -> None:
    assert losses.losses(large()).startswith("Nowhere")
    assert losses.losses(nodes()).startswith("Nowhere")


def test_the_report_has_everything_and_names_what_did_not_run(folder: Path) -> None:
    text = report.report(results.load(folder))
    for name in ALL:
        assert f"\n## {name}\n" in text
        assert f"- {name}: vLLM: not installed" in text
    for words in (
        "A CPU, 2 of 4 CPUs",
        "| gloo | 1.0 | gloo as it \\| comes. |",
        "2.5 + 1,234",
        "4.2",
        "| 777 |",
        "bytes_in 100",
        "812 (800 to 820)",
        "### Back to back",
    ):
        assert words in text


def test_any_suite_is_enough_for_a_report_and_none_is_not(folder: Path, tmp_path: Path) -> None:
    for name in ALL:
        if name != "steps":
            (folder / f"{name}.json").unlink()
    report.write(folder)
    text = (folder / "report.md").read_text()
    assert "decode 64" in text
    with pytest.raises(LookupError, match="has no results"):
        report.write(tmp_path / "elsewhere")


def test_a_file_of_another_suite_is_refused(folder: Path) -> None:
    (folder / "peers.json").rename(folder / "more.json")
    with pytest.raises(ValueError, match=r"more\.json: suite 'peers'"):
        results.load(folder)


# Pictures


def test_each_picture_is_drawn_for_light_and_dark_and_says_what_it_shows(
    folder: Path, tmp_path: Path
) -> None:
    loaded = results.load(folder)
    written = plots.write(loaded, tmp_path / "pictures")
    names = [f"{picture.name}-{theme}.svg" for picture in PICTURES for theme in ("light", "dark")]
    assert [path.name for path in written] == names
    for path, picture in zip(written, [each for each in PICTURES for _ in range(2)], strict=True):
        assert plots.description(path) == picture.describe(loaded)
    assert plots.stale(loaded, tmp_path / "pictures") == []


def test_a_picture_is_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    (folder / "peers.json").unlink()  # drawing takes time: one suite is enough
    for name in ("large", "waiting", "codec", "engines"):
        (folder / f"{name}.json").unlink()
    first, second = (
        plots.write(results.load(folder), tmp_path / name) for name in ("first", "second")
    )
    assert [path.name for path in first] == ["steps-light.svg", "steps-dark.svg"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_a_picture_that_is_missing_or_shows_other_results_is_stale(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("peers", "large", "waiting", "codec", "engines"):
        (folder / f"{name}.json").unlink()
    pictures = tmp_path / "pictures"
    steps = [picture for picture in PICTURES if picture.name == "steps"]
    light, dark = plots.write(results.load(folder), pictures)
    assert plots.stale(results.load(folder), pictures, steps) == []
    light.unlink()
    suite = json.loads((folder / "steps.json").read_text())
    suite["rows"][0]["p50_us"] += 1
    (folder / "steps.json").write_text(json.dumps(suite))
    assert plots.stale(results.load(folder), pictures, steps) == [light, dark]


@needs_checkout
def test_no_panel_has_more_labels_than_one_can_tell_apart() -> None:
    shown = results.load(report.RESULTS / report.SHOWN)
    for picture in PICTURES:
        for panel in picture.panels(shown):
            assert 0 < len(panel.series) <= plots.MOST_LABELS
            assert all(panel.series.values()), f"{picture.name}: a label without points"


def test_bars_are_cut_only_where_one_would_dwarf_the_others() -> None:
    values = {"shmcast": 5.0, "pipe": 40.0, "gloo": 600.0}
    assert charts.cut_at(values.values()) == pytest.approx(40 * 1.12)
    assert charts.cut_at([5.0, 40.0, 60.0]) == 60.0
    assert charts.cut_at([5.0]) == 5.0


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(4.56, "4.6 µs"), (135.0, "135 µs"), (1215.0, "1.22 ms"), (167_000.0, "167 ms"), (2e6, "2 s")],
)
def test_a_duration_has_the_unit_that_one_would_say(microseconds: float, text: str) -> None:
    assert charts.duration(microseconds) == text


# Tables and documents


def test_a_table_of_nothing_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"nothing for the table .* \| Ray"):
        tables.compare(peers(), columns=["Ray"])


def test_filling_changes_only_what_lies_in_the_places() -> None:
    text = "a\n<!-- bench:x -->\nold\nolder\n<!-- /bench -->\nb\n"
    filled = "a\n<!-- bench:x -->\n\nnew\n\n<!-- /bench -->\nb\n"
    assert doc_blocks.fill(text, {"x": lambda: "new"}) == filled
    assert doc_blocks.fill(filled, {"x": lambda: "new"}) == filled
    assert doc_blocks.fill("no place\n", {}) == "no place\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n<!-- bench:y -->\n<!-- /bench -->", "line 2: <!-- bench:y --> is none of x"),
        ("<!-- bench:x -->\n", "of line 1 is not closed"),
        ("<!-- bench:x -->\n<!-- bench:x -->\n", "line 2: .* inside of .* of line 1"),
        ("<!-- /bench -->", "line 1: <!-- /bench --> closes nothing"),
    ],
)
def test_a_place_that_is_unknown_or_not_closed_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        doc_blocks.fill(text, {"x": lambda: "new"})


def test_every_block_can_be_generated(folder: Path) -> None:
    loaded = results.load(folder)
    found = {
        name: block()
        for name, block in doc_blocks.blocks(
            loaded, folder / "docs" / "pictures", folder, {"server": loaded}
        ).items()
    }
    assert found["plot-headline"].splitlines() == [
        "<picture>",
        '<source media="(prefers-color-scheme: dark)" srcset="docs/pictures/headline-dark.svg">',
        "<img alt=\"Time to broadcast an engine's step and a small message, by transport. "
        "vLLM's step, 64 requests, every 10 ms: shmcast + msgspec 4 µs, shmcast 8 µs, gloo 600 µs. "
        'A dict of 49 bytes, every 1 ms: shmcast 8 µs, gloo 600 µs" '
        'src="docs/pictures/headline-light.svg" width="830">',
        "</picture>",
    ]
    assert "16 MiB array, 1 reader, 1 ms" in found["large"]
    assert "decode 64, 1 reader, 10 ms" in found["summary"]
    assert found["summary-server"] == found["summary"]
    assert "| 8.0 / 24.0 | 6.0 / 18.0, 1.3x | 4.0 / 12.0, 2.0x |" in found["msgspec"]
    assert "25.0%" in found["waiting"]
    assert "poisson" not in found["waiting"]
    assert "poisson" in found["waiting-all"]
    assert "500 / 1,500, 3.0x" in found["tensors"]
    assert "8 x 1 KiB" not in found["tensors"]
    assert "8 x 1 KiB" in found["tensors-all"]
    assert "| 2.04 | 2.04 |" in found["nodes"]
    assert "30 ms" not in found["nodes"]
    assert "leader computes (torch) | 900 / 1,260 / 2,700 |" in found["busy-leader"]
    assert "| 2, shmcast |" in found["job"]
    for cadence in ("back to back", "20 ms apart", "none"):
        assert f"| {cadence}, the other reader | 4.0 | 8.0 | 16.0 | 100 |" in found["deaths"]
    line = "| 49 B, 8 members, 1 ms apart | 10.0 / 90.0 | 40.0 / 90.0, 4.00x |"
    assert line in found["replies"]
    assert "| 8 | 2.0 / 90.0 | 3.0 / 90.0, 1.50x |" in found["replies"]
    assert "| `await recv_async(), asyncio` | 30.0 / 90.0, 1.50x |" in found["awaited"]
    tokens = "| TP2, batch 8, shmcast | 800 (4.00) | 400 to 1,600 | 300 (0.25) | 50.0 / 90"
    assert tokens in found["engines"]
    assert "| vLLM | 10 ms | idle |" in found["engines"]
    assert "| TP2, shmcast | 10.0% / 4.0% | 0.10% / 0.02% |" in found["engines"]
    assert "| 3 ranks, no request, shmcast | 25.0 (0.10) | 50.0 |" in found["engines"]
    assert found["engines-summary"].splitlines()[0] == "| vLLM | TP2, vLLM | TP2, shmcast |"
    assert "| tokens/s, batch 8 | 200 | 800 |" in found["engines-summary"]
    assert "| a worker's CPU, 10 ms between steps | 10% | 10% |" in found["engines-summary"]
    assert "| of that, waiting | 4% | 4% |" in found["engines-summary"]
    assert "| a killed worker is told to the core, ms | 50.0 | 50.0 |" in found["engines-summary"]
    assert (
        "Tokens per second, vLLM and shmcast: TP2, batch 8: 200 and 800. Core to last worker"
        in found["plot-engines"]
    )


def test_the_summary_shows_peers_and_says_which_variant_and_who_is_missing(folder: Path) -> None:
    suite = json.loads((folder / "peers.json").read_text())
    suite["rows"] += [a_row("kickmsg blocking", 11, gap_ms=0.3)]
    suite["rows"] += [a_row("gloo, known size", 1, gap_ms=0.3)]
    (folder / "peers.json").write_text(json.dumps(suite))
    text = doc_blocks.summary(results.load(folder))
    head, _rules, *lines = cells(text)
    assert head[1:] == [str(case) for _, case in summary.CASES]
    assert [line[0] for line in lines] == ["shmcast", "shmcast spin", "kickmsg", "gloo"]
    assert lines[2][1] == "11.0 / 33.0<br>blocking"
    assert lines[2][2] == "12.0 / 36.0"
    assert "Did not run: vLLM (not installed)." in text


def test_a_block_whose_suite_was_not_measured_says_so(folder: Path) -> None:
    (folder / "nodes.json").unlink()
    found = doc_blocks.blocks(results.load(folder), folder / "pictures", folder, {})
    with pytest.raises(LookupError, match="has no suite 'nodes'"):
        found["nodes"]()


def test_check_writes_nothing_and_fails_for_a_stale_document(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, pictures = tmp_path / "README.md", tmp_path / "pictures"
    document.write_text("<!-- bench:job -->\n<!-- /bench -->\n")
    monkeypatch.setattr(report, "SHOWN", str(folder))
    monkeypatch.setattr(report, "PICTURES", pictures)
    monkeypatch.setattr(report, "documents", lambda: [document])
    with pytest.raises(SystemExit, match=r"README\.md, headline-light\.svg"):
        report.main(folder, check=True)
    assert document.read_text() == "<!-- bench:job -->\n<!-- /bench -->\n"
    assert not (folder / "report.md").exists()
    assert not pictures.exists()
    report.main(folder, fill=True)
    assert "812" in document.read_text()
    report.main(folder, check=True)


@needs_checkout
def test_documents_and_pictures_show_what_was_measured() -> None:
    assert report.stale(results.load(report.RESULTS / report.SHOWN)) == []


def test_pictures_are_small_and_none_is_left_over() -> None:
    paths = sorted(report.PICTURES.glob("*-*.svg"))  # beside them are drawings without results
    assert [path.name for path in paths] == sorted(
        f"{picture.name}-{theme}.svg" for picture in PICTURES for theme in ("light", "dark")
    )
    assert all(path.stat().st_size < 100_000 for path in paths)


# Terminal


@needs_checkout
def test_the_report_in_a_terminal_fits_80_columns(folder: Path) -> None:
    for shown in (results.load(folder), results.load(report.RESULTS / report.SHOWN)):
        lines = rendered(summary.table(shown))
        for suite, case in summary.CASES:
            if suite in shown.suites:
                assert sum(line.startswith(f"{case} ") for line in lines) == 1
