"""The card: what an audit found of one method, as plain figures in one checked JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ppfr.util.errors import AttackError
from ppfr.util.files import atomic_write

SCHEMA_VERSION: Literal[1] = 1
CARD_FILE = "card.json"
# of the way from chance to the ceiling: what an attack must get from a weakened target to be believed
CONTROL_SHARE = 0.5

Status = Literal["reliable", "unreliable", "not applicable"]


def _rounded(value: float) -> float:
    """Six digits: more would be noise, and would differ between machines."""
    return float(f"{value:.6g}")


Number = Annotated[float, AfterValidator(_rounded)]


class Part(BaseModel):
    """A part of a card; unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(Part):
    """A measured value with its 95 % bootstrap interval over people."""

    value: Number
    low: Number
    high: Number


class Beside(Figure):
    """A further measure, with what clear photos and guessing give where that is known."""

    ceiling: Number | None = None
    chance: Number | None = None


class Attacker(Part):
    """A threat model: what the attacker sees, knows and has, and the same in one line."""

    sees: str
    knows: str
    has: list[str]
    pairs: int = Field(ge=0)
    text: str


class Measured(Part):
    """What an attack got, against what the same search gets from clear photos and from guessing.

    `privacy` is 1 - (leak - chance) / (ceiling - chance) within [0,1].
    """

    measure: str
    leak: Figure
    ceiling: Figure
    chance: Number
    privacy: Number
    people: int = Field(ge=1)


class Control(Part):
    """The same attack on a target that it should break: whether it works at all."""

    target: str
    result: Measured
    passed: bool


class Finding(Part):
    """One attack: under which threat model it ran, what it got, and whether it proved itself on a weakened target.

    `finds_people` is whether what it got is whose face it is, rather than a trait or a link of two templates.
    Only reliable findings that do so count towards the verdict. `further` holds measures beside the leak.
    """

    attack: str
    title: str
    threat: Attacker | None
    status: Status
    reason: str = ""
    finds_people: bool = True
    result: Measured | None = None
    control: Control | None = None
    further: dict[str, Beside] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    notes: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Finding:
        if (self.status != "not applicable") != (self.result is not None and self.threat is not None):
            raise ValueError(f"{self.attack} is {self.status!r}: an attack that ran has a threat and a result")
        passed = self.control is not None and self.control.passed
        if (self.status == "reliable") != passed:
            raise ValueError(f"{self.attack} is {self.status!r} but its control passed: {passed}")
        return self


class Audited(Part):
    """The method under audit and what one query of it sends."""

    name: str
    title: str
    paper: str
    protects: bool
    secrets: list[str]
    departures: str
    payload: str
    payload_bytes: int
    settings: dict[str, Any] = Field(description="options of the payload that may change after training")
    sha256: str | None = Field(description="of the run's model file; None for a method that was not loaded from one")


class Network(Part):
    """A recogniser that took part: judge, attacker's recogniser or teacher."""

    name: str
    sha256: str
    preprocessing: str = ""


class Faces(Part):
    """Whose faces were used: the attacked, their other photos, and those of other people the attacker has."""

    name: str
    people: int
    photos: int
    public_faces: int
    public_people: int
    synthetic: bool


class Times(Part):
    """All that differs between two runs of the same audit."""

    started: str
    seconds: float
    attacks: dict[str, float]


class Card(Part):
    """What an audit found of one method.

    Two audits with the same seed on the same machine differ in `times` at most. `privacy` is that of the worst reliable
    attack, None where no attack was reliable.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    method: Audited
    faces: Faces
    judge: Network
    recogniser: Network | None
    teacher: Network | None
    profile: str
    seed: int
    cut: list[str] = Field(description="what the profile leaves out or makes smaller than the full audit")
    accuracy: Figure | None = Field(description="pair accuracy of the method itself")
    findings: list[Finding]
    privacy: Number | None
    worst: str | None
    verdict: str
    versions: dict[str, str]
    times: Times

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        worst = worst_finding(self.findings)
        name, score = (None, None) if worst is None else (worst.attack, _score(worst))
        if (self.worst, self.privacy) != (name, score):
            raise ValueError(
                f"worst {self.worst!r} with privacy {self.privacy}; the findings say {name!r} with privacy {score}"
            )
        return self

    def to_json(self) -> str:
        """The card as JSON text, keys in a fixed order."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def save(self, folder: Path | str) -> Path:
        """Write `card.json` into a folder, atomically; returns its path."""
        path = Path(folder) / CARD_FILE
        atomic_write(path, self.to_json())
        return path


def load_card(path: Path | str) -> Card:
    """Read a card from its file or from the folder that holds it; raises AttackError naming what is wrong with it."""
    file = Path(path)
    file = file / CARD_FILE if file.is_dir() else file
    if not file.is_file():
        raise AttackError(
            f"{file} does not exist; write a card with `ppfr audit RUN --data DIR --judge FILE --out DIR`"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise AttackError(
                f"{file} has schema version {version!r}; this ppfr reads version {SCHEMA_VERSION}. Audit the run again"
            )
        return Card.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "card"
        raise AttackError(f"{file}: {place}: {first['msg']} ({error.error_count()} problems in all)") from error
    except ValueError as error:
        if isinstance(error, AttackError):
            raise
        raise AttackError(f"{file} is not JSON: {error}") from error


def measured(measure: str, leak: Figure, ceiling: Figure, chance: float, people: int) -> Measured:
    """Put a leak between chance and ceiling; raises AttackError where the ceiling is no better than chance."""
    chance = _rounded(chance)
    room = ceiling.value - chance
    if room <= 0:
        raise AttackError(
            f"{measure}: clear photos give {ceiling.value:.1%}, chance {chance:.1%}; a judge that only guesses cannot "
            "measure a leak. Give another judge, or aligned faces"
        )
    privacy = min(1.0, max(0.0, 1 - (leak.value - chance) / room))
    return Measured(measure=measure, leak=leak, ceiling=ceiling, chance=chance, privacy=privacy, people=people)


def proves(control: Measured) -> bool:
    """Whether an attack got enough from its weakened target to be believed elsewhere."""
    return control.privacy <= 1 - CONTROL_SHARE


def worst_finding(findings: Sequence[Finding]) -> Finding | None:
    """The reliable finding of people with the least privacy, the first of equals; None without a reliable one."""
    reliable = [finding for finding in findings if finding.status == "reliable" and finding.finds_people]
    return min(reliable, key=_score, default=None)


def _score(finding: Finding) -> float:
    return math.inf if finding.result is None else finding.result.privacy


def verdict(title: str, findings: Sequence[Finding]) -> str:
    """The audit in one line."""
    worst = worst_finding(findings)
    unreliable = sum(finding.status == "unreliable" for finding in findings)
    doubt = f" ({unreliable} attack{'s' if unreliable > 1 else ''} unreliable, not counted)" if unreliable else ""
    if findings and not any(finding.finds_people for finding in findings):
        return f"{title}: nothing is said of who can be found, because no attack that looks for people was run."
    if worst is None or worst.result is None:
        return f"{title}: nothing can be said, because no attack proved itself on a weakened target{doubt}."
    result = worst.result
    score = result.privacy
    judgement = (
        "hides nobody"
        if score < 0.1
        else "hides few people"
        if score < 0.5
        else "hides some people and exposes others"
        if score < 0.9
        else "withstood these attacks, which is no proof"
    )
    against = f"clear photos {result.ceiling.value:.0%}, chance {result.chance:.0%}"
    return (
        f"{title} {judgement}: privacy score {score:.2f}; {worst.title.lower()} gets {result.leak.value:.0%} "
        f"({result.measure}; {against}){doubt}."
    )
