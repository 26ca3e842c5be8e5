"""What only a GPU can show, in two short visits to one: `make gpu` and `make gpu CALL=2`.

The first visit answers what is wanted most (does a run keep its graph, what does a step take, is it
right), the second the questions of benchmarks/NOTES.md. Parts run in a process of their own, which
is begun again after one that hangs or spoils the device; what each found is written at once, as
JSON and as a page. What does not fit into the time is named. Needs torch, triton, numpy and pytest;
the first part tyro too. `--device cpu --batch-size 4` rehearses all that does not need a GPU.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import traceback
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fastcat.benchmarks.gpu_page import page
from fastcat.benchmarks.gpu_parts import PARTS, ROOT, Part, Visit
from fastcat.environment import environment
from fastcat.files import write_text

# of each visit; what a machine that is lent for ten minutes leaves after its start
MINUTES = {1: 4.0, 2: 5.0}
# what a process takes before its first part
START_SECONDS = 30


class Record:
    """What was found, kept in a file; parts that are there already are not run again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {"parts": {}}
        if path.exists():
            self.values = json.loads(path.read_text("utf-8"))

    def keep(self, name: str, seconds: float, result: dict[str, Any]) -> None:
        self.values["parts"][name] = {"seconds": round(seconds, 1), "result": result}
        self.write()

    def write(self) -> None:
        write_text(self.path, json.dumps(self.values, indent=2) + "\n")
        write_text(self.path.with_suffix(".md"), page(self.values))


def run_parts(parts: list[Part], visit: Visit, out: Path) -> int:
    """Run parts in this process; exit status 3 where a part has spoiled the device."""
    for part in parts:
        begin = time.monotonic()
        print(f"begun: {part.name}", flush=True)
        try:
            result = part.function(visit)
        except Exception as error:  # the other parts are worth having
            traceback.print_exc()
            result = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        # read anew, as the other process may have written
        Record(out).keep(part.name, time.monotonic() - begin, result)
        print(f"ended: {part.name} {json.dumps(result)[:1000]}", flush=True)
        if visit.cuda:
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                return 3
    return 0


def lead(
    parts: list[Part],
    arguments: list[str],
    out: Path,
    deadline: float,
    module: str = "benchmarks.gpu",
) -> None:
    """Run parts in a process of their own, begun again for the rest where it ends, until the
    deadline.

    arguments: of the module, which is run with `--within` and names of parts
    """
    left = list(parts)
    while left and time.monotonic() < deadline:
        names = [part.name for part in left]
        command = [sys.executable, "-m", module, *arguments, "--within", *names]
        log = out.with_suffix(".log")
        with log.open("a") as output:
            begun = output.tell()
            child = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        since, current = time.monotonic(), ""
        while child.poll() is None:
            time.sleep(0.2)
            marks = re.findall(r"^begun: (.+)$", log.read_text()[begun:], re.MULTILINE)
            if marks and marks[-1] != current:
                since, current = time.monotonic(), marks[-1]
            limit = next((p.seconds for p in left if p.name == current), START_SECONDS)
            if time.monotonic() > min(since + limit, deadline):
                child.kill()
                child.wait()
        print(log.read_text()[begun:], flush=True)
        record = Record(out)
        if current and current not in record.values["parts"]:
            seconds = time.monotonic() - since
            record.keep(current, seconds, {"failed": f"stopped after {seconds:.0f} s"})
        elif not current:
            print("no part was begun", flush=True)
            return
        done = Record(out).values["parts"]
        left = [part for part in left if part.name not in done]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--call", type=int, choices=[*MINUTES], default=1, help="which visit")
    parser.add_argument("--minutes", type=float, help="of the visit; 4 and 5 by default")
    parser.add_argument("--parts", help="those of both visits whose names match this expression")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--arch", default=Visit.arch)
    parser.add_argument("--wide-arch", default=Visit.wide_arch)
    parser.add_argument("--batch-size", type=int, default=Visit.batch)
    parser.add_argument("--within", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    visit = Visit(
        device=torch.device(options.device),
        arch=options.arch,
        wide_arch=options.wide_arch,
        batch=options.batch_size,
    )
    out = options.out.resolve()
    if visit.cuda and not torch.cuda.is_available():
        sys.exit("there is no GPU that PyTorch can use: `--device cpu --batch-size 4` rehearses")
    if options.within is not None:
        by_name = {part.name: part for part in PARTS}
        sys.exit(run_parts([by_name[name] for name in options.within], visit, out))
    deadline = time.monotonic() + 60 * (options.minutes or MINUTES[options.call])
    chosen = [
        part
        for part in PARTS
        if (re.search(options.parts, part.name) if options.parts else part.call == options.call)
        and (visit.cuda or not part.needs_gpu)
    ]
    if not chosen:
        sys.exit(f"no part matches {options.parts!r}: there are {', '.join(p.name for p in PARTS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    record = Record(out)
    record.values |= {"date": date.today().isoformat(), "environment": environment()}
    for part in chosen:
        record.values["parts"].pop(part.name, None)
    record.write()
    arguments = [
        *("--out", str(out), "--device", options.device, "--arch", visit.arch),
        *("--wide-arch", visit.wide_arch, "--batch-size", str(visit.batch)),
    ]
    lead(chosen, arguments, out, deadline)
    record = Record(out)
    for part in chosen:
        if part.name not in record.values["parts"]:
            record.keep(part.name, 0, {"left out": "no time"})
    print(f"written to {out} and {out.with_suffix('.md')}")
    results = {name: part["result"] for name, part in record.values["parts"].items()}
    failed = [
        name
        for name, result in results.items()
        if "failed" in result or result.get("exit", 0) not in (0, 5)
    ]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
