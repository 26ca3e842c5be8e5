"""What a peer is trained for. One file a method; the function's name is the method's public name.

A method is a function of its settings that returns an Objective. Beside its own it takes those of
`adjusted`: start and bn of its attack, and log_forward.
"""

import importlib
import inspect
from collections.abc import Callable

from fastcat.errors import InputError, nearest
from fastcat.objectives.act import act
from fastcat.objectives.alp import alp
from fastcat.objectives.ard import ard
from fastcat.objectives.at import at
from fastcat.objectives.boosted import boosted
from fastcat.objectives.fast import fast
from fastcat.objectives.free import free
from fastcat.objectives.iad import iad
from fastcat.objectives.mart import mart
from fastcat.objectives.natural import natural
from fastcat.objectives.objective import Objective, adjusted
from fastcat.objectives.pgd_cw import pgd_cw
from fastcat.objectives.rslad import rslad
from fastcat.objectives.st import st
from fastcat.objectives.teacher import teacher
from fastcat.objectives.trades import trades
from fastcat.settings import read_settings

METHODS: dict[str, Callable[..., Objective]] = {
    method.__name__.replace("_", "-"): method
    for method in (
        *(natural, at, fast, free, trades, alp, mart, boosted, pgd_cw, st),
        *(ard, rslad, iad, act, teacher),
    )
}


def find_method(name: str) -> Callable[..., Objective]:
    """The method called `name`, or the user's own as `package.module:function`.

    Only a function that is annotated to return an Objective is one, so that a name out of a file
    cannot call anything else. Raises InputError for a name that leads nowhere.
    """
    if name in METHODS:
        return METHODS[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise InputError(f"unknown method {name!r}: {nearest(name, METHODS)}")
    try:
        method = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"cannot import method {name!r}: {error}") from error
    if getattr(method, "__annotations__", {}).get("return") not in (Objective, "Objective"):
        raise InputError(f"method {name!r}: expected a function annotated `-> Objective`")
    return method


def make_objective(name: str, settings: dict[str, str]) -> Objective:
    """The objective of `find_method(name)` with settings as typed, its own and every method's.

    Raises InputError with the usage for a setting that is unknown, missing or unreadable, and as
    `adjusted` does.
    """
    method, apart = find_method(name), ("objective", "name")
    common = inspect.signature(adjusted).parameters.keys() - {*apart}
    common -= inspect.signature(method).parameters.keys()
    own = {key: text for key, text in settings.items() if key not in common}
    asked = {key: text for key, text in settings.items() if key in common}
    also = "every method takes start, bn, log_forward, threat and awp"
    objective = method(**read_settings(name, method, own, also=also))
    return adjusted(objective, name, **read_settings(name, adjusted, asked, apart))
