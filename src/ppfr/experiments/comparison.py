"""`ppfr compare`: many methods trained, measured and attacked under one protocol, to stand in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ppfr.attacks.base import create_attack
from ppfr.auditing.audit import audit, refuse_partial_judge
from ppfr.auditing.card import Card, Network, load_card
from ppfr.auditing.profiles import find_profile
from ppfr.data.images import to_tensor
from ppfr.data.protocols.fold_tests import open_test
from ppfr.data.protocols.heterogeneous import open_heterogeneous
from ppfr.evaluation.cost import measure_cost
from ppfr.evaluation.evaluate import evaluate_pairs
from ppfr.evaluation.heterogeneous import HeterogeneousFigures, evaluate_folds
from ppfr.experiments.workbench import Workbench
from ppfr.methods import Method, method_class
from ppfr.networks import Recogniser
from ppfr.recipes.recipe import built_in_names, load_recipe, read_settings, recipe_names
from ppfr.reports.audits import write_audit
from ppfr.training.interruption import Interrupted
from ppfr.training.run import Run
from ppfr.util.errors import PpfrError, RecipeError
from ppfr.util.files import atomic_write, sha256_file
from ppfr.util.memory import release_memory
from ppfr.util.progress import console, progress_callback

_COST_IMAGES = 8


class Entry(BaseModel):
    """One line of the table: a method, changed settings of its recipe, and the name it goes by."""

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
    """What is compared, and how thoroughly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: list[Entry]
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
            raise ValueError(f"seeds {self.seeds} repeat themselves; a repeated run says nothing new")
        return self


def comparison_names() -> list[str]:
    """Built-in recipes of comparisons."""
    return built_in_names("ppfr.experiments.presets")


def load_comparison(name: str | Path, changes: Mapping[str, Any] | None = None) -> ComparisonRecipe:
    """Read a built-in comparison by name or a YAML file, and lay `changes` over its top level.

    Every method's own recipe is checked as well. Raises RecipeError naming what is wrong.
    """
    values = read_settings(name, "ppfr.experiments.presets", "comparison")
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
class Outcome:
    """One method from one seed: what was measured, or why it could not be.

    `figures` is the content of its file; `card` is None without an audit.
    """

    label: str
    seed: int
    figures: Mapping[str, Any] | None
    card: Card | None
    failed: str = ""


@dataclass
class Comparison:
    """One comparison at work; repeated with the same settings it goes on where it was stopped.

    `heterogeneous` are sources such as `lamp-hq:DIR,fold=1`, on each of which every method is trained and measured as
    well. Without a teacher every method learns from labels alone. Raises AttackError for a judge who took part.
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

    def __post_init__(self) -> None:
        if self.recipe.audit is not None:
            if self.judge is None:
                raise RecipeError("a comparison with audits needs a judge; give --judge FILE, or --audit none")
            taught = None if self.teacher is None else _network(self.teacher)
            refuse_partial_judge(self.judge, self.recogniser, taught)

    def run(self, done: Callable[[list[Outcome]], None] = lambda outcomes: None) -> list[Outcome]:
        """Do all that is not done yet; `done` is called with the outcomes so far after each. Returns them all.

        A method that fails is told in its outcome and does not keep the others from running. Raises Interrupted when
        SIGTERM came during training.
        """
        self._claim()
        outcomes: list[Outcome] = []
        for seed in self.recipe.seeds:
            bench = self._bench(self.data, seed)
            for entry in self.recipe.methods:
                console.print(f"[bold]{entry.label}[/bold], seed {seed}")
                try:
                    outcomes.append(self._one(bench, entry, seed))
                except Interrupted:
                    # asked to stop: this is no failure of the method's
                    raise
                except Exception as error:
                    # hours of the others' work do not end with one method's mistake, foreseen or not
                    if not isinstance(error, PpfrError):
                        console.print_exception()
                    told = str(error) if isinstance(error, PpfrError) else f"{type(error).__name__}: {error}"
                    console.print(f"{entry.label}: {told}", style="red", markup=False, soft_wrap=True)
                    outcomes.append(Outcome(entry.label, seed, None, None, told))
                done(outcomes)
        return outcomes

    # --- files --------------------------------------------------------------------------------------------------
    def _claim(self) -> None:
        """Write down what this comparison is, or check that the folder belongs to the same one."""
        described = {
            "recipe": self.recipe.model_dump(mode="json", exclude={"methods", "seeds"}),
            "data": self.data,
            "heterogeneous": list(self.heterogeneous),
            **{role: None if one is None else _network(one).model_dump() for role, one in self._networks()},
        }
        path = self.out / "comparison-settings.json"
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

    def _networks(self) -> Iterator[tuple[str, Recogniser | None]]:
        yield from (("teacher", self.teacher), ("judge", self.judge), ("recogniser", self.recogniser))

    def _bench(self, data: str, seed: int) -> Workbench:
        return Workbench(
            data, self.out / "runs", self.out / "cache", self.recipe.profile, seed, self.strict, self.device
        )

    # --- one method ---------------------------------------------------------------------------------------------
    def _one(self, bench: Workbench, entry: Entry, seed: int) -> Outcome:
        name = f"{entry.label}-seed{seed}"
        run = Run(self.out / "runs" / name)
        path = self.out / "figures" / f"{name}.json"
        method = bench.train(entry.method, self.teacher, run=name, overrides=entry.set)
        if path.exists():
            figures = json.loads(path.read_text(encoding="utf-8"))
        else:
            figures = self._measure(method, bench, entry, seed, run)
            release_memory()
            atomic_write(path, json.dumps(figures, indent=2, allow_nan=False) + "\n")
        card = self._card(method, bench, name, run, seed)
        for source in self.heterogeneous:
            figures.setdefault("heterogeneous", []).append(self._heterogeneous(source, entry, seed))
        return Outcome(entry.label, seed, figures, card)

    def _measure(self, method: Method, bench: Workbench, entry: Entry, seed: int, run: Run) -> dict[str, Any]:
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
            "seed": seed,
            "set": entry.set,
            "remarks": method.remarks(),
            "train_seconds": run.read_record().get("train_seconds"),
            "verification": accuracy.to_dict(),
            "cost": cost.to_dict(),
        }

    def _card(self, method: Method, bench: Workbench, name: str, run: Run, seed: int) -> Card | None:
        if self.recipe.audit is None or self.judge is None:
            return None
        folder = self.out / "cards" / name
        if (folder / "card.json").exists():
            return load_card(folder)
        found = audit(
            method,
            bench.splits(method.input_size[0]),
            judge=self.judge,
            recogniser=self.recogniser,
            profile=self.recipe.audit,
            with_attacks=self.recipe.attacks,
            seed=seed,
            teacher=None if self.teacher is None else _network(self.teacher),
            model_sha256=sha256_file(run.model_file),
        )
        write_audit(found, folder, command=f"ppfr audit {run.folder}")
        return found.card

    def _heterogeneous(self, source: str, entry: Entry, seed: int) -> dict[str, Any]:
        """A run for each fold of a protocol, and its figures."""
        opened = open_heterogeneous(source)
        folds = list(opened.folds if opened.chosen is None else (opened.chosen,))
        name = f"{entry.label}-seed{seed}-{opened.protocol.name}"
        path = self.out / "figures" / f"{name}.json"
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        figures = []
        for fold in folds:
            bench = self._bench(source if opened.chosen is not None else f"{source},fold={fold}", seed)
            method = bench.train(entry.method, self.teacher, run=f"{name}-fold{fold}", overrides=entry.set)
            test = open_test(opened, [fold], size=method.input_size[0], strict=self.strict)
            with progress_callback(f"{entry.label}: {opened.title}, fold {fold}") as progress:
                figures += evaluate_folds(method, test, flip=True, seed=seed, progress=progress)
        found = HeterogeneousFigures(opened.title, opened.simulation is not None, figures)
        result = {"protocol": opened.protocol.name, "title": opened.title, **found.to_dict()}
        atomic_write(path, json.dumps(result, indent=2, allow_nan=False) + "\n")
        return result


def _network(recogniser: Recogniser) -> Network:
    return Network(name=recogniser.name, sha256=recogniser.sha256, preprocessing=str(recogniser.preprocessing))


__all__ = ["Comparison", "ComparisonRecipe", "Entry", "Outcome", "comparison_names", "load_comparison"]
