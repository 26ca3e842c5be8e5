"""Curves and tables of a page, as SVG and HTML without scripts."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 260, 52, 28, 12

Curve = tuple[str, str, bool, Sequence[float]]  # name, color, dashed, a value an epoch


def svg(curves: Sequence[Curve], low: float, high: float) -> str:
    """Lines over epochs 1, 2, ... with five grid lines and a legend.

    curves: each with a value an epoch, all of the same length
    low, high: ends of the vertical axis
    """
    count = len(curves[0][3])

    def x(epoch: int) -> float:
        return LEFT + (WIDTH - LEFT - 10) * (epoch / (count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    shapes = []
    for i in range(5):
        value = low + (high - low) * i / 4
        shapes.append(
            f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - 10}" stroke="currentColor" '
            f'stroke-opacity=".2"/><text x="{LEFT - 6}" y="{y(value) + 4:.1f}" '
            f'text-anchor="end">{value:.3g}</text>'
        )
    for epoch in sorted({0, count // 2, count - 1}):
        shapes.append(
            f'<text x="{x(epoch):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{epoch + 1}</text>'
        )
    for name, color, dashed, values in curves:
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values))
        shapes.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"{dash}/>'
        )
        shapes += [
            f'<circle cx="{x(i):.1f}" cy="{y(value):.1f}" r="3" fill="{color}">'
            f"<title>{escape(name)}, epoch {i + 1}: {value:.4g}</title></circle>"
            for i, value in enumerate(values)
        ]
    legend = HEIGHT + 16
    for i, (name, color, dashed, _) in enumerate(curves):
        left, down = LEFT + 200 * (i % 3), legend + 20 * (i // 3)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        shapes.append(
            f'<path d="M{left} {down - 4}h24" stroke="{color}" stroke-width="2"{dash}/>'
            f'<text x="{left + 30}" y="{down}">{escape(name)}</text>'
        )
    bottom = legend + 20 * ((len(curves) - 1) // 3) + 8
    return (
        f'<div><svg viewBox="0 0 {WIDTH} {bottom}" width="{WIDTH}" role="img">'
        + "".join(shapes)
        + "</svg></div>"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a row of heads."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div><table><tr>{head}</tr>{body}</table></div>"
