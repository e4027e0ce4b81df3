"""The command line: `ppfr ...`."""

from __future__ import annotations

import ctypes
import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ppfr.data.faceset import FaceSet
from ppfr.data.images import IMAGE_SUFFIXES, read_image, to_tensor
from ppfr.data.sources import holds_splits, open_splits
from ppfr.errors import DataError, PpfrError
from ppfr.evaluation.cost import measure_cost
from ppfr.evaluation.evaluate import evaluate_pairs, open_evaluation
from ppfr.methods import create, method_class, methods
from ppfr.methods.files import load_method
from ppfr.networks import Recogniser, load_recogniser
from ppfr.progress import progress_callback
from ppfr.quickstart import DEFAULT_METHODS, Quickstart
from ppfr.reports.pictures import describe_payload, payload_picture, save_png
from ppfr.training.loop import Ranks, train
from ppfr.training.recipe import PROFILES, load_recipe, recipe_names
from ppfr.training.run import Run

app = typer.Typer(
    name="ppfr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="""Privacy-preserving face recognition: recognise people without handing anyone their face.

    A client *protects* a face and sends a payload; a server *embeds* the payload and matches it. Begin with
    `ppfr quickstart`, which needs no data, or turn a public recogniser into a protected one with `ppfr train
    partialface --data DIR --teacher FILE --out RUN`.""",
)
out = Console()

# what minutes on two cores can train on
SMALL_POPULATION = "synthetic:people=200,images=10"

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="Aligned 112x112 faces: a folder with train.csv and test.csv, a folder per identity, a CSV with the "
        "columns path,identity, or synthetic[:people=200,images=20,seed=0].",
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="A broken image ends the command instead of being skipped.")
]
SizeOption = Annotated[str | None, typer.Option(help="HEIGHTxWIDTH the recogniser reads, if the file does not say.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 ...")]
SeedOption = Annotated[int, typer.Option(help="Seed of weights, batches, draws and pairs.")]


def _recogniser(path: Path | None, preprocessing: str | None) -> Recogniser | None:
    """Load a teacher or judge; `preprocessing` is `size=112x96,mean=127.5,std=128,order=bgr`, any part of it."""
    if path is None:
        return None
    given: dict[str, Any] = {}
    for part in (preprocessing or "").split(","):
        if not part.strip():
            continue
        key, _, value = part.strip().partition("=")
        try:
            if key == "size":
                height, width = value.split("x")
                given["size"] = (int(height), int(width))
            elif key in {"mean", "std"}:
                numbers = [float(number) for number in value.split("/")]
                given[key] = numbers * 3 if len(numbers) == 1 else numbers
            elif key == "order":
                given["channel_order"] = value
            else:
                raise ValueError(f"unknown part {key!r}")
        except ValueError as error:
            raise DataError(
                f"preprocessing {preprocessing!r}: {error}; write for example size=112x96,mean=127.5,std=128,order=rgb "
                "(mean and std in 8-bit pixel values, one number or R/G/B)"
            ) from error
    return load_recogniser(path, **given)


@app.command()
def quickstart(
    data: DataOption = SMALL_POPULATION,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Public recogniser to learn from: a checkpoint of TFace, AdaFace, InsightFace, CVLface, or ONNX."
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(help="Another public recogniser, which says whose face an attack recovered. Never the teacher."),
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for runs, summary.json and report.html.")] = Path(
        "out"
    ),
    names: Annotated[str, typer.Option("--methods", help="Names separated by commas, or all.")] = ",".join(
        DEFAULT_METHODS
    ),
    profile: Annotated[str, typer.Option(help=f"Recipe profile: {', '.join(PROFILES)}.")] = "quick",
    teacher_preprocessing: Annotated[
        str | None, typer.Option(help="For example size=112x96,mean=127.5,std=128,order=rgb.")
    ] = None,
    judge_preprocessing: Annotated[str | None, typer.Option(help="As --teacher-preprocessing.")] = None,
    seed: SeedOption = 0,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Train, measure and attack protected recognisers, and write one HTML report. Repeat it to go on after a stop.

    Without --data it uses synthetic faces; without --teacher it first trains an unprotected recogniser that teaches the
    protected ones.
    """
    chosen = recipe_names() if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    job = Quickstart(
        data=data,
        out=out_dir,
        teacher=_recogniser(teacher, teacher_preprocessing),
        judge=_recogniser(judge, judge_preprocessing),
        methods=chosen,
        profile=profile,
        seed=seed,
        strict=strict,
        device=device,
        command=shlex.join(["ppfr", *sys.argv[1:]]),
    )
    results = job.run()
    table = Table()
    for heading in ("method", "accuracy (95 %)", "leak", "ceiling", "SSIM", "payload", "seconds"):
        table.add_column(heading, no_wrap=True)
    for result in results:
        row = result.row
        table.add_row(
            row["method"],
            f"{row['pair_accuracy']:.1%} ({100 * row['accuracy_low']:.1f}-{100 * row['accuracy_high']:.1f})",
            _share(row["leak_rank1"]),
            _share(row["ceiling_rank1"]),
            "-" if row["ssim"] is None else f"{row['ssim']:.2f}",
            f"{row['payload_bytes'] / 1000:.0f} kB",
            "-" if row["train_seconds"] is None else f"{row['train_seconds']:.0f}",
        )
    out.print(table)
    out.print(f"Report: {out_dir / 'report.html'}\nFigures: {out_dir / 'summary.json'}", soft_wrap=True)


@app.command("train")
def train_command(
    method_or_recipe: Annotated[str, typer.Argument(help="A method's name (see `ppfr methods`) or a recipe file.")],
    data: DataOption,
    out_dir: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    teacher: Annotated[Path | None, typer.Option(help="Public recogniser to distil: any checkpoint or ONNX.")] = None,
    profile: Annotated[str, typer.Option(help=f"Recipe profile: {', '.join(PROFILES)}.")] = "standard",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe: KEY=VALUE, for example training.epochs=3. Repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out: same steps, same losses.")
    ] = False,
    teacher_preprocessing: Annotated[
        str | None, typer.Option(help="For example size=112x96,mean=127.5,std=128,order=rgb.")
    ] = None,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Train one method. With --teacher a public recogniser becomes a protected one; without, labels alone teach.

    Also runs under torchrun: `torchrun --nproc-per-node 2 -m ppfr train ...` averages gradients over the processes.
    """
    known = _recogniser(teacher, teacher_preprocessing)
    recipe = load_recipe(method_or_recipe, profile=profile, taught=known is not None, overrides=settings or [])
    faces, _ = open_splits(data, strict=strict, seed=recipe.seed)
    _say_skipped(faces.skipped)
    architecture = known.architecture if known is not None and known.backbone is not None else None
    method = create(recipe.method, recipe.backbone_spec(architecture), recipe.seed, **recipe.options)
    train(method, recipe, faces, Run(out_dir), teacher=known, resume=resume, device=device)
    if Ranks.from_environment().rank == 0:
        out.print(f"Trained {recipe.method}: {out_dir}\nNext: ppfr evaluate {out_dir} --data {data}", soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or its model.safetensors.")],
    data: Annotated[
        str,
        typer.Option(
            help="Whose test people to verify: as for train, a pair list CSV (path_a,path_b,same), or an InsightFace "
            ".bin file."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
    flip: Annotated[
        bool,
        typer.Option(help="Add the mirrored image's embedding, the field's custom: two payloads a face."),
    ] = True,
    seed: SeedOption = 0,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Measure verification accuracy and cost: 10-fold accuracy, TAR at FAR, AUC, EER, with 95 % intervals."""
    method = load_method(run).to(device)
    faces = open_evaluation(data, strict=strict, seed=seed)
    _say_skipped(faces.skipped if isinstance(faces, FaceSet) else faces.pairs.skipped)
    if isinstance(faces, FaceSet) and not holds_splits(data):
        Console(stderr=True).print(
            f"{data} names no test people, so all {len(faces.identities)} are verified: if the run trained on it, the "
            "figures measure memory. Give a folder with train.csv and test.csv to test on people it never saw.",
            soft_wrap=True,
            markup=False,
        )
    with progress_callback(f"{method.info.name}: embedding") as progress:
        accuracy = evaluate_pairs(method, faces, flip=flip, seed=seed, progress=progress)
    images = faces.images(range(min(4, len(faces)))) if isinstance(faces, FaceSet) else faces.images[:4]
    cost = measure_cost(method, to_tensor(images).to(device), torch.Generator(device).manual_seed(seed))
    if as_json:
        result = {
            "method": method.info.name,
            "run": str(run),
            "data": data,
            "flip": flip,
            "seed": seed,
            "verification": accuracy.to_dict(),
            "cost": cost.to_dict(),
        }
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        out.print(f"[bold]{method.info.title}[/bold] on {data}", soft_wrap=True)
        out.print(str(accuracy), soft_wrap=True)
        out.print(str(cost), soft_wrap=True)


@app.command()
def protect(
    run: Annotated[Path, typer.Argument(help="Run folder with the client's secrets.")],
    photos: Annotated[list[Path], typer.Argument(help="Aligned face crops, or folders of them.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where payloads and pictures go.")],
    seed: Annotated[
        int | None,
        typer.Option(help="Fix the client's random draws; without it they are fresh, as they should be."),
    ] = None,
) -> None:
    """Turn photos into payload files, and draw what the server sees of each."""
    method = load_method(run)
    files = [file for photo in photos for file in _photo_files(photo)]
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    stems = [file.stem for file in files]
    for number, file in enumerate(files):
        stem = file.stem if stems.count(file.stem) == 1 else f"{file.stem}-{number}"
        payload = method.protect(to_tensor(read_image(file, method.input_size[0])[None]), generator)
        payload.save(out_dir / f"{stem}.safetensors")
        save_png(out_dir / f"{stem}.png", payload_picture(payload))
        out.print(
            f"{file} -> {out_dir / stem}.safetensors ({payload.nbytes:,} bytes raw, {payload.sent_nbytes:,} sent)",
            soft_wrap=True,
        )
    out.print(f"The pictures show: {describe_payload(payload)}", soft_wrap=True)


@app.command("methods")
def methods_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """List the methods, with their papers, secrets and options."""
    infos = [method_class(name).info for name in methods()]
    if as_json:
        print(json.dumps([{**info.__dict__, "secrets": list(info.secrets)} for info in infos], indent=2))
        return
    for info in infos:
        out.print(f"[bold]{info.name}[/bold]  {info.title}{'' if info.protects else '  (protects nothing: an anchor)'}")
        out.print(f"    {info.paper}", highlight=False)
        if info.secrets:
            out.print(f"    client secrets: {', '.join(info.secrets)}")
        for name, option in method_class(info.name).Options.model_fields.items():
            out.print(
                f"    options.{name} = {option.default!r}: {option.description}",
                highlight=False,
                markup=False,
            )


@app.command("recipes")
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="Show one recipe in full.")] = None,
    profile: Annotated[str, typer.Option(help=f"Recipe profile: {', '.join(PROFILES)}.")] = "standard",
    taught: Annotated[bool, typer.Option("--taught/--untaught", help="As with a teacher, or without one.")] = True,
) -> None:
    """List the built-in recipes, or print one as YAML to start your own from."""
    if name is not None:
        print(load_recipe(name, profile=profile, taught=taught).to_yaml(), end="")
        return
    table = Table("recipe", "profiles", "what it does")
    for known in recipe_names():
        table.add_row(known, ", ".join(PROFILES), load_recipe(known).summary)
    out.print(table)


def _photo_files(photo: Path) -> list[Path]:
    if photo.is_dir():
        found = sorted(file for file in photo.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"{photo} holds no image; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
        return found
    return [photo]


def _say_skipped(skipped: list[Any]) -> None:
    if skipped:
        console = Console(stderr=True)
        for path, reason in skipped[:10]:
            console.print(f"skipped {path}: {reason}", soft_wrap=True, markup=False)
        console.print(f"{len(skipped)} skipped; --strict makes this an error")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of handing it back to the system after every large tensor.

    Training on a CPU frees and takes the same tensors at every step; fetching them anew costs page faults (5 to 15 % of
    a step). Blocks over 32 MB still go back, so that the heap does not grow ragged. Elsewhere than on glibc this does
    nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        # from malloc.h
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 1 << 30)


def main() -> None:
    """Entry point: turns errors meant for the user into one line and exit status 1."""
    keep_freed_memory()
    try:
        app()
    except PpfrError as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/red]: {error}", soft_wrap=True, highlight=False)
        sys.exit(1)
    except OSError as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/red]: {error}", soft_wrap=True, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
