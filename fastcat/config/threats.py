"""Threat models as they are typed: "linf:eps=0.03:step_size=0.003:steps=40,l2:eps=0.5"."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fastcat.config.pixels import format_pixels, parse_pixels
from fastcat.errors import InputError, nearest
from fastcat.settings import split_settings

if TYPE_CHECKING:
    from fastcat.attacks.threat import ThreatModel, Threats


def parse_threats(text: str, base: "ThreatModel") -> tuple["ThreatModel", ...]:
    """ "linf:eps=8/255,l2:eps=0.5:steps=50" -> a ThreatModel for each entry.

    Grammar: NORM:eps=LENGTH[:step_size=LENGTH][:steps=N][:code=NAME], separated by commas, each
    norm once. Steps and restarts are those of base by default, a step size eps/4; code
    is one of CODES, for l2.
    Raises InputError for what it cannot read.
    """
    from fastcat.attacks.threat import NORMS

    models = []
    for entry in text.split(","):
        norm, *parts = entry.strip().split(":")
        if norm not in NORMS:
            raise InputError(f"threats {text!r}: unknown norm {norm!r}: {nearest(norm, NORMS)}")
        settings: dict[str, float | str] = {}
        example = f"{norm}:eps=0.5:step_size=0.05:steps=50"
        for name, value in split_settings(parts, f"threats {text!r}", example).items():
            if name in ("eps", "step_size"):
                settings[name] = parse_pixels(value)
            elif name == "steps" and value.isdecimal():
                settings[name] = int(value)
            elif name == "code":
                settings[name] = value
            else:
                raise InputError(
                    f"threats {text!r}: cannot read '{name}={value}', expected eps, step_size, "
                    f"steps or code, as {example}"
                )
        if "eps" not in settings:
            raise InputError(
                f"threats {text!r}: {norm} has no radius: type for example {norm}:eps=0.5"
            )
        models.append(replace(base, norm=norm, **{"step_size": None, **settings}))  # type: ignore[arg-type]
    if len({model.norm for model in models}) < len(models):
        raise InputError(f"threats {text!r}: a norm stands there twice")
    return tuple(models)


def format_threats(models: Sequence["ThreatModel"]) -> str:
    """The text that `parse_threats` reads back to the same radii, step sizes and steps.

    Whose code the training attack followed is not in it: all are evaluated alike.
    """
    return ",".join(
        f"{model.norm}:eps={format_length(model.norm, model.eps)}"
        f":step_size={format_length(model.norm, model.step)}:steps={model.steps}"
        for model in models
    )


def format_length(norm: str, value: float) -> str:
    """A radius or step size as it is typed: for linf in 255ths of a pixel's range."""
    return format_pixels(value) if norm == "linf" else repr(value)


def choose_threats(name: str | None, models: Sequence["ThreatModel"]) -> "Threats":
    """What a peer's `threat=NAME` means among a run's models: one by its norm, all in a way of
    WAYS or of OFFICIAL, and the first without a name. Raises InputError for another name.
    """
    from fastcat.attacks.threat import OFFICIAL, WAYS, Threats

    if name is None:
        return Threats((models[0],))
    ways = {way: Threats(tuple(models), way) for way in WAYS}
    ways |= {known: Threats(tuple(models), way, official=True) for known, way in OFFICIAL.items()}
    if name in ways:
        if len(models) < 2:
            raise InputError(
                f"threat={name} is for several threat models: type them all, as "
                "--threats linf:eps=0.03,l2:eps=0.5,l1:eps=12"
            )
        return ways[name]
    norms = [model.norm for model in models]
    if name not in norms:
        raise InputError(f"there is no threat {name!r}: {nearest(name, [*norms, *ways])}")
    return Threats((models[norms.index(name)],))
