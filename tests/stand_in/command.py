"""`python -m tests.stand_in.command [--stop-at N] train ...`: a command of fastcat on the stand-in.

N: number of the graph's replay at which a signal asks the run to stop
The last line is a JSON object: exit (the status), violations, nodes (that were captured), graphs
(that were replayed) and said (lines about what could not be had).
"""

import json
import os
import signal
import sys
from contextlib import redirect_stdout
from io import StringIO
from unittest import mock

from torch import Tensor

from fastcat.cli import main
from fastcat.step.engine import CudaGraph
from tests.stand_in.stand_in import counted, numbers_unread, violations

replay = CudaGraph.__call__


def run(command: list[str], stop_at: int | None) -> None:
    replays = 0

    def replayed(graph: CudaGraph, *inputs: Tensor) -> Tensor:
        nonlocal replays
        replays += 1
        if replays == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return replay(graph, *inputs)

    output = StringIO()
    with (
        numbers_unread(),
        counted() as launches,
        redirect_stdout(output),
        mock.patch.object(CudaGraph, "__call__", replayed),
    ):
        status = main(command)
    print(output.getvalue())
    found = {
        "exit": status,
        "violations": violations(),
        "nodes": sum(n for name, n in launches.items() if name.startswith("capture:")),
        "graphs": replays,
        "said": [
            line
            for line in output.getvalue().splitlines()
            if "eagerly" in line or "going on" in line
        ],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "--stop-at":
        run(sys.argv[3:], int(sys.argv[2]))
    else:
        run(sys.argv[1:], None)
