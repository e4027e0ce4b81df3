"""The card: what an audit found of one method, as plain figures in one checked JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, overload

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ppfr.networks import Recogniser
from ppfr.util.errors import AttackError
from ppfr.util.files import atomic_write

SCHEMA_VERSION: Literal[1] = 1
CARD_FILE = "card.json"
# of the way from chance to the ceiling: what an attack must get from a weakened target for its results to count
CONTROL_SHARE = 0.5

Status = Literal["reliable", "unreliable", "no judge", "not applicable"]
NO_JUDGE = "no judge: identification not measured"


def _rounded(value: float) -> float:
    """Six digits: more would be noise, and would differ between machines."""
    return float(f"{value:.6g}")


Number = Annotated[float, AfterValidator(_rounded)]


class CardPart(BaseModel):
    """A part of a card; unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(CardPart):
    """A measured value with its 95 % bootstrap interval over people."""

    value: Number
    low: Number
    high: Number


class FurtherEstimate(Estimate):
    """A measure beside the leak, with its values for clear photos and for guessing where they are known."""

    ceiling: Number | None = None
    chance: Number | None = None


class ThreatRecord(CardPart):
    """A threat model: what the attacker sees, knows and has, and the same in one line."""

    sees: str
    knows: str
    has: list[str]
    pairs: int = Field(ge=0)
    text: str


class LeakEstimate(CardPart):
    """What an attack got, against what the same search gets from clear photos and from guessing.

    `privacy` is 1 - (leak - chance) / (ceiling - chance) within [0,1].
    """

    measure: str
    leak: Estimate
    ceiling: Estimate
    chance: Number
    privacy: Number
    people: int = Field(ge=1)


class Control(CardPart):
    """The same attack on a target that it should break: whether it works at all."""

    target: str
    result: LeakEstimate
    passed: bool


class Finding(CardPart):
    """One attack: its threat model, its leak, and the control that shows whether it works.

    `status` is "reliable" when the attack succeeded on a weakened target, "unreliable" when it did not, "no judge" when
    it recovered images but no judge identified them, "not applicable" when it did not run. `finds_people` is whether
    the leak is an identity rather than an attribute or a link between two templates. Only reliable findings of
    identities count towards the verdict. `further` holds measures beside the leak.
    """

    attack: str
    title: str
    threat: ThreatRecord | None
    status: Status
    reason: str = ""
    finds_people: bool = True
    result: LeakEstimate | None = None
    control: Control | None = None
    further: dict[str, FurtherEstimate] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    notes: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Finding:
        if (self.status == "not applicable") != (self.threat is None):
            raise ValueError(f"{self.attack} is {self.status!r}: an attack that ran has a threat")
        if (self.status in ("reliable", "unreliable")) != (self.result is not None):
            raise ValueError(f"{self.attack} is {self.status!r}: an attack whose leak was measured has a result")
        passed = self.control is not None and self.control.passed
        if (self.status == "reliable") != passed:
            raise ValueError(f"{self.attack} is {self.status!r} but its control passed: {passed}")
        return self


class Audited(CardPart):
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


class Network(CardPart):
    """A recogniser that took part: judge, attacker's recogniser or teacher."""

    name: str
    sha256: str
    preprocessing: str = ""

    @overload
    @classmethod
    def of(cls, recogniser: Recogniser) -> Network: ...
    @overload
    @classmethod
    def of(cls, recogniser: None) -> None: ...
    @classmethod
    def of(cls, recogniser: Recogniser | None) -> Network | None:
        """The record of a recogniser; None for none."""
        if recogniser is None:
            return None
        return cls(name=recogniser.name, sha256=recogniser.sha256, preprocessing=str(recogniser.preprocessing))

    def describe(self) -> str:
        """Name and preprocessing in one line."""
        return f"{self.name} ({self.preprocessing})" if self.preprocessing else self.name


class AuditedFaces(CardPart):
    """Whose faces were used: the attacked, their other photos, and those of other people the attacker has."""

    name: str
    people: int
    photos: int
    public_faces: int
    public_people: int
    synthetic: bool


class Times(CardPart):
    """All that differs between two runs of the same audit."""

    started: str
    seconds: float
    attacks: dict[str, float]


class Card(CardPart):
    """What an audit found of one method.

    Two audits with the same seed on the same machine differ in `times` at most. `privacy` is that of the worst reliable
    attack, None where no attack was reliable.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    method: Audited
    faces: AuditedFaces
    judge: Network | None = Field(description="who identified recovered images; None: nobody did")
    recogniser: Network | None
    teacher: Network | None
    profile: str
    seed: int
    cut: list[str] = Field(description="what the profile leaves out or makes smaller than the full audit")
    accuracy: Estimate | None = Field(description="pair accuracy of the method itself")
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


def estimate_leak(measure: str, leak: Estimate, ceiling: Estimate, chance: float, people: int) -> LeakEstimate:
    """Put a leak between chance and ceiling; raises AttackError where the ceiling is no better than chance."""
    chance = _rounded(chance)
    room = ceiling.value - chance
    if room <= 0:
        raise AttackError(
            f"{measure}: clear photos give {ceiling.value:.1%}, chance {chance:.1%}; a judge that only guesses cannot "
            "measure a leak. Give another judge, or aligned faces"
        )
    privacy = min(1.0, max(0.0, 1 - (leak.value - chance) / room))
    return LeakEstimate(measure=measure, leak=leak, ceiling=ceiling, chance=chance, privacy=privacy, people=people)


def proves(control: LeakEstimate) -> bool:
    """Whether an attack got enough from its weakened target for its result elsewhere to count."""
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
    unjudged = [finding for finding in findings if finding.status == "no judge"]
    doubt = f" ({unreliable} attack{'s' if unreliable > 1 else ''} unreliable, not counted)" if unreliable else ""
    if worst is None or worst.result is None:
        if unjudged:
            return f"{title}: {NO_JUDGE}{_likeness(unjudged)}{doubt}."
        if findings and not any(finding.finds_people for finding in findings):
            return f"{title}: identification not measured, because no attack that identifies people was run."
        return f"{title}: nothing can be said, because no attack succeeded on a weakened target{doubt}."
    result = worst.result
    against = f"clear photos {result.ceiling.value:.0%}, chance {result.chance:.0%}"
    missing = f"; recovered images: {NO_JUDGE}" if unjudged else ""
    return (
        f"{title} {judgement(result.privacy)}: privacy score {result.privacy:.2f}; {worst.title.lower()} gets "
        f"{result.leak.value:.0%} ({result.measure}; {against}){doubt}{missing}."
    )


def judgement(privacy: float) -> str:
    """A privacy score in words."""
    for limit, words in (
        (0.1, "hides nobody"),
        (0.5, "hides few people"),
        (0.9, "hides some people and exposes others"),
    ):
        if privacy < limit:
            return words
    return "withstood these attacks, which is no proof"


def _likeness(findings: Sequence[Finding]) -> str:
    """How similar the best recovery is to the photo."""
    found = [
        (finding.further["SSIM"].value, finding.title.lower()) for finding in findings if "SSIM" in finding.further
    ]
    if not found:
        return ""
    value, title = max(found)
    return f"; {title} recovers images with a mean SSIM of {value:.2f} to the photos"
