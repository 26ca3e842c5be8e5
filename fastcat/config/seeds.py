"""Several seeds as they are typed: "0,1,2"."""

from fastcat.errors import InputError


def parse_seeds(text: str) -> tuple[int, ...]:
    """The numbers of "0,1,2". Raises InputError for what is none, and for one that comes twice."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
        raise InputError(f"seeds is {text!r}, expected different whole numbers like 0,1,2")
    return tuple(map(int, parts))
