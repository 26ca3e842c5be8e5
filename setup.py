"""The packages: fastcat, with the folders kernels, loaders and benchmarks beside it inside it.

A checkout has links to these folders in fastcat/, so that it runs as it is; what is installed does
not depend on them, as some systems check out text files in their place.
"""

from setuptools import find_namespace_packages, find_packages, setup

BESIDE = ("kernels", "loaders", "benchmarks")

setup(
    packages=[
        *(
            name
            for name in find_packages(include=["fastcat", "fastcat.*"])
            if not name.startswith(tuple(f"fastcat.{top}" for top in BESIDE))
        ),
        *(
            f"fastcat.{name}"
            for top in BESIDE
            for name in [top, *(f"{top}.{part}" for part in find_namespace_packages(top))]
            if name != "benchmarks.results"
        ),
    ],
    include_package_data=False,
    package_dir={f"fastcat.{top}": top for top in BESIDE},
    package_data={
        "fastcat": ["py.typed"],
        "fastcat.config.recipes": ["*.yaml"],
        "fastcat.kernels": ["*.cpp"],
    },
)
