"""Recipes: typed settings of a training run, read from YAML, with profiles and overrides by key path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ppfr.methods import BackboneSpec, method_class, method_names
from ppfr.util.errors import RecipeError

_DEFAULTS = "_defaults"
PROFILES = ("quick", "standard", "paper")
_Model = TypeVar("_Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Optimizer(_Strict):
    """Optimizer of a stage."""

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(5e-4, ge=0, description="not applied to norm layers and biases")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only")


class Schedule(_Strict):
    """Learning rate schedule, as a factor of the peak."""

    name: Literal["one_cycle", "steps", "constant"] = "one_cycle"
    warmup: float = Field(0.2, ge=0, lt=1, description="share of all steps spent rising (one_cycle)")
    milestones: list[float] = Field(default_factory=list, description="epochs at which to multiply by gamma (steps)")
    gamma: float = Field(0.1, gt=0, le=1)


class Dropout(_Strict):
    """Dropout of embeddings before the margin head: rate start^(decay^(epoch // every)), at most `most`.

    The shape is that of LightCNN's public training code (Wu et al., IEEE TIFS 2018); decay 1 keeps the rate.
    """

    start: float = Field(gt=0, lt=1)
    decay: float = Field(1.0, gt=0, le=1)
    every: int = Field(1, ge=1, description="epochs between two steps")
    most: float = Field(0.95, gt=0, lt=1)

    def rate(self, epoch: int) -> float:
        """Share of the embedding's values set to zero in `epoch`, counted from 0."""
        return min(self.most, float(self.start ** (self.decay ** (epoch // self.every))))


class HeadSettings(_Strict):
    """Margin softmax over the training identities."""

    name: str = "arcface"
    options: dict[str, float | bool] = Field(default_factory=dict, description="for example margin: 0.5, scale: 64")
    sharded: bool = Field(True, description="under torchrun, shard the classes over the ranks; same losses")
    sample_rate: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of a rank's classes in each loss (PartialFC), always with those of the batch",
    )

    @model_validator(mode="after")
    def _samples_shards(self) -> Self:
        if self.sample_rate < 1 and not self.sharded:
            raise ValueError("sample_rate below 1 needs sharded: true")
        return self


class Losses(_Strict):
    """Weights of the loss terms."""

    distil: float = Field(1.0, ge=0, description="1 - cosine to the teacher's embedding")
    margin: float = Field(0.0, ge=0, description="cross entropy of the margin head")


class StageSettings(_Strict):
    """Training of one stage."""

    epochs: float = Field(6, ge=0, description="may be a fraction")
    repeats: int = Field(1, ge=1, description="passes over the data in one epoch, each with fresh draws")
    batch_size: int = Field(64, ge=2)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    head: HeadSettings = HeadSettings()
    losses: Losses = Losses()
    dropout: Dropout | None = None
    clip: float | None = Field(5.0, gt=0, description="largest norm of the gradient; null for none")
    freeze_norm: bool = Field(False, description="keep the norm layers' running statistics as they are")


class Augment(_Strict):
    """Random changes of the training images."""

    flip: bool = True
    shift: int = Field(0, ge=0, le=16, description="largest shift in pixels")
    jitter: float = Field(0.0, ge=0, le=1, description="strength of brightness and contrast changes")


class DataSet(_Strict):
    """One data set among several that a run learns from, each with a head of its own."""

    source: str = Field(description="as --data takes it")
    share: float | None = Field(None, gt=0, description="part of each batch; null: by number of images")
    weight: float = Field(1.0, gt=0, description="factor on its margin loss")


class BackboneSettings(_Strict):
    """The server's network; `auto` takes the teacher's own architecture, or else `fallback`."""

    name: str = "auto"
    fallback: str = Field("mobilefacenet", description="used by `auto` when the teacher's weights cannot be a start")
    embedding_size: int | None = None
    width: float = Field(1.0, gt=0)


class Recipe(_Strict):
    """All settings of a training run except its data and teacher."""

    method: str
    profile: str = "standard"
    summary: str = ""
    seed: int = 0
    backbone: BackboneSettings = BackboneSettings()
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own settings")
    warm_start: bool = Field(True, description="begin with the teacher's weights where shapes allow")
    warm_start_images: int = Field(768, ge=36, description="training images used to fit the first layer")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    augment: Augment = Augment()
    data: list[DataSet] = Field(default_factory=list, description="data sets to learn from together; else --data")
    training: StageSettings = StageSettings()
    stages: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="changes to `training` for one stage, by the stage's name"
    )
    start_from: str | None = Field(None, description="a run folder whose finished stages this run begins with")
    only_stages: list[str] | None = Field(None, description="the stages to train; the others must be in `start_from`")
    checkpoint_minutes: float = Field(5.0, gt=0)

    def stage(self, name: str) -> StageSettings:
        """Settings of one stage: `training` with the changes under `stages.NAME`."""
        return _parse(
            StageSettings, deep_merge(self.training.model_dump(), self.stages.get(name, {})), f"stages.{name}"
        )

    def backbone_spec(self, teacher: str | None) -> BackboneSpec:
        """The network to build, given the name of the teacher's architecture (None: unknown or no teacher)."""
        name = (teacher or self.backbone.fallback) if self.backbone.name == "auto" else self.backbone.name
        return BackboneSpec(name, embedding_size=self.backbone.embedding_size, width=self.backbone.width)

    def to_yaml(self, *, with_secrets: bool = False) -> str:
        """The recipe as YAML; options that would give a client's secret away are left out unless asked for."""
        values = self.model_dump(mode="json")
        if not with_secrets:
            hidden = method_class(self.method).Options.secret_fields()
            values["options"] = {name: value for name, value in values["options"].items() if name not in hidden}
        return yaml.safe_dump(values, sort_keys=False)


def deep_merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated by `change`, recursively in nested mappings; neither argument is altered."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def recipe_names() -> list[str]:
    """Names that `load_recipe` takes: those of the methods."""
    return method_names()


def built_in_names(package: str) -> list[str]:
    """Names of the YAML files of a package, without those that begin with an underscore, which others extend."""
    files = (entry.name for entry in resources.files(package).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml") and not name.startswith("_"))


def load_recipe(
    name: str | Path,
    *,
    profile: str = "standard",
    taught: bool = False,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> Recipe:
    """Read a built-in recipe by method name, or a YAML file, choose its profile, and apply overrides.

    A file with `extends: NAME` changes the built-in recipe of that name. A method without a built-in recipe, such as
    one of another distribution, has that of `_defaults.yaml`. Without a teacher (`taught` is false) the section
    `without_teacher` applies. `overrides` are `key.path=value` strings (values in YAML) or a nested mapping. Raises
    RecipeError naming the key's path for an unknown key, a wrong type or a value out of range.
    """
    values = _read_recipe(name)
    profiles = values.pop("profiles", {})
    untaught = values.pop("without_teacher", {})
    if profiles:
        if profile not in profiles:
            raise RecipeError(f"recipe {str(name)!r} has no profile {profile!r}; it has {', '.join(profiles)}")
        chosen = dict(profiles[profile] or {})
        untaught = deep_merge(untaught, chosen.pop("without_teacher", {}))
        values = deep_merge(values, chosen)
        values["profile"] = profile
    if not taught:
        values = deep_merge(values, untaught)
    changes = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    recipe = _parse(Recipe, deep_merge(values, changes), "")
    method_class(recipe.method).Options.parse(recipe.options, recipe.method)
    for stage in recipe.stages:
        recipe.stage(stage)
    return recipe


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn `["training.epochs=3"]` into nested mappings; values are read as YAML."""
    result: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise RecipeError(f"--set {assignment!r} is not KEY=VALUE, for example --set training.epochs=3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {path}: the value {text!r} is not valid YAML: {error}") from error
        nested: dict[str, Any] = {keys[-1]: value}
        for key in reversed(keys[:-1]):
            nested = {key: nested}
        result = deep_merge(result, nested)
    return result


def _read_recipe(name: str | Path) -> dict[str, Any]:
    """The settings of a recipe, merged over those of the recipes that it extends."""
    if str(name) in method_names() and str(name) not in built_in_names("ppfr.recipes"):
        return {"method": str(name), "summary": method_class(str(name)).info.title, **read_settings(_DEFAULTS)}
    values = read_settings(name)
    extended = [str(name)]
    while (base := values.pop("extends", None)) is not None:
        if base in extended:
            raise RecipeError(f"recipe {name}: {base!r} extends itself; let `extends` name another recipe")
        extended.append(base)
        values = deep_merge(read_settings(base), values)
    return values


def read_settings(name: str | Path, package: str = "ppfr.recipes", kind: str = "recipe") -> dict[str, Any]:
    """The content of a YAML file, or of a built-in one of `package` by its name.

    Raises RecipeError for a missing file and for content that is not a mapping; `kind` names the thing in the message.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise RecipeError(f"{kind} file {path} does not exist")
        text = path.read_text(encoding="utf-8")
    elif (file := resources.files(package).joinpath(f"{path.name}.yaml")).is_file() and path.name == str(name):
        text = file.read_text(encoding="utf-8")
    else:
        known = ", ".join(built_in_names(package))
        raise RecipeError(f"no {kind} {str(name)!r}; built in: {known}; or give the path of a .yaml file")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{kind} {name}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{kind} {name}: expected a mapping of settings, found {type(values).__name__}")
    return values


def _parse(model: type[_Model], values: Mapping[str, Any], prefix: str) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            path = ".".join([part for part in (prefix, *map(str, problem["loc"])) if part])
            text = _known_keys(model, problem["loc"]) if problem["type"] == "extra_forbidden" else problem["msg"]
            lines.append(f"{path}: {text} (got {problem['input']!r})")
        raise RecipeError("; ".join(lines)) from error


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> str:
    """Message for a key path that `model` does not know: the keys it expects there."""
    for key in path[:-1]:
        if isinstance(key, int):  # a place in a list, whose items the step before led to
            continue
        kind: Any = model.model_fields[key].annotation if key in model.model_fields else None
        kinds = [kind, *get_args(kind)]
        model = next((part for part in kinds if isinstance(part, type) and issubclass(part, BaseModel)), BaseModel)
    return f"unknown key; expected one of {', '.join(model.model_fields)}" if model.model_fields else "unknown key"
