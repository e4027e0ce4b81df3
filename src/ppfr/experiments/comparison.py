"""Comparison of methods: each trained, measured and attacked under one protocol, with results on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ppfr.attacks.base import create_attack
from ppfr.auditing.audit import audit, refuse_partial_judge
from ppfr.auditing.card import CARD_FILE, Card, Network
from ppfr.auditing.evidence import Audit, Evidence, load_audit, refuse_repository
from ppfr.auditing.profiles import find_profile
from ppfr.data.images import to_tensor
from ppfr.data.protocols.fold_tests import open_test
from ppfr.data.protocols.heterogeneous import open_heterogeneous
from ppfr.data.synthetic.faces import is_synthetic
from ppfr.evaluation.cost import measure_cost
from ppfr.evaluation.evaluate import evaluate_pairs
from ppfr.evaluation.heterogeneous import HeterogeneousFigures, evaluate_folds
from ppfr.experiments.workbench import Workbench
from ppfr.methods import Method, method_class
from ppfr.networks import Recogniser
from ppfr.recipes.recipe import load_recipe, read_settings, recipe_names
from ppfr.training.interruption import Interrupted
from ppfr.training.run import Run
from ppfr.util.errors import PpfrError, RecipeError
from ppfr.util.files import atomic_write, sha256_file
from ppfr.util.memory import release_memory
from ppfr.util.progress import console, progress_callback

PRESETS = "ppfr.experiments.presets"
SETTINGS_FILE = "comparison-settings.json"
_COST_IMAGES = 8


class ComparisonEntry(BaseModel):
    """One row of a comparison: a method, changes to its recipe, and its label."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    label: str = Field("", description="name in tables and folders; by default the method's")
    set: dict[str, Any] = Field(default_factory=dict, description="changes to the method's recipe")

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        if isinstance(values, str):
            values = {"method": values}
        if isinstance(values, Mapping) and not values.get("label"):
            values = {**values, "label": values.get("method", "")}
        return values

    @field_validator("label")
    @classmethod
    def _plain(cls, label: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", label):
            raise ValueError("a label names a folder: letters, digits, dots, dashes and underscores")
        return label


class ComparisonRecipe(BaseModel):
    """The settings of a comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: list[ComparisonEntry]
    teacher: str | None = Field(
        None, description="recipe that is trained on labels and teaches the others where no teacher is given"
    )
    profile: str = Field("quick", description="profile of every method's recipe")
    audit: str | None = Field("fast", description="profile of the audit; null for none")
    attacks: list[str] | None = Field(None, description="only these attacks; null for all")
    seeds: list[int] = Field([0], min_length=1, description="every method is trained and attacked once with each")

    @field_validator("methods", mode="before")
    @classmethod
    def _all(cls, methods: Any) -> Any:
        return recipe_names() if methods == "all" else methods

    @model_validator(mode="after")
    def _known(self) -> ComparisonRecipe:
        labels = [entry.label for entry in self.methods]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice or not labels:
            raise ValueError(f"labels {twice} stand twice; give each line its own" if twice else "no method is named")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} repeat themselves; a run with the same seed gives the same figures")
        return self


def load_comparison(name: str | Path, changes: Mapping[str, Any] | None = None) -> ComparisonRecipe:
    """Read a preset by name or a YAML file, and replace its top-level keys by those of `changes`.

    Every method's own recipe is checked as well. Raises RecipeError naming what is wrong.
    """
    values = read_settings(name, PRESETS, "comparison")
    try:
        recipe = ComparisonRecipe.model_validate({**values, **(changes or {})})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc'])) or 'recipe'}: {one['msg']}" for one in error.errors()]
        raise RecipeError(f"comparison {name}: {'; '.join(lines)}") from error
    if recipe.audit is not None:
        find_profile(recipe.audit)
        for attack in recipe.attacks or ():
            create_attack(attack)
    for entry in recipe.methods:
        method_class(entry.method)
        load_recipe(entry.method, profile=recipe.profile, taught=True, overrides=entry.set)
    return recipe


@dataclass(frozen=True)
class MethodOutcome:
    """One method from one seed: its figures and its audit, or why there are none.

    `figures` is the content of `figures/LABEL-seedN.json`, None for a card that was audited elsewhere. `card`,
    `evidence` and the `folder` that holds them are empty without an audit.
    """

    label: str
    seed: int
    figures: Mapping[str, Any] | None = None
    card: Card | None = None
    evidence: Sequence[Evidence] = ()
    folder: Path | None = None
    failed: str = ""


def card_outcomes(cards: Sequence[Path | str]) -> list[MethodOutcome]:
    """Cards of earlier audits, read from their folders, as outcomes that are labelled by the names of the folders."""
    places = [Path(card) if Path(card).is_dir() else Path(card).parent for card in cards]
    names = [place.resolve().name for place in places]
    outcomes = []
    for card, place, name in zip(cards, places, names, strict=True):
        found = load_audit(card)
        label = name if names.count(name) == 1 else str(place)
        outcomes.append(MethodOutcome(label, found.card.seed, None, found.card, found.evidence, place))
    return outcomes


@dataclass
class Comparison:
    """A comparison in a folder; run again with the same settings it continues where it stopped.

    `heterogeneous` are sources such as `lamp-hq:DIR,fold=1`; every method is trained and measured on each of them as
    well. Without a teacher the recipe's `teacher` is trained first, or every method learns from labels alone. Without a
    judge nobody identifies recovered images; all other attacks count as usual. `facts` and `skipped` describe the data
    once `run` has opened it. Raises AttackError for a judge that is the teacher or the attacker's recogniser.
    """

    recipe: ComparisonRecipe
    data: str
    out: Path
    teacher: Recogniser | None = None
    judge: Recogniser | None = None
    recogniser: Recogniser | None = None
    heterogeneous: Sequence[str] = ()
    strict: bool = False
    device: str = "cpu"
    facts: list[str] = field(default_factory=list, init=False)
    skipped: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.judge is not None:
            refuse_partial_judge(self.judge, self.recogniser, Network.of(self.teacher))

    def run(self, done: Callable[[list[MethodOutcome]], None] = lambda outcomes: None) -> list[MethodOutcome]:
        """Do all that is not done yet; `done` is called with the outcomes so far after each. Returns them all.

        A method that fails is reported in its outcome and does not stop the others. Raises Interrupted when SIGTERM
        came during training, DataError for real faces and a folder inside a git repository.
        """
        if self.recipe.audit is not None:
            refuse_repository(self.out, synthetic=is_synthetic(self.data))
        self._claim()
        outcomes: list[MethodOutcome] = []
        for seed in self.recipe.seeds:
            bench = self._bench(self.data, seed)
            self._describe(bench)
            teacher = self.teacher
            if teacher is None and self.recipe.teacher is not None:
                teacher = bench.train_teacher(self.recipe.teacher, f"teacher-seed{seed}")
            for entry in self.recipe.methods:
                console.print(f"[bold]{entry.label}[/bold], seed {seed}")
                try:
                    outcomes.append(self._one(bench, entry, seed, teacher))
                except Interrupted:
                    # the user asked to stop, so the method did not fail
                    raise
                except Exception as error:
                    # one method's failure, of whatever type, must not lose hours of the others' work
                    if not isinstance(error, PpfrError):
                        console.print_exception()
                    reason = str(error) if isinstance(error, PpfrError) else f"{type(error).__name__}: {error}"
                    console.print(f"{entry.label}: {reason}", style="red", markup=False, soft_wrap=True)
                    outcomes.append(MethodOutcome(entry.label, seed, failed=reason))
                done(outcomes)
        return outcomes

    # --- files --------------------------------------------------------------------------------------------------
    def _claim(self) -> None:
        """Write the settings of this comparison, or check that the folder belongs to the same one."""
        networks = {"teacher": self.teacher, "judge": self.judge, "recogniser": self.recogniser}
        described = {
            "recipe": self.recipe.model_dump(mode="json", exclude={"methods", "seeds"}),
            "data": self.data,
            "heterogeneous": list(self.heterogeneous),
            **{role: None if one is None else Network.of(one).model_dump() for role, one in networks.items()},
        }
        path = self.out / SETTINGS_FILE
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in described if before.get(key) != described[key])
            if changed:
                raise RecipeError(
                    f"{self.out} holds a comparison with another {', '.join(changed)}; repeat it with the same, or "
                    "choose another --out (methods and seeds may be added)"
                )
            return
        atomic_write(path, json.dumps(described, indent=2) + "\n")

    def _bench(self, data: str, seed: int) -> Workbench:
        return Workbench(
            data, self.out / "runs", self.out / "cache", self.recipe.profile, seed, self.strict, self.device
        )

    def _describe(self, bench: Workbench) -> None:
        """Note once what is compared on which faces."""
        if self.facts:
            return
        faces, test = bench.splits()
        self.skipped += [f"{path}: {reason}" for split in (faces, test) for path, reason in split.skipped]
        recipe = self.recipe
        trained, tested = (f"{len(part.identities):,} people, {len(part):,} images" for part in (faces, test))
        teacher = (
            "none: methods learn from labels alone" if recipe.teacher is None else f"trained here ({recipe.teacher})"
        )
        judge = "none: identification from recovered images not measured"
        self.facts += [
            f"data: {self.data} ({test.name})",
            f"trained on {trained}; tested on {tested}, none of them in training",
            f"teacher: {teacher if self.teacher is None else Network.of(self.teacher).describe()}",
            f"judge: {judge if self.judge is None else Network.of(self.judge).describe()}",
            f"recipe profile {recipe.profile}, audit {recipe.audit or 'none'}, seeds {str(recipe.seeds)[1:-1]}",
        ]

    # --- one method ---------------------------------------------------------------------------------------------
    def _one(self, bench: Workbench, entry: ComparisonEntry, seed: int, teacher: Recogniser | None) -> MethodOutcome:
        name = f"{entry.label}-seed{seed}"
        run = Run(self.out / "runs" / name)
        path = self.out / "figures" / f"{name}.json"
        method = bench.train(entry.method, teacher, run=name, overrides=entry.set)
        if path.exists():
            figures = json.loads(path.read_text(encoding="utf-8"))
        else:
            figures = self._measure(method, bench, entry, seed, run)
            release_memory()
            atomic_write(path, json.dumps(figures, indent=2, allow_nan=False) + "\n")
        for source in self.heterogeneous:
            found = self._heterogeneous(source, entry, seed, teacher)
            figures.setdefault("heterogeneous", []).append(found)
        if self.recipe.audit is None:
            return MethodOutcome(entry.label, seed, figures)
        folder = self.out / "cards" / name
        audited = self._audit(method, bench, folder, run, seed, teacher)
        return MethodOutcome(entry.label, seed, figures, audited.card, audited.evidence, folder)

    def _measure(self, method: Method, bench: Workbench, entry: ComparisonEntry, seed: int, run: Run) -> dict[str, Any]:
        _, test = bench.splits(method.input_size[0])
        with progress_callback(f"{entry.label}: accuracy") as progress:
            accuracy = evaluate_pairs(method, test, seed=seed, progress=progress)
        sample = to_tensor(test.images(range(min(_COST_IMAGES, len(test))))).to(self.device)
        cost = measure_cost(method, sample, torch.Generator(self.device).manual_seed(seed))
        info = method.info
        return {
            "label": entry.label,
            "method": entry.method,
            "title": info.title,
            "paper": info.paper,
            "protects": info.protects,
            "synthetic": is_synthetic(self.data),
            "seed": seed,
            "set": entry.set,
            "remarks": method.remarks(),
            "train_seconds": run.read_record().get("train_seconds"),
            "verification": accuracy.to_dict(),
            "cost": cost.to_dict(),
        }

    def _audit(
        self, method: Method, bench: Workbench, folder: Path, run: Run, seed: int, teacher: Recogniser | None
    ) -> Audit:
        if (folder / CARD_FILE).exists():
            return load_audit(folder)
        found = audit(
            method,
            bench.splits(method.input_size[0]),
            judge=self.judge,
            recogniser=self.recogniser,
            profile=self.recipe.audit or "fast",
            with_attacks=self.recipe.attacks,
            seed=seed,
            teacher=Network.of(teacher),
            model_sha256=sha256_file(run.model_file),
        )
        found.save(folder)
        return found

    def _heterogeneous(
        self, source: str, entry: ComparisonEntry, seed: int, teacher: Recogniser | None
    ) -> dict[str, Any]:
        """Train a run for each fold of a protocol, and measure them."""
        opened = open_heterogeneous(source)
        folds = list(opened.folds if opened.chosen is None else (opened.chosen,))
        name = f"{entry.label}-seed{seed}-{opened.protocol.name}"
        path = self.out / "figures" / f"{name}.json"
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        figures = []
        for fold in folds:
            bench = self._bench(source if opened.chosen is not None else f"{source},fold={fold}", seed)
            method = bench.train(entry.method, teacher, run=f"{name}-fold{fold}", overrides=entry.set)
            test = open_test(opened, [fold], size=method.input_size[0], strict=self.strict)
            with progress_callback(f"{entry.label}: {opened.title}, fold {fold}") as progress:
                figures += evaluate_folds(method, test, flip=True, seed=seed, progress=progress)
        found = HeterogeneousFigures(opened.title, opened.simulation is not None, figures)
        result = {"protocol": opened.protocol.name, "title": opened.title, **found.to_dict()}
        atomic_write(path, json.dumps(result, indent=2, allow_nan=False) + "\n")
        return result


__all__ = [
    "Comparison",
    "ComparisonEntry",
    "ComparisonRecipe",
    "MethodOutcome",
    "card_outcomes",
    "load_comparison",
]
