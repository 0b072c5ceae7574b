"""A browser's change to a scan, checked, as an event of the file of labels."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from braintumor_ray.catalog.reviewed import Event

Fraction = Annotated[float, Field(ge=0, le=1)]


class Change(BaseModel):
    """One thing that a reviewer did: a verdict, boxes or a note; what is left out stays as it was.

    `id` is made by the browser: sent twice, it is one event. `results` are those it was shown.
    """

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern="^[0-9A-Za-z-]{8,64}$")
    scan: str = Field(pattern="^[0-9a-f]{16}$")
    results: str | None = Field(None, max_length=64)
    reviewer: str = Field("", max_length=80)
    verdict: Literal["right", "wrong"] | None = None
    label: str | None = Field(None, max_length=200)
    boxes: list[tuple[Fraction, Fraction, Fraction, Fraction]] | None = Field(None, max_length=64)
    note: str | None = Field(None, max_length=4000)

    @model_validator(mode="after")
    def _is_whole(self) -> "Change":
        if not self.model_fields_set & {"verdict", "label", "boxes", "note"}:
            raise ValueError("nothing is said of the scan; send verdict, label, boxes or note")
        for x_min, y_min, x_max, y_max in self.boxes or ():
            if x_min >= x_max or y_min >= y_max:
                raise ValueError("a box is x_min < x_max, y_min < y_max, in fractions from 0 to 1")
        return self

    def event(self, facts: dict[str, Any], class_names: Sequence[str], reviewer: str) -> Event:
        """The event of a scan; verdict and label are set together.

        Args:
            facts: of the scan: `path`, `frame`, `scan_id`, `pixel_sha256`, `predicted_class`, and
                `bundle`, the fingerprint.
            class_names: what a label may be.
            reviewer: where the browser names none.

        Raises:
            ValueError: the label is no class.
        """
        made: Event = {"id": self.id, "reviewer": self.reviewer or reviewer, **facts}
        if self.model_fields_set & {"verdict", "label"}:
            made |= self._judged(facts["predicted_class"], class_names)
        if "boxes" in self.model_fields_set:
            made["boxes"] = [[round(v, 5) for v in box] for box in self.boxes or ()]
        if "note" in self.model_fields_set:
            made["note"] = (self.note or "").strip()
        return made

    def _judged(self, predicted: str, class_names: Sequence[str]) -> dict[str, str | None]:
        label, verdict = self.label, self.verdict
        if label is not None and label not in class_names:
            raise ValueError(f"'{label}' is no class; use {', '.join(class_names)}")
        if label is not None:
            return {"verdict": "right" if label == predicted else "wrong", "label": label}
        others = [name for name in class_names if name != predicted]
        if verdict == "wrong":  # of two classes it is the other one
            return {"verdict": "wrong", "label": others[0] if len(others) == 1 else None}
        return {"verdict": verdict, "label": predicted if verdict == "right" else None}
