"""The package's own files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
LINKED = ("kernels", "loaders", "benchmarks")
SOURCES = sorted(path for top in ("fastcat", *LINKED) for path in ROOT.glob(f"{top}/**/*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fastcat" else ("fastcat", *parts)
    return ".".join(parts).removesuffix(".__init__")
