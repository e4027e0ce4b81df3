"""The audit: every attack on one method, each under its threat model and with its control, and the card."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppfr.attacks.base import Attack, Recovery, attack_class, attack_names, create_attack
from ppfr.attacks.public_data import PublicFaces
from ppfr.attacks.threat import Sees
from ppfr.auditing.card import Audited, AuditedFaces, Card, Estimate, Network, Times, verdict, worst_finding
from ppfr.auditing.evidence import Audit, Evidence
from ppfr.auditing.payload_pictures import describe_payload, payload_picture
from ppfr.auditing.profiles import Profile, find_profile
from ppfr.auditing.scenes import Scene, Scenes
from ppfr.auditing.trials import Trial, Trials, estimate
from ppfr.data.faceset import FaceSet
from ppfr.data.sources import open_splits
from ppfr.evaluation.cost import evaluating
from ppfr.evaluation.evaluate import evaluate_pairs
from ppfr.evaluation.metrics.similarity import ssim
from ppfr.evaluation.metrics.statistics import Interval
from ppfr.methods.common.files import MODEL_FILE, load_method
from ppfr.methods.common.method import Method
from ppfr.networks import Recogniser
from ppfr.training.run import Run, versions
from ppfr.util.errors import AttackError, MethodError
from ppfr.util.files import sha256_file
from ppfr.util.progress import progress_callback

# people whose recovery is kept as pictures, beside the best and the median one
_SHOWN = 4


def audit(
    method: Method,
    data: str | Path | tuple[FaceSet, FaceSet],
    *,
    judge: Recogniser | None = None,
    recogniser: Recogniser | None = None,
    profile: Profile | str = "fast",
    with_attacks: Sequence[str | Attack[Any]] | None = None,
    seed: int = 0,
    teacher: Network | None = None,
    model_sha256: str | None = None,
) -> Audit:
    """Run every applicable attack on a method, each with a control, and report the leaks on a card.

    `data` holds aligned faces: of its training people the attacker has photos, its test people are attacked (a source
    as for training, or the two sets). `judge` identifies recovered images; it must be neither the method's `teacher`
    nor the attacker's own `recogniser`. Without one, attacks that recover images give pictures and their similarity
    only. `with_attacks` are attacks by name or made, by default all there are. The same `seed` gives the same card,
    times apart. Raises AttackError for a judge who took part or who only guesses, an unknown attack or profile;
    DataError for unusable faces; MethodError for a method that cannot protect.
    """
    if judge is not None:
        refuse_partial_judge(judge, recogniser, teacher)
    thorough = find_profile(profile)
    ready = [
        create_attack(attack, **thorough.options(attack_class(attack))) if isinstance(attack, str) else attack
        for attack in (attack_names() if with_attacks is None else with_attacks)
    ]
    size = method.input_size[0]
    public, test = open_splits(data, size=size, seed=seed) if isinstance(data, (str, Path)) else data
    started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
    device = _device(method)
    _check_client(method, device)
    scenes = Scenes(test, thorough, seed, device)
    everyone = scenes.draw(Sees.PAYLOAD, thorough.people)
    faces = PublicFaces.of(public, thorough.budget.faces).to(device)
    trials = Trials(method, scenes, faces, judge, recogniser)
    if judge is not None:
        # fail now rather than in every attack: a judge that only guesses cannot measure a leak
        trials.measure(Recovery(everyone.clear), everyone).leak()
    accuracy = _accuracy(method, test, thorough, seed)
    findings, evidence, seconds = [], [], {}
    for attack in ready:
        began = time.perf_counter()
        finding, trial = trials.find(attack)
        findings.append(finding)
        if trial is not None and trial.result.pictures is not None:
            evidence.append(_recovered(method, attack.title, trial, trial.result.pictures, judge))
        seconds[attack.name] = round(time.perf_counter() - began, 1)
    if not evidence:
        shown = {row: f"person {row + 1}" for row in range(min(_SHOWN + 2, len(everyone)))}
        evidence.append(_evidence(method, everyone, shown, Sees.PAYLOAD, title=""))
    worst = worst_finding(findings)
    card = Card(
        method=_audited(method, model_sha256),
        faces=_described(everyone, test, faces, thorough),
        judge=Network.of(judge),
        recogniser=Network.of(recogniser),
        teacher=teacher,
        profile=thorough.name,
        seed=seed,
        cut=thorough.cut(ready),
        accuracy=accuracy,
        findings=findings,
        privacy=None if worst is None or worst.result is None else worst.result.privacy,
        worst=None if worst is None else worst.attack,
        verdict=verdict(method.info.title, findings),
        versions=versions(),
        times=Times(started=started, seconds=round(time.perf_counter() - clock, 1), attacks=seconds),
    )
    return Audit(card, evidence)


def audit_run(
    run: str | Path,
    data: str | Path | tuple[FaceSet, FaceSet],
    *,
    judge: Recogniser | None = None,
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
    """The teacher in a run's record; None without a record or a teacher."""
    run = Run(folder)
    found = run.read_record().get("teacher") if run.record_file.is_file() else None
    return None if found is None else Network(name=found["name"], sha256=found["sha256"])


def _device(method: Method) -> torch.device:
    places = [tensor.device for tensor in (*method.parameters(), *method.buffers())]
    return places[0] if places else torch.device("cpu")


def _check_client(method: Method, device: torch.device) -> None:
    """Fail now rather than in every attack: a method without its client's secrets cannot be audited."""
    blank = torch.zeros(1, 3, *method.input_size, device=device)
    with evaluating(method), torch.no_grad():
        method.protect(blank, torch.Generator(device).manual_seed(0))


def _accuracy(method: Method, test: FaceSet, profile: Profile, seed: int) -> Estimate | None:
    """The method's own pair accuracy; None for one without a server."""
    most = profile.accuracy_images
    rows = np.arange(len(test))
    if most is not None:
        rows = np.concatenate([np.flatnonzero(test.labels == label)[:most] for label in np.unique(test.labels)])
    try:
        with progress_callback(f"{method.info.name}: its own accuracy") as progress:
            found = evaluate_pairs(method, test.subset(rows), seed=seed, progress=progress)
    except MethodError:
        return None
    return estimate(found.accuracy, Interval(found.accuracy_low, found.accuracy_high))


# ---------------------------------------------------------------------------------------------------- evidence
def _recovered(method: Method, title: str, trial: Trial, pictures: Tensor, judge: Recogniser | None) -> Evidence:
    """The recoveries most similar to their photo, of median similarity, and of the first people."""
    scene = trial.scene
    if judge is None:
        measure, values = "SSIM", ssim(pictures.to(scene.clear), scene.clear)
    else:
        recovered, photos = (judge.embed(images) for images in (pictures * 2 - 1, scene.truth.originals))
        measure, values = "cosine", torch.nn.functional.cosine_similarity(recovered.double(), photos.double())
    similarity = values.double().cpu()
    order = similarity.argsort(descending=True, stable=True).tolist()
    shown = {order[0]: "best", order[(len(order) - 1) // 2]: "median"}
    for row in range(min(_SHOWN, len(order))):
        shown.setdefault(row, f"person {row + 1}")
    return _evidence(
        method,
        scene,
        shown,
        trial.result.threat.sees,
        title=title,
        recovered=_pixels(pictures[list(shown)]),
        likeness=tuple(float(similarity[row]) for row in shown),
        measure=measure,
    )


def _evidence(method: Method, scene: Scene, shown: Mapping[int, str], sees: Sees, **recovery: Any) -> Evidence:
    """Photos and payloads of the rows that are shown, each with its label."""
    rows = list(shown)
    sent = scene.payload(method, rows, sees).to("cpu")
    return Evidence(
        labels=tuple(shown.values()),
        photos=_pixels(scene.clear[rows]),
        sent=np.stack([payload_picture(sent, index) for index in range(len(rows))]),
        caption=describe_payload(sent),
        **recovery,
    )


def _pixels(images: Tensor) -> npt.NDArray[np.uint8]:
    """Images (N,3,H,W) in [0,1] as (N,H,W,3) uint8."""
    pixels: npt.NDArray[np.uint8] = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


# -------------------------------------------------------------------------------------- the card's other parts
def _audited(method: Method, model_sha256: str | None) -> Audited:
    info, options = method.info, method.options
    return Audited(
        name=info.name,
        title=info.title,
        paper=info.paper,
        protects=info.protects,
        secrets=list(info.secrets),
        departures=info.departures,
        payload=method.schema.describe(),
        settings=options.model_dump(mode="json", include=set(type(options).payload_settings())),
        payload_bytes=method.schema.nbytes,
        sha256=model_sha256,
    )


def _described(scene: Scene, test: FaceSet, public: PublicFaces, profile: Profile) -> AuditedFaces:
    return AuditedFaces(
        name=test.name,
        people=len(scene),
        photos=profile.photos,
        public_faces=len(public),
        public_people=0 if public.people is None else len(torch.unique(public.people)),
        synthetic=test.synthetic,
    )


__all__ = ["audit", "audit_run", "refuse_partial_judge"]
