"""Options, each declared once: a field of a dataclass whose annotation carries its help and limits.

    seed: Annotated[int, Option("Of the shuffle.", least=0)] = 0

The library takes these dataclasses; `cli.options` builds the command line from their fields.
Modules of options import nothing heavy: `--help` reads all of them.
"""

from collections.abc import Callable
from dataclasses import Field, dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from braintumor_ray.choices import CamClass, EngineChoice, Precision
from braintumor_ray.errors import UsageError

T = TypeVar("T")
FIRST = "Options"  # the panel of what everybody needs


@dataclass(frozen=True)
class Option:
    """What a command line shows and checks of a field; its choices are those of its `Literal`.

    Attributes:
        help: one sentence.
        metavar: what the value is; none: the choices, or by its type.
        flags: spellings; none: made of the field's name.
        panel: subject in `--help`; None: `PANEL` of the dataclass, else the first.
        least, most: limits of a number.
        parse: makes the field's value of the typed text.
        typed: the default as it is typed, where it is not the field's own.
        pattern: regular expression that a text must match.
        hidden: not on the command line: a setting in files only.
    """

    help: str
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    panel: str | None = None
    least: float | None = None
    most: float | None = None
    parse: Callable[[str], Any] | None = None
    typed: str | None = None
    pattern: str | None = None
    hidden: bool = False


@dataclass(frozen=True)
class MadeOf:
    """The field's value is made of options that another dataclass declares."""

    declared: type
    make: Callable[[Any], Any]


Bundle = Annotated[
    str,
    Option("Folder or URI: RUN/bundle of a run.", "BUNDLE", flags=("--bundle", "-b"), panel=FIRST),
]
Device = Annotated[str, Option("Where the network runs.", "auto|cpu|cuda", panel="Model")]
PrecisionOption = Annotated[
    Precision,
    Option("Numbers of the network; auto: bf16 where the hardware gains.", panel="Model"),
]
TtaOption = Annotated[
    bool,
    Option(
        "Average over mirrored and turned views: six times the work.",
        flags=("--tta",),
        panel="Model",
    ),
]
ENGINE = Option("What runs the network; auto: the fastest measured here.", panel="Model")
EngineOption = Annotated[EngineChoice, ENGINE]
CamClassOption = Annotated[
    CamClass,
    Option("Map of the predicted class, or of the likeliest positive one.", panel="Model"),
]
TokenFile = Annotated[
    str | None,
    Option("Token that requests must carry; else BRAINTUMOR_TOKEN.", "FILE", panel="Network"),
]


def annotated(field: Field[Any], kind: type[T]) -> T | None:
    """What of a kind, `Option` or `MadeOf`, the field's annotation carries."""
    extras = get_args(field.type)[1:] if get_origin(field.type) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, kind)), None)


def type_of(field: Field[Any]) -> Any:  # noqa: ANN401 - a type
    """The type of an annotated field, without None."""
    kind = get_args(field.type)[0]
    if get_origin(kind) in (Union, UnionType):
        return next(each for each in get_args(kind) if each is not NoneType)
    return kind


def choices_of(kind: Any) -> tuple[str, ...]:  # noqa: ANN401 - a type
    """The values of a `Literal`; none: any value of the type."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def parse_range(option: str, text: str, least: int = 1) -> int | tuple[int, int]:
    """`N` or `MIN:MAX`: N and MAX at least 1, MIN at least `least`.

    Raises:
        UsageError: neither.
    """
    parts = text.split(":")
    if all(part.isascii() and part.isdigit() for part in parts):
        numbers = [int(part) for part in parts]
        if len(numbers) == 1 and numbers[0] > 0:
            return numbers[0]
        if len(numbers) == 2 and least <= numbers[0] <= numbers[1] > 0:
            return numbers[0], numbers[1]
    raise UsageError(f"{option} '{text}' is neither a number such as 4 nor a range such as 2:8")
