"""The application that commands join, with the options and helpers they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from ppfr.networks import Recogniser, load_recogniser
from ppfr.util.errors import DataError

app = typer.Typer(
    name="ppfr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Privacy-preserving face recognition: train, evaluate, attack and deploy protected recognisers.\n\n"
    "A client *protects* a face image and sends the payload; a server *embeds* the payload and matches it. Start with "
    "`ppfr quickstart`, which needs no data, or distil a protected recogniser from a public one with `ppfr train "
    "partialface --data DIR --teacher FILE --out RUN`.",
)
out = Console()


@app.callback()
def _name_the_command() -> None:
    # with this the command is named on the line even while the application knows but one
    return None


def _usable_device(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise typer.BadParameter(
            f"{name!r} is not a device; expected cpu, cuda or, for one of several GPUs, cuda:1"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise typer.BadParameter(
            f"{name!r}: PyTorch {torch.__version__} finds {torch.cuda.device_count()} GPUs here; leave --device out to "
            "compute on the processor"
        )
    return name


# what minutes on two cores can train on
SMALL_POPULATION = "synthetic:people=200,images=10"

DATA_HELP = (
    "Aligned 112x112 faces: a folder with train.csv and test.csv, a folder per identity, a CSV with the columns "
    "path,identity, synthetic (or synthetic:people=200, with images= and seed= likewise), or a heterogeneous protocol: "
    "lamp-hq:DIR, casia-nir-vis:DIR, tufts:DIR (,fold=N for one fold)."
)
DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP)]
PreprocessingOption = Annotated[
    str | None,
    typer.Option(
        help="Preprocessing of that recogniser, if its file does not define it: size=112x96, mean=127.5, std=128, "
        "order=bgr, or some of these, separated by commas."
    ),
]
FlipOption = Annotated[
    bool,
    typer.Option(help="Add the embedding of the mirrored image, as is customary; the client then sends two payloads."),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Treat a broken image as an error instead of skipping it.")
]
SizeOption = Annotated[str | None, typer.Option(help="HEIGHTxWIDTH the recogniser reads, if the file does not say.")]
PayloadSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a setting of the payload after training: KEY=VALUE, see `ppfr methods NAME`. Repeatable.",
    ),
]
DeviceOption = Annotated[str, typer.Option(callback=_usable_device, help="Device to compute on: cpu, cuda, cuda:1 ...")]
SeedOption = Annotated[int, typer.Option(help="Seed of weights, batches, random draws and pairs.")]


def recogniser(path: Path | None, preprocessing: str | None) -> Recogniser | None:
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


def say_skipped(skipped: list[Any]) -> None:
    if skipped:
        console = Console(stderr=True)
        for path, reason in skipped[:10]:
            console.print(f"skipped {path}: {reason}", soft_wrap=True, markup=False)
        console.print(f"{len(skipped)} skipped; --strict makes this an error")
