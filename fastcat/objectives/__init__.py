"""What a peer is trained for. One file a method; the function's name is the method's public name.

A method is a function of its settings that returns an Objective. Beside its own it takes those of
`adjusted`: start and bn of its attack, and log_forward.
"""

import inspect
from collections.abc import Callable

from fastcat.objective import Objective, adjusted
from fastcat.registry import Choices, load_own
from fastcat.settings import read_settings

METHODS = Choices("fastcat.objectives", "method")


def find_method(name: str) -> Callable[..., Objective]:
    """The method called `name`, or the user's own as `package.module:function`.

    Raises InputError for a name that leads nowhere.
    """
    return load_own(name, "method", Objective) if ":" in name else METHODS[name]


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
