"""A few studies show as many tasks and modalities as so few can."""

from __future__ import annotations

from small_llava import study_of

from neuro.data.conversation import Turn
from neuro.data.spread import spread


def asked(name, task, *modalities):
    study = study_of(name, *modalities, turns=(Turn("user", ("a",)), Turn("assistant", ("b",))))
    object.__setattr__(study.conversation, "task", task)
    return study


STUDIES = [
    *(asked(f"sex{number}", "sex", "T1") for number in range(20)),
    *(asked(f"age{number}", "age", "T1") for number in range(5)),
    *(asked(f"tract{number}", "tract", "dMRI") for number in range(3)),
    *(asked(f"both{number}", "sex", "T1", "dMRI") for number in range(2)),
]


def kinds(chosen):
    return [
        (study.conversation.task, study.modalities) for study in (STUDIES[one] for one in chosen)
    ]


def test_each_kind_is_there_before_any_is_there_twice():
    for number in range(1, 9):
        shown = kinds(spread(STUDIES, number))
        assert len(shown) == number
        assert len(set(shown)) == min(number, 4)


def test_the_first_two_share_neither_task_nor_modalities():
    (task, modalities), (other_task, other_modalities) = kinds(spread(STUDIES, 2))
    assert task != other_task
    assert modalities != other_modalities


def test_no_study_is_there_twice_and_all_are_there_in_the_end():
    assert sorted(spread(STUDIES, 1000)) == list(range(len(STUDIES)))


def test_the_order_of_the_studies_does_not_matter():
    first = {STUDIES[one].id for one in spread(STUDIES, 5)}
    assert first == {STUDIES[::-1][one].id for one in spread(STUDIES[::-1], 5)}
