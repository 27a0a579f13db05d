"""Results of every suite, made up, for the report to tell of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.report import results

MACHINE = {
    "name": "two",
    "cpu": "A CPU",
    "cores": 4,
    "usable_cpus": 2.0,
    "governor": "none",
    "kernel": "6.1",
    "python": "3.11.7",
    "torch": "2.13.0",
    "shmcast": "0.1.0",
    "commit": "abc",
    "load_average": 0.1,
    "steal": 0.01,
    "date": "2026-11-25 04:00:00 +0000",
}
PEERS = {"shmcast": 8.0, "shmcast spin": 7.0, "kickmsg polling": 12.0, "gloo": 600.0}
TINY = ("49 B", 49)


def a_row(
    transport: str,
    p50_us: float,
    workload: tuple[str, int] = TINY,
    readers: int = 1,
    gap_ms: float = 1.0,
    pattern: str = "steady",
    **more: Any,
) -> results.Row:
    row: dict[str, Any] = {
        "workload": workload[0],
        "bytes": workload[1],
        "readers": readers,
        "gap_ms": gap_ms,
        "pattern": pattern,
        "transport": transport,
        "messages": 500,
        "turns": 5,
        "source_cpu_us": 2.5,
        "reader_cpu_us": 1234.0,
        "source_cpu": 0.01,
        "reader_cpu": 0.25,
        "memory_mib": 4.25,
    }
    for name, value in (("p50", p50_us), ("p99", 3 * p50_us)):
        row |= {f"{name}_us": value, f"{name}_low_us": value * 0.9, f"{name}_high_us": value * 1.1}
    row |= {"max_us": 9 * p50_us, "send_p50_us": p50_us / 2}
    row["quantiles_us"] = [p50_us * (0.5 + i / 100) for i in range(101)]
    found: results.Row = {**row, **more}  # type: ignore[typeddict-item]
    return found


def a_rate(transport: str, per_second: float) -> results.Row:
    low, high = 0.9 * per_second, 1.1 * per_second
    return a_row(
        transport,
        1e6 / per_second,
        gap_ms=0.0,
        rate_per_s=per_second,
        rate_low_per_s=low,
        rate_high_per_s=high,
    )


def peers() -> list[results.Row]:
    cadences = [a_row(t, us, gap_ms=gap) for gap in (0.3, 1.0, 10.0) for t, us in PEERS.items()]
    sizes = [a_row(t, 99 * us, ("16 MiB", 1 << 24)) for t, us in PEERS.items()]
    many = [a_row(t, 9 * us, readers=8) for t, us in PEERS.items() if t != "shmcast spin"]
    rates = [a_rate(t, 1e6 / us) for t, us in PEERS.items()]
    return cadences + sizes + many + rates


def steps() -> list[results.Row]:
    both = {**PEERS, "shmcast, Structs pickled": 6.0, "shmcast msgspec": 4.0}
    return [a_row(t, us, ("decode 64", 4000), gap_ms=10.0) for t, us in both.items()]


def waiting() -> list[results.Row]:
    return [
        a_row(t, us, readers=readers, gap_ms=gap, pattern=pattern)
        for readers in (1, 4)
        for gap in (1.0, 10.0)
        for pattern in ("steady", "jitter", "poisson", "bursts")
        for t, us in {"shmcast": 9.0, "shmcast, warmed": 5.0, "shmcast semaphore": 70.0}.items()
    ]


def large() -> list[results.Row]:
    size = ("16 MiB array", 1 << 24)
    return [
        a_row("memcpy", 1200, size),
        a_row("streamed", 1300, size, read_p50_us=777.0),
        a_row("gloo", 9000, size),
        a_row("loan, filled before", 9, size),
    ]


def tensors() -> list[results.Row]:
    ways = {"tensors over the device group": 500.0, "tensors one by one": 1500.0}
    sizes = (("1 x 64 KiB tensors, flat", 65536), ("8 x 1 KiB tensors, flat", 8192))
    return [a_row(t, us, size) for size in sizes for t, us in ways.items()]


def nodes() -> list[results.Row]:
    link = {"bytes_in": 100.0}
    return [
        a_row("gloo between hosts", 3600, readers=7, extra=link),
        a_row("shmcast between hosts", 400, readers=7, extra=link),
        a_row("shmcast within the source's host", 100, readers=7),
        a_row(
            "shmcast between hosts", 900, readers=3, gap_ms=30.0, pattern="uniform", busy="torch"
        ),
    ]


def job() -> list[dict[str, Any]]:
    row = {
        "ranks": 2,
        "transport": "shmcast",
        "tokens_per_s": 812.0,
        "tokens_per_s_low": 800.0,
        "tokens_per_s_high": 820.0,
        "ttft_p50_ms": 12.0,
        "ttft_p99_ms": 19.0,
        "broadcast_p50_us": 31.0,
        "broadcast_p99_us": 93.0,
        "broadcast_share": 0.003,
        "passes": 500,
    }
    return [row]


def a_codec_row(
    codec: str, both_us: float, workload: str = "decode 64", kind: str = "engine", mib: int = 0
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "workload": workload,
        "kind": kind,
        "codec": codec,
        "evicted_mib": mib,
        "bytes": 4000,
        "is_same": codec != "msgspec untyped",
        "messages": 600,
        "turns": 3,
    }
    for name, share in (("encode", 0.4), ("decode", 0.6), ("both", 1.0)):
        for end, factor in (("", 1.0), ("_low", 0.9), ("_high", 1.1)):
            row[f"{name}_p50{end}_us"] = both_us * share * factor
    return row


def codec() -> list[dict[str, Any]]:
    times = {"shmcast": 4.0, "pickle": 20.0, "cloudpickle": 25.0, "msgspec untyped": 10.0}
    return [
        *(a_codec_row(name, us, mib=0) for name, us in times.items()),
        *(a_codec_row(name, 3 * us, mib=8) for name, us in times.items()),
        a_codec_row("shmcast", 2.0, "a record", "users"),
        a_codec_row("pickle", 3.0, "a record", "users"),
    ]


def deaths() -> list[dict[str, Any]]:
    row = {"who": "the other reader", "kills": 100, "p50_ms": 4.0, "p99_ms": 8.0, "max_ms": 16.0}
    return [{**row, "gap_ms": gap_ms} for gap_ms in (0.0, 20.0, -1.0)]


def engines() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for transport, times in (("vLLM", 4.0), ("shmcast", 1.0)):
        case = {"ranks": 2, "transport": transport}
        tokens = {"tokens_per_s": 800 / times, "cpu_us_per_token": 300 * times}
        delays = {
            f"{what}_p{percent}_us": times * percent
            for what in ("rpc", "enqueue", "reply")
            for percent in (50, 90, 99)
        }
        rows += [
            {"case": "tokens", "batch": 8, "rounds": 3, **case, **tokens, **delays}
            | {"of_rounds": {"tokens_per_s": [factor * 800 / times for factor in (1, 0.5, 2)]}},
            {"case": "waiting", "gap_ms": 10.0, "cpu": 0.1, "waiting_cpu": 0.04, **case},
            {"case": "waiting", "gap_ms": -1.0, "cpu": 0.001, "waiting_cpu": 0.0002, **case},
            {"case": "killed", "core_s": 0.05, "user_s": 0.2, "told": "PeerDied", **case},
        ]
    for transport, times in (("SGLang", 250.0), ("shmcast", 25.0)):
        case = {"case": "requests", "ranks": 3, "what": "no request", "transport": transport}
        rows.append({**case, "p50_us": times, "p99_us": 2 * times})
    return rows


def replies() -> list[dict[str, Any]]:
    row = {"message": "49 B", "members": 8, "gap_ms": 1.0, "calls": 9, "p99_us": 90.0}
    ways = (
        ("round trip", "Hub", 10.0),
        ("round trip", "vLLM", 40.0),
        ("any", "recv", 2.0),
        ("any", "recv_any", 3.0),
        ("awaited", "recv()", 20.0),
        ("awaited", "await recv_async(), asyncio", 30.0),
    )
    return [{**row, "case": case, "who": who, "p50_us": p50} for case, who, p50 in ways]


ALL: dict[str, Callable[[], list[Any]]] = {
    "peers": peers,
    "steps": steps,
    "waiting": waiting,
    "large": large,
    "tensors": tensors,
    "nodes": nodes,
    "job": job,
    "codec": codec,
    "deaths": deaths,
    "engines": engines,
    "replies": replies,
}
