"""The main job: train protected recognisers, measure what they recognise, cost and leak, and write one report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppfr.attacks.base import create_attack
from ppfr.attacks.leakage import Leakage, Trial, try_attack
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.data.protocols.heterogeneous import is_heterogeneous
from ppfr.data.synthetic.faces import is_synthetic
from ppfr.evaluation.cost import Cost, measure_cost
from ppfr.evaluation.evaluate import evaluate_pairs
from ppfr.evaluation.metrics.verification import Verification
from ppfr.experiments.workbench import Workbench
from ppfr.methods import Method, method_class
from ppfr.networks import Recogniser
from ppfr.reports.pictures import describe_payload, payload_picture
from ppfr.reports.report import MethodResult, Report, write_report, write_summary
from ppfr.training.run import Run, versions
from ppfr.util.errors import AttackError, MethodError
from ppfr.util.progress import console, progress_callback

DEFAULT_METHODS = ("arcface", "partialface", "duetface")
# people whose payload is attacked, and how many of them the report shows
ATTACKED, SHOWN = 59, 6
# clear faces of other people that the attacker may learn from
PUBLIC_FACES = 1024
COST_IMAGES = 8
# attacks that recover images, the first that applies is run; `ppfr audit` runs them all
ATTACKS = ("linear-inversion", "learned-inversion")


@dataclass
class Quickstart:
    """Settings of one `ppfr quickstart`; `run` does the job and can be repeated after a stop.

    Without a teacher an unprotected recogniser is trained first and teaches the others.
    """

    data: str
    out: Path
    teacher: Recogniser | None = None
    judge: Recogniser | None = None
    methods: Sequence[str] = DEFAULT_METHODS
    profile: str = "quick"
    seed: int = 0
    strict: bool = False
    device: str = "cpu"
    command: str = "ppfr quickstart"
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._bench = Workbench(
            self.data, self.out / "runs", self.out / "cache", self.profile, self.seed, self.strict, self.device
        )

    def run(self) -> list[MethodResult]:
        """Train, evaluate and attack every method, then write `summary.json` and `report.html`; returns the results."""
        for name in self.methods:
            method_class(name)
        faces, test = self._bench.splits()
        for split in (faces, test):
            for skipped in split.skipped:
                self.warnings.append(f"{skipped.path}: {skipped.reason}")
        teacher = self.teacher
        if teacher is None:
            teacher = self._bench.train_teacher()
        self._check_judge(teacher)
        results = []
        for name in self.methods:
            console.print(f"[bold]{name}[/bold]")
            method = self._bench.train(name, teacher)
            results.append(self._measure(method, *self._bench.splits(method.input_size[0])))
            # written after every method: a stop loses nothing that is done
            self._write(results, faces, test, teacher)
        return results

    def _check_judge(self, teacher: Recogniser) -> None:
        if self.judge is not None and self.judge.sha256 == teacher.sha256:
            raise MethodError(
                f"--judge {self.judge.name} is the teacher itself; a judge must be a recogniser that neither the "
                "method nor the attack was trained with"
            )

    # --- measuring ----------------------------------------------------------------------------------------------
    def _measure(self, method: Method, faces: FaceSet, test: FaceSet) -> MethodResult:
        """Accuracy, cost and leakage of one trained method on people it never saw."""
        name = method.info.name
        with progress_callback(f"{name}: embedding") as progress:
            accuracy = evaluate_pairs(method, test, seed=self.seed, progress=progress)
        sample = to_tensor(test.images(range(min(COST_IMAGES, len(test)))))
        generator = torch.Generator().manual_seed(self.seed)
        cost = measure_cost(method, sample, generator)
        notes = method.remarks()
        trial, refused = self._attack(method, faces, test)
        notes += refused
        shown = range(min(SHOWN, len(test))) if trial is None else trial.search.probes[:SHOWN]
        originals = test.images(shown)
        payload = method.protect(to_tensor(originals), generator) if trial is None else trial.payload
        record = Run(self.out / "runs" / name).read_record()
        return MethodResult(
            method=name,
            title=method.info.title,
            paper=method.info.paper,
            row=_row(name, accuracy, cost, None if trial is None else trial.leakage, record),
            verification=accuracy.to_dict(),
            cost=cost.to_dict(),
            leakage=None if trial is None else trial.leakage.to_dict(),
            originals=list(originals),
            seen=[payload_picture(payload, row) for row in range(len(originals))],
            recovered=None if trial is None else _to_uint8(trial.recovery.images[:SHOWN]),
            notes=notes,
            seen_caption=describe_payload(payload),
        )

    def _attack(self, method: Method, faces: FaceSet, test: FaceSet) -> tuple[Trial | None, list[str]]:
        """The first attack that applies, and why others before it do not."""
        public = to_tensor(faces.images(_spread(len(faces), PUBLIC_FACES)))
        notes: list[str] = []
        for name in ATTACKS:
            attack = create_attack(name)
            try:
                with progress_callback(f"{method.info.name}: {attack.title.lower()}") as progress:
                    trial = try_attack(
                        attack,
                        method,
                        test,
                        judge=self.judge,
                        public=public,
                        people=ATTACKED,
                        seed=self.seed,
                        progress=progress,
                    )
            except AttackError as error:
                notes.append(f"{attack.title.lower()} does not apply: {error}")
            else:
                return trial, [*notes, *([f"the figures are those of {attack.title.lower()}"] if notes else [])]
        return None, notes

    def _write(self, results: list[MethodResult], faces: FaceSet, test: FaceSet, teacher: Recogniser) -> None:
        data = {
            "name": test.name if is_heterogeneous(self.data) else str(self.data),
            "people": len(faces.identities),
            "images": len(faces),
            "test_people": len(test.identities),
            "test_images": len(test),
            "synthetic": is_synthetic(self.data),
        }
        taught = f"{teacher.name} ({teacher.architecture}; {teacher.preprocessing})"
        if self.teacher is None:
            taught = "the unprotected recogniser of this run, trained on the labels alone"
        report = Report(
            title="Privacy-preserving face recognition: what it recognises, costs and leaks",
            data=data,
            teacher=taught,
            judge=None if self.judge is None else f"{self.judge.name} ({self.judge.preprocessing})",
            results=results,
            command=self.command,
            seed=self.seed,
            versions=versions(),
            warnings=self.warnings,
        )
        write_summary(results, self.out / "summary.json")
        write_report(report, self.out / "report.html")


def _row(
    name: str, accuracy: Verification, cost: Cost, leakage: Leakage | None, record: dict[str, Any]
) -> dict[str, Any]:
    """One line of summary.json; None where nothing was measured."""
    return {
        "method": name,
        "pair_accuracy": accuracy.accuracy,
        "accuracy_low": accuracy.accuracy_low,
        "accuracy_high": accuracy.accuracy_high,
        "leak_rank1": None if leakage is None else leakage.rank1,
        "ceiling_rank1": None if leakage is None else leakage.ceiling_rank1,
        "ssim": None if leakage is None else leakage.ssim,
        "payload_bytes": cost.payload_bytes_raw,
        "client_ms": cost.client_ms,
        "server_ms": cost.server_ms,
        "train_seconds": record.get("train_seconds"),
    }


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` indices, evenly spaced."""
    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(count, wanted)).round())]


def _to_uint8(images: Tensor) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return list(pixels.cpu().numpy())


__all__ = ["DEFAULT_METHODS", "Quickstart"]
