"""A few studies that differ as much as can be."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable

from neuro.data.manifest import Study


def spread(studies: Iterable[Study], num_studies: int) -> list[int]:
    """Return the places of a few studies with as many different tasks and modalities as can be.

    Which of those that are alike, a hash of their ids decides; the order of the studies does not.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[bytes, int]]] = defaultdict(list)
    for place, study in enumerate(studies):
        task = study.conversation.task if study.conversation is not None else ""
        own = (hashlib.sha256(study.id.encode()).digest(), place)
        groups[task, study.modalities].append(own)
    for members in groups.values():
        members.sort(reverse=True)  # taken from the end
    taken: Counter[object] = Counter()
    chosen: list[int] = []
    while groups and len(chosen) < num_studies:
        task, modalities = best = min(
            groups, key=lambda own: (taken[own], taken[own[0]] + taken[own[1]], own)
        )
        chosen.append(groups[best].pop()[1])
        taken.update((best, task, modalities))
        if not groups[best]:
            del groups[best]
    return chosen
