"""How far apart the CPUs are: the time that a cache line takes from one to another.

A hypervisor may move the CPUs of a guest between cores that share a cache and cores that don't,
every few minutes; all figures change with it. So whoever measures looks before and after.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

FAR_NS = 90.0
"""From so many ns on, one way, it is far: where a cache is shared, it takes 20 to 70."""

_MOST_PAIRS = 7
_ROUNDS, _BATCHES = 1000, 20

# The least of some batches: another program may take a CPU away, which makes a trip longer only.
_SOURCE = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

struct pair {
  _Alignas(128) atomic_ulong line;
  _Alignas(128) int cpus[2];
  long rounds;
  int batches;
  double least;
};

static int pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}
static void *answer(void *arg) {
  struct pair *p = arg;
  pin(p->cpus[1]);
  for (unsigned long i = 0; i < (unsigned long)p->rounds * p->batches; i++) {
    while (atomic_load_explicit(&p->line, memory_order_acquire) != 2 * i + 1) ;
    atomic_store_explicit(&p->line, 2 * i + 2, memory_order_release);
  }
  return 0;
}
static void *ask(void *arg) {
  struct pair *p = arg;
  pin(p->cpus[0]);
  unsigned long i = 0;
  for (int batch = 0; batch < p->batches; batch++) {
    double begin = now();
    for (long k = 0; k < p->rounds; k++, i++) {
      atomic_store_explicit(&p->line, 2 * i + 1, memory_order_release);
      while (atomic_load_explicit(&p->line, memory_order_acquire) != 2 * i + 2) ;
    }
    double ns = (now() - begin) / p->rounds / 2;
    if (batch == 0 || ns < p->least) p->least = ns;
  }
  return 0;
}
double trip_ns(int a, int b, long rounds, int batches) {
  struct pair p = {0, {a, b}, rounds, batches, 0};
  pthread_t asks, answers;
  if (pthread_create(&answers, 0, answer, &p)) return -1;
  if (pthread_create(&asks, 0, ask, &p)) { ask(&p); pthread_join(answers, 0); return -1; }
  pthread_join(asks, 0);
  pthread_join(answers, 0);
  return p.least;
}
"""


class Trip(NamedTuple):
    """One look."""

    ns: float

    @property
    def state(self) -> str:
        """Return "near" or "far"."""
        return "far" if self.ns >= FAR_NS else "near"


def look() -> Trip | None:
    """Return how long a line takes one way; None: there are no two CPUs, or no C compiler."""
    first, *others = sorted(os.sched_getaffinity(0))
    trip = _compiled() if others else None
    if trip is None:
        return None
    step = -(-len(others) // _MOST_PAIRS)
    found = [trip(first, other, _ROUNDS, _BATCHES) for other in others[::step]]
    return Trip(round(statistics.median(found), 1)) if min(found) > 0 else None


def described(before: Trip | None, after: Trip | None) -> dict[str, str | float]:
    """Return what rows say of two looks: nothing if they could not be taken."""
    if before is None or after is None:
        return {}
    state = before.state if before.state == after.state else "moved"
    return {"line": state, "line_before_ns": before.ns, "line_after_ns": after.ns}


@functools.cache
def _compiled() -> ctypes._NamedFuncPointer | None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="bench-line-") as folder:
        source, made = Path(folder, "line.c"), Path(folder, "line.so")
        source.write_text(_SOURCE)
        command = [compiler, "-O2", "-shared", "-fPIC", "-pthread", "-o", str(made), str(source)]
        if subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603
            return None
        function = ctypes.CDLL(str(made)).trip_ns
    function.restype = ctypes.c_double
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_int]
    return function
