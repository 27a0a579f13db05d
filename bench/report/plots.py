"""The pictures: what each of them shows of which results, and where it is written.

What a picture shows is also the description inside its file. By that a test tells whether committed
pictures are those of the committed results, whichever version of matplotlib drew them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from matplotlib.figure import Figure

from bench.report import charts, codec_tables
from bench.report.charts import Panel, Point
from bench.report.plot_style import DARK, LIGHT, Theme, applied
from bench.report.results import OURS, EngineRow, Results, Row, by_case, case_of, representative
from bench.run.case import Case

MOST_LABELS = 6
"""In a panel: more are not told apart at a glance."""

TO_ONE = "median time to the reader"
TO_LAST = "median time to the last reader"


@dataclass(frozen=True)
class Picture:
    """A picture of results.

    Attributes:
        name: of its files, and of its place in documents.
        title: what it shows, in a sentence.
        panels: takes its data from results; raises LookupError if they don't have them.
        draw: draws the data in a theme.
    """

    name: str
    title: str
    panels: Callable[[Results], list[Panel]]
    draw: Callable[[Sequence[Panel], Theme], Figure]

    def file(self, theme: Theme) -> str:
        """Return the name of its file."""
        return f"{self.name}-{theme.name}.svg"

    def describe(self, results: Results) -> str:
        """Return everything that it shows, in words and numbers."""
        return "\n\n".join([self.title, *map(str, self.panels(results))])

    def alt(self, results: Results) -> str:
        """Return what is said instead of it: the title and, of bars, the figures."""
        figures = filter(None, (panel.figures() for panel in self.panels(results)))
        return ". ".join([self.title, *figures])


HEADLINE = (
    ("steps", Case("decode 64", 1, 10.0), "vLLM's step, 64 requests, every 10 ms"),
    ("peers", Case("49 B", 1, 1.0), "A dict of 49 bytes, every 1 ms"),
)
BARS = ("shmcast msgspec", OURS, "SGLang", "vLLM", "pipe", "gloo")


def _headline(results: Results) -> list[Panel]:
    panels = []
    for suite, case, title in HEADLINE:
        own = by_case(results[suite].rows).get(case, {})
        found = {name: row for name in BARS if (row := representative(own, name))}
        if not found:
            raise LookupError(f"suite {suite!r} has no case {case}")
        series = {
            _label(name): [Point("", row["p50_us"], f"{row['reader_cpu']:.0%} of a core")]
            for name, row in found.items()
        }
        panels.append(Panel(title, series, values=TO_ONE))
    return panels


def _label(transport: str) -> str:
    return transport.replace(" msgspec", " + msgspec")


STEP_NAMES = {
    "decode 1": "decode, 1 request",
    "decode 64": "decode, 64 requests",
    "decode 256": "decode, 256 requests",
    "decode 64, bitmask": "decode 64, with a grammar bitmask",
    "prefill chunk": "prefill of 8192 tokens",
    "sglang 64": "64 new requests of SGLang",
    "multimodal": "request with a 23 MB image",
}


def _steps(results: Results) -> list[Panel]:
    cases = by_case(results["steps"].rows)
    series: dict[str, list[Point]] = {}
    for workload, name in STEP_NAMES.items():
        own = cases.get(Case(workload, 1, 10.0), {})
        for transport in BARS:
            if row := representative(own, transport):
                series.setdefault(_label(transport), []).append(Point(name, row["p50_us"]))
    title = "What engines send, every 10 ms to 1 reader"
    return [Panel(title, series, "message", TO_ONE)] if series else _none("steps")


ARRAYS = {
    "loan, filled before": "shmcast loan",
    "arena, view": "shmcast view",
    "streamed": "shmcast copy",
    "vLLM arena": "vLLM arena",
    "vLLM": "vLLM",
    "gloo": "gloo",
}


def _large(results: Results) -> list[Panel]:
    rows = [row for row in results["large"].rows if row["readers"] == 1]
    return [
        Panel(
            "Arrays, every 0.3 ms to 1 reader",
            {
                label: [
                    Point(row["bytes"], row["p50_us"], row["workload"].removesuffix(" array"))
                    for row in rows
                    if row["transport"] == transport
                ]
                for transport, label in ARRAYS.items()
            },
            "array",
            TO_ONE,
        )
    ]


SCALE = Case("49 B", 1, 1.0)
"""The case from which the pictures by size and by number of readers vary one number."""


def _sizes(results: Results) -> list[Panel]:
    rows = [
        row
        for row in results["peers"].rows
        if replace(case_of(row), workload=SCALE.workload) == SCALE
    ]
    series = _series(rows, lambda row: Point(row["bytes"], row["p50_us"], row["workload"]))
    return [Panel("A message every 1 ms to 1 reader", series, "message", TO_ONE)]


def _readers(results: Results) -> list[Panel]:
    peers = results["peers"]
    rows = [row for row in peers.rows if replace(case_of(row), readers=SCALE.readers) == SCALE]
    series = _series(rows, lambda row: Point(row["readers"], row["p50_us"], str(row["readers"])))
    cpus = peers.machine["usable_cpus"]
    title = f"49 bytes every 1 ms, to readers which share {cpus:g} CPUs with the source"
    return [Panel(title, series, "readers", TO_LAST)]


def _series(
    rows: Iterable[Row], point: Callable[[Row], Point], names: Sequence[str] = (*BARS[1:], "pyzmq")
) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {name: [] for name in names}
    for own in by_case(rows).values():
        for name in names:
            if row := representative(own, name):
                found[name].append(point(row))
    return {
        name: sorted(points, key=lambda point: float(point.place))
        for name, points in found.items()
        if points
    }


POLICIES = {
    OURS: "shmcast adaptive (default)",
    "shmcast spin": "shmcast spin",
    "shmcast semaphore": "shmcast semaphore",
}
IDLE_MS = 1000


def _waiting(results: Results) -> list[Panel]:
    rows = [
        row
        for row in results["waiting"].rows
        if 0 < row["gap_ms"] < IDLE_MS and row["pattern"] == "steady"
    ]
    cpus = results["waiting"].machine["usable_cpus"]
    panels = []
    for readers in sorted({row["readers"] for row in rows}):
        own = [row for row in rows if row["readers"] == readers]
        what = f"{readers} reader{'s' if readers > 1 else ''} on {cpus:g} CPUs"
        gap = "gap between messages of 49 bytes, ms"
        times = _by_policy(own, lambda row: row["p50_us"])
        shares = _by_policy(own, lambda row: 100 * row["reader_cpu"])
        panels += [
            Panel(f"{what}: latency", times, gap, "median"),
            Panel(f"{what}: CPU time of a reader", shares, gap, "% of a core", is_log=False),
        ]
    return panels or _none("waiting")


def _by_policy(rows: list[Row], value: Callable[[Row], float]) -> dict[str, list[Point]]:
    return {
        label: [
            Point(row["gap_ms"], value(row), f"{row['gap_ms']:g}")
            for row in rows
            if row["transport"] == transport
        ]
        for transport, label in POLICIES.items()
    }


CODECS = {
    OURS: OURS,
    "pickle": "pickle",
    "cloudpickle": "cloudpickle",
    "msgspec typed": "msgspec typed",
    "msgspec untyped": "msgspec untyped",
}
CODEC_NAMES = {
    "49 B": "dict of 49 bytes",
    "decode 8": "decode, 8 requests",
    "decode 64": "decode, 64 requests",
    "decode 256": "decode, 256 requests",
    "trace": "steps of a trace",
    "prefill chunk": "prefill of 8192 tokens",
    "sglang 64": "64 new requests of SGLang",
}


def _codec(results: Results) -> list[Panel]:
    cases = codec_tables.by_workload(results["codec"].codec, 0)
    series: dict[str, list[Point]] = {}
    for codec, label in CODECS.items():
        for workload, name in CODEC_NAMES.items():
            if row := cases.get(workload, {}).get(codec):
                series.setdefault(label, []).append(Point(name, row["both_p50_us"]))
    title = "Encode and decode of what engines send, caches warm"
    return [Panel(title, series, "message", "median of both")] if series else _none("codec")


def _engines(results: Results) -> list[Panel]:
    rows = results["engines"].engines

    def pairs(case: str, name: str, place: Callable[[EngineRow], str]) -> dict[str, list[Point]]:
        series: dict[str, list[Point]] = {}
        for row in rows:
            if row["case"] == case and row.get("gap_ms", 0) >= 0:
                point = Point(place(row), float(str(dict(row)[name])))
                series.setdefault(row["transport"], []).append(point)
        return series

    def batch(row: EngineRow) -> str:
        return f"TP{row['ranks']}, batch {row['batch']}"

    def gap(row: EngineRow) -> str:
        return f"TP{row['ranks']}, {row['gap_ms']:g} ms"

    panels = [
        Panel("Tokens per second", pairs("tokens", "tokens_per_s", batch), say="{:,.0f}".format),
        Panel("Core to last worker", pairs("tokens", "rpc_p50_us", batch)),
        Panel("CPU of a worker, by pause", pairs("waiting", "cpu", gap), say="{:.0%}".format),
    ]
    return [replace(panel, are_pairs=True) for panel in panels] if rows else _none("engines")


def _none(suite: str) -> list[Panel]:
    raise LookupError(f"suite {suite!r} has nothing for a picture")


NOTE = (
    "Bars: median time from the source's call to the only reader's return; shorter is better.\n"
    "Grey: CPU time of that reader. Of SGLang and vLLM, the faster variant is shown."
)

ENGINES_NOTE = (
    "Blue: vLLM's own queue. Orange: shmcast. Each pair to a scale of its own.\n"
    "CPU: a worker's CPU time over wall time, with so long a pause after each step."
)

PICTURES = (
    Picture(
        "headline",
        "Time to broadcast an engine's step and a small message, by transport",
        _headline,
        lambda panels, theme: charts.bars(panels, NOTE, theme),
    ),
    Picture(
        "steps",
        "Time to broadcast what inference engines send, by transport",
        _steps,
        lambda panels, theme: charts.dots(panels[0], theme, 4.7),
    ),
    Picture(
        "large",
        "Time to broadcast arrays of 64 KiB to 256 MiB, by transport",
        _large,
        lambda panels, theme: charts.lines(panels, 1, 3.9, theme),
    ),
    Picture(
        "sizes",
        "Time to broadcast messages of 49 bytes to 16 MiB, by transport",
        _sizes,
        lambda panels, theme: charts.lines(panels, 1, 3.9, theme),
    ),
    Picture(
        "readers",
        "Time to the last of 1, 4 and 8 readers, by transport",
        _readers,
        lambda panels, theme: charts.lines(panels, 1, 3.6, theme),
    ),
    Picture(
        "waiting",
        "Latency and CPU time of the wait policies, by gap between messages",
        _waiting,
        lambda panels, theme: charts.lines(panels, 2, 5.2, theme),
    ),
    Picture(
        "codec",
        "Time to encode and decode what inference engines send, by codec",
        _codec,
        lambda panels, theme: charts.dots(panels[0], theme, 4.7),
    ),
    Picture(
        "engines",
        "vLLM with its own queue and with shmcast",
        _engines,
        lambda panels, theme: charts.pairs(panels, ENGINES_NOTE, theme),
    ),
)


_NO_MORE = {"Creator": None, "Date": None, "Format": None, "Type": None}


def write(results: Results, folder: Path) -> list[Path]:
    """Draw what the results have, for light and dark, into a folder; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in PICTURES:
        try:
            panels, text = picture.panels(results), picture.describe(results)
        except LookupError:
            continue
        for theme in (LIGHT, DARK):
            with applied(theme):
                path = folder / picture.file(theme)
                metadata = {"Description": text, "Title": picture.title, **_NO_MORE}
                picture.draw(panels, theme).savefig(path, metadata=metadata)
                written.append(path)
    return written


def stale(results: Results, folder: Path, pictures: Iterable[Picture] = PICTURES) -> list[Path]:
    """Return the files in a folder that are missing or show something else than the results."""
    found = []
    for picture in pictures:
        text = picture.describe(results)
        paths = [folder / picture.file(theme) for theme in (LIGHT, DARK)]
        found += [path for path in paths if not path.exists() or description(path) != text]
    return found


def description(path: Path) -> str:
    """Return what the file of a picture says that it shows."""
    tag = "{http://purl.org/dc/elements/1.1/}description"
    found = ElementTree.parse(path).find(f".//{tag}")  # noqa: S314 (our own file)
    return (found.text or "") if found is not None else ""
