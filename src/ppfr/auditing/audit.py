"""The audit: every attack on one method, each under its threat model and proven on a weakened target, and the card."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppfr.attacks import metrics
from ppfr.attacks.attacker import PublicFaces, held, stored_templates
from ppfr.attacks.base import Attack, PreparedAttack, Recovery, Result, attack_class, attack_names, create_attack
from ppfr.attacks.metrics import MetricContext, Truth
from ppfr.attacks.threat import Sees, ThreatModel
from ppfr.auditing.card import (
    Attacker,
    Audited,
    Beside,
    Card,
    Control,
    Faces,
    Figure,
    Finding,
    Measured,
    Network,
    Times,
    measured,
    proves,
    verdict,
    worst_finding,
)
from ppfr.auditing.controls import weakened
from ppfr.auditing.profiles import Profile, find_profile
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.data.sources import open_splits
from ppfr.evaluation.cost import evaluating
from ppfr.evaluation.evaluate import evaluate_pairs
from ppfr.evaluation.metrics.identification import draw_search
from ppfr.evaluation.metrics.statistics import Interval
from ppfr.methods.common.base import Method
from ppfr.methods.common.files import MODEL_FILE, load_method
from ppfr.methods.common.payload import Payload
from ppfr.networks import Recogniser
from ppfr.training.run import Run, versions
from ppfr.util.errors import AttackError, MethodError
from ppfr.util.files import sha256_file
from ppfr.util.memory import release_memory
from ppfr.util.progress import progress_callback

# bytes of payloads that are attacked at once
_MOST_BYTES = 200_000_000


@dataclass(frozen=True)
class Evidence:
    """What to show of an attack that recovers images: some rows with photo, payload, recovery and likeness.

    `labels` say why each row is shown; `photos` and `recovered` (n,3,H,W) are in [0,1]; `likeness` (n,) is the judge's
    cosine of the two.
    """

    title: str
    labels: tuple[str, ...]
    photos: Tensor
    sent: Payload
    recovered: Tensor
    likeness: tuple[float, ...]


@dataclass(frozen=True)
class Audit:
    """The card, and pictures to go with it: faces, which belong to no repository."""

    card: Card
    evidence: list[Evidence]


def audit(
    method: Method,
    data: str | Path | tuple[FaceSet, FaceSet],
    *,
    judge: Recogniser,
    recogniser: Recogniser | None = None,
    profile: Profile | str = "fast",
    with_attacks: Sequence[str | Attack[Any]] | None = None,
    seed: int = 0,
    teacher: Network | None = None,
    model_sha256: str | None = None,
) -> Audit:
    """Attack a method with all that applies, and say what leaks.

    `data` holds aligned faces: of its training people the attacker has photos, its test people are attacked (a source
    as for training, or the two sets). `judge` says whose face was recovered; it must be neither the method's `teacher`
    nor the attacker's own `recogniser`. `with_attacks` are attacks by name or made, by default all there are. The same
    `seed` gives the same card, times apart. Raises AttackError for a judge who took part or who only guesses, an
    unknown attack or profile; DataError for unusable faces; MethodError for a method that cannot protect.
    """
    refuse_partial_judge(judge, recogniser, teacher)
    thorough = find_profile(profile)
    chosen = attack_names() if with_attacks is None else with_attacks
    ready = [
        create_attack(attack, **thorough.options(attack_class(attack))) if isinstance(attack, str) else attack
        for attack in chosen
    ]
    size = method.input_size[0]
    public, test = open_splits(data, size=size, seed=seed) if isinstance(data, (str, Path)) else data
    run = _AuditRun(method, public, test, judge, recogniser, thorough, seed)
    return run.audit(ready, teacher, model_sha256)


def audit_run(
    run: str | Path,
    data: str | Path | tuple[FaceSet, FaceSet],
    *,
    judge: Recogniser,
    recogniser: Recogniser | None = None,
    profile: Profile | str = "fast",
    with_attacks: Sequence[str | Attack[Any]] | None = None,
    seed: int = 0,
    device: str = "cpu",
    settings: Mapping[str, Any] | None = None,
) -> Audit:
    """Audit a trained run, a folder or its `model.safetensors`, whose record names its teacher; else as `audit`.

    `settings` are those of the payload to change, as `Method.with_options` takes them.
    """
    method = load_method(run)
    method = (method.with_options(**settings) if settings else method).to(device)
    path = Path(run)
    folder = path if path.is_dir() else path.parent
    return audit(
        method,
        data,
        judge=judge,
        recogniser=recogniser,
        profile=profile,
        with_attacks=with_attacks,
        seed=seed,
        teacher=_teacher(folder),
        model_sha256=sha256_file(folder / MODEL_FILE if path.is_dir() else path),
    )


def refuse_partial_judge(judge: Recogniser, recogniser: Recogniser | None, teacher: Network | None) -> None:
    """Raise AttackError when the judge is the method's teacher or the attacker's recogniser, by the files' SHA-256."""
    for known, role in ((teacher, "the method's teacher"), (recogniser, "the attacker's own recogniser")):
        if known is not None and known.sha256 == judge.sha256:
            raise AttackError(
                f"the judge {judge.name} is {role} ({known.name}, SHA-256 {judge.sha256[:12]}…): it would judge its "
                "own work. Give a recogniser that neither the method nor the attacks were trained with"
            )


def _teacher(folder: Path) -> Network | None:
    """Who taught a run, from its record; None without a record or a teacher."""
    run = Run(folder)
    found = run.read_record().get("teacher") if run.record_file.is_file() else None
    return None if found is None else Network(name=found["name"], sha256=found["sha256"])


@dataclass(frozen=True)
class _Scene:
    """Who is attacked: images of each person by view, and the truth about them."""

    views: list[Tensor]
    truth: Truth

    @property
    def rows(self) -> int:
        return len(self.truth.people)


@dataclass(frozen=True)
class _Outcome:
    """What an attack got of one target."""

    result: Result
    figures: Mapping[str, metrics.Figure]
    scene: _Scene


@dataclass
class _AuditRun:
    """One audit at work."""

    method: Method
    public: FaceSet
    test: FaceSet
    judge: Recogniser
    recogniser: Recogniser | None
    profile: Profile
    seed: int
    _scenes: dict[tuple[bool, int | None], _Scene] = field(default_factory=dict)
    _controls: dict[bool, Method] = field(default_factory=dict)

    def audit(self, ready: Sequence[Attack[Any]], teacher: Network | None, model_sha256: str | None) -> Audit:
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        self.device = _device(self.method)
        self._check_client()
        self._check_judge()
        found = PublicFaces.of(self.public, self.profile.budget.faces)
        self.faces = found.to(self.device)
        accuracy = self._accuracy()
        findings, evidence, seconds = [], [], {}
        for attack in ready:
            began = time.perf_counter()
            finding, shown = self._try(attack)
            seconds[attack.name] = round(time.perf_counter() - began, 1)
            findings.append(finding)
            evidence += shown
        worst = worst_finding(findings)
        card = Card(
            method=self._audited(model_sha256),
            faces=self._described(),
            judge=_network(self.judge),
            recogniser=None if self.recogniser is None else _network(self.recogniser),
            teacher=teacher,
            profile=self.profile.name,
            seed=self.seed,
            cut=self.profile.cut(ready),
            accuracy=accuracy,
            findings=findings,
            privacy=None if worst is None or worst.result is None else worst.result.privacy,
            worst=None if worst is None else worst.attack,
            verdict=verdict(self.method.info.title, findings),
            versions=versions(),
            times=Times(started=started, seconds=round(time.perf_counter() - clock, 1), attacks=seconds),
        )
        return Audit(card, evidence)

    # --- one attack ---------------------------------------------------------------------------------------------
    def _try(self, attack: Attack[Any]) -> tuple[Finding, list[Evidence]]:
        """An attack's finding, and pictures if it recovers any."""
        options = attack.options.model_dump(mode="json")
        threat: ThreatModel | None = None
        try:
            threat = attack.needs(self.method.info, held(self.faces, self.recogniser, None))
            outcome = self._attack(attack, self.method, threat, self.profile.people, attack.title)
            result = self._measured(outcome)
        except (AttackError, MethodError) as error:
            return (
                Finding(
                    attack=attack.name,
                    title=attack.title,
                    threat=None,
                    status="not applicable",
                    reason=str(error),
                    finds_people=attack.finds_people,
                    options=options,
                ),
                [],
            )
        control, reason = self._prove(attack, threat)
        passed = control is not None and control.passed
        finding = Finding(
            attack=attack.name,
            title=attack.title,
            threat=_attacker(outcome.result.threat),
            status="reliable" if passed else "unreliable",
            reason=reason,
            finds_people=attack.finds_people,
            result=result,
            control=control,
            further={figure.title: _beside(figure) for figure in outcome.figures.values() if not figure.counts},
            options=options,
            notes=dict(outcome.result.notes),
        )
        return finding, self._evidence(attack, outcome)

    def _prove(self, attack: Attack[Any], threat: ThreatModel) -> tuple[Control | None, str]:
        """How the attack does on a weakened target, and why it is not believed, if it is not."""
        try:
            target = self._weakened(threat.sees is Sees.TEMPLATES)
            title = f"{attack.title}, weakened target"
            # the same attacker: who can take the deployment apart can take this one apart, too
            outcome = self._attack(attack, target, None, self.profile.control_people, title)
            result = self._measured(outcome)
        except (AttackError, MethodError) as error:
            return None, f"it could not prove itself: {error}"
        control = Control(target=target.info.title, result=result, passed=proves(result))
        got = f"{result.leak.value:.0%} (clear photos {result.ceiling.value:.0%}, chance {result.chance:.0%})"
        return control, "" if control.passed else f"on {control.target} it got only {got}"

    def _weakened(self, templates: bool) -> Method:
        """The target of controls; one for all attacks, which may share what they learn of it."""
        if templates not in self._controls:
            self._controls[templates] = weakened(self.method, self.recogniser, templates=templates)
        return self._controls[templates]

    def _attack(
        self, attack: Attack[Any], target: Method, threat: ThreatModel | None, people: int | None, title: str
    ) -> _Outcome:
        granted = attack.needs(target.info, held(self.faces, self.recogniser, None)) if threat is None else threat
        scene = self._scene(granted.sees, people)
        several = granted.sees in (Sees.PAYLOADS_OF_IMAGE, Sees.PAYLOADS_OF_PERSON)
        with progress_callback(f"{self.method.info.name}: {title.lower()}") as progress:
            prepared = attack.prepare(
                target,
                faces=self.faces,
                recogniser=self.recogniser,
                threat=granted,
                views=self.profile.views if several else 1,
                budget=self.profile.budget,
                seed=self.seed,
                progress=progress,
            )
            release_memory()
            result = self._in_portions(prepared, target, scene)
        outcome = _Outcome(result, result.measure(self._context(scene)), scene)
        release_memory()
        return outcome

    def _in_portions(self, prepared: PreparedAttack[Any], target: Method, scene: _Scene) -> Result:
        """Attack some rows after others, so that the payloads of all people need not be held at once."""
        views = prepared.attacker.views
        portion = max(1, _MOST_BYTES // (views * max(1, target.schema.nbytes)))
        found = []
        for first in range(0, scene.rows, portion):
            rows = range(first, min(first + portion, scene.rows))
            payloads = [self._sent(target, scene, view, rows, prepared.attacker.threat.sees) for view in range(views)]
            found.append(prepared(payloads))
            del payloads
        joined: Result = found[0].join(found[1:])
        return joined

    def _sent(self, target: Method, scene: _Scene, view: int, rows: Sequence[int], sees: Sees) -> Payload:
        """What the attacker sees of some rows; each view of each image has random draws of its own."""
        images = scene.views[view if len(scene.views) > 1 else 0]
        parts = []
        with evaluating(target), torch.no_grad():
            for row in rows:
                draws = torch.Generator(self.device).manual_seed(_stream(self.seed, view, row))
                parts.append(target.protect(images[row : row + 1], draws))
        payload = Payload.concatenate(parts)
        return stored_templates(target, payload) if sees is Sees.TEMPLATES else payload

    def _scene(self, sees: Sees, people: int | None) -> _Scene:
        """The people who are attacked; all attacks that see one payload or image a person share them."""
        key = (sees is Sees.PAYLOADS_OF_PERSON, people)
        if key not in self._scenes:
            self._scenes[key] = self._new_scene(self.profile.views if key[0] else 1, people)
        return self._scenes[key]

    def _new_scene(self, views: int, people: int | None) -> _Scene:
        search = draw_search(self.test.labels, probes=views, photos=self.profile.photos, seed=self.seed)
        probes = search.probes.reshape(-1, views)
        if people is not None and people < len(probes):
            drawn = np.random.default_rng(self.seed).permutation(len(probes))[:people]
            probes = probes[np.sort(drawn)]
        images = [self._tensor(probes[:, view]) for view in range(views)]
        truth = Truth(
            images[0],
            self.test.labels[probes[:, 0]],
            gallery=self._tensor(search.gallery),
            gallery_people=self.test.labels[search.gallery],
            seed=self.seed,
        )
        return _Scene(images, truth)

    def _tensor(self, rows: npt.NDArray[np.int64]) -> Tensor:
        return to_tensor(self.test.images(rows)).to(self.device)

    # --- measures -----------------------------------------------------------------------------------------------
    def _context(self, scene: _Scene) -> MetricContext:
        return MetricContext(scene.truth, self.judge, self.recogniser)

    def _measured(self, outcome: _Outcome) -> Measured:
        figure = next((figure for figure in outcome.figures.values() if figure.counts), None)
        if figure is None:
            raise AttackError(f"{outcome.result.attack} gave nothing that can be measured: {sorted(outcome.figures)}")
        people = len(np.unique(outcome.scene.truth.people))
        return measured(
            figure.title + (f", by {figure.by}" if figure.by else ""),
            _figure(figure.value, figure.interval),
            _figure(1.0 if figure.ceiling is None else figure.ceiling, figure.ceiling_interval),
            figure.chance,
            people,
        )

    def _evidence(self, attack: Attack[Any], outcome: _Outcome) -> list[Evidence]:
        """The recovery that the judge finds most like its photo, and the median one."""
        result, scene = outcome.result, outcome.scene
        if result.pictures is None:
            return []
        recovered, clear = (self.judge.embed(images) for images in (result.pictures * 2 - 1, scene.truth.originals))
        cosines = torch.nn.functional.cosine_similarity(recovered.double(), clear.double()).cpu()
        order = cosines.argsort(descending=True, stable=True).tolist()
        rows = [order[0], order[(len(order) - 1) // 2]]
        return [
            Evidence(
                title=attack.title,
                labels=("best", "median"),
                photos=(scene.truth.originals[rows] / 2 + 0.5).clamp(0, 1).cpu(),
                sent=Payload.concatenate(
                    self._sent(self.method, scene, 0, [row], result.threat.sees).to("cpu") for row in rows
                ),
                recovered=result.pictures[rows].cpu(),
                likeness=tuple(float(cosines[row]) for row in rows),
            )
        ]

    def _accuracy(self) -> Figure | None:
        """The method's own pair accuracy; None for one without a server."""
        most = self.profile.accuracy_images
        rows = np.arange(len(self.test))
        if most is not None:
            labels = self.test.labels
            rows = np.concatenate([np.flatnonzero(labels == label)[:most] for label in np.unique(labels)])
        try:
            with progress_callback(f"{self.method.info.name}: its own accuracy") as progress:
                found = evaluate_pairs(self.method, self.test.subset(rows), seed=self.seed, progress=progress)
        except MethodError:
            return None
        return _figure(found.accuracy, Interval(found.accuracy_low, found.accuracy_high))

    # --- the card's other parts ---------------------------------------------------------------------------------
    def _check_client(self) -> None:
        """Fail now rather than in every attack: a method without its client's secrets cannot be audited."""
        blank = torch.zeros(1, 3, *self.method.input_size, device=self.device)
        with evaluating(self.method), torch.no_grad():
            self.method.protect(blank, torch.Generator(self.device).manual_seed(0))

    def _check_judge(self) -> None:
        """Fail now rather than in every attack: a judge who only guesses cannot measure a leak."""
        scene = self._scene(Sees.PAYLOAD, self.profile.people)
        clear = Recovery((scene.truth.originals / 2 + 0.5).clamp(0, 1))
        self._measured(_Outcome(clear, clear.measure(self._context(scene)), scene))

    def _audited(self, model_sha256: str | None) -> Audited:
        info = self.method.info
        return Audited(
            name=info.name,
            title=info.title,
            paper=info.paper,
            protects=info.protects,
            secrets=list(info.secrets),
            departures=info.departures,
            payload=self.method.schema.describe(),
            settings=self._settings(),
            payload_bytes=self.method.schema.nbytes,
            sha256=model_sha256,
        )

    def _settings(self) -> dict[str, Any]:
        """What of the payload may be set after training, as it was in this audit."""
        options = self.method.options
        return options.model_dump(mode="json", include=set(type(options).payload_settings()))

    def _described(self) -> Faces:
        scene = self._scene(Sees.PAYLOAD, self.profile.people)
        known = self.faces.people
        return Faces(
            name=self.test.name,
            people=scene.rows,
            photos=self.profile.photos,
            public_faces=len(self.faces),
            public_people=0 if known is None else len(torch.unique(known)),
            synthetic=self.test.synthetic,
        )


def _device(method: Method) -> torch.device:
    places = [tensor.device for tensor in (*method.parameters(), *method.buffers())]
    return places[0] if places else torch.device("cpu")


def _stream(seed: int, view: int, row: int) -> int:
    """A seed for each draw of each view of each row."""
    return int(np.random.SeedSequence([seed, view, row]).generate_state(1, np.uint64)[0] >> 1)


def _figure(value: float, interval: Interval | None) -> Figure:
    low, high = (value, value) if interval is None else interval
    return Figure(value=value, low=low, high=high)


def _beside(figure: metrics.Figure) -> Beside:
    low, high = figure.interval
    return Beside(value=figure.value, low=low, high=high, ceiling=figure.ceiling, chance=figure.chance)


def _attacker(threat: ThreatModel) -> Attacker:
    return Attacker(
        sees=str(threat.sees),
        knows=str(threat.knows),
        has=sorted(str(item) for item in threat.has),
        pairs=threat.pairs,
        text=str(threat),
    )


def _network(recogniser: Recogniser) -> Network:
    return Network(name=recogniser.name, sha256=recogniser.sha256, preprocessing=str(recogniser.preprocessing))


__all__ = ["Audit", "Evidence", "audit", "audit_run", "refuse_partial_judge"]
