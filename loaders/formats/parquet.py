"""Images in parquet files as on Hugging Face's hub: a folder, or one folder in it, with

    train-*.parquet    test-*.parquet, else validation-*.parquet or valid-*.parquet

and the columns image or img (bytes and path of an image file) and label or fine_label (integers).
Class names stand in each file, perhaps in different orders.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastcat.errors import InputError

from ..class_names import match, numbered
from ..labels import check_labels, check_no_gaps, check_splits, class_numbers, count_classes
from .decode import Size, UnusableError, decode
from .image_source import ImageFile, ImageFileSource
from .source import SPLITS

_TEST_NAMES = ("test", "validation", "valid", "val")
_IMAGES = ("image", "img")
_LABELS = ("label", "fine_label")
_ROWS_AT_ONCE = 64
# the names of the classes, () where there are none, and int64 [N]
Labels = tuple[tuple[str, ...], np.ndarray]

# forms that are not read: in a folder with train/, and in one without
_OTHER_FORMS = ("train/*.parquet", "train/*.arrow")
_WITHOUT_TRAIN = ("*.parquet", "*/*.parquet", "*/*/*.parquet", "*.arrow", "*/*.arrow", "*/*.tar")
_LFS = b"version https://git-lfs"
_PART = re.compile(r".*-(\d{5})-of-(\d{5})(-\w+)?\.parquet")


@dataclass(frozen=True, kw_only=True)
class ParquetSource(ImageFileSource):
    """Parquet files.

    files: by split, each with its number of rows.
    column: name of the images' column.
    """

    files: dict[str, list[tuple[Path, int]]]
    column: str

    def image_files(self, split: str, start: int) -> Iterator[ImageFile]:
        for path, rows in self.files[split]:
            if start < rows:
                for row, cell in _cells(path, self.column, start):
                    yield f"{path.name} row {row}", partial(_decode_cell, cell)
            start = max(0, start - rows)


def is_parquet(folder: Path) -> bool:
    """Whether a folder holds train-*.parquet. Raises InputError for forms that are not read."""
    if _homes(folder):
        return True
    has_train = (folder / "train").is_dir()
    for pattern in _OTHER_FORMS if has_train else _WITHOUT_TRAIN:
        if (other := next(folder.glob(pattern), None)) is not None:
            raise InputError(
                f"{folder} holds {other.relative_to(folder)}, but no train-*.parquet: rename "
                "parquet files so, and write others anew with the datasets library, as "
                'data["train"].to_parquet("images/train-00000-of-00001.parquet")'
            )
    return False


def _homes(folder: Path) -> list[Path]:
    """The folder itself if it or its data/ holds train files, else its folders that do."""
    if any(any(place.glob("train-*.parquet")) for place in (folder, folder / "data")):
        return [folder]
    return sorted({path.parent for path in folder.glob("*/train-*.parquet")})


def parquet_source(folder: Path, resize: int | None = None) -> ParquetSource:
    """The source of a folder, after its labels were read.

    resize: side in pixels that all images get; None: they stay as they are.
    Raises InputError where pyarrow is missing and for files, columns or labels that cannot be used.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"{folder} holds parquet files, and pyarrow, which reads them, is not installed: type "
            "pip install pyarrow"
        ) from error
    files = {"train": _files(folder, "train")}
    first = _columns(files["train"][0])
    read = {"train": [_read_labels(path, first) for path in files["train"]]}
    for name in _TEST_NAMES:
        found = _files(folder, name)
        values = [_read_labels(path, first) for path in found]
        if found and all((part >= 0).all() for _, part in values):  # -1 where there are no labels
            files["test"], read["test"] = found, values
            break
    if "test" not in files:
        raise InputError(
            f"{folder} has no test-*.parquet or validation-*.parquet with labels: put one beside "
            f"{files['train'][0].name}"
        )
    classes, labels = _by_name(folder, files, read)
    state = [(path.name, path.stat().st_size) for split in SPLITS for path in files[split]]
    return ParquetSource(
        name=folder.resolve().name,
        origin=str(folder),
        classes=classes,
        labels={split: np.concatenate(labels[split]) for split in SPLITS},
        digest=hashlib.sha256(repr(state).encode("utf-8", "backslashreplace")).hexdigest(),
        resize=resize,
        files={
            split: list(zip(files[split], map(len, labels[split]), strict=True)) for split in SPLITS
        },
        column=first[0],
    )


def _by_name(
    folder: Path, files: dict[str, list[Path]], read: dict[str, list[Labels]]
) -> tuple[tuple[str, ...], dict[str, list[np.ndarray]]]:
    """Class names, and labels by split and file, matched by each file's class names.

    files: by split.
    read: by split, of each file what `_read_labels` returns.
    Raises InputError for labels that are no classes, and for names that do not match.
    """
    named = [
        (names, path)
        for split in SPLITS
        for path, (names, _) in zip(files[split], read[split], strict=True)
        if names
    ]
    if named:
        classes, owner = named[0]
    else:
        train = np.concatenate([values for _, values in read["train"]])
        classes, owner = numbered(count_classes(train, "train", str(folder))), folder
    labels: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for path, (names, values) in zip(files[split], read[split], strict=True):
            if names:
                check_labels(values, split, len(names), str(path))
                values = match(names, str(path), classes, str(owner))[values]
            labels[split].append(values)
    joined = {split: np.concatenate(labels[split]) for split in SPLITS}
    check_splits(joined, classes, str(folder))
    check_no_gaps(joined["train"], len(classes), "train", str(folder))
    return classes, labels


def _files(folder: Path, split: str) -> list[Path]:
    """The parquet files of a split, in order.

    Raises InputError where one is missing, and for a folder of several configurations.
    """
    home, *others = _homes(folder)
    if others:
        raise InputError(
            f"{folder} has several configurations, {', '.join(p.name for p in (home, *others))}: "
            f"type the folder of one, as {shlex.quote(str(home))}"
        )
    for place in (home, home / "data"):
        found = sorted(place.glob(f"{split}-*.parquet"))
        if found:
            numbered = [match for path in found if (match := _PART.fullmatch(path.name))]
            if len(numbered) == len(found) and len(found) != int(numbered[0][2]):
                raise InputError(
                    f"{place} has {len(found)} {split} files, but {found[0].name} is one of "
                    f"{int(numbered[0][2])}: fetch those that are missing"
                )
            return found
    return []


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file. Raises InputError for any error of reading it inside the context."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (InputError, GeneratorExit):
        raise
    except Exception as error:  # Arrow's errors have no class of their own in common
        if _is_pointer(path):
            raise InputError(
                f"{path} is a pointer of Git LFS in place of the file: type git lfs pull there"
            ) from error
        why = " ".join(str(error).split())
        raise InputError(f"{path} is damaged or not parquet ({why}): fetch it anew") from error


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False


def _columns(path: Path) -> tuple[str, str, tuple[str, ...]]:
    """Column of images, column of labels, class names (() where the file has none)."""
    import pyarrow

    with _opened(path) as file:
        schema = file.schema_arrow
        image = next((name for name in _IMAGES if name in schema.names), None)
        label = next((name for name in _LABELS if name in schema.names), None)
        if image is None or label is None:
            raise InputError(
                f"{path} has the columns {', '.join(schema.names)}, expected one of "
                f"{', '.join(_IMAGES)} and one of {', '.join(_LABELS)}: rename them"
            )
        kind = schema.field(image).type
        if not pyarrow.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise InputError(
                f"column {image} of {path} is {kind}, expected a struct with the bytes of an image "
                "file: write it with the Image feature of the datasets library"
            )
        kind = schema.field(label).type
        if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind)):
            raise InputError(
                f"column {label} of {path} is {kind}, expected integers: "
                "number the classes from 0 on"
            )
        return image, label, _class_names((schema.metadata or {}).get(b"huggingface"), label)


def _class_names(metadata: bytes | None, label: str) -> tuple[str, ...]:
    """Class names in the metadata of Hugging Face's library; () where there are none."""
    try:
        names = json.loads(metadata or b"")["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if fits else ()


def _read_labels(path: Path, first: tuple[str, str, tuple[str, ...]]) -> Labels:
    """Class names and labels of a file; first: `_columns` of the first file."""
    image, label, names = _columns(path)
    if (image, label) != first[:2]:
        raise InputError(
            f"{path} has its images in {image} and its labels in {label}, but others have them in "
            f"{first[0]} and {first[1]}: rename the columns"
        )
    with _opened(path) as file:
        found = file.read(columns=[label]).column(0)
        if found.null_count:
            raise InputError(f"column {label} of {path} has empty rows: fill them")
        return names, class_numbers(found.to_numpy(), f"the labels of {path}", len(found))


def _cells(path: Path, column: str, start: int) -> Iterator[tuple[int, Any]]:
    """(row, value) of a column from row `start` on; a few rows are in memory at any time."""
    with _opened(path) as file:
        row = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row + rows <= start:
                row += rows
                continue
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                for cell in batch.column(0):
                    if row >= start:
                        yield row, cell.as_py()
                    row += 1


def _decode_cell(cell: dict[str, Any] | None, size: Size | int | None) -> np.ndarray:
    raw = (cell or {}).get("bytes")
    if not isinstance(raw, bytes):
        raise UnusableError("has no bytes")
    return decode(raw, size)
