"""The suite "engines" as Markdown tables: a line for each engine in each case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from bench.report.results import OURS, EngineRow
from bench.report.tables import markdown, ratio, short, with_notes

_TOKENS = (
    "tokens/s and CPU time per token; then p50 / p90 / p99 in µs: of a call from the engine's core "
    "to its last worker, of the enqueueing itself, of the first worker's reply. Medians of the "
    "rounds, and what the rounds' tokens/s were between. In brackets: times the engine's own."
)
_WAITING = (
    "A worker's CPU between steps that come so far apart, and the part of it that waiting takes: "
    "all of its calls of dequeue. Idle: the CPU of each process of an engine that has nothing to "
    "do, and that without the threads of torch's gloo, each of which wakes up 100 times a second."
)
_KILLED = (
    "From the kill of a worker while it generates to the error in the engine's core, and in who "
    "has asked for the tokens."
)
_REQUESTS = "From the source's call of broadcast_pyobj to the last rank's return: p50 / p99 in µs."


def all_tables(rows: Sequence[EngineRow]) -> Iterator[str]:
    """Return the tables of the cases that were measured, each with what it shows."""
    return with_notes(
        rows,
        {
            "tokens": (_TOKENS, tokens),
            "waiting": (_WAITING, waiting),
            "killed": (_KILLED, killed),
            "requests": (_REQUESTS, requests),
        },
    )


def summary(rows: Sequence[EngineRow]) -> str:
    """Return what matters most of vLLM, a column for each of its engines."""
    engines: dict[str, dict[str, list[EngineRow]]] = {}
    for row in rows:
        if row["case"] != "requests":
            cases = engines.setdefault(f"TP{row['ranks']}, {row['transport']}", {})
            cases.setdefault(row["case"], []).append(row)
    made = next(iter(engines.values()))
    batches = _joined(f"{row['batch']}" for row in made["tokens"])
    gaps = _joined(f"{row['gap_ms']:g}" for row in made["waiting"] if row["gap_ms"] >= 0)
    lines = {
        f"tokens/s, batch {batches}": _figures("tokens", "tokens_per_s"),
        f"core to its last worker, p50, µs, batch {batches}": _figures("tokens", "rpc_p50_us"),
        f"first worker's reply, p50, µs, batch {batches}": _figures("tokens", "reply_p50_us"),
        f"a worker's CPU, {gaps} ms between steps": lambda cases: _joined(
            f"{row['cpu']:.0%}" for row in cases["waiting"] if row["gap_ms"] >= 0
        ),
        "of that, waiting": lambda cases: _joined(
            f"{row['waiting_cpu']:.0%}" for row in cases["waiting"] if row["gap_ms"] >= 0
        ),
        "a killed worker is told to the core, ms": lambda cases: _joined(
            short(row["core_s"] * 1e3) for row in cases["killed"]
        ),
    }
    if not all("waiting_cpu" in row for row in made["waiting"]):
        del lines["of that, waiting"]
    cells = [[what, *map(figures, engines.values())] for what, figures in lines.items()]
    return markdown(["vLLM", *engines], cells)


def _figures(case: str, name: str) -> Callable[[dict[str, list[EngineRow]]], str]:
    return lambda cases: _joined(short(_figure(row, name)) for row in cases[case])


def _joined(figures: Iterable[str]) -> str:
    return " / ".join(figures)


def tokens(rows: Sequence[EngineRow]) -> str:
    """Return what an engine makes, and how long its messages take."""
    lines = []
    for row in rows:
        own = _own(rows, row, "batch")
        times = [
            " / ".join(short(_figure(row, f"{what}_p{percent}_us")) for percent in (50, 90, 99))
            for what in ("rpc", "enqueue", "reply")
        ]
        lines.append(
            [
                f"TP{row['ranks']}, batch {row['batch']}, {row['transport']}",
                _beside(row, own, "tokens_per_s"),
                _range(row.get("of_rounds", {}).get("tokens_per_s", [])),
                _beside(row, own, "cpu_us_per_token"),
                *times,
            ]
        )
    head = ["vLLM", "tokens/s", "rounds", "CPU, µs per token", "call", "enqueue", "reply"]
    return markdown(head, lines)


def waiting(rows: Sequence[EngineRow]) -> str:
    """Return what a worker uses between steps, and what of it waiting costs."""
    by_engine: dict[str, dict[float, str]] = {}
    for row in rows:
        shares = by_engine.setdefault(f"TP{row['ranks']}, {row['transport']}", {})
        shares[row["gap_ms"]] = _shares(row)
    gaps = list(dict.fromkeys(row["gap_ms"] for row in rows))
    head = ["vLLM", *("idle" if gap_ms < 0 else f"{gap_ms:g} ms" for gap_ms in gaps)]
    lines = [[engine, *(shares[gap_ms] for gap_ms in gaps)] for engine, shares in by_engine.items()]
    return markdown(head, lines)


def killed(rows: Sequence[EngineRow]) -> str:
    """Return how soon a worker's death is told, and what the engine's core is told."""
    lines = [
        [
            f"TP{row['ranks']}, {row['transport']}",
            short(row["core_s"] * 1e3),
            short(row["user_s"] * 1e3),
            row["told"].replace("|", "/"),
        ]
        for row in rows
    ]
    return markdown(["vLLM", "core, ms", "user, ms", "what the core is told"], lines)


def requests(rows: Sequence[EngineRow]) -> str:
    """Return how long lists of requests take."""
    lines = [
        [
            f"{row['ranks']} ranks, {row['what']}, {row['transport']}",
            _beside(row, _own(rows, row, "what"), "p50_us"),
            short(row["p99_us"]),
        ]
        for row in rows
    ]
    return markdown(["SGLang", "p50, µs", "p99, µs"], lines)


def _own(rows: Sequence[EngineRow], row: EngineRow, what: str) -> EngineRow | None:
    """Return the row of the engine's own in the same case; None: this is it, or there is none."""
    if row["transport"] != OURS:
        return None
    key = (row["ranks"], dict(row)[what])
    others = (each for each in rows if each["transport"] != OURS)
    return next((each for each in others if (each["ranks"], dict(each)[what]) == key), None)


def _range(values: list[float]) -> str:
    return f"{short(min(values))} to {short(max(values))}" if values else ""


def _shares(row: EngineRow) -> str:
    """Return a share of a CPU, and the part of it that waiting takes if that was measured."""
    digits = 1 if row["gap_ms"] >= 0 else 2
    shares = [row["cpu"], *([row["waiting_cpu"]] if "waiting_cpu" in row else [])]
    return " / ".join(f"{share:.{digits}%}" for share in shares)


def _beside(row: EngineRow, own: EngineRow | None, name: str) -> str:
    figure = short(_figure(row, name))
    return figure if own is None else f"{figure} ({ratio(_figure(row, name) / _figure(own, name))})"


def _figure(row: EngineRow, name: str) -> float:
    return float(str(dict(row)[name]))
