"""The training runs that parity is tested on, by what they cover."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcat.attacks.threat import ThreatModel
from tests.harness.networks import mixing
from tests.reference.attack import START


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training run of three steps; peers are (method, settings), alpha None its default.

    settings: those of the collaboration; bn_groups: sizes of the groups that BatchNorm sees apart,
    if it does.
    """

    peers: Sequence[tuple[str, dict[str, Any]]]
    collab: str = "cat"
    settings: dict[str, bool] = field(default_factory=dict)
    alpha: float | None = 0.3
    restarts: int = 1
    pgd_steps: int = 3
    nesterov: bool = False
    bn: str = "eval"
    mixed: bool = False
    teachers: str = "all"
    awp: Sequence[float] | None = None
    bn_groups: Sequence[int] = ()

    @property
    def learners(self) -> list[int]:
        return [k for k, (name, _) in enumerate(self.peers) if name != "teacher"]

    @property
    def subjects(self) -> set[str]:
        """What the case is a case of, by the names in docs/methods.md."""
        features = {self.collab: any(self.taught_by), "awp": self.awp, "bn-groups": self.bn_groups}
        return {name for name, _ in self.peers} | {name for name, has in features.items() if has}

    @property
    def features(self) -> set[str]:
        """What it exercises: methods, collaboration, starts and modes of attacks, and the rest."""
        settings = [(key, s[key]) for _, s in self.peers for key in ("start", "bn") if key in s]
        flags = ("mixed", "awp", "bn_groups")
        return {
            *(name for name, _ in self.peers),
            *(f"{key}={value}" for key, value in settings),
            *(f"{self.collab}:{key}" for key in self.settings),
            *(name for name in flags if getattr(self, name)),
            *(["restarts"] if self.restarts > 1 else []),
            self.collab,
            f"teachers {'all' if self.teachers == 'all' else 'some'}",
        }

    @property
    def attackers(self) -> list[int]:
        natural = {"role": "natural"}
        return [k for k, (name, s) in enumerate(self.peers) if name in START and s != natural]

    @property
    def taught_by(self) -> list[list[int]]:
        """The teachers of each peer."""
        peers = range(len(self.peers))
        if self.teachers == "all":
            pairs = [(j, k) for j in peers for k in peers if j != k]
        elif self.teachers == "ring":
            pairs = [(k - 1, k) for k in peers if k] + [(peers[-1], 0)]
        else:
            pairs = [(int(j), int(k)) for j, k in re.findall("([0-9])>([0-9])", self.teachers)]
        return [[j for j, k in pairs if k == taught and k in self.learners] for taught in peers]

    @property
    def guidance_weight(self) -> float:
        """Of the papers, spelled out where the default is under test."""
        alpha = {"cat": 1 / 20, "mat": 0.6, "none": 1.0}[self.collab]
        alpha = alpha if self.alpha is None else self.alpha
        return alpha if self.collab == "mat" else 1 - alpha

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(
            eps=8 / 255, step_size=3 / 255, steps=self.pgd_steps, restarts=self.restarts
        )

    @property
    def sgd(self) -> dict[str, Any]:
        return {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3, "nesterov": self.nesterov}

    def mixing(self, size: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Labels mixed in and shares, the same in every step; none for plain images."""
        y_mixed, share = mixing(0, size)
        return {"y_mixed": y_mixed, "share": share.to(dtype)} if self.mixed else {}


def plain(*names: str) -> Sequence[tuple[str, dict[str, Any]]]:
    """These methods with the settings they have by default."""
    return [(name, {}) for name in names]


CASES = [
    pytest.param(Case(peers=plain("natural"), collab="none", alpha=None), id="natural"),
    pytest.param(Case(peers=plain("at")), id="at"),
    pytest.param(Case(peers=plain("at"), bn="train"), id="at-bn_train"),
    pytest.param(Case(peers=plain("trades")), id="trades"),
    pytest.param(Case(peers=[("trades", {"beta": 2.5})]), id="trades-beta_2.5"),
    pytest.param(Case(peers=plain("alp")), id="alp"),
    pytest.param(Case(peers=[("alp", {"weight": 0.4})]), id="alp-weight_0.4"),
    pytest.param(Case(peers=plain("mart")), id="mart"),
    pytest.param(Case(peers=[("mart", {"beta": 1.5})]), id="mart-beta_1.5"),
    pytest.param(
        Case(
            peers=[
                ("natural", {"smoothing": 0.2}),
                ("at", {"smoothing": 0.3}),
                ("trades", {"smoothing": 0.1}),
                ("alp", {"smoothing": 0.1, "weight": 0.4}),
            ],
            teachers="ring",
        ),
        id="smoothed",
    ),
    pytest.param(
        Case(
            peers=[("natural", {"smoothing": 0.2}), ("trades", {"smoothing": 0.1})],
            mixed=True,
        ),
        id="smoothed-mixed",
    ),
    pytest.param(Case(peers=plain("trades", "alp"), alpha=None), id="trades+alp-default_alpha"),
    pytest.param(Case(peers=plain("trades", "alp"), alpha=0.0), id="trades+alp-alpha_0"),
    pytest.param(Case(peers=plain("trades", "alp"), alpha=1.0), id="trades+alp-alpha_1"),
    pytest.param(Case(peers=plain("at", "trades")), id="at+trades"),
    pytest.param(Case(peers=plain("natural", "trades")), id="natural+trades"),
    pytest.param(Case(peers=plain("trades", "trades")), id="trades+trades"),
    pytest.param(Case(peers=plain("at", "at"), bn="train"), id="at+at-bn_train"),
    pytest.param(Case(peers=plain("at", "alp", "trades")), id="at+alp+trades"),
    pytest.param(Case(peers=plain("mart", "alp", "natural"), alpha=0.05), id="mart+alp+natural"),
    pytest.param(
        Case(peers=plain("trades", "alp"), collab="none", alpha=None), id="trades+alp-side_by_side"
    ),
    pytest.param(Case(peers=plain("boosted"), collab="mat"), id="mat-boosted"),
    pytest.param(
        Case(peers=plain("boosted", "boosted"), collab="mat", alpha=None), id="mat-default_alpha"
    ),
    pytest.param(Case(peers=plain("natural", "boosted"), collab="mat"), id="mat-natural+boosted"),
    pytest.param(
        Case(peers=[("boosted", {"inner": "ce"}), *plain("boosted", "trades")], collab="mat"),
        id="mat-boosted+boosted+trades",
    ),
    pytest.param(
        Case(peers=plain("boosted", "at", "natural"), collab="mat", teachers="ring"), id="mat-ring"
    ),
    pytest.param(
        Case(peers=plain("boosted", "trades", "at"), collab="mat", teachers="0>1,1>2,0>2"),
        id="mat-chain",
    ),
    pytest.param(Case(peers=plain("alp", "trades", "at"), teachers="ring"), id="cat-ring"),
    pytest.param(Case(peers=plain("at", "natural"), teachers="0>1"), id="cat-one_way"),
    pytest.param(
        Case(peers=plain("trades", "alp", "natural"), settings={"own_first": True}),
        id="cat-own_first",
    ),
    pytest.param(
        Case(
            peers=plain("teacher", "at", "mart"),
            settings={"own_first": True},
            teachers="0>1,1>2",
            mixed=True,
        ),
        id="cat-own_first-teacher+at+mart-mixed",
    ),
    pytest.param(
        Case(
            peers=plain("boosted", "boosted"), collab="mat", settings={"detach": False}, alpha=None
        ),
        id="mat-not_detached",
    ),
    pytest.param(
        Case(
            peers=plain("boosted", "trades", "at"),
            collab="mat",
            settings={"detach": False},
            teachers="0>1,1>2,0>2",
            awp=[0.0, 0.02, 0.01],
        ),
        id="mat-not_detached-chain-awp",
    ),
    pytest.param(
        Case(
            peers=plain("teacher", "boosted", "natural"),
            collab="mat",
            settings={"detach": False},
            mixed=True,
        ),
        id="mat-not_detached-teacher+boosted+natural-mixed",
    ),
    pytest.param(
        Case(peers=plain("teacher", "boosted"), collab="mat", alpha=None), id="mat-teacher+boosted"
    ),
    pytest.param(
        Case(peers=plain("boosted", "teacher", "natural"), collab="mat"),
        id="mat-boosted+teacher+natural",
    ),
    pytest.param(
        Case(peers=plain("teacher", "trades", "teacher", "alp"), teachers="0>1,2>3,1>3"),
        id="cat-teacher+trades+teacher+alp",
    ),
    pytest.param(
        Case(peers=plain("natural", "boosted", "boosted"), collab="mat", mixed=True),
        id="mat-mixed",
    ),
    pytest.param(Case(peers=plain("trades", "at"), restarts=2), id="trades+at-restarts_2"),
    pytest.param(Case(peers=plain("alp", "mart"), nesterov=True), id="alp+mart-nesterov"),
    pytest.param(Case(peers=plain("trades"), mixed=True), id="trades-mixed"),
    pytest.param(Case(peers=plain("mart"), mixed=True), id="mart-mixed"),
    pytest.param(Case(peers=plain("trades", "alp"), mixed=True), id="trades+alp-mixed"),
    pytest.param(Case(peers=plain("mart", "at"), mixed=True), id="mart+at-mixed"),
    pytest.param(
        Case(peers=plain("natural", "alp"), mixed=True, restarts=2),
        id="natural+alp-mixed-restarts_2",
    ),
    pytest.param(Case(peers=plain("trades"), awp=[0.005]), id="trades-awp"),
    pytest.param(Case(peers=plain("at"), awp=[0.05], nesterov=True), id="at-awp-nesterov"),
    pytest.param(Case(peers=plain("trades", "alp"), awp=[0.02, 0.01]), id="trades+alp-awp"),
    pytest.param(Case(peers=plain("st")), id="st"),
    pytest.param(Case(peers=[("st", {"reg": "js", "bn": "eval"})]), id="st-js-bn_eval"),
    pytest.param(Case(peers=[("st", {"reg": "l2", "start": "uniform"})]), id="st-l2-uniform"),
    pytest.param(
        Case(peers=[("st", {"official": True, "start": "unclipped"})], pgd_steps=6),
        id="st-official-unclipped",
    ),
    pytest.param(Case(peers=plain("st", "alp")), id="st+alp"),
    pytest.param(
        Case(peers=[("trades", {"smoothing": 0.1, "start": "uniform", "bn": "train"})]),
        id="trades-smoothed-uniform-bn_train",
    ),
    pytest.param(
        Case(
            peers=[
                ("trades", {"log_forward": True}),
                ("alp", {"bn": "moving"}),
            ]
        ),
        id="trades+alp-as_cat_without_bneval",
    ),
    pytest.param(
        Case(peers=[("at", {"bn": "moving", "log_forward": True})], collab="none", alpha=None),
        id="at-as_rice",
    ),
    pytest.param(
        Case(
            peers=[("at", {"bn": "moving", "log_forward": True})],
            collab="none",
            alpha=None,
            awp=[0.01],
        ),
        id="at-as_awp",
    ),
    pytest.param(
        Case(
            peers=[("mart", {"floor": 1e-12, "beta": 6.0}), ("alp", {"start": "gaussian"})],
            collab="none",
            alpha=None,
        ),
        id="mart-floor+alp-gaussian",
    ),
    pytest.param(
        Case(
            peers=[
                ("mart", {"start": "uniform", "bn": "train"}),
                ("boosted", {"start": "unclipped", "bn": "moving"}),
                ("at", {"start": "zero"}),
            ],
            restarts=2,
            bn_groups=(4, 4, 3),
        ),
        id="starts-and-modes-restarts_2-bn_groups",
    ),
    pytest.param(
        Case(peers=plain("at", "st", "trades"), collab="none", alpha=None), id="at+st+trades"
    ),
    pytest.param(Case(peers=plain("trades", "st"), awp=[0.005, 0.005]), id="trades+st-awp"),
    pytest.param(
        Case(peers=plain("natural", "mart"), awp=[0.0, 0.02], mixed=True),
        id="natural+mart-awp_of_one-mixed",
    ),
    pytest.param(
        Case(peers=plain("at", "at"), bn="train", awp=[0.02, 0.01], bn_groups=(4, 4, 3)),
        id="at+at-bn_train-awp-bn_groups",
    ),
    pytest.param(Case(peers=plain("trades", "st"), bn_groups=(4, 4, 3)), id="trades+st-bn_groups"),
    pytest.param(Case(peers=plain("teacher", "ard"), collab="none", alpha=None), id="ard"),
    pytest.param(
        Case(
            peers=[("ard", {"alpha": 0.7, "temperature": 3.0, "bn": "eval"}), ("teacher", {})],
            mixed=True,
        ),
        id="ard-alpha_0.7-mixed",
    ),
    pytest.param(Case(peers=plain("teacher", "rslad"), restarts=2), id="rslad-restarts_2"),
    pytest.param(
        Case(
            peers=[("rslad", {"scale": 10.0}), ("teacher", {})],
            collab="none",
            alpha=None,
            mixed=True,
            awp=[0.02, 0.0],
        ),
        id="rslad-scale_10-mixed-awp",
    ),
    pytest.param(Case(peers=[("teacher", {}), ("iad", {"begin": 0})]), id="iad"),
    pytest.param(
        Case(
            peers=[
                ("teacher", {}),
                ("iad", {"begin": 0, "start": "unclipped", "bn": "moving"}),
                ("ard", {"start": "unclipped", "bn": "moving", "alpha": 0.5}),
                ("rslad", {"start": "uniform", "bn": "train"}),
            ],
            collab="none",
            alpha=None,
            teachers="0>1,0>2,0>3",
        ),
        id="ard+iad+rslad-unclipped-bn_moving",
    ),
    pytest.param(
        Case(peers=[("act", {"role": "natural"}), ("act", {})], collab="none", alpha=None), id="act"
    ),
    pytest.param(
        Case(peers=[("act", {}), ("act", {"role": "natural"})], mixed=True, awp=[0.02, 0.01]),
        id="act-mixed-awp",
    ),
    pytest.param(
        Case(
            peers=[*plain("rslad", "rslad", "at"), ("iad", {"begin": 0})],
            collab="mat",
            teachers="0>1,1>0,0>2,1>2,2>3",
        ),
        id="rslad+rslad+at+iad-online",
    ),
]


# where the attack moves nothing, so that views can be handed in instead
GIVEN_VIEWS = [
    case
    for case in CASES
    if all(settings.get("bn") != "moving" for _, settings in case.values[0].peers)
]

# what each stands for in other engines and precisions; test_parity.py runs all cases itself
REPRESENTATIVES = {
    "trades+alp-default_alpha": "the pair of the paper",
    "smoothed": "smoothed labels, a ring of teachers",
    "mart-floor+alp-gaussian": "peers on their own, MART",
    "mat-not_detached-chain-awp": "MAT with gradients through guidance, some teachers, AWP",
    "cat-own_first-teacher+at+mart-mixed": "a trained teacher, mixed images",
    "starts-and-modes-restarts_2-bn_groups": "starts, BatchNorm modes, restarts, groups",
    "trades+st-bn_groups": "ST and its second view",
    "ard-alpha_0.7-mixed": "ARD",
    "rslad+rslad+at+iad-online": "distillation between peers that learn",
    "act-mixed-awp": "ACT",
}


def represented(cases: Sequence[Any]) -> list[Any]:
    """The cases, all but REPRESENTATIVES marked to run with --all only."""
    return [
        case
        if case.id in REPRESENTATIVES
        else pytest.param(*case.values, id=case.id, marks=pytest.mark.represented)
        for case in cases
    ]
