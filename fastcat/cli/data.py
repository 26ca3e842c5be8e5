"""`fastcat data`: convert data sets, say what is in them, and check them."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from fastcat.choices import CLASS_ORDERS
from fastcat.cli.parse import parse
from fastcat.config.choice import one_of
from fastcat.config.paths import UserPath
from fastcat.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Pack images once, so that training maps them; a killed conversion goes on when repeated."""

    source: Positional[str]
    """Image folder, folder of parquet files, .npz file, torchvision:NAME, or a data set's name."""
    out: Positional[UserPath]
    """What to write: NAME.packed, or NAME.beton for FFCV."""
    data_dir: UserPath = Path("data")
    """Where data sets by name are kept or downloaded to."""
    resize: int | None = None
    """Side in pixels: the shorter side becomes that, and of the longer one the middle is kept."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, instead of refusing all."""
    test_fraction: float | None = None
    """Share of each class to hold out as test split, of an .npz file without one."""
    seed: int = 0
    """Which images are held out."""
    class_order: Annotated[str, one_of(CLASS_ORDERS)] = "text"
    """Order of class folders with numbers for names, and so their labels. text: 0, 1, 10, 2, as
    torchvision has them; number: 0, 1, 2, 10."""


@dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Say what is in a data set: classes, counts, image size, mean, digest."""

    data: Positional[str]
    """What --data of fastcat train takes: a name, a folder, NAME.packed, an .npz file."""
    data_dir: UserPath = Path("data")
    """Where data sets by name are kept or downloaded to."""
    sheet: UserPath | None = None
    """A PNG file to write, with ten images of each of the first ten classes."""


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """Check every checksum and label, and note images that occur twice, are blank, or too few."""

    data: Positional[str]
    """What --data of fastcat train takes: a name, a folder, NAME.packed, an .npz file."""
    data_dir: UserPath = Path("data")
    """Where data sets by name are kept or downloaded to."""


def run_convert(command: ConvertCommand) -> None:
    from fastcat.loaders.convert import convert
    from fastcat.loaders.formats.image_source import UnreadableError
    from fastcat.progress import make_console, task

    try:
        with task(make_console(), f"packing {command.source}") as progress:
            done = convert(
                command.source,
                command.out,
                data_dir=command.data_dir,
                resize=command.resize,
                skip_unreadable=command.skip_unreadable,
                test_fraction=command.test_fraction,
                seed=command.seed,
                class_order=command.class_order,
                progress=progress,
            )
    except UnreadableError as error:
        _list(error.faults)
        raise
    dataset = done.dataset
    height, width, channels = dataset.image_shape
    for note in done.notes:
        print(f"note: {note}")
    _list(done.unreadable)
    if done.skipped:
        print(f"note: {done.skipped} images could not be read and are left out")
    print(
        f"{command.out}: {len(dataset.train)} training and {len(dataset.test)} test images, "
        f"{width} x {height} x {channels}, {len(dataset.classes)} classes"
        + (f"; {done.read / done.seconds:,.0f} images/s" if done.read else "")
    )
    print(f"next: fastcat train --data {shlex.quote(str(command.out))}")


def _list(faults: Sequence[str]) -> None:
    for fault in faults:
        print(f"unreadable: {fault}")


def run_info(command: InfoCommand) -> None:
    from fastcat.loaders.class_order import order_note
    from fastcat.loaders.contact_sheet import check_sheet, write_sheet
    from fastcat.loaders.inspection import describe

    if command.sheet is not None:
        check_sheet(command.sheet)
    dataset = _load(command.data, command.data_dir)
    print("\n".join(describe(dataset)))
    if note := order_note(dataset.classes):
        print(f"note: {note}")
    if command.sheet is not None:
        write_sheet(dataset, command.sheet)
        print(f"sheet     {command.sheet}")


def run_verify(command: VerifyCommand) -> None:
    from fastcat.loaders.inspection import findings

    dataset = _load(command.data, command.data_dir)
    notes = findings(dataset)
    for note in notes:
        print(f"note: {note}")
    images = len(dataset.train) + len(dataset.test)
    print(f"{command.data}: {images} images are whole, {len(notes) or 'no'} notes")


def _load(data: str, data_dir: Path) -> Any:
    from fastcat.loaders.registry import load_dataset
    from fastcat.progress import make_console, task

    with task(make_console(), f"reading {data}, once") as progress:
        return load_dataset(data, data_dir, progress)


DATA_COMMANDS: dict[str, tuple[type, Callable[[Any], None], str]] = {
    "convert": (
        ConvertCommand,
        run_convert,
        "fastcat data convert ./photos pets.packed --resize 64",
    ),
    "info": (InfoCommand, run_info, "fastcat data info pets.packed --sheet pets.png"),
    "verify": (VerifyCommand, run_verify, "fastcat data verify pets.packed"),
}

DATA_USAGE = "usage: fastcat data COMMAND [OPTIONS]\n\n" + "\n".join(
    f"  {name:8} {command.__doc__}\n           {example}"
    for name, (command, _, example) in DATA_COMMANDS.items()
)
DATA_USAGE += "\n\n`fastcat data COMMAND --help` explains a command's options."


def run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(DATA_USAGE)
        return 0 if arguments else 2
    if arguments[0] not in DATA_COMMANDS:
        hint = nearest(arguments[0], DATA_COMMANDS)
        raise InputError(f"unknown command 'data {arguments[0]}': {hint}")
    command, work, _ = DATA_COMMANDS[arguments[0]]
    work(parse(command, arguments[1:], f"data {arguments[0]}"))
    return 0
