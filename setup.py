"""The packages: fastcat, with the folders kernels, loaders and benchmarks linked into it."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

for name in ("kernels", "loaders", "benchmarks"):
    link = Path(__file__).parent / "fastcat" / name
    if not link.is_dir():
        sys.exit(
            f"{link} is not a link to a folder: this checkout was made without symbolic links; "
            "make it again with `git -c core.symlinks=true clone`"
        )

setup(
    packages=[
        *find_packages(include=["fastcat", "fastcat.*"]),
        "fastcat.kernels",
        "fastcat.loaders",
        "fastcat.benchmarks",
        "fastcat.benchmarks.reference",
    ],
    package_data={"fastcat.config.recipes": ["*.yaml"], "fastcat.kernels": ["*.cpp"]},
)
