"""`ppfr enrol`, `ppfr recognise` and `ppfr verify`: the client of `ppfr serve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppfr.cli.app import app, out

if TYPE_CHECKING:
    from ppfr.serving.client import Client

PhotoArgument = Annotated[Path, typer.Argument(help="A photo; the largest face in it is used.")]
ClientOption = Annotated[Path, typer.Option("--client", help="Folder that `ppfr export` wrote, or its client/.")]
UrlOption = Annotated[str, typer.Option(help="Address of the server (`ppfr serve`).")]
KeyOption = Annotated[
    str, typer.Option(envvar="PPFR_API_KEY", help="API key; prefer the variable to the command line.")
]
AlignedOption = Annotated[bool, typer.Option("--aligned", help="The photo is an aligned crop already.")]
DetectorOption = Annotated[Path | None, typer.Option(help="YuNet's ONNX file; by default it is fetched once.")]
URL = "http://127.0.0.1:8000"


def _open(url: str, client: Path, api_key: str, aligned: bool, detector: Path | None) -> Client:
    from ppfr.data.detection.detectors import open_detector
    from ppfr.serving.client import Client

    return Client(url, client, api_key, detector=None if aligned else open_detector("yunet", detector))


@app.command()
def enrol(
    photo: PhotoArgument,
    subject: Annotated[str, typer.Argument(help="Whose face it is.")],
    client: ClientOption,
    api_key: KeyOption,
    url: UrlOption = URL,
    aligned: AlignedOption = False,
    detector: DetectorOption = None,
) -> None:
    """Enrol a face with a server; only the payload is sent, not the photo."""
    with _open(url, client, api_key, aligned, detector) as opened:
        out.print_json(json.dumps({"image_id": opened.enrol(photo, subject), "subject": subject}))


@app.command()
def recognise(
    photo: PhotoArgument,
    client: ClientOption,
    api_key: KeyOption,
    limit: Annotated[int, typer.Option(help="How many subjects to name.", min=1, max=100)] = 1,
    url: UrlOption = URL,
    aligned: AlignedOption = False,
    detector: DetectorOption = None,
) -> None:
    """Ask a server who a face is; only the payload is sent, not the photo."""
    with _open(url, client, api_key, aligned, detector) as opened:
        found = [{"subject": one.subject, "similarity": one.similarity} for one in opened.recognise(photo, limit)]
    out.print_json(json.dumps({"subjects": found}))


@app.command()
def verify(
    photo: PhotoArgument,
    subject: Annotated[str, typer.Argument(help="Who it is said to be.")],
    client: ClientOption,
    api_key: KeyOption,
    url: UrlOption = URL,
    aligned: AlignedOption = False,
    detector: DetectorOption = None,
) -> None:
    """Ask a server how similar a face is to an enrolled subject; only the payload is sent, not the photo."""
    with _open(url, client, api_key, aligned, detector) as opened:
        out.print_json(json.dumps({"subject": subject, "similarity": opened.verify(photo, subject)}))
