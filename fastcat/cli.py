"""The command line: parse, call, print. Exit status 2 is bad input, told in one sentence."""

import dataclasses
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from tyro.conf import Positional, arg

from fastcat.config import TrainConfig
from fastcat.doctor import report
from fastcat.environment import package_version
from fastcat.errors import InputError, nearest
from fastcat.evaluation.config import EvalConfig
from fastcat.evaluation.runs import evaluate_run
from fastcat.listing import LISTINGS
from fastcat.loaders.registry import find_path
from fastcat.output import one_line, unfailing_output
from fastcat.over_seeds import rows, table
from fastcat.paths import UserPath
from fastcat.recipes import recipe
from fastcat.runs import RunResult, SeedsResult, resume, train
from fastcat.settings_file import yaml_arguments
from fastcat.stop import Interrupted, Stopped, first_signal, interrupt

# the same fields as TrainConfig, in the groups that its bases are
_TrainGroups = dataclasses.make_dataclass(
    "TrainGroups",
    [
        (group.__name__.lower(), group, dataclasses.field(default_factory=group))
        for group in reversed(TrainConfig.__bases__)
    ],
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class ResumeCommand:
    """Continue a run where its last checkpoint stands."""

    run: Positional[UserPath]
    """Folder of the run, or of several seeds."""


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """Show every name that a command takes, with a line about it."""

    topics: Positional[Annotated[tuple[str, ...], arg(metavar="[TOPIC ...]")]] = ()
    """methods, archs, datasets, attacks, threats, collaborations, ...; all without one."""


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Show versions, devices, what is missing and the line that installs it."""


def _train(arguments: Sequence[str]) -> int:
    """Train peers together; --config FILE takes settings from YAML, --recipe NAME a paper's."""
    arguments, files = _with_settings(arguments)
    groups = _parse(_TrainGroups, arguments, "train", _train.__doc__)
    values: dict[str, Any] = {}
    for group in dataclasses.fields(groups):
        fields = getattr(groups, group.name)
        values |= {field.name: getattr(fields, field.name) for field in dataclasses.fields(fields)}
    try:
        config = TrainConfig(**values)
    except InputError as error:
        if not files:
            raise
        raise InputError(f"{error} (with the settings of {', '.join(files)})") from error
    _print_result(train(config))
    return 0


def _resume(arguments: Sequence[str]) -> int:
    _print_result(resume(_parse(ResumeCommand, arguments, "resume").run))
    return 0


def _eval(arguments: Sequence[str]) -> int:
    evaluate_run(_parse(EvalConfig, arguments, "eval"))
    return 0


def _bench(arguments: Sequence[str]) -> int:
    # imported here: no other command needs the reference loops
    from fastcat.benchmarks.throughput import BenchConfig, bench

    config = _parse(BenchConfig, arguments, "bench")
    # not UserPath, as the GPU check reads these settings where there is no tyro
    paths = {name: getattr(config, name) for name in ("data", "out", "compare")}
    given = {name: find_path(str(path)) for name, path in paths.items() if path is not None}
    bench(dataclasses.replace(config, **given))
    return 0


def _data(arguments: Sequence[str]) -> int:
    # imported here: no other command needs what reads foreign formats
    from fastcat.data_command import DATA_COMMANDS, DATA_USAGE

    if not arguments or arguments[0] in ("-h", "--help"):
        print(DATA_USAGE)
        return 0 if arguments else 2
    if arguments[0] not in DATA_COMMANDS:
        hint = nearest(arguments[0], DATA_COMMANDS)
        raise InputError(f"unknown command 'data {arguments[0]}': {hint}")
    command, run, _ = DATA_COMMANDS[arguments[0]]
    run(_parse(command, arguments[1:], f"data {arguments[0]}"))
    return 0


def _list(arguments: Sequence[str]) -> int:
    topics = _parse(ListCommand, arguments, "list").topics or tuple(LISTINGS)
    for topic in topics:
        if topic not in LISTINGS:
            raise InputError(f"cannot list {topic!r}: {nearest(topic, LISTINGS)}")
    for topic in topics:
        print(f"{topic}:")
        lines = LISTINGS[topic]()
        width = max(15, *map(len, lines))
        for name, text in lines.items():
            print(f"  {name:{width}} {text}")
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    _parse(DoctorCommand, arguments, "doctor")
    lines, healthy = report()
    print("\n".join(lines))
    return 0 if healthy else 1


COMMANDS = {
    "train": (_train, "train peers together: fastcat train --arch resnet18 --peers trades,alp"),
    "resume": (_resume, "continue a run: fastcat resume runs/first"),
    "eval": (_eval, "robust accuracy: fastcat eval runs/first --attacks clean,fgsm,pgd20"),
    "bench": (_bench, "time steps against the papers' loops: fastcat bench --batch-size 128"),
    "data": (_data, "convert, describe, check images: fastcat data convert ./photos pets.packed"),
    "list": (_list, "methods, archs, datasets, attacks, collaborations, engines, loaders, ..."),
    "doctor": (_doctor, "versions, devices, what is missing and how to install it"),
}

USAGE = "usage: fastcat COMMAND [OPTIONS]\n\ncollaborative adversarial training\n\n" + "\n".join(
    f"  {name:8} {text}" for name, (_, text) in COMMANDS.items()
)
USAGE += "\n\n`fastcat COMMAND --help` explains a command's options."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 2 bad input, 128 + signal when stopped.

    It is 2 as well where what was done could not be printed; when nobody reads on, as with
    `| head`, that is no fault.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
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
        print(f"fastcat {package_version('fastcat-at') or '(not installed)'}")
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise InputError(f"unknown command {arguments[0]!r}: {nearest(arguments[0], COMMANDS)}")
        with first_signal(interrupt):
            return COMMANDS[arguments[0]][0](arguments[1:])
    except InputError as error:
        return _complain(str(error))
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        return _complain(f"{reason}: lower --batch-size or try --precision bf16")
    except OSError as error:
        return _complain(f"{error.filename or error}: {error.strerror}")
    except Stopped as stopped:
        return 128 + stopped.signum
    except KeyboardInterrupt as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        return _complain(f"stopped by {signal.Signals(signum).name}", 128 + signum)


def _complain(sentence: str, status: int = 2) -> int:
    print(f"fastcat: {one_line(sentence)}", file=sys.stderr)
    return status


def _parse(command: type, arguments: Sequence[str], name: str, text: str | None = None) -> Any:
    return tyro.cli(
        command,
        prog=f"fastcat {name}",
        description=text or command.__doc__,
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )


# what names a file of settings: how it is found, and what is expected
_FILES = {
    "--config": (find_path, "a YAML file, as --config runs/first/config.yaml"),
    "--recipe": (recipe, "a name of `fastcat list recipes`, as --recipe cat-paper"),
}


def _with_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """`--config FILE` and `--recipe NAME` replaced by what stands in them, the later overriding
    the earlier and all other arguments both; and the names of these files.
    """
    rest, from_files, files = [], [], []
    remaining = iter(arguments)
    for argument in remaining:
        flag, _, name = argument.partition("=")
        if flag in _FILES:
            find, expected = _FILES[flag]
            name = name or next(remaining, "")
            if not name:
                raise InputError(f"{flag}: expected {expected}")
            from_files += yaml_arguments(find(name))
            files.append(name)
        else:
            rest.append(argument)
    return from_files + rest, files


def _print_result(result: RunResult) -> None:
    if isinstance(result, SeedsResult):
        title = f"{result.judged_on} images, {len(result.runs)} seeds, percent"
        print(table(rows(title, ("best", result.best_spread), ("last", result.last_spread))))
    else:
        for name, best in result.best.items():
            accuracies = ", ".join(
                f"{attack} {100 * value:.2f}%" for attack, value in best["accuracy"].items()
            )
            print(f"{name}: best on {best['judged_on']} after epoch {best['epoch']}: {accuracies}")
    run = shlex.quote(str(result.out))
    print(f"run: {run}   curves: {run}/report.html\nnext: fastcat eval {run}")
