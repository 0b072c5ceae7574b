"""From labels as they are found to the classes that a network learns."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from braintumor_ray.catalog.folders import clean_label, numbered_folders
from braintumor_ray.errors import UsageError
from braintumor_ray.storage import read_bytes

Groups = dict[str, list[str]]  # labels by class


@dataclass(frozen=True)
class ClassMap:
    """Which label belongs to which class.

    Attributes:
        classes: class names in the network's order.
        of_label: class by label; a label that is not in it is left out.
        positive: the classes that mean 'tumor', some but not all of `classes`.
        reference: no class means 'no tumor': the first one is what the others are decided against,
            and has tumors as they have.
    """

    classes: tuple[str, ...]
    of_label: Mapping[str, str]
    positive: tuple[str, ...]
    reference: bool = False

    @property
    def with_tumor(self) -> tuple[str, ...]:
        """The classes whose scans show a tumor."""
        return self.classes if self.reference else self.positive

    @classmethod
    def parse(
        cls, spec: str | None, labels: Iterable[str], negative: Sequence[str] = ()
    ) -> "ClassMap":
        """Read `--classes`, such as `tumor=glioma_tumor+pituitary_tumor,no_tumor`.

        Labels that differ only in case, or in what separates their words (`Glioma Tumor`,
        `glioma_tumor`), are one class unless `spec` names each of them.

        Args:
            spec: see `parse_groups`; labels that are not named are left out. None: every label
                is a class of its own.
            labels: the labels that occur, as often as they do.
            negative: class names that mean 'no tumor', compared as labels are.

        Raises:
            UsageError: fewer than two classes, or a label that is unknown or named twice.
        """
        counts = Counter(labels)
        of_label = named_labels(parse_groups(spec), counts) if spec else _each_its_own(counts)
        classes = tuple(sorted(set(of_label.values())))
        if len(classes) < 2:
            raise UsageError(
                f"{len(classes)} class ({', '.join(classes) or 'no labels at all'}); training "
                "needs at least two: put scans into one folder per class, or give a CSV with a "
                "label column"
            )
        healthy = _healthy(classes, negative)
        against = healthy or classes[:1]
        positive = tuple(name for name in classes if name not in against)
        return cls(classes, of_label, positive, reference=not healthy)

    def apply(self, label: str | None) -> str | None:
        """The class of a label; None: unlabeled or left out."""
        return None if label is None else self.of_label.get(label)

    def indices(self, labels: Sequence[str | None]) -> list[int]:
        """Class index of each label, -1 where it has none."""
        order = {name: index for index, name in enumerate(self.classes)}
        return [-1 if (name := self.apply(label)) is None else order[name] for label in labels]

    def to_spec(self) -> str:
        """The mapping as `parse` reads it, kept in recipe and bundle."""
        members: Groups = {name: [] for name in self.classes}
        for label, name in self.of_label.items():
            members[name].append(label)
        return write_groups({name: sorted(labels) for name, labels in members.items()})

    def merged(self) -> list[str]:
        """A sentence for each class whose labels differ only in how they are written."""
        return _variants(self.of_label)


def remarks(catalog: pa.Table) -> list[str]:
    """What a user should know of a catalog's labels before training, a line each."""
    labels = catalog["label"].to_pylist()
    counts = Counter(label for label in labels if label is not None)
    return remarks_on(counts, catalog["path"].to_pylist(), labels)


def remarks_on(
    counts: Counter[str], paths: Iterable[str], labels: Iterable[str | None]
) -> list[str]:
    """The lines of `remarks`.

    Args:
        counts: scans of each label.
        paths: of the scans, or one of each folder.
        labels: of these paths.
    """
    lines = _variants(_each_its_own(counts))
    numbers = numbered_folders(paths, labels)
    if numbers:
        named = ",".join(numbers[:5]) + (",..." if len(numbers) > 5 else "")
        lines.append(
            f"folders {named} are mere numbers and were taken for no class; train with "
            f"--classes {named} if they are"
        )
    return lines


def label_key(label: str) -> str:
    """Equal for labels that differ only in case or in what separates their words."""
    return re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", "_", clean_label(label).casefold())


def parse_groups(spec: str) -> Groups:
    """Labels by class name, from `--classes` text: the one place that knows its grammar.

    Either `NAME` or `NAME=LABEL+LABEL...`, separated by commas; a name or label that holds one of
    `,+="` or has spaces around it is put in double quotes, a quote inside is doubled. Or JSON: an
    object of labels by name, or a list of names.

    Raises:
        UsageError: it is neither, or a class is there twice.
    """
    text = spec.strip()
    if text.startswith(("{", "[")):
        return _json_groups(spec)
    groups: Groups = {}
    for part in _split(text, ","):
        head, *rest = _split(part, "=", 1)
        name = _unquoted(head)
        labels = [_unquoted(label) for piece in rest for label in _split(piece, "+")]
        if not name or not all(labels):
            raise UsageError(
                f"--classes '{spec}': '{part.strip()}' is not NAME or NAME=LABEL+LABEL (put names "
                'with , + = in "double quotes")'
            )
        if name in groups:
            raise UsageError(f"--classes '{spec}': class '{name}' is there twice")
        groups[name] = labels or [name]
    return groups


def write_groups(groups: Mapping[str, Sequence[str]]) -> str:
    """The inverse of `parse_groups`."""
    return ",".join(
        f"{_quoted(name)}={'+'.join(_quoted(label) for label in labels)}"
        for name, labels in groups.items()
    )


def read_spec(spec: str | None) -> str | None:
    """`--classes` text; `@FILE` is replaced by the file's content (JSON, or the text itself).

    Raises:
        UsageError: the file cannot be read.
    """
    if spec is None or not spec.startswith("@"):
        return spec
    try:
        return read_bytes(spec[1:]).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes '{spec}': the file cannot be read: {error}") from error


def recorded_groups(spec: str, class_names: Sequence[str]) -> Groups:
    """The mapping in a bundle's recipe; of bundles from before names were quoted, too.

    Args:
        spec: `ClassMap.to_spec`, or what an older version wrote.
        class_names: the bundle's, in its order.

    Raises:
        UsageError: it cannot be read in any way.
    """
    try:
        groups = parse_groups(spec)
    except UsageError:
        groups = {}
    return groups if {*groups} == {*class_names} else _unquoted_groups(spec, class_names)


def named_labels(groups: Groups, present: Iterable[str]) -> dict[str, str]:
    """Class by label, for the labels that occur.

    Raises:
        UsageError: a label does not occur, or is named twice.
    """
    known = sorted(set(present))
    found: dict[str, str] = {}
    for name, members in groups.items():
        for member in members:
            label = _among(member, known)
            if label is None:
                raise UsageError(
                    f"--classes: no scan has the label '{member}'; there are "
                    f"{', '.join(known) or 'none'}"
                )
            if label in found:
                raise UsageError(f"--classes: '{label}' is named twice; once is allowed")
            found[label] = name
    return with_variants(found, known)


def occurring(groups: Groups, present: Iterable[str]) -> Groups:
    """A mapping without the labels that do not occur, and without classes that have no others."""
    known = sorted(set(present))
    named = {member for members in groups.values() for member in members}

    def occurs(member: str) -> bool:
        label = _among(member, known)
        return label is not None and (label == member or label not in named)

    kept = {name: [m for m in members if occurs(m)] for name, members in groups.items()}
    return {name: members for name, members in kept.items() if members}


def with_variants(of_label: Mapping[str, str], present: Iterable[str]) -> dict[str, str]:
    """The same with labels that are written otherwise, where they can mean one class only."""
    by_key: dict[str, set[str]] = {}
    for label, name in of_label.items():
        by_key.setdefault(label_key(label), set()).add(name)
    variants = {}
    for label in sorted(set(present) - of_label.keys()):
        names = by_key.get(label_key(label), set())
        if len(names) == 1:
            variants[label] = next(iter(names))
    return {**of_label, **variants}


def with_named_folders(catalog: pa.Table, groups: Groups | None, column: str = "label") -> pa.Table:
    """The catalog with labels from folders that a mapping names, such as `1`, `2` and `3`.

    Only scans that have no label, or one that is a folder's name and is not named, get another.
    """
    named = {clean_label(label) for members in (groups or {}).values() for label in members}
    labels = catalog[column].to_pylist()
    paths = catalog["path"].to_pylist()
    changed = [_named_folder(label, path, named) for label, path in zip(labels, paths, strict=True)]
    if not named or changed == labels:
        return catalog
    index = catalog.column_names.index(column)
    return catalog.set_column(index, column, pa.array(changed, pa.string()))


def _named_folder(label: str | None, path: str, named: set[str]) -> str | None:
    folders = [clean_label(part) for part in path.split("/")[:-1]]
    if label is not None and (label in named or label not in folders):
        return label
    return next((folder for folder in reversed(folders) if folder in named), label)


def _variants(of_label: Mapping[str, str]) -> list[str]:
    by_key: dict[tuple[str, str], list[str]] = {}
    for label, name in sorted(of_label.items()):
        by_key.setdefault((name, label_key(label)), []).append(label)
    return [
        f"labels {' and '.join(repr(label) for label in same)} are one class, '{name}'; name each "
        "in --classes to keep them apart"
        for (name, _), same in by_key.items()
        if len(same) > 1
    ]


def _each_its_own(counts: Counter[str]) -> dict[str, str]:
    """Every label is a class, named by the commonest way to write it."""
    names: dict[str, str] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        names.setdefault(label_key(label), label)
    return {label: names[label_key(label)] for label in sorted(counts)}


def _among(member: str, known: Sequence[str]) -> str | None:
    """The label that is meant: exactly, else the only one that is written otherwise."""
    if member in known:
        return member
    same = [label for label in known if label_key(label) == label_key(member)]
    return same[0] if same else None


def _split(text: str, separator: str, most: int = -1) -> list[str]:
    """Split where the separator is not inside double quotes."""
    parts, inside, before = [""], False, ","
    for letter in text:
        if letter == '"' and (inside or before in ',=+"'):  # elsewhere it is a part of the name
            inside = not inside
        before = letter if letter.strip() else before
        if letter == separator and not inside and most != len(parts) - 1:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _unquoted(piece: str) -> str:
    text = piece.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"')
    return text


def _quoted(text: str) -> str:
    plain = text and text == text.strip() and not re.search(r'[,+="]', text)
    if plain and text[0] not in "@[{":
        return text
    return '"' + text.replace('"', '""') + '"'


def _json_groups(spec: str) -> Groups:
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(list[str] | dict[str, str | list[str]]).validate_json(spec)
    except ValidationError as error:
        raise UsageError(
            f"--classes '{spec}' is no JSON object of labels by class, such as "
            '{"tumor": ["glioma", "pituitary"], "no": ["no_tumor"]}'
        ) from error
    if isinstance(found, list):
        return {name: [name] for name in found}
    return {name: [labels] if isinstance(labels, str) else labels for name, labels in found.items()}


def _unquoted_groups(spec: str, class_names: Sequence[str]) -> Groups:
    """What was written without quotes, `NAME=LABEL+...`, taken apart by the names it must have."""
    groups: Groups = {}
    for name, following in zip(class_names, (*class_names[1:], None), strict=True):
        start = f"{name}="
        end = len(spec) if following is None else spec.find(f",{following}=", len(start))
        if not spec.startswith(start) or end < 0:
            raise UsageError(
                f"the bundle's classes ({', '.join(class_names)}) are not those of its recipe "
                f"('{spec}'); train it again, or give labels that are its classes"
            )
        members = spec[len(start) : end]
        groups[name] = [name] if members == name else members.split("+")
        spec = spec[end + 1 :]
    return groups


def _healthy(classes: tuple[str, ...], negative: Sequence[str]) -> tuple[str, ...]:
    """The classes that mean 'no tumor'; there may be none."""
    keys = {label_key(name) for name in negative}
    healthy = tuple(name for name in classes if label_key(name) in keys)
    if healthy == classes:
        raise UsageError(
            f"every class ({', '.join(classes)}) is listed in data.negative_classes; "
            "set it to those that mean 'no tumor'"
        )
    return healthy
