"""Tiny ImageNet: 100 000 images of 64 x 64 pixels in 200 classes; its val split is the test here.

Source: Stanford's course CS231n, 2015, http://cs231n.stanford.edu/tiny-imagenet-200.zip.
"""

import os
from collections.abc import Callable
from pathlib import Path

from .dataset import Dataset
from .download import data_folder, fetch, unzip
from .folder import load_folder
from .pack import packed_path

NAME = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{NAME}.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def load_tiny_imagenet(
    data_dir: Path, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Read it from the folder, or else the archive, in data_dir, or download that; then pack it.

    progress(done, total): in bytes, files, then images. Raises InputError where it cannot be
    downloaded, is damaged or cannot be unpacked.
    """
    folder = Path(os.path.abspath(os.path.expanduser(data_dir))) / NAME
    if not folder.exists() and not packed_path(folder).exists():
        with data_folder(NAME, data_dir):
            if not folder.exists():
                archive = folder.with_name(f"{NAME}.zip")
                fetch(URL, archive, MD5, progress)
                unzip(archive, NAME, progress)
    return load_folder(folder, progress)
