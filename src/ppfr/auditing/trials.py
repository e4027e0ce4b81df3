"""One attack on one target: run in chunks, measured, and judged by a control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppfr.attacks.base import Attack, PreparedAttack, Result
from ppfr.attacks.learned.features import FeatureCache
from ppfr.attacks.metrics import Figure, MetricContext
from ppfr.attacks.public_data import PublicFaces
from ppfr.attacks.threat import Sees, ThreatModel, held
from ppfr.auditing.card import (
    NO_JUDGE,
    Control,
    Estimate,
    Finding,
    FurtherEstimate,
    LeakEstimate,
    ThreatRecord,
    estimate_leak,
    proves,
)
from ppfr.auditing.controls import weakened
from ppfr.auditing.scenes import Scene, Scenes
from ppfr.evaluation.metrics.statistics import Interval
from ppfr.methods.common.method import Method
from ppfr.networks import Recogniser
from ppfr.util.errors import AttackError, MethodError
from ppfr.util.memory import release_memory
from ppfr.util.progress import progress_callback

# bytes of payloads that are attacked at once
_CHUNK = 200_000_000


@dataclass(frozen=True)
class Trial:
    """What an attack obtained from one target, with all figures by name."""

    result: Result
    figures: Mapping[str, Figure]
    scene: Scene

    @property
    def identified(self) -> bool:
        """Whether there is a leak, which recovered images have only with a judge."""
        return self.result.pictures is None or any(figure.counts for figure in self.figures.values())

    def leak(self) -> LeakEstimate:
        """The leak between chance and ceiling; raises AttackError where no figure counts as one."""
        figure = next((figure for figure in self.figures.values() if figure.counts), None)
        if figure is None:
            raise AttackError(f"{self.result.attack} gave nothing that can be measured: {sorted(self.figures)}")
        return estimate_leak(
            figure.title + (f", by {figure.by}" if figure.by else ""),
            estimate(figure.value, figure.interval),
            estimate(1.0 if figure.ceiling is None else figure.ceiling, figure.ceiling_interval),
            figure.chance,
            len(np.unique(self.scene.truth.people)),
        )


@dataclass
class Trials:
    """Attacks by one attacker, who holds `faces` and `recogniser`, on people from `scenes`; `judge` identifies."""

    method: Method
    scenes: Scenes
    faces: PublicFaces
    judge: Recogniser | None
    recogniser: Recogniser | None
    _controls: dict[bool, Method] = field(default_factory=dict)
    _features: FeatureCache = field(default_factory=FeatureCache)

    def find(self, attack: Attack[Any]) -> tuple[Finding, Trial | None]:
        """Attack the method, and where a leak was measured the weakened target; None where the attack does not run."""
        described: dict[str, Any] = {
            "attack": attack.name,
            "title": attack.title,
            "finds_people": attack.finds_people,
            "options": attack.options.model_dump(mode="json"),
        }
        profile = self.scenes.profile
        try:
            threat = attack.needs(self.method.info, held(self.faces, self.recogniser, None))
            trial = self._run(attack, self.method, threat, profile.people, attack.title)
            leak = trial.leak() if trial.identified else None
        except (AttackError, MethodError) as error:
            return Finding(threat=None, status="not applicable", reason=str(error), **described), None
        control, reason = (None, NO_JUDGE) if leak is None else self._control(attack, threat)
        passed = control is not None and control.passed
        finding = Finding(
            threat=_record(trial.result.threat),
            status="no judge" if leak is None else "reliable" if passed else "unreliable",
            reason=reason,
            result=leak,
            control=control,
            further={figure.title: _further(figure) for figure in trial.figures.values() if not figure.counts},
            notes=dict(trial.result.notes),
            **described,
        )
        return finding, trial

    def measure(self, result: Result, scene: Scene) -> Trial:
        """A result with its figures."""
        return Trial(result, result.measure(MetricContext(scene.truth, self.judge, self.recogniser)), scene)

    def _control(self, attack: Attack[Any], threat: ThreatModel) -> tuple[Control | None, str]:
        """The attack on a weakened target, and the reason why it does not count, if it does not."""
        templates = threat.sees is Sees.TEMPLATES
        try:
            # one target for all attacks, which may share what they learn of it
            if templates not in self._controls:
                self._controls[templates] = weakened(self.method, self.recogniser, templates=templates)
            target = self._controls[templates]
            # an attacker who knows the deployment's secrets knows those of the weakened target, too
            known = attack.needs(target.info, held(self.faces, self.recogniser, None))
            title = f"{attack.title}, weakened target"
            leak = self._run(attack, target, known, self.scenes.profile.control_people, title).leak()
        except (AttackError, MethodError) as error:
            return None, f"its control did not run: {error}"
        control = Control(target=target.info.title, result=leak, passed=proves(leak))
        got = f"{leak.leak.value:.0%} (clear photos {leak.ceiling.value:.0%}, chance {leak.chance:.0%})"
        return control, "" if control.passed else f"on {control.target} it got only {got}"

    def _run(self, attack: Attack[Any], target: Method, threat: ThreatModel, people: int | None, title: str) -> Trial:
        profile = self.scenes.profile
        scene = self.scenes.draw(threat.sees, people)
        with progress_callback(f"{self.method.info.name}: {title.lower()}") as progress:
            prepared = attack.prepare(
                target,
                faces=self.faces,
                recogniser=self.recogniser,
                threat=threat,
                payloads_per_image=profile.views if threat.sees.several else 1,
                cache=self._features,
                budget=profile.budget,
                seed=self.scenes.seed,
                progress=progress,
            )
            release_memory()
            result = _in_chunks(prepared, target, scene)
        trial = self.measure(result, scene)
        release_memory()
        return trial


def _in_chunks(prepared: PreparedAttack[Any], target: Method, scene: Scene) -> Result:
    """Attack some rows after others, so that the payloads of all people need not be held at once."""
    views, sees = prepared.attacker.payloads_per_image, prepared.attacker.threat.sees
    size = max(1, _CHUNK // (views * max(1, target.schema.nbytes)))
    found = []
    for first in range(0, len(scene), size):
        rows = range(first, min(first + size, len(scene)))
        found.append(prepared([scene.payload(target, rows, sees, view) for view in range(views)]))
    joined: Result = found[0].join(found[1:])
    return joined


def estimate(value: float, interval: Interval | None) -> Estimate:
    """A figure of the card; without an interval it is the value itself."""
    low, high = (value, value) if interval is None else interval
    return Estimate(value=value, low=low, high=high)


def _further(figure: Figure) -> FurtherEstimate:
    low, high = figure.interval
    return FurtherEstimate(value=figure.value, low=low, high=high, ceiling=figure.ceiling, chance=figure.chance)


def _record(threat: ThreatModel) -> ThreatRecord:
    return ThreatRecord(
        sees=str(threat.sees),
        knows=str(threat.knows),
        has=sorted(str(item) for item in threat.has),
        pairs=threat.pairs,
        text=str(threat),
    )


__all__ = ["Trial", "Trials", "estimate"]
