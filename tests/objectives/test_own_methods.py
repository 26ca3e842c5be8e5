"""Methods of the user's own: found by import path, set from text, refused with a reason."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastcat.attacks.pgd import PGD
from fastcat.errors import InputError
from fastcat.objectives import find_method, make_objective
from tests.harness.logit_rows import labels, rows
from tests.reference import losses as reference

OWN_METHODS = """
from fastcat.kernels import losses
from fastcat.attacks.pgd import PGD
from fastcat.objective import Objective


def smooth(*, power: int = 2, scale: float = 1.0, signed: bool = True) -> Objective:
    return Objective(
        views=("adv",),
        inner=PGD(loss="margin", start="zero"),
        outer=lambda z, y: {
            "ce": (-1) ** (not signed) * scale * losses.ce(z["adv"], y).mean() ** power
        },
    )


def without_default(*, beta: float) -> Objective:
    return smooth(scale=beta)


def with_none(*, scale: float | None = None) -> Objective:
    return smooth(scale=1.0 if scale is None else scale)


constant = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The import path of a user's module with methods."""
    (tmp_path / "my_methods.py").write_text(OWN_METHODS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    return "my_methods"


def test_own_method_by_import_path(own_module: str) -> None:
    name = f"{own_module}:smooth"
    z, y = rows("at"), labels()
    ce = reference.cross_entropy(z["adv"], y).mean()
    objective = make_objective(name, {"power": "3", "scale": "0.5"})
    assert objective.inner == PGD(loss="margin", start="zero")
    torch.testing.assert_close(objective.outer(z, y), {"ce": 0.5 * ce**3})
    torch.testing.assert_close(make_objective(name, {}).outer(z, y), {"ce": ce**2})
    assert find_method(name) is sys.modules[own_module].smooth


def test_own_method_refuses_unknown_settings_with_its_signature(own_module: str) -> None:
    with pytest.raises(InputError, match=r"takes power=2, scale=1\.0, signed=True"):
        make_objective(f"{own_module}:smooth", {"powre": "3"})


def test_own_method_with_a_switch_can_be_switched_off(own_module: str) -> None:
    """bool("False") is True."""
    z, y = rows("at"), labels()
    on, off = (
        make_objective(f"{own_module}:smooth", {"signed": text}).outer(z, y)["ce"]
        for text in ("True", "False")
    )
    torch.testing.assert_close(off, -on)


def test_own_method_whose_setting_has_no_default(own_module: str) -> None:
    """It can be set like any other, and leaving it out is one sentence."""
    name = f"{own_module}:without_default"
    with pytest.raises(InputError, match="beta"):
        make_objective(name, {})
    z, y = rows("at"), labels()
    ours = make_objective(name, {"beta": "0.5"}).outer(z, y)["ce"]
    torch.testing.assert_close(ours, 0.5 * reference.cross_entropy(z["adv"], y).mean() ** 2)


def test_own_method_whose_default_is_none(own_module: str) -> None:
    z, y = rows("at"), labels()
    ours = make_objective(f"{own_module}:with_none", {"scale": "0.5"}).outer(z, y)["ce"]
    torch.testing.assert_close(ours, 0.5 * reference.cross_entropy(z["adv"], y).mean() ** 2)


def test_own_method_refuses_text_that_is_no_value(own_module: str) -> None:
    with pytest.raises(InputError, match=r"without_default:beta=\[1"):
        make_objective(f"{own_module}:without_default", {"beta": "[1"})
    with pytest.raises(InputError, match="smooth:signed=perhaps is no bool"):
        make_objective(f"{own_module}:smooth", {"signed": "perhaps"})


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        pytest.param("my_methods:smoth", "cannot import method 'my_methods:smoth'", id="function"),
        pytest.param("no_such_module_here:f", "cannot import method 'no_such", id="module"),
        pytest.param(":f", "method ':f'", id="no-module"),
        pytest.param("..relative:f", "method '..relative:f'", id="relative"),
        pytest.param("my_methods:", "method 'my_methods:'", id="no-function"),
        pytest.param("my_methods:constant", "method 'my_methods:constant'", id="no-callable"),
    ],
)
def test_own_methods_that_lead_nowhere_are_refused(own_module: str, suffix: str, text: str) -> None:
    del own_module
    with pytest.raises(InputError) as caught:
        make_objective(suffix, {})
    assert text in str(caught.value)


@pytest.mark.slow
@pytest.mark.process
def test_a_module_in_the_folder_where_the_command_is_typed(tmp_path: Path) -> None:
    """Catches the installed command, whose path begins with its own folder."""
    (tmp_path / "my_methods.py").write_text(OWN_METHODS)
    words = ["train", "--peers", "my_methods:no_such_function", "--data", "digits"]
    command = Path(sys.executable).with_name("fastcat")
    done = subprocess.run([command, *words], cwd=tmp_path, capture_output=True, text=True)
    assert "has no attribute 'no_such_function'" in done.stderr
    assert done.returncode == 2
