"""Writes docs/methods.md: `python -m tests.methods_page`, completely or not at all.

Formulas and deviations are the docstrings of the code. The measured errors come from the tests
marked `measured(dtype, *subjects)`: whatever they compare by `assert_close` of
tests/harness/comparison.py counts for those subjects and for `case.subjects`, where the test has a
`case`.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil, log10
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastcat.attacks.multi_norm
import fastcat.attacks.multi_norm_official
import fastcat.models.ghost
import fastcat.step.awp
import fastcat.step.swa
from fastcat.attacks.threat import OFFICIAL
from fastcat.collaborations import COLLABORATIONS
from fastcat.config.recipes import RECIPES, about
from fastcat.files import write_text
from fastcat.objective import spread
from fastcat.objectives import METHODS
from fastcat.step.sgd import FlatSGD
from tests.harness.comparison import (
    FLOAT32_TOLERANCE,
    FLOAT64_TOLERANCE,
    KL_TOLERANCE,
    LARGEST,
    SWA_TOLERANCE,
)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
DTYPES = ("float64", "float32")
TOLERANCES = {"float64": FLOAT64_TOLERANCE, "float32": FLOAT32_TOLERANCE}
SEVERAL_NORMS = {**TOLERANCES, "float64": KL_TOLERANCE}
# the recipes that must choose where paper and code differ or the paper is silent
CHOOSING = ("cat-paper", "cat-official", "mat-cifar10", "mat-mp-max")
# reached errors, rounded, by subject and dtype
Errors = Mapping[tuple[str, str], str]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A row: what it is called in tests, how it is typed, whose docstring tells of it."""

    name: str
    typed: str
    source: ModuleType | type | Callable[..., Any]
    tolerances: Mapping[str, float] = field(default_factory=lambda: TOLERANCES)

    @property
    def text(self) -> str:
        return inspect.cleandoc(self.source.__doc__ or "")

    @property
    def file(self) -> str:
        return str(Path(inspect.getfile(inspect.unwrap(self.source))).relative_to(ROOT))

    @property
    def papers(self) -> str:
        """Whatever the text cites with a number of arXiv, or a conference where there is none."""
        who = r"(?:\w+ & |de )?\w+(?: et al\.)? \d{4}"
        cited = rf"({who})\W+(?:[A-Z]+, )?(arXiv \d{{4}}\.\d{{5}}|[A-Z]{{4}})\b"
        return "; ".join(
            re.sub(r"(arXiv) (.*)", r"[\1 \2](https://arxiv.org/abs/\2)", f"{who}, {where}")
            for who, where in dict.fromkeys(re.findall(cited, " ".join(self.text.split())))
        )


def subjects() -> list[Subject]:
    registered = {
        **{name: (f"`{name}`", method) for name, method in METHODS.items()},
        **{name: (f"`--collab {name}`", method) for name, method in COLLABORATIONS.items()},
    }
    return [
        *(
            Subject(
                name=name,
                typed=typed,
                source=inspect.getmodule(method) or method,
                tolerances=SEVERAL_NORMS if name == "mat-mp" else TOLERANCES,
            )
            for name, (typed, method) in registered.items()
        ),
        *(
            Subject(
                name=way, typed=f"`METHOD:threat={way}`", source=source, tolerances=SEVERAL_NORMS
            )
            for way, source in (
                ("avg", spread),
                ("max", fastcat.attacks.multi_norm),
                ("msd", fastcat.attacks.multi_norm),
            )
        ),
        *(
            Subject(
                name=name,
                typed=f"`METHOD:threat={name}`",
                source=fastcat.attacks.multi_norm_official,
                tolerances=SEVERAL_NORMS,
            )
            for name in OFFICIAL
        ),
        Subject(name="awp", typed="`--awp`", source=fastcat.step.awp),
        Subject(name="bn-groups", typed="`--bn-groups`", source=fastcat.models.ghost),
        Subject(name="ema", typed="`--ema`", source=FlatSGD.averaged),
        Subject(
            name="swa",
            typed="`--swa`",
            source=fastcat.step.swa,
            tolerances={"float64": SWA_TOLERANCE},
        ),
    ]


# text


HEAD = """# The methods, their formulas, and how closely they are followed

Written by `python -m tests.methods_page` from the docstrings of the code and the errors of its
tests; do not edit it.

Each row is measured against an independent oracle in float64, written from the formula
(`tests/reference/`): views, loss terms, gradients, momentum, weights and BatchNorm statistics over
three training steps, in every test case that the row takes part in; of SWA the averages alone.
Given is the largest error, relative to the largest magnitude in a tensor, rounded up to a power of
ten, and in brackets what the tests assert. In float32 both sides see the same views. A dash: not
measured.
"""


def table(errors: Errors) -> Iterator[str]:
    yield "| what | paper | file | float64 | float32 |"
    yield "|---|---|---|---|---|"
    for (heading, _), rows in by_source():
        for row in rows:
            file = f"[{row.file.removeprefix('fastcat/')}](../{row.file})"
            cells = [f"[{row.typed}](#{anchor(heading)})", row.papers or "-", file]
            for dtype in DTYPES:
                error = errors.get((row.name, dtype))
                asserted = f"{row.tolerances.get(dtype, 0):g}".replace("e-0", "e-")
                cells.append(f"{error} ({asserted})" if error else "-")
            yield f"| {' | '.join(cells)} |"


def by_source() -> list[tuple[tuple[str, str], list[Subject]]]:
    """The rows, together where one docstring tells of several; heading and text of each."""
    groups = [list(rows) for _, rows in groupby(subjects(), lambda row: row.source)]
    return [((", ".join(row.name for row in rows), rows[0].text), rows) for rows in groups]


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))


def section(heading: str, text: str) -> str:
    """A docstring is Markdown already; a loss in its first sentence gets a line of its own."""
    text = re.sub(r"\A([^:\n]*): (L = .*?)\.?(?=\n\n|\Z)", r"\1.\n\n    \2", text, flags=re.S)
    return f"### {heading}\n\n{text}\n"


def settings(recipe: str) -> dict[str, tuple[str, str]]:
    """Value and comment of every setting of a recipe."""
    lines = re.findall(r"^(\w+): (.*?) +# (.*)$", RECIPES[recipe].read_text(), re.M)
    return {name: (value, comment) for name, value, comment in lines}


def differences(one: str, other: str) -> Iterator[str]:
    yield f"| setting | `--recipe {one}` | `--recipe {other}` |"
    yield "|---|---|---|"
    ours, theirs = settings(one), settings(other)
    for name in {**ours, **theirs}:
        values = [side[name][0] if name in side else "" for side in (ours, theirs)]
        if values[0] != values[1]:
            cells = [f"`{value}`" if value else "the default" for value in values]
            yield f"| `{name}` | {' | '.join(cells)} |"


def choices(recipe: str) -> str:
    """What a recipe says beside its settings where that is more than a source, and at its end."""
    said = [
        f"- `{name}: {value}`: {comment}"
        for name, (value, comment) in settings(recipe).items()
        if len(comment.split()) > 3
    ]
    tail = re.search(r"(?:^# .*\n)*\Z", RECIPES[recipe].read_text(), re.M)
    assert tail is not None
    title = f"### `--recipe {recipe}`\n\n{about(RECIPES[recipe])}.\n\n"
    end = tail.group().replace("# ", "", 1).replace("\n# ", "\n  ")
    return title + "\n".join([*said, f"- {end}" if end else ""]).strip() + "\n"


def render(errors: Errors) -> str:
    return "\n".join(
        [
            HEAD,
            *table(errors),
            "",
            "## Formulas, and what differs from papers and public code",
            "",
            *(section(heading, text) for (heading, text), _ in by_source()),
            "## CAT by its paper and by its code",
            "",
            *differences("cat-paper", "cat-official"),
            "",
            "Both take the KL as the code does; `--collab cat:own_first=true` is the paper's.",
            "",
            "## What the recipes had to choose",
            "",
            *map(choices, CHOOSING),
        ]
    )


def read_errors(page: str) -> dict[tuple[str, str], str]:
    """The measured numbers of a rendered page."""
    names = {row.typed: row.name for row in subjects()}
    rows = re.findall(r"^\| \[(`[^`]*`)\]\(.* \| (.*) \| (.*) \|$", page, re.M)
    return {
        (names[typed], dtype): cell.partition(" ")[0]
        for typed, *cells in rows
        if typed in names
        for dtype, cell in zip(DTYPES, cells, strict=True)
        if cell != "-"
    }


# numbers


def rounded_up(error: float) -> str:
    return f"1e{ceil(log10(error))}" if error else "0"


class Measurement:
    """A pytest plugin: the largest error by subject and dtype, in the tests marked `measured`."""

    def __init__(self) -> None:
        self.largest: dict[tuple[str, str], float] = {}
        self.asserted = {row.name: row.tolerances for row in subjects()}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Iterator[None]:
        LARGEST.clear()
        yield
        marker = item.get_closest_marker("measured")
        assert marker is not None
        assert LARGEST, "compares nothing by assert_close"
        dtype, *names = marker.args
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        names += getattr(case, "subjects", ())
        for name in names:
            tolerance = self.asserted[name][dtype]
            assert max(LARGEST) <= tolerance, f"{name} is held to {max(LARGEST):g} only"
            before = self.largest.get((name, dtype), 0.0)
            self.largest[name, dtype] = max(before, *LARGEST.values())


def main() -> None:
    measurement = Measurement()
    code = pytest.main(["-q", "-m", "measured", str(ROOT / "tests")], plugins=[measurement])
    if code:
        raise SystemExit(f"{PAGE} is as it was: tests failed")
    missing = [row.name for row in subjects() if (row.name, "float64") not in measurement.largest]
    if missing:
        raise SystemExit(f"{PAGE} is as it was: no test measures {', '.join(missing)}")
    errors = {key: rounded_up(error) for key, error in measurement.largest.items()}
    write_text(PAGE, render(errors))


if __name__ == "__main__":
    main()
