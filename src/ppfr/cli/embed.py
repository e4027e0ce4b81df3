"""`ppfr embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from ppfr.cli.app import (
    DeviceOption,
    FlipOption,
    PayloadSettings,
    PreprocessingOption,
    SeedOption,
    StrictOption,
    app,
    out,
    say_skipped,
)
from ppfr.cli.launch import under_torchrun
from ppfr.cli.models import identify_model, load_model
from ppfr.data.faceset import FaceSet
from ppfr.data.sources import holds_splits, open_faces, open_splits
from ppfr.distributed.process_group import Ranks, joined
from ppfr.evaluation.embeddings import embed_to_parquet
from ppfr.evaluation.evaluate import model_input_size


@app.command()
def embed(
    model_file: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE",
            help="Run folder or its model.safetensors; or a public recogniser's file (clear images).",
        ),
    ],
    data: Annotated[str, typer.Option(help="Aligned faces: any source that train takes.")],
    target: Annotated[Path, typer.Option("--out", help="Parquet file to write: path, identity, embedding.")],
    part: Annotated[
        Literal["train", "test"] | None,
        typer.Option(
            help="People to embed, if the source has training and test people; the default is test. Other sources: all."
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine, each with one thread.")] = 1,
    flip: FlipOption = True,
    preprocessing: PreprocessingOption = None,
    settings: PayloadSettings = None,
    seed: SeedOption = 0,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Embed a whole data set into one Parquet file; the embeddings are not normalised.

    The work is done in parts of 2,048 images, shared among --processes, or among the ranks of torchrun on several
    machines with a shared disk. Repeat the command to continue after a stop, with any number of processes; the file
    has the same bytes whatever that number. Read it with `pandas.read_parquet(FILE)`.
    """
    if processes > 1 and not Ranks.from_environment().several:
        under_torchrun(processes)
        return
    # sums over several threads may round otherwise than over one
    torch.set_num_threads(1)
    with joined(device) as ranks:
        model = load_model(model_file, preprocessing, str(ranks.device(device)), settings)
        faces = _open(data, part, model_input_size(model), strict, seed)
        if ranks.first:
            say_skipped(faces.skipped)
        source = identify_model(model, model_file, settings)
        embed_to_parquet(model, faces, target, source=source, flip=flip, seed=seed, ranks=ranks)
        if ranks.first:
            out.print(f"{len(faces)} embeddings of {len(faces.identities)} people: {target}", soft_wrap=True)


def _open(data: str, part: str | None, size: int, strict: bool, seed: int) -> FaceSet:
    if part is None and not holds_splits(data):
        return open_faces(data, size=size, strict=strict)
    train, test = open_splits(data, size=size, strict=strict, seed=seed)
    return train if part == "train" else test
