"""Downloads: files of the expected content, whole or not there at all."""

import os
import shutil
import stat
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from fastcat.errors import InputError

from ..dataset import Progress
from .digest import md5_of
from .staging import locked

_TIMEOUT_S = 60
_CHUNK_BYTES = 1 << 18


@contextmanager
def data_folder(name: str, data_dir: Path) -> Iterator[Path]:
    """The folder of downloads, made and locked.

    name: of the data set, for errors.
    Raises InputError for any OSError inside the context.
    """
    root = Path(os.path.abspath(os.path.expanduser(data_dir)))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            yield root
    except OSError as error:
        raise InputError(
            f"{name} could not be read or unpacked in {root} ({error}): "
            "give a data folder where you may write and that has room"
        ) from error


def fetch(url: str, path: Path, md5: str, progress: Progress | None) -> None:
    """Download a file unless it is there, and check its MD5 in either case.

    progress: called with (done, total) bytes.
    Raises InputError where it cannot be downloaded or its MD5 differs.
    """
    if not path.exists():
        _download(url, path, progress)
    if md5_of(path) != md5:
        raise InputError(
            f"{path} is damaged (its MD5 differs): remove it and run again to download it, or put "
            f"a whole {path.name} into {path.parent}"
        )


def unzip(archive: Path, folder: str, progress: Progress | None) -> None:
    """Unpack a zip archive beside it, whole or not at all.

    folder: the one folder that the archive must hold.
    progress: called with (done, total) files.
    Raises InputError for a damaged archive, and one with links or files outside of the folder;
    OSError where files cannot be written.
    """
    part = archive.parent / f".{folder}.unzipped"
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            infos = file.infolist()
            for info in infos:
                _check_name(archive, info, folder)
            for done, info in enumerate(infos, 1):
                file.extract(info, part)
                if progress and (done % 1000 == 0 or done == len(infos)):
                    progress(done, len(infos))
        (part / folder).rename(archive.parent / folder)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{archive} cannot be unpacked ({error}): put a whole one there"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_name(archive: Path, info: zipfile.ZipInfo, folder: str) -> None:
    parts = PurePosixPath(info.filename).parts
    link = stat.S_ISLNK(info.external_attr >> 16)
    if link or "\\" in info.filename or ".." in parts or parts[:1] != (folder,):
        raise InputError(
            f"{archive} has {info.filename!r}, expected files in {folder}/ only: it is not the "
            "published archive, so remove it"
        )


def _download(url: str, path: Path, progress: Progress | None) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer,
            part.open("wb") as file,
        ):
            total = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
                if progress:
                    progress(file.tell(), total)
        size = part.stat().st_size
        if total and size != total:
            raise OSError(f"only {size} of {total} bytes arrived")
        part.replace(path)
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(
            f"{path.name} could not be downloaded from {url} ({error}): "
            f"fetch that file elsewhere and put it into {path.parent}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
