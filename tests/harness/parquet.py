"""Parquet files of random images as the Hugging Face hub has them."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from tests.harness.image_folders import noise

NAMES = ["ant", "bee", "cow"]


def png(seed: int, **form: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(noise(seed, **form)).save(out, "PNG")
    return out.getvalue()


def write_parquet(
    path: Path,
    seeds: range,
    *,
    image: str = "image",
    label: str = "label",
    names: list[str] | None = NAMES,
    labels: list[Any] | None = None,
    cells: list[Any] | None = None,
    rows: int = 4,
) -> Path:
    """Images of noise by seed, `rows` in a row group; labels are seed % 3."""
    cells = cells or [{"bytes": png(seed), "path": f"{seed}.png"} for seed in seeds]
    labels = labels or [seed % 3 for seed in seeds]
    table = pyarrow.table({"number": list(seeds), label: labels, image: cells})
    if names:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=rows)
    return path
