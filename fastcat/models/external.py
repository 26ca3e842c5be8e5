"""Networks of others by name: `torchvision:NAME`, `timm:NAME`, one's own `package.module:function`.

They come with fresh weights and see pixels in [0, 1]; their minimal image size is their own affair.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fastcat.errors import InputError

# so that training gives logits alone
_TORCHVISION_SETTINGS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def find_external(name: str) -> Callable[[int, int], nn.Module]:
    """The function (classes, channels) -> network for a name with a colon.

    Raises InputError for a name that leads nowhere.
    """
    library, _, rest = name.partition(":")
    libraries = {"torchvision": _find_torchvision, "timm": _find_timm}
    return libraries.get(library, lambda _: _find_own(name))(rest)


def build_external(name: str, classes: int, channels: int) -> nn.Module:
    """A network for a name with a colon.

    Raises InputError for a name that leads nowhere, and for whatever the building of it raises.
    """
    make = find_external(name)
    try:
        net = make(classes, channels)
    except InputError:
        raise
    except Exception as error:  # whatever a foreign function comes up with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"architecture {name!r} cannot be built for {classes} classes in {channels} channels: "
            f"{reason}"
        ) from error
    if not isinstance(net, nn.Module):
        raise InputError(
            f"architecture {name!r} gives a {type(net).__name__}, expected an nn.Module"
        )
    return net


def _find_torchvision(name: str) -> Callable[[int, int], nn.Module]:
    # here alone, so that a step needs no package but torch
    from torchvision import models

    _check_known("torchvision", name, models.list_models(module=models))

    def make(classes: int, channels: int) -> nn.Module:
        if channels != 3:
            raise InputError(
                f"torchvision:{name} takes 3 channels, not {channels}: "
                f"timm:{name}, where timm has it, takes any"
            )
        settings = _TORCHVISION_SETTINGS.get(name, {})
        return models.get_model(name, weights=None, num_classes=classes, **settings)

    return make


def _find_timm(name: str) -> Callable[[int, int], nn.Module]:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"timm:{name} needs timm: pip install timm") from error
    # a name of a hub, as hf-hub:..., would be downloaded: no such name is known here
    if not timm.is_model(name):
        _check_known("timm", name, timm.list_models())

    def make(classes: int, channels: int) -> nn.Module:
        return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)

    return make


def _check_known(library: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{library}:{close[0]}'?" if close else f"it has {len(known)} others"
        raise InputError(f"{library} has no architecture {name!r}: {hint}")


def _find_own(name: str) -> Callable[[int, int], nn.Module]:
    """Only a function that is annotated to return a module, so that a name out of a file cannot
    call anything else."""
    module_name, _, function_name = name.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"cannot import architecture {name!r}: {error}") from error
    if not inspect.isfunction(make) or not _is_module(_returned(make)):
        raise InputError(
            f"architecture {name!r}: expected a function (classes, channels) "
            "annotated `-> nn.Module`"
        )
    try:
        inspect.signature(make).bind(10, 3)
    except TypeError as error:
        raise InputError(
            f"architecture {name!r}: expected a function of (classes, channels): {error}"
        ) from error
    return make


def _returned(function: Any) -> Any:
    """The return annotation; one kept as text is looked up where the function stands, not run."""
    annotation = getattr(function, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        first, *others = annotation.split(".")
        annotation = function.__globals__.get(first)
        for part in others:
            annotation = getattr(annotation, part, None)
    return annotation


def _is_module(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, nn.Module)
