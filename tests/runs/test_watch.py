"""Every sign of the watch on records made up for it, and on those of healthy training."""

from typing import Any

import pytest

from fastcat.report.records import EpochRecord
from fastcat.report.signs import new_signs
from fastcat.runs.collapse import DEAD_EPOCHS, OVERFIT_EPOCHS, Watch, collapse

PAIRS = [("fgsm", "pgd10")]
HEALTHY = (
    # clean, fgsm, pgd10, training accuracy: roughly a ResNet-18 (Rice et al. 2020), then its decay
    (0.38, 0.27, 0.25, 0.22),
    (0.61, 0.41, 0.38, 0.35),
    (0.74, 0.52, 0.47, 0.44),
    (0.72, 0.49, 0.45, 0.46),
    (0.81, 0.57, 0.52, 0.55),
    (0.82, 0.57, 0.51, 0.60),
)
# of an epoch's record what no sign depends on
EPOCH = {
    "epochs": 9, "lr": 0.1, "seconds": 1.0, "images_per_second": 1.0, "judging_seconds": 1.0,
    "peak_memory_mib": 1.0, "select_on": "val", "judged_on": "val",
}  # fmt: skip


def look(
    *epochs: tuple[float, float, float, float],
    name: str = "0-at",
    share: float = 0.14,
    images: int = 1024,
    chance: float = 0.1,
    silent: int = 0,
) -> list[dict[str, Any]]:
    """Records of these clean, FGSM, PGD and training accuracies, as a fresh watch sees them.

    share: of the commonest answer, "frog", in the last epoch; silent: images that then get none.
    """
    watch = Watch(["0-at"], PAIRS, "pgd10", images, chance)
    records = []
    for number, (clean, fgsm, pgd, train) in enumerate(epochs, start=1):
        last = number == len(epochs)
        entry = {
            "accuracy": {"clean": clean, "fgsm": fgsm, "pgd10": pgd},
            "unanswered": {"clean": 0, "fgsm": 0, "pgd10": silent if last else 0},
            "train": {"accuracy": train},
            "commonest": {"class": "frog", "share": share if last else 0.14},
            "best": False,
        }
        peers: dict[str, dict[str, Any]] = {name: entry}
        watch.look(peers)
        records.append({**EPOCH, "epoch": number, "peers": peers})
    return records


def signs(*epochs: tuple[float, float, float, float], **settings: Any) -> set[str]:
    """Names of the signs of the last epoch."""
    name = settings.get("name", "0-at")
    return set(look(*epochs, **settings)[-1]["peers"][name]["signs"])


def test_healthy_training_shows_no_sign() -> None:
    for record in look(*HEALTHY):
        assert record["peers"]["0-at"]["signs"] == {}
        assert collapse(record) is None


@pytest.mark.parametrize(
    ("share", "expected"), [(0.954, set()), (0.956, {"one class"}), (1.0, {"one class"})]
)
def test_one_class(share: float, expected: set[str]) -> None:
    # PGD has fallen too, but FGSM with it, and not for long
    assert signs(*HEALTHY, (0.15, 0.12, 0.12, 0.3), share=share) == expected


def test_a_peer_without_answers_is_named_and_has_collapsed() -> None:
    """Catches a checkpoint that answers NaN and goes on as if nothing were."""
    records = look(*HEALTHY, HEALTHY[-1], silent=3)
    assert set(records[-1]["peers"]["0-at"]["signs"]) == {"no answer"}
    assert "NaN or infinite logits for images of 1024: 3 under pgd10" in str(collapse(records[-1]))
    assert new_signs(*map(EpochRecord.read, (records[-1], records[-2])))


def test_before_anything_is_learnt_one_class_is_no_collapse() -> None:
    records = look((0.1, 0.1, 0.1, 0.1), share=1.0)
    assert set(records[0]["peers"]["0-at"]["signs"]) == {"one class so far"}
    assert collapse(records[0]) is None


def test_where_one_class_is_common_a_constant_answer_still_is_one() -> None:
    lopsided = (0.97, 0.97, 0.97, 0.97)
    assert signs(lopsided, chance=0.97, share=0.999) == {"one class so far"}
    assert signs(lopsided, chance=0.97, share=0.998) == set()


def test_a_peer_at_chance_is_dead_after_some_epochs_and_alive_again_when_it_learns() -> None:
    # of 1024 images two standard errors are 1.9 %
    chance, better = (0.118, 0.1, 0.1, 0.1), (0.12, 0.1, 0.1, 0.1)
    assert signs(*[chance] * (DEAD_EPOCHS - 1)) == set()
    assert signs(*[chance] * DEAD_EPOCHS) == {"dead"}
    assert signs(*[better] * DEAD_EPOCHS) == set()
    assert signs(*[chance] * DEAD_EPOCHS, better) == set()
    assert signs(*[chance] * (DEAD_EPOCHS - 1), better, chance) == set()


def test_the_end_of_an_epoch_at_chance_is_nothing_to_return_to() -> None:
    watch = Watch([], PAIRS, "pgd10", 1024, 0.1)
    for clean, expected in ((0.5, True), (0.11, False), (0.4, True)):
        entry = {"accuracy": {"clean": clean, "fgsm": 0.0, "pgd10": 0.0}, "train": {}}
        answers = {"unanswered": {}, "commonest": {"class": "frog", "share": 0.1}}
        watch.look({"0-natural": {**entry, **answers}})
        assert watch.at_ease == expected


CATASTROPHE = (0.85, 0.78, 0.02, 0.95)


def test_catastrophic_overfitting() -> None:
    records = look(*HEALTHY, CATASTROPHE)
    assert set(records[-1]["peers"]["0-at"]["signs"]) == {"catastrophic overfitting"}
    assert collapse(records[-1]) == (
        "0-at in epoch 7: catastrophic overfitting: 78.00% against fgsm, 2.00% against pgd10, "
        "which was 52.00%"
    )
    # from the first epoch on
    assert signs((0.6, 0.5, 0.0, 0.7)) == {"catastrophic overfitting"}


@pytest.mark.parametrize(
    "epoch",
    [
        pytest.param((0.4, 0.05, 0.04, 0.3), id="both fell"),
        pytest.param((0.85, 0.78, 0.27, 0.95), id="pgd fell by less than half"),
        pytest.param((0.2, 0.008, 0.004, 0.2), id="fgsm is within the noise of pgd"),
    ],
)
def test_what_only_resembles_it(epoch: tuple[float, float, float, float]) -> None:
    assert signs(*HEALTHY, epoch) == set()


def test_of_a_peer_that_is_not_attacked_no_robustness_is_expected() -> None:
    assert signs(*HEALTHY, *[CATASTROPHE] * 4, name="0-natural") == set()
    assert signs(*HEALTHY, *[CATASTROPHE] * 4) == {"catastrophic overfitting"}


def test_robust_overfitting_is_named_when_it_lasts_and_stops_nothing() -> None:
    overfit = [(0.84, 0.55, 0.47 - 0.01 * n, 0.7 + 0.05 * n) for n in range(OVERFIT_EPOCHS)]
    assert signs(*HEALTHY, *overfit[:-1]) == set()
    records = look(*HEALTHY, *overfit)
    assert records[-1]["peers"]["0-at"]["signs"] == {
        "robust overfitting": "45.00% against pgd10, which was 52.00%, while training accuracy "
        "went from 55.00% to 80.00%"
    }
    assert collapse(records[-1]) is None


def test_a_fall_along_with_training_accuracy_is_no_overfitting() -> None:
    assert signs(*HEALTHY, *[(0.6, 0.5, 0.4, 0.5)] * OVERFIT_EPOCHS) == set()


def test_few_images_make_no_sign() -> None:
    """A fall from 52 % to 40 % is within the noise of 40 images."""
    fallen = [(0.84, 0.55, 0.4, 0.8)] * OVERFIT_EPOCHS
    assert signs(*HEALTHY, *fallen, images=40) == set()
    assert signs(*HEALTHY, *fallen, images=1000) == {"robust overfitting"}


def test_without_monitored_images_there_are_no_signs() -> None:
    peers: dict[str, dict[str, Any]] = {"0-at": {"accuracy": {}, "train": {"accuracy": 0.1}}}
    Watch(["0-at"], PAIRS, "pgd10", 0, 0.0).look(peers)
    assert peers["0-at"]["signs"] == {}


def test_a_sign_is_told_when_it_appears() -> None:
    records = look(*HEALTHY, CATASTROPHE, CATASTROPHE)
    before, first, again = records[-3:]
    before, first, again = map(EpochRecord.read, (before, first, again))
    assert len(new_signs(first, before)) == 1
    assert new_signs(again, first) == []
    assert new_signs(again, before)[0].startswith("0-at in epoch 8: catastrophic overfitting: ")
