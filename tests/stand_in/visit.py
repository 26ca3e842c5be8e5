"""`python -m tests.stand_in.visit OUT [PARTS]`: the parts of `make gpu` on the stand-in.

PARTS: an expression, of the names of those to run. None: all but the tests, which read numbers
The last line is a JSON object: exit (of the parts' process) and violations.
"""

import json
import re
import sys
from pathlib import Path

import torch

from fastcat.benchmarks.gpu import run_parts
from fastcat.benchmarks.gpu_parts import PARTS, Visit
from tests.stand_in.stand_in import numbers_unread, violations

if __name__ == "__main__":
    wanted = sys.argv[2] if len(sys.argv) > 2 else "^(?!tests)"
    parts = [part for part in PARTS if re.search(wanted, part.name)]
    visit = Visit(device=torch.device("cuda"), wide_arch="resnet18", batch=8)
    with numbers_unread():
        status = run_parts(parts, visit, Path(sys.argv[1]))
    print(json.dumps({"exit": status, "violations": violations()}))
