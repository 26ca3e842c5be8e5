"""How many CPUs are used, and how threads wait for one another beside other processes."""

import itertools
import math
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastcat import cpus
from fastcat.cpus import Sleepers, set_threads, shared_cpus, usable_cpus

CGROUP = "/proc/self/cgroup"


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def limited(monkeypatch: pytest.MonkeyPatch, affinity: int, files: dict[str, str]) -> None:
    """A machine with these control groups, of which we may run on so many CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(cpus, "_lines", lambda path: files.get(str(path), "").splitlines())


@pytest.mark.parametrize(
    ("affinity", "files", "usable"),
    [
        pytest.param(8, {}, 8, id="no groups"),
        pytest.param(1, {}, 1, id="pinned"),
        pytest.param(
            8, {CGROUP: "0::/", "/sys/fs/cgroup/cpu.max": "max 100000"}, 8, id="v2, no limit"
        ),
        pytest.param(
            8, {CGROUP: "0::/", "/sys/fs/cgroup/cpu.max": "200000 100000"}, 2, id="v2, container"
        ),
        pytest.param(
            8, {CGROUP: "0::/", "/sys/fs/cgroup/cpu.max": "150000 100000"}, 2, id="v2, a half"
        ),
        pytest.param(
            8, {CGROUP: "0::/", "/sys/fs/cgroup/cpu.max": "20000 100000"}, 1, id="v2, a fifth"
        ),
        pytest.param(
            8,
            {
                CGROUP: "0::/system.slice/job",
                "/sys/fs/cgroup/system.slice/job/cpu.max": "max 100000",
                "/sys/fs/cgroup/system.slice/cpu.max": "300000 100000",
            },
            3,
            id="v2, of a group above",
        ),
        pytest.param(
            8,
            {
                CGROUP: "0::/pod/job",
                "/sys/fs/cgroup/pod/job/cpu.max": "200000 100000",
                "/sys/fs/cgroup/pod/cpu.max": "600000 100000",
            },
            2,
            id="v2, the least of several",
        ),
        pytest.param(
            2, {CGROUP: "0::/", "/sys/fs/cgroup/cpu.max": "800000 100000"}, 2, id="v2, wider"
        ),
        pytest.param(
            8,
            {
                CGROUP: "5:memory:/m\n4:cpu,cpuacct:/docker/a\n0::/",
                "/sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "400000",
                "/sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "100000",
            },
            4,
            id="v1",
        ),
        pytest.param(
            8,
            {
                CGROUP: "4:cpu:/",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
            id="v1, no limit",
        ),
    ],
)
def test_usable_cpus(
    monkeypatch: pytest.MonkeyPatch, affinity: int, files: dict[str, str], usable: int
) -> None:
    """A container's quota counts, and not what the machine has."""
    limited(monkeypatch, affinity, files)
    assert usable_cpus() == usable


@pytest.mark.usefixtures("two_threads")
def test_threads_are_as_many_as_cpus_unless_someone_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited(monkeypatch, 8, {})
    set_threads(None)
    assert torch.get_num_threads() == 2  # never more than torch chose
    limited(monkeypatch, 1, {})
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    set_threads(None)
    assert torch.get_num_threads() == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_threads(None)
    assert torch.get_num_threads() == 1
    set_threads(2)
    assert torch.get_num_threads() == 2


def _sleeps() -> int:
    """How often our threads let go of a CPU while two of them share work, with breaks between."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    x = torch.zeros(2**18)
    for _ in range(200):
        x.add_(1)
        until = time.perf_counter() + 2e-4
        while time.perf_counter() < until:
            pass
    assert torch.equal(x, torch.full_like(x, 200))
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before


@pytest.mark.usefixtures("two_threads")
def test_with_sleepers_waiting_threads_sleep() -> None:
    """Catches a libgomp that counts otherwise: then nothing would be gained."""
    sleepers = Sleepers()
    try:
        assert _sleeps() >= 100
    finally:
        sleepers.end()


def test_there_are_sleepers_while_others_hold_us_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no longer, none twice, and none is left behind. 0.03 is what a quiet machine has."""
    shares = iter([0.0, 0.03, 0.6, 0.6, 0.03, 0.03, 0.6])
    events: list[str] = []
    waited = itertools.accumulate(shares)
    monkeypatch.setattr(cpus, "_seconds_waited", lambda: next(waited))
    monkeypatch.setattr(cpus, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    looks = iter([False] * 6)

    class Recorded:
        def __init__(self) -> None:
            events.append("begun")

        def end(self) -> None:
            events.append("ended")

    monkeypatch.setattr(cpus, "Sleepers", Recorded)

    def wait(_: float) -> bool:
        events.append("look")
        return next(looks, True)

    cpus._watch(SimpleNamespace(wait=wait))  # type: ignore[arg-type]
    assert events == [
        "look", "look", "begun", "look", "look", "ended", "look", "look", "begun", "look", "ended"
    ]  # fmt: skip


@pytest.mark.usefixtures("two_threads")
def test_the_watch_ends_with_the_work() -> None:
    threads = threading.active_count()
    for _ in range(2):
        with shared_cpus(), shared_cpus():  # as validation is within a run
            assert threading.active_count() == threads + 1
        assert threading.active_count() == threads


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "300000")]
)
def test_what_the_user_chose_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    threads = threading.active_count()
    with shared_cpus():
        assert threading.active_count() == threads


@pytest.mark.usefixtures("one_thread")
def test_one_thread_waits_for_nobody() -> None:
    threads = threading.active_count()
    with shared_cpus():
        assert threading.active_count() == threads


def test_the_time_waited_is_read_from_the_system() -> None:
    assert any(Path("/proc/self/task").glob("*/schedstat"))
    assert 0 < cpus._seconds_waited() < math.inf
