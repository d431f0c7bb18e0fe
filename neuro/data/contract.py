"""What a model was trained on: it travels in the checkpoint, and new images are held to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from neuro.data.bold_run import BoldRun
from neuro.data.clinical_tokens import ClinicalTokens
from neuro.data.fingerprint import changes, describe
from neuro.data.fixed_grid import FixedGrid
from neuro.data.recipes import Recipe
from neuro.errors import InputError
from neuro.kinds import fits

RECIPES = {one.__name__: one for one in (BoldRun, ClinicalTokens, FixedGrid)}


@dataclass(frozen=True, kw_only=True)
class Contract:
    """How images became tokens, and what was told of them.

    Attributes:
        recipes: The recipe of each modality that was trained on.
        min_foreground: Share of head that a token must have.
        statistics: Mean and standard deviation of each kind of image.
        labels: The names of the findings; none where nothing was labelled.
        task: ``binary``, ``multilabel``, ``multiclass`` or ``regression``; empty without labels.
        classes: The values of a label, in order; none where it is a number.
    """

    recipes: Mapping[str, Recipe]
    min_foreground: float
    statistics: Mapping[str, Sequence[float]]
    labels: Sequence[str] = ()
    task: str = ""
    classes: Sequence[str] = ()

    def plain(self) -> dict[str, Any]:
        """Return it as plain values, for a checkpoint or a JSON file."""
        return {
            "recipes": {name: describe(recipe) for name, recipe in self.recipes.items()},
            "min_foreground": self.min_foreground,
            "statistics": {name: list(values) for name, values in self.statistics.items()},
            "labels": list(self.labels),
            "task": self.task,
            "classes": list(self.classes),
        }

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any], where: str) -> Contract:
        """Return what ``plain`` returned.

        Raises:
            InputError: It is of another version of this program, or no such thing.
        """
        try:
            recipes = {name: _recipe(one) for name, one in plain["recipes"].items()}
            fields = {name: value for name, value in plain.items() if name != "recipes"}
            _check_kinds(cls, fields)
            return cls(recipes=recipes, **fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{where}: what it says of its images cannot be read by this version ({error!r}). "
                f"Use the version that it was trained with."
            ) from error

    def check_images(self, other: Contract, where: str) -> None:
        """Check that another's images become the same tokens, as far as both know the modality.

        Args:
            other: What is at hand.
            where: Whose contract this is, for the message.

        Raises:
            InputError: Something differs; the fields are named.
        """
        mine, theirs = self.plain(), other.plain()
        shared = sorted(mine["recipes"].keys() & theirs["recipes"].keys())
        differences = [
            f"data.recipes.{name}.{change}"
            for name in shared
            for change in changes(mine["recipes"][name], theirs["recipes"][name])
        ]
        if not shared:
            differences.append(
                f"modalities: {', '.join(mine['recipes'])} -> {', '.join(theirs['recipes'])}"
            )
        kinds = mine["statistics"].keys() & theirs["statistics"].keys()
        differences += [
            f"statistics of {kind}: {mine['statistics'][kind]} -> {theirs['statistics'][kind]}"
            for kind in sorted(kinds)
            if mine["statistics"][kind] != theirs["statistics"][kind]
        ]
        if differences:
            raise InputError(
                f"{where} was trained on images that were prepared in another way (then -> now): "
                f"{'; '.join(differences)}. Set these fields to what they were."
            )

    def check_labels(self, other: Contract, where: str) -> None:
        """Check that another's labels are the same.

        Raises:
            InputError: They differ; the fields are named.
        """
        mine, theirs = self.plain(), other.plain()
        differences = [
            f"{name}: {mine[name]} -> {theirs[name]}"
            for name in ("labels", "task", "classes")
            if mine[name] != theirs[name]
        ]
        if differences:
            raise InputError(
                f"{where} was trained to tell something else (then -> now): "
                f"{'; '.join(differences)}. Set data.label and data.labels to what they were."
            )


def _recipe(described: Mapping[str, Any]) -> Recipe:
    """Build a recipe from its description; only the classes of this project are built."""
    kind = RECIPES[described["recipe"]]
    if kind.version != described["version"]:
        raise ValueError(f"{described['recipe']} of version {described['version']}")
    fields = {key: one for key, one in described.items() if key not in ("recipe", "version")}
    _check_kinds(kind, fields)
    return kind(**fields)


def _check_kinds(kind: type, fields: Mapping[str, Any]) -> None:
    """Check plain values against the annotations of a class that takes them."""
    for name, expected in get_type_hints(kind).items():
        if name in fields and not fits(fields[name], expected):
            raise TypeError(f"{name} is no {expected}")
