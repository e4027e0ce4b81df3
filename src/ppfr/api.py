"""The four jobs as functions: train, evaluate, audit and compare; `ppfr.train` and so on are these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppfr.attacks.base import Attack
from ppfr.auditing.audit import audit as audit_method
from ppfr.auditing.audit import audit_run
from ppfr.auditing.evidence import Audit, refuse_repository
from ppfr.data.sources import open_splits
from ppfr.data.synthetic.faces import is_synthetic
from ppfr.evaluation.evaluate import evaluate_pairs, open_evaluation
from ppfr.evaluation.metrics.verification import Verification
from ppfr.experiments.comparison import Comparison, MethodOutcome, load_comparison
from ppfr.experiments.workbench import recogniser_of
from ppfr.methods import Method, create
from ppfr.methods.common.files import MODEL_FILE, load_method
from ppfr.networks import Recogniser, load_recogniser
from ppfr.recipes.recipe import load_recipe
from ppfr.reports.cards import write_audit
from ppfr.reports.report import write_report
from ppfr.training.loop import train as train_method
from ppfr.training.run import Run


def train(
    recipe: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    teacher: Recogniser | str | Path | None = None,
    profile: str = "standard",
    overrides: Mapping[str, Any] | Sequence[str] = (),
    resume: bool = False,
    device: str = "cpu",
) -> Method:
    """Train one method into the run folder `out`, and return it.

    `recipe` is a method's name or a recipe file, `overrides` changes to it, as a nested mapping or as "a.b=c". `data`
    are aligned faces (see `ppfr.data.sources.open_splits`), of which the training people are used. `teacher` is a
    recogniser to distil, its file, or the run folder of an unprotected method. With `resume` a stopped run goes on.
    Raises RecipeError for a recipe that does not fit or a folder that holds another run, DataError for unusable faces.
    """
    known = _recogniser(teacher)
    chosen = load_recipe(recipe, profile=profile, taught=known is not None, overrides=overrides)
    architecture = known.architecture if known is not None and known.backbone is not None else None
    method = create(chosen.method, chosen.backbone_spec(architecture), chosen.seed, **chosen.options)
    faces, _ = open_splits(data, size=method.input_size[0], seed=chosen.seed)
    return train_method(method, chosen, faces, Run(Path(out)), teacher=known, resume=resume, device=device)


def evaluate(
    model: Method | Recogniser | str | Path, data: str | Path, *, flip: bool = True, seed: int = 0
) -> Verification:
    """Verification accuracy of a method, a run folder or a public recogniser: 10-fold accuracy, TAR at FAR, AUC, EER.

    `data` is as for training (its test people are verified) or a list of pairs. Faces are protected with fresh draws
    from a generator seeded by `seed`; with `flip` the mirrored image is a second query whose embedding is added.
    Raises DataError for unusable faces and MethodError for a method that cannot protect or embed.
    """
    chosen = load_method(model) if isinstance(model, (str, Path)) else model
    size = chosen.input_size[0] if isinstance(chosen, Method) else chosen.preprocessing.size[0]
    return evaluate_pairs(chosen, open_evaluation(data, size=size, seed=seed), flip=flip, seed=seed)


def audit(
    method: Method | str | Path,
    data: str | Path,
    *,
    judge: Recogniser | str | Path | None = None,
    recogniser: Recogniser | str | Path | None = None,
    profile: str = "fast",
    attacks: Sequence[str | Attack[Any]] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Audit:
    """Run every applicable attack on a method or a run folder; returns the card and pictures of recovered faces.

    Of the training people in `data` the attacker has photos, its test people are attacked. `judge` identifies recovered
    images and `recogniser` is the attacker's own: recognisers, their files, or run folders of unprotected methods;
    without a judge identification from images is not measured. `attacks` are all by default. With `out`, a folder,
    `card.json`, `card.html` and the pictures are written there. Raises AttackError for a judge that is the teacher or
    the attacker's recogniser, DataError for unusable faces or for real faces and an `out` inside a git repository.
    """
    if out is not None:
        refuse_repository(out, synthetic=is_synthetic(data))
    options: dict[str, Any] = {
        "judge": _recogniser(judge),
        "recogniser": _recogniser(recogniser),
        "profile": profile,
        "with_attacks": attacks,
        "seed": seed,
    }
    found = audit_method(method, data, **options) if isinstance(method, Method) else audit_run(method, data, **options)
    if out is not None:
        write_audit(found, out)
    return found


def compare(
    recipe: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    teacher: Recogniser | str | Path | None = None,
    judge: Recogniser | str | Path | None = None,
    recogniser: Recogniser | str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    heterogeneous: Sequence[str] = (),
    device: str = "cpu",
) -> list[MethodOutcome]:
    """Train, measure and audit many methods under one protocol, and write the report into `out` after each.

    `recipe` is a preset ("quickstart", "quick", "standard", "strength") or a YAML file, `changes` replace its top-level
    keys, such as `methods` and `seeds`. Recognisers are given as for `audit`. Repeated with the same settings it goes
    on where it stopped. A method that fails has the reason in its outcome. Raises RecipeError for a recipe that does
    not fit, DataError for real faces and an `out` inside a git repository.
    """
    job = Comparison(
        load_comparison(recipe, changes),
        str(data),
        Path(out),
        teacher=_recogniser(teacher),
        judge=_recogniser(judge),
        recogniser=_recogniser(recogniser),
        heterogeneous=heterogeneous,
        device=device,
    )
    return job.run(lambda outcomes: _report(job, outcomes))


def _report(job: Comparison, outcomes: Sequence[MethodOutcome]) -> None:
    write_report(outcomes, job.out, facts=job.facts, skipped=job.skipped)


def _recogniser(given: Recogniser | str | Path | None) -> Recogniser | None:
    """A recogniser as it is, from its file, or from the run folder of an unprotected method."""
    if given is None or isinstance(given, Recogniser):
        return given
    path = Path(given)
    return recogniser_of(load_method(path), path / MODEL_FILE) if path.is_dir() else load_recogniser(path)


__all__ = ["audit", "compare", "evaluate", "train"]
