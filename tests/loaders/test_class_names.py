"""Two sets of classes: by name, by number where one has no names, or not at all."""

import unicodedata

import pytest

from fastcat.errors import InputError
from fastcat.loaders.class_names import match, never_learnt, relabelled
from tests.harness.random_images import random_dataset


@pytest.mark.parametrize(
    ("names", "own", "expected"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("cab", "abc", [2, 0, 1]),
        ("bd", "abcd", [1, 3]),
        # one side has no names
        ("012", "abc", [0, 1, 2]),
        ("01", "abc", [0, 1]),
        ("abc", "012", [0, 1, 2]),
        # names that are numbers
        ("02", "0123", [0, 2]),
        ("01", "0123", [0, 1]),
        ("312", "123", [2, 0, 1]),
        (["0", "1", "10", "2"], ["0", "1", "10", "2"], [0, 1, 2, 3]),
        (["1", "10", "2"], ["0", "1", "10", "2"], [1, 2, 3]),
        # one letter, or a letter and an accent
        ([unicodedata.normalize("NFD", "café"), "a"], ["a", "café"], [1, 0]),
        # two of a name, which both sides have alike
        (["crane", "crane"], ["crane", "crane"], [0, 1]),
    ],
)
def test_the_label_of_each_class(names: list[str], own: list[str], expected: list[int]) -> None:
    assert match(names, "new", own, "old").tolist() == expected


@pytest.mark.parametrize(
    ("names", "own", "text"),
    [
        (
            "abx",
            "abc",
            "new has 3 classes, a, b, x, and 'x' is none of the 3 of old, a, b, c: give",
        ),
        ("Abc", "abc", "'A' is none"),
        ("abcd", "abc", "'d' is none"),
        ("0123", "abc", "new has 4 classes, 0, 1, 2, ..., and '0' is none"),
        ("ab", "012", "'a' is none"),
        # neither names among each other nor numbers without names
        ("34", "01", "'3' is none"),
        ("123", "012", "'3' is none"),
        ("012", "123", "'0' is none"),
        # label 2 may be the class called 2 or the third one
        (
            "012",
            ["0", "1", "10", "2"],
            "new are 0, 1, 2, those of old 0, 1, 10, .* may be names or",
        ),
        (["0", "1", "2"], ["2", "1", "0"], "may be names or numbers"),
        (["crane", "crane"], ["crane", "heron"], "new has 2 of the name 'crane'"),
        (["heron", "crane"], ["crane", "crane"], "old has 2 of the name 'crane'"),
    ],
)
def test_what_does_not_match_is_refused(names: list[str], own: list[str], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        match(names, "new", own, "old")
    assert len(str(caught.value).splitlines()) == 1


def test_test_images_of_a_class_without_training_images_are_named() -> None:
    dataset = random_dataset()
    assert never_learnt(dataset, dataset.train.labels) == []
    there = sorted(set(dataset.test.labels.tolist()))
    learnt = dataset.train.labels[dataset.train.labels != there[1]]
    (remark,) = never_learnt(dataset, learnt)
    assert remark.endswith(f"without training images: 1 ({dataset.classes[there[1]]})")


def test_a_relabelled_set_has_the_same_images() -> None:
    dataset = random_dataset()
    labels = match(dataset.classes, "a", dataset.classes[::-1], "b")
    other = relabelled(dataset, labels, dataset.classes[::-1])
    for before, after in ((dataset.train, other.train), (dataset.test, other.test)):
        assert before.images is after.images
        assert [dataset.classes[k] for k in before.labels] == [
            other.classes[k] for k in after.labels
        ]
