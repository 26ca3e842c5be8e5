"""A contact sheet: some images of some classes, magnified without smoothing, with class names."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastcat.errors import InputError
from fastcat.files import write_atomically

from .dataset import Dataset

CLASSES, IMAGES = 10, 10
CELL, GAP, NAMES = 64, 4, 140  # pixels: least side of an image, gap, width of the names
_WHITE = (255, 255, 255)


def write_sheet(dataset: Dataset, path: Path) -> None:
    """Write a PNG with a row of training images for each of the first classes.

    Raises InputError where the path does not end in .png, exists, or cannot be written.
    """
    check_sheet(path)
    picture = make_sheet(dataset)
    write_atomically(path, lambda file: picture.save(file, "PNG"))


def check_sheet(path: Path) -> None:
    if path.suffix != ".png":
        raise InputError(f"--sheet is {path}, expected a name ending in .png: type {path.stem}.png")
    if path.exists():
        raise InputError(f"{path} exists already: choose another --sheet or remove it")


def make_sheet(dataset: Dataset) -> Image.Image:
    """The sheet; images are magnified by the least factor that gives CELL pixels a side."""
    height, width, _ = dataset.image_shape
    factor = -(-CELL // min(height, width))
    row, column = factor * height + GAP, factor * width + GAP
    classes = dataset.classes[:CLASSES]
    sheet = Image.new("RGB", (NAMES + IMAGES * column + GAP, len(classes) * row + GAP), _WHITE)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for label, name in enumerate(classes):
        top = GAP + label * row
        # the default font has no more than ASCII where Pillow has no FreeType
        text = name.encode("ascii", "replace").decode()
        draw.text((GAP, top + (row - GAP) // 2), text[:20], "black", font=font, anchor="lm")
        for k, place in enumerate(np.flatnonzero(dataset.train.labels == label)[:IMAGES]):
            pixels = np.asarray(dataset.train.images[place : place + 1])[0]
            pixels = pixels.repeat(factor, 0).repeat(factor, 1)
            image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            sheet.paste(image, (NAMES + k * column, top))
    return sheet
