"""The command line: a file a command, imported when it runs.

Exit status 2 is bad input, told in one sentence.
"""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from fastcat.errors import InputError, nearest
from fastcat.output import one_line, unfailing_output
from fastcat.stop import Interrupted, Stopped, first_signal, interrupt

# each is the function `run` of the module of its name
COMMANDS = {
    "train": "train peers together: fastcat train --arch resnet18 --peers trades,alp",
    "resume": "continue a run: fastcat resume runs/first",
    "eval": "robust accuracy: fastcat eval runs/first --attacks clean,fgsm,pgd20",
    "bench": "time steps against the papers' loops: fastcat bench --batch-size 128",
    "tune": "measure how a GPU runs a step fastest: fastcat tune --peers trades,alp",
    "data": "convert, describe, check images: fastcat data convert ./photos pets.packed",
    "list": "methods, archs, datasets, attacks, collaborations, engines, loaders, ...",
    "doctor": "versions, devices, what is missing and how to install it",
}

USAGE = "usage: fastcat COMMAND [OPTIONS]\n\ncollaborative adversarial training\n\n" + "\n".join(
    f"  {name:8} {text}" for name, text in COMMANDS.items()
)
USAGE += "\n\n`fastcat COMMAND --help` explains a command's options."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 2 bad input, 128 + signal when stopped.

    It is 2 as well where what was done could not be printed; when nobody reads on, as with
    `| head`, that is no fault.
    """
    # not list(...): once imported, the command's module has that name here
    arguments = sys.argv[1:] if arguments is None else [*arguments]
    with unfailing_output() as output:
        status = _run(arguments)
        output.flush()
        if output.error is None or isinstance(output.error, BrokenPipeError):
            return status
        reason = getattr(output.error, "strerror", None) or output.error
        return _complain(f"cannot write to the standard output: {reason}")


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from fastcat.environment import package_version

        print(f"fastcat {package_version('fastcat-at') or '(not installed)'}")
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise InputError(f"unknown command {arguments[0]!r}: {nearest(arguments[0], COMMANDS)}")
        # methods, attacks and networks of one's own may lie where the command is typed; last, so
        # that they hide no other module
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
        with first_signal(interrupt):
            status: int = import_module(f"fastcat.cli.{arguments[0]}").run(arguments[1:])
            return status
    except InputError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename or error}: {error.strerror}")
    except Stopped as stopped:
        return 128 + stopped.signum
    except KeyboardInterrupt as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        return _complain(f"stopped by {signal.Signals(signum).name}", 128 + signum)
    except RuntimeError as error:
        # who has raised it has imported torch
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0]
        return _complain(f"{reason}: lower --batch-size or try --precision bf16")


def _complain(sentence: str, status: int = 2) -> int:
    print(f"fastcat: {one_line(sentence)}", file=sys.stderr)
    return status
