"""From labels as they are found to the classes that a network learns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from braintumor_ray.errors import UsageError


@dataclass(frozen=True)
class ClassMap:
    """Which label belongs to which class.

    Attributes:
        classes: class names in the network's order.
        of_label: class by label; a label that is not in it is left out.
        positive: the classes that mean 'tumor', some but not all of `classes`.
    """

    classes: tuple[str, ...]
    of_label: Mapping[str, str]
    positive: tuple[str, ...]

    @classmethod
    def parse(
        cls, spec: str | None, labels: Iterable[str], negative: Sequence[str] = ()
    ) -> "ClassMap":
        """Read `--classes`, such as `tumor=glioma_tumor+pituitary_tumor,no_tumor`.

        Args:
            spec: comma-separated classes, each `NAME` or `NAME=LABEL+LABEL...`; labels that are
                not named are left out. None: every label is a class of its own.
            labels: the labels that occur.
            negative: class names that mean 'no tumor', compared without case.

        Raises:
            UsageError: fewer than two classes, or a label that is unknown or named twice.
        """
        present = sorted(set(labels))
        groups = _groups(spec) if spec else {label: [label] for label in present}
        of_label: dict[str, str] = {}
        for name, members in groups.items():
            for label in members:
                if label not in present:
                    raise UsageError(
                        f"--classes: no scan has the label '{label}'; there are "
                        f"{', '.join(present) or 'none'}"
                    )
                if label in of_label:
                    raise UsageError(f"--classes: '{label}' is named twice; once is allowed")
                of_label[label] = name
        classes = tuple(sorted(groups))
        if len(classes) < 2:
            raise UsageError(
                f"{len(classes)} class ({', '.join(classes) or 'no labels at all'}); training "
                "needs at least two: put scans into one folder per class, or give a CSV with a "
                "label column"
            )
        return cls(classes, of_label, _positive(classes, negative))

    def apply(self, label: str | None) -> str | None:
        """The class of a label; None: unlabeled or left out."""
        return None if label is None else self.of_label.get(label)

    def indices(self, labels: Sequence[str | None]) -> list[int]:
        """Class index of each label, -1 where it has none."""
        order = {name: index for index, name in enumerate(self.classes)}
        return [order.get(self.apply(label) or "", -1) for label in labels]

    def to_spec(self) -> str:
        """The mapping as `parse` reads it, kept in recipe and bundle."""
        members: dict[str, list[str]] = {name: [] for name in self.classes}
        for label, name in self.of_label.items():
            members[name].append(label)
        return ",".join(f"{name}={'+'.join(sorted(members[name]))}" for name in self.classes)


def _groups(spec: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for part in spec.split(","):
        name, separator, members = (piece.strip() for piece in part.partition("="))
        if not name or (separator and not members):
            raise UsageError(
                f"--classes '{spec}': '{part.strip()}' is not NAME or NAME=LABEL+LABEL"
            )
        if name in groups:
            raise UsageError(f"--classes '{spec}': class '{name}' stands there twice")
        groups[name] = [label.strip() for label in members.split("+")] if members else [name]
    return groups


def _positive(classes: Sequence[str], negative: Sequence[str]) -> tuple[str, ...]:
    lowered = {name.lower() for name in negative}
    positive = tuple(name for name in classes if name.lower() not in lowered)
    if len(positive) == len(classes):
        return positive[1:]  # nothing says 'no tumor': the first class is the reference
    if not positive:
        raise UsageError(
            f"every class ({', '.join(classes)}) is listed in data.negative_classes; "
            "set it to those that mean 'no tumor'"
        )
    return positive
