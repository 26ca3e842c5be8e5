"""Lengths in pixels of [0, 1], as they are typed: 8/255 or 0.03."""

import math
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from fastcat.errors import InputError


def parse_pixels(text: str) -> float:
    """ "8/255" or "0.03" -> pixels. Raises InputError; a `ThreatModel` knows what is too long."""
    numerator, slash, denominator = text.replace(" ", "").partition("/")
    try:
        value = int(numerator) / int(denominator) if slash else float(numerator)
    except (ValueError, ArithmeticError) as error:
        raise InputError(f"{text!r} is no length in pixels: type for example 8/255") from error
    if not 0 < value < math.inf:
        raise InputError(f"{text} is no length in pixels of [0, 1]: type for example 8/255")
    return value


def format_pixels(value: float) -> str:
    """The shortest text that parse_pixels reads back to the same float, in 255ths where it can."""
    levels = round(value * 255, 6)
    whole = levels == int(levels) and int(levels) / 255 == value
    return f"{int(levels)}/255" if whole else repr(value)


Pixels = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PIXELS",
        instance_from_str=lambda args: parse_pixels(args[0]),
        is_instance=lambda value: isinstance(value, (int, float)),
        str_from_instance=lambda value: [format_pixels(value)],
    ),
]
