"""CPUs: how many are ours, and how threads wait for one another where other processes run too.

libgomp, which torch brings, lets a thread that waits for the others spin for milliseconds before it
sleeps. Where another process is on the CPU of the one that is waited for, nobody gets on meanwhile,
and a step takes four times as long. With more threads than CPUs it lets them sleep at once
(GOMP_SPINCOUNT in libgomp's manual); on a quiet machine that costs a tenth of the time, so threads
that only sleep are added while others hold ours up, and ended afterwards.
"""

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# seconds between two looks at how long our threads had to wait for a CPU
PERIOD = 0.25
# share of the time that a thread was ready to run and did not: 0.03 in all on a quiet machine,
# 0.5 and more beside one busy process
HELD_UP = 0.2
_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# held by whoever watches: one is enough
_watching = threading.Lock()


def usable_cpus() -> int:
    """As many as this process may use: those it may run on, within its container's quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        count = os.cpu_count() or 1
    return max(1, math.ceil(min(count, _quota())))


def _quota() -> float:
    """CPUs that the control groups of this process may use, infinity where nothing limits them."""
    quota = math.inf
    for line in _lines(Path("/proc/self/cgroup")):
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        root = Path("/sys/fs/cgroup", kinds and "cpu")
        group = root / path.lstrip("/")
        # a limit of any group above holds too; inside a container all but the root may be hidden
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            if kinds:
                words = _lines(folder / "cpu.cfs_quota_us") + _lines(folder / "cpu.cfs_period_us")
            else:
                words = " ".join(_lines(folder / "cpu.max")).split()
            if len(words) == 2 and words[0].isdigit():
                quota = min(quota, int(words[0]) / int(words[1]))
    return quota


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def set_threads(threads: int | None) -> None:
    """Set how many CPU threads torch uses. None: as torch chose, but at most the usable CPUs."""
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = min(torch.get_num_threads(), usable_cpus())
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def shared_cpus() -> Iterator[None]:
    """Within it threads that wait for one another sleep, as long as other processes hold them up.

    No result depends on it. Where the user has chosen how they wait (OMP_WAIT_POLICY or
    GOMP_SPINCOUNT), and where torch has another OpenMP than libgomp, nothing is done.
    """
    libgomp = any("libgomp" in line for line in _lines(Path("/proc/self/maps")))
    settled = torch.get_num_threads() == 1 or any(map(os.environ.get, _SETTINGS))
    if settled or not libgomp or not _watching.acquire(blocking=False):
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(ended,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
        _watching.release()


def _watch(ended: threading.Event) -> None:
    sleepers: Sleepers | None = None
    waited, since = _seconds_waited(), time.monotonic()
    while not ended.wait(PERIOD):
        waited_now, now = _seconds_waited(), time.monotonic()
        held_up = waited_now - waited > HELD_UP * (now - since)
        waited, since = waited_now, now
        if held_up and sleepers is None:
            sleepers = Sleepers()
        elif not held_up and sleepers is not None:
            sleepers.end()
            sleepers = None
    if sleepers is not None:
        sleepers.end()


def _seconds_waited() -> float:
    """Sum over our threads of the time that they were ready to run while others ran."""
    tasks = Path("/proc/self/task").glob("*/schedstat")
    return sum(int(words[1]) for task in tasks for words in map(str.split, _lines(task))) / 1e9


class Sleepers:
    """Threads that do nothing, enough of them for libgomp to count more threads than CPUs."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        threads = torch.get_num_threads()
        # each one brings a team of its own, of which it is one
        teams = (len(os.sched_getaffinity(0)) - threads) // (threads - 1) + 1
        self._threads = [threading.Thread(target=self._sleep, daemon=True) for _ in range(teams)]
        for thread in self._threads:
            thread.start()

    def _sleep(self) -> None:
        # long enough for torch to share it out, which makes the team
        torch.zeros(2**20).add_(1)
        self._ended.wait()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
