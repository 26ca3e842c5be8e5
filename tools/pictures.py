"""The bar chart of the README: each method's speed against its paper's loop, light and dark."""

from collections.abc import Iterator
from dataclasses import dataclass

from tools.results import machine, races, read

RECORD = "cpu-methods-32"
TITLES = {
    "at": "AT",
    "trades": "TRADES",
    "alp": "ALP",
    "mart": "MART",
    "st": "Squeeze Training",
    "at-awp": "AT-AWP",
    "trades-awp": "TRADES-AWP",
    "fast": "Fast-AT",
    "n-fgsm": "N-FGSM",
    "free": "Free-AT",
    "cat": "CAT",
    "cat-official": "CAT, as its code",
    "pgd-cw": "PGD and CW",
    "mat": "MAT",
    "ard": "ARD",
    "rslad": "RSLAD",
    "iad": "IAD-I",
    "act": "ACT",
}


@dataclass(frozen=True)
class Theme:
    """Colours of a picture: text, bars, and the line at the papers' speed."""

    text: str
    bar: str
    line: str


THEMES = {
    "light": Theme(text="#1f2328", bar="#2f6f9f", line="#1f2328"),
    "dark": Theme(text="#e6edf3", bar="#6cb6e8", line="#0d1117"),
}

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 760, 150, 60, 64, 17, 11


def bars(theme: Theme) -> str:
    """The chart as SVG, the fastest method first; its background is transparent."""
    rows = sorted(races(RECORD), key=lambda r: -r["speedup"])
    height = TOP + ROW * len(rows) + 12
    unit = (WIDTH - LEFT - RIGHT) / max(r["speedup"] for r in rows)
    parts = [*_frame(theme, height), *_rows(theme, rows, unit), *_line(theme, height, unit)]
    return "\n".join([*parts, "</svg>\n"])


def _frame(theme: Theme, height: int) -> Iterator[str]:
    record = read(RECORD)
    settings = record["settings"]
    title = "Speed of a training step: fastcat against the loop of the method's own paper"
    under = f"ResNet-18, batch {settings['batch_size']}, float32 on both sides; {machine(record)}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12" '
        f'fill="{theme.text}" role="img">'
    )
    yield f"<title>{title}</title>"
    yield f'<text x="0" y="18" font-size="15" font-weight="600">{title}</text>'
    yield f'<text x="0" y="38" font-size="12">{under}</text>'


def _rows(theme: Theme, rows: list[dict], unit: float) -> Iterator[str]:
    for i, r in enumerate(rows):
        middle = TOP + ROW * i + ROW / 2
        width = unit * r["speedup"]
        yield (
            f'<text x="{LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">'
            f"{TITLES[r['method']]}</text>"
        )
        yield (
            f'<rect x="{LEFT}" y="{middle - BAR / 2:.1f}" width="{width:.1f}" height="{BAR}" '
            f'rx="2" fill="{theme.bar}"/>'
        )
        yield f'<text x="{LEFT + width + 6:.1f}" y="{middle + 4:.1f}">{r["speedup"]:.2f}x</text>'


def _line(theme: Theme, height: int, unit: float) -> Iterator[str]:
    x = LEFT + unit
    yield (
        f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height - 8}" '
        f'stroke="{theme.line}" stroke-dasharray="4 3"/>'
    )
    yield f'<text x="{x:.1f}" y="{TOP - 10}" font-size="11" text-anchor="middle">paper, 1x</text>'
