"""110 000 images of 64 x 64 pixels in 200 classes (248 MB download).

Tiny ImageNet. Its val split is the test split here, since its test images have no labels.
Source: Stanford's course CS231n, 2015, http://cs231n.stanford.edu/tiny-imagenet-200.zip.
"""

import os
from pathlib import Path

from ..dataset import Dataset, Progress
from ..formats.archive import data_folder, fetch, unzip
from ..formats.folder import load_folder
from ..formats.pack import packed_path

NAME = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{NAME}.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def tiny_imagenet_200(data_dir: Path, progress: Progress | None = None) -> Dataset:
    """100 000 training and 10 000 test images, packed once and then mapped.

    data_dir: folder of tiny-imagenet-200/ or its archive, which is downloaded unless one is there.
    progress: called with (done, total) bytes, then files, then images.
    Raises InputError where it cannot be downloaded, is damaged or cannot be unpacked.
    """
    folder = Path(os.path.abspath(os.path.expanduser(data_dir))) / NAME
    if not folder.exists() and not packed_path(folder).exists():
        with data_folder(NAME, data_dir):
            if not folder.exists():
                archive = folder.with_name(f"{NAME}.zip")
                fetch(URL, archive, MD5, progress)
                unzip(archive, NAME, progress)
    return load_folder(folder, progress)
