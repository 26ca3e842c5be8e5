"""Rules for all tests.

FASTCAT_TEST_STRICT=1 turns a skip into a failure unless it wants a GPU. Tests marked `represented`
run with --all only.
"""

import os
from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--all", action="store_true", help="also run the cases that another one represents"
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        left_out = [item for item in items if item.get_closest_marker("represented")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("represented")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and os.environ.get("FASTCAT_TEST_STRICT") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "needs a GPU" not in reason:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: skipped where nothing may be missing: {reason}"
    return report


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, and sums depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
