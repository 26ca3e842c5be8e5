"""`fastcat bench`."""

from collections.abc import Sequence
from dataclasses import replace

from fastcat.benchmarks.config import BenchConfig
from fastcat.cli.parse import parse
from fastcat.files import find_path


def run(arguments: Sequence[str]) -> int:
    config = parse(BenchConfig, arguments, "bench")
    # not UserPath, as the GPU check reads these settings where there is no tyro
    paths = {name: getattr(config, name) for name in ("data", "out", "compare")}
    given = {name: find_path(str(path)) for name, path in paths.items() if path is not None}
    from fastcat.benchmarks.throughput import bench

    bench(replace(config, **given))
    return 0
