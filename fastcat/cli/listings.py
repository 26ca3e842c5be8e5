"""What `fastcat list` shows: every name that a command takes, with a line about it."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fastcat.attacks.threat import CODES, NORMS, OFFICIAL, WAYS
from fastcat.choices import ENGINES
from fastcat.collaborations import APART, COLLABORATIONS
from fastcat.config.recipes import RECIPES, about
from fastcat.evaluation.attack import FORMS, PACKAGE, find_attack
from fastcat.loaders.registry import BACKENDS, DATASETS
from fastcat.models import ARCHS
from fastcat.objectives import METHODS, make_objective
from fastcat.registry import described, names
from fastcat.schedules import SCHEDULES
from fastcat.settings import usage


def _about(function: Callable[..., Any]) -> str:
    """The first line of the function's docstring, else of its file's."""
    text = function.__doc__ or inspect.getdoc(inspect.getmodule(function)) or ""
    return text.strip().splitlines()[0]


def _described(functions: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    return {name: _about(function) for name, function in functions.items()}


def _with_settings(
    functions: Mapping[str, Callable[..., Any]], apart: Collection[str] = ()
) -> dict[str, str]:
    return {
        name: f"{_about(function)}  [{usage(name, function, apart)}]"
        for name, function in functions.items()
    }


def _method(name: str) -> str:
    """With its own settings, and those of its first attack that every method has."""
    objective = make_objective(name, {"weights": "FILE"} if name == "teacher" else {})
    attacks = [
        f"attack start={attack.start}, bn={attack.bn}"
        for attack in objective.attacks.values()
        if attack.before_step
    ]
    method = METHODS[name]
    return f"{_about(method)}  [{'; '.join([usage(name, method), *attacks[:1]])}]"


LISTINGS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": lambda: {
        **{name: _method(name) for name in METHODS},
        "METHOD:KEY=VALUE": "of every method: start=uniform, gaussian, unclipped (uniform, may "
        "leave [0, 1]) or zero and bn=eval, train or moving of its attack; log_forward=true; "
        "threat=l2; awp=0.005",
    },
    "archs": lambda: {
        **_described(ARCHS),
        "torchvision:NAME": "torchvision's, as torchvision:convnext_tiny",
        "timm:NAME": "timm's, as timm:convnext_tiny; needs `pip install timm`",
        "MODULE:FUNCTION": "your own: a function (classes, channels) annotated -> nn.Module",
    },
    "datasets": lambda: {
        **described(DATASETS),
        "FOLDER": "a folder of images train/CLASS/*, test/CLASS/*, or NAME.packed, .beton, .npz",
    },
    "attacks": lambda: {
        **_with_settings({name: find_attack(name) for name in names(PACKAGE)}),
        **FORMS,
    },
    "threats": lambda: {
        **{
            norm: f"the threat model of this norm in --threats, as at:threat={norm}"
            for norm in NORMS
        },
        **{f"l2:code={code}": f"whose code l2 follows: {text}" for code, text in CODES.items()},
        **{way: f"all of them: {text}" for way, text in WAYS.items()},
        **{name: f"{way} as Maini et al.'s public code runs it" for name, way in OFFICIAL.items()},
    },
    "collaborations": lambda: _with_settings(COLLABORATIONS, APART),
    "schedules": lambda: _described(SCHEDULES),
    "engines": lambda: dict(ENGINES),
    "loaders": lambda: described(BACKENDS),
    "recipes": lambda: {name: about(path) for name, path in RECIPES.items()},
}
