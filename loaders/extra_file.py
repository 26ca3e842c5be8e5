"""The images of `--extra-data`, from a file or a data set, as they go with those of the run."""

from pathlib import Path

from fastcat.errors import InputError

from .class_names import by_number, match
from .class_order import in_order
from .dataset import Dataset, Progress, Split
from .extra import Extra
from .formats.npz_arrays import map_npz, npz_digest
from .labels import check_labels, class_numbers
from .registry import load_dataset


def load_extra(
    path: Path,
    fraction: float,
    dataset: Dataset,
    class_order: str = "text",
    progress: Progress | None = None,
) -> Extra:
    """Extra training images, mapped; pseudo-labels are labels like others.

    path: an uncompressed .npz with image (uint8 [N, H, W, C]) and label (integers [N], numbers of
        the dataset's classes); or what `load_dataset` takes, whose training images are used and
        whose classes are matched with the dataset's by name.
    fraction: their share of every batch.
    class_order: "text" or "number", order of classes of a data set, see `in_order`.
    progress: called with (done, total) where a folder is packed.
    Raises InputError for images, labels or classes that do not go with those of the dataset.
    """
    remarks: list[str] = []
    if path.suffix == ".npz":
        arrays = map_npz(path)
        if not {"image", "label"} <= arrays.keys():
            raise InputError(
                f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}, expected image and label"
            )
        images, digest = arrays["image"], npz_digest(path)
        labels = class_numbers(arrays["label"], f"the labels of {path}", len(images))
        check_labels(labels, "extra", len(dataset.classes), str(path))
    else:
        loaded = in_order(load_dataset(str(path), path.parent, progress), class_order)
        images, digest = loaded.train.images, loaded.digest
        meeting = loaded.classes, str(path), dataset.classes, dataset.name
        labels, remarks = match(*meeting)[loaded.train.labels], by_number(*meeting)
    own = dataset.train.images
    planes = ": save image.transpose(0, 2, 3, 1)" if images.shape[2:] == own.shape[1:3] else ""
    if len(images.shape) != 4 or (images.shape[1:], images.dtype) != (own.shape[1:], own.dtype):
        raise InputError(
            f"the images of {path} are {images.dtype} {images.shape[1:]}, expected {own.dtype} "
            f"{own.shape[1:]} as those of {dataset.name}{planes}"
        )
    return Extra(split=Split(images, labels), fraction=fraction, digest=digest, remarks=remarks)
