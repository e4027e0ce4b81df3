"""The web page in headless Chromium: it computes what Python computes, works, and sends no image anywhere."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from ppfr.data.detection.align import align
from ppfr.data.detection.yunet import YuNet
from ppfr.data.images import Images, decode_image, fit_crop, to_tensor
from ppfr.data.synthetic.faces import SyntheticFaces
from ppfr.methods import BackboneSpec, Payload, PayloadSchema, TensorSpec, create
from ppfr.serving.contract import Contract
from ppfr.serving.deployment.export import export_method
from ppfr.serving.deployment.graph import GraphProtector, SavedGraph, save_protect_graph
from ppfr.serving.runtime.protector import Protector
from ppfr.wire import CODINGS
from support.chromium import CHROMIUM, Chromium, Tab
from support.deployments import SPEC
from support.leaks import images_in
from support.photographs import with_orientation
from support.sites import Site, serving

METHODS = {
    "partialface": ({"table": "random", "table_seed": 5}, SPEC),
    "duetface": ({}, BackboneSpec("mobilefacenet", 16, 0.25, (112, 112))),
    "minusface": ({"generator_width": 0.125, "duplicates": 2}, SPEC),
    "ppfr-fd": ({}, SPEC),
}
DETECTOR = "models/face_detection_yunet_2026may.onnx"
# two draws of the client may be the same, and then so are the embeddings
ADA_WAS_FOUND = re.compile(r"Ada Lovelace: cosine (0\.\d{3}|1\.000)")
PHOTOS = ("000114.jpg", "006365.jpg", "015501.jpg")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which Debian has as a package of that name")
    with Chromium(tmp_path_factory.mktemp("profile")) as running:
        try:
            running.call("Browser.getVersion")
        except OSError as error:
            pytest.skip(f"needs a Chromium that starts: {error}")
        yield running


@pytest.fixture(scope="module")
def detector(shared: Path) -> Path:
    return shared / DETECTOR


@pytest.fixture(scope="module")
def site(
    runtime: Path, browser: Chromium, deployment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A server whose page takes crops alone."""
    with serving(deployment, tmp_path_factory.mktemp("site") / "gallery.db", deployment, runtime) as running:
        yield running


@pytest.fixture
def tab(browser: Chromium, site: Site) -> Tab:
    """The page, open, on an empty gallery."""
    return opened(browser, site)


def opened(browser: Chromium, site: Site) -> Tab:
    httpx.delete(f"{site.url}api/v1/recognition/subjects", headers={"x-api-key": site.key}).raise_for_status()
    site.requests.clear()
    tab = browser.open(site.url)
    tab.wait_for("document.body?.dataset.ready")
    return tab


def face(number: int = 0) -> Images:
    """A drawn face, 112 x 112."""
    return SyntheticFaces(2, 2).image(number)


def saved(picture: Images, path: Path) -> Path:
    cv2.imwrite(str(path), picture[..., ::-1])
    return path


# --- driving it as people do ----------------------------------------------------------------------------------------
def text(tab: Tab, element: str) -> str:
    return str(tab.evaluate(f"document.getElementById({json.dumps(element)}).textContent"))


def fill(tab: Tab, element: str, value: str) -> None:
    field = f"document.getElementById({json.dumps(element)})"
    tab.evaluate(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('change'))")


def settled(tab: Tab) -> None:
    """Wait until the page has done what it was asked."""
    tab.wait_for("document.body.getAttribute('aria-busy') === null")


def choose(tab: Tab, path: Path) -> None:
    tab.choose_file("#photo", path)
    time.sleep(0.05)
    settled(tab)


def click(tab: Tab, element: str) -> str:
    """The answer to a button, or the alert."""
    tab.evaluate(f"document.getElementById({json.dumps(element)}).click()")
    time.sleep(0.05)
    settled(tab)
    return text(tab, "answer") or text(tab, "alert")


def complaints(tab: Tab) -> list[Any]:
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [event for kind in kinds for event in tab.events(kind)]


def shown(tab: Tab, canvas: str) -> Images:
    """What a canvas shows, RGB."""
    width, height, pixels = tab.evaluate(
        f"""(() => {{
          const canvas = document.getElementById({json.dumps(canvas)});
          const {{ width, height, data }} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return [width, height, Array.from(data)];
        }})()"""
    )
    return np.array(pixels, np.uint8).reshape(height, width, 4)[..., :3]


# --- calling its parts ----------------------------------------------------------------------------------------------
TO_BYTES = "const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));"
TO_TEXT = "const text = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));"


def calling(tab: Tab, body: str, **given: object) -> Any:
    """What an asynchronous function returns whose arguments are `given`; bytes arrive as base64."""
    plain = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in given.items()
    }
    names = ", ".join(plain)
    return tab.evaluate(f"(async ({{ {names} }}) => {{ {TO_BYTES} {TO_TEXT} {body} }})({json.dumps(plain)})")


def rgba(picture: Images) -> bytes:
    return np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)]).tobytes()


PICTURE = "const picture = { width: size[0], height: size[1], data: new Uint8ClampedArray(bytes(pixels)) };"


def given_picture(picture: Images) -> dict[str, Any]:
    return {"pixels": rgba(picture), "size": [picture.shape[1], picture.shape[0]]}


@pytest.mark.parametrize("name", METHODS)
def test_payloads_are_those_of_python(tab: Tab, tmp_path: Path, name: str) -> None:
    options, spec = METHODS[name]
    method, bare = (create(name, spec, **options).eval() for _ in range(2))
    if method.info.secrets:
        bare.drop_secrets()
    contract = Contract.of(method)
    contract.save(tmp_path)
    crop = fit_crop(face(), spec.input_size[0])
    image = to_tensor(crop[None])
    assert isinstance(save_protect_graph(bare, method, image, tmp_path), SavedGraph)
    generator = torch.Generator().manual_seed(3)
    draws = {draw.name: draw.sample(generator) for draw in GraphProtector(tmp_path).draws}
    message = calling(
        tab,
        PICTURE
        + """
        const { Client } = await import("/page/client.js");
        const client = await Client.open(contract, graph, bytes(network).buffer, bytes(secrets).buffer);
        for (const draw of Object.values(draws)) {
          draw.data = draw.dtype === "int64" ? BigInt64Array.from(draw.data, BigInt) : Float32Array.from(draw.data);
        }
        return text((await client.protect(picture, draws)).message);
        """,
        **given_picture(crop),
        contract=json.loads((tmp_path / "contract.json").read_text()),
        graph=json.loads((tmp_path / "protect.json").read_text()),
        network=(tmp_path / "protect.onnx").read_bytes(),
        secrets=save(method.secrets()),
        draws={
            key: {
                "dtype": str(draw.dtype).removeprefix("torch."),
                "shape": list(draw.shape),
                "data": draw.flatten().tolist(),
            }
            for key, draw in draws.items()
        },
    )
    with torch.no_grad():
        expected = method.protect(image, torch.Generator().manual_seed(3))
    found = Payload.from_bytes(base64.b64decode(message), contract.schema, contract=contract.id)
    for key, tensor in expected.tensors.items():
        largest = float(tensor.abs().max())
        assert largest > 0
        np.testing.assert_allclose(found.tensors[key].numpy(), tensor.numpy(), atol=1e-3 * largest, rtol=0)


SCHEMA = PayloadSchema(
    "made up",
    {
        "channels": TensorSpec((6, 16, 16), "block-DCT channels for a coder", block_dct=True),
        "odd": TensorSpec((3, 5), "lines of an odd number of bytes"),
        "vector": TensorSpec((700,), "single numbers"),
        "whole": TensorSpec((2, 3), "whole numbers", torch.int64),
    },
)


def made_up() -> Payload:
    """Values of all sizes and signs, ties between halves, a channel that is flat, and whole numbers."""
    draw = np.random.default_rng(4)
    channels = draw.normal(size=(1, 6, 16, 16)).astype(np.float32)
    channels[:, 1] = 0.25
    channels[:, 2] *= 1e4
    channels[:, 3] *= 1e-7
    exponents = np.arange(-45, 16, dtype=np.float64)
    sizes = np.concatenate([[0.0], *(2.0**exponents * part for part in (1, 1.5, 1 + 2**-11, 1 + 3 * 2**-11))])
    vector = np.resize(np.concatenate([sizes, -sizes, draw.normal(size=200) * 2.0**-15, [65519.0]]), 700)
    tensors = {
        "channels": channels,
        "odd": draw.uniform(-3, 5, size=(1, 3, 5)).astype(np.float32),
        "vector": vector.astype(np.float32)[None],
        "whole": draw.integers(-(2**40), 2**40, size=(1, 2, 3)),
    }
    return Payload(SCHEMA, {name: torch.from_numpy(values) for name, values in tensors.items()})


def coded(tab: Tab, payload: Payload, coding: str) -> bytes:
    """The page's message of a payload, where the contract names this coding."""
    message = calling(
        tab,
        """
        const { codingFor } = await import("/page/codings.js");
        const { message } = await import("/page/wire.js");
        for (const one of Object.values(tensors)) {
          one.data = new (one.whole ? BigInt64Array : Float32Array)(bytes(one.data).buffer);
        }
        return text(message(contract, tensors, codingFor(contract.coding)));
        """,
        contract={"id": "c", "schema": {"method": SCHEMA.method}, "coding": coding},
        tensors={
            name: {
                "shape": list(tensor.shape),
                "whole": not tensor.is_floating_point(),
                "data": base64.b64encode(tensor.numpy().tobytes()).decode(),
            }
            for name, tensor in payload.tensors.items()
        },
    )
    return base64.b64decode(message)


@pytest.mark.parametrize(("coding", "written"), [(one, one) for one in CODINGS[:3]] + [("dct:0.02", "float16")])
def test_messages_are_coded_as_in_python(tab: Tab, coding: str, written: str) -> None:
    payload = made_up()
    found = Payload.from_bytes(coded(tab, payload, coding), SCHEMA, contract="c")
    expected = Payload.from_bytes(payload.to_bytes(written, contract="c"), SCHEMA, contract="c")
    assert torch.equal(found["whole"], payload["whole"])
    for name in ("channels", "odd", "vector"):
        if written != "int8":
            assert torch.equal(found[name], expected[name]), name
            continue
        values = payload[name].flatten(2) if payload[name].ndim > 2 else payload[name][..., None]
        step = ((values.amax(2) - values.amin(2)) / 255)[..., None]
        for other, steps in ((expected, 1), (payload, 0.5)):
            apart = (found[name] - other[name]).reshape(values.shape).abs()
            # what is said in single precision is rounded as well
            assert bool((apart <= steps * step + 1e-6 * values.abs().amax(2, keepdim=True)).all()), name


def test_values_that_a_coding_cannot_hold_are_refused(tab: Tab) -> None:
    payload = made_up()
    payload["vector"][0, 0] = 65520
    with pytest.raises(RuntimeError, match="values beyond 65504 cannot be coded as float16"):
        coded(tab, payload, "float16")
    payload["channels"][0, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="not finite cannot be coded as int8"):
        coded(tab, payload, "int8")
    with pytest.raises(RuntimeError, match="this page knows no coding"):
        coded(tab, payload, "int4")


def test_draws_are_what_they_say(tab: Tab) -> None:
    found = calling(
        tab,
        """
        const { sample } = await import("/page/draws.js");
        const draw = (kind, shape, of) => Array.from(sample({ name: "d", kind, shape, of }).data, Number);
        return { choice: draw("choice", [4000], 7), order: draw("permutation", [3, 50]),
                 laplace: draw("laplace", [20000]), normal: draw("normal", [20000]) };
        """,
    )
    counts = np.bincount(found["choice"], minlength=7)
    assert len(counts) == 7 and counts.min() > 400
    orders = np.reshape(found["order"], (3, 50))
    assert all(sorted(order) == list(range(50)) for order in orders.tolist()) and len(np.unique(orders, axis=0)) == 3
    assert abs(np.abs(found["laplace"]).mean() - 1) < 0.05 and abs(np.std(found["laplace"]) - 2**0.5) < 0.1
    assert abs(np.std(found["normal"]) - 1) < 0.05 and abs(np.mean(found["normal"])) < 0.05


@pytest.mark.parametrize("size", [32, 112, 160])
def test_crops_are_resized_as_in_python(tab: Tab, size: int) -> None:
    found = calling(
        tab,
        PICTURE + 'const { fitCrop } = await import("/page/pixels.js"); return text(fitCrop(picture, wanted).data);',
        **given_picture(face()),
        wanted=size,
    )
    resized = np.frombuffer(base64.b64decode(found), np.uint8).reshape(size, size, 4)[..., :3]
    assert np.abs(resized.astype(int) - fit_crop(face(), size)).max() <= 1


def test_a_crop_is_cut_as_in_python(tab: Tab) -> None:
    """Also far larger than the crop, turned, and reaching over the border of the photo."""
    picture = cv2.resize(face(), (900, 900), interpolation=cv2.INTER_CUBIC)
    upright = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]])
    for scale, angle, shift in ((8.0, 0.0, 0.0), (5.0, 0.6, 120.0), (0.7, -2.0, 300.0), (9.0, 0.1, -200.0)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        landmarks = (upright - 56) @ turn.T * scale + 450 + shift
        found = calling(
            tab,
            PICTURE + 'const { align } = await import("/page/align.js"); return text(align(picture, landmarks).data);',
            **given_picture(picture),
            landmarks=landmarks.tolist(),
        )
        crop = np.frombuffer(base64.b64decode(found), np.uint8).reshape(112, 112, 4)[..., :3].astype(int)
        apart = np.abs(crop - align(picture, landmarks))
        # OpenCV interpolates at 32 places between pixels
        assert apart.mean() < 1 and np.percentile(apart, 99) <= 8, (scale, apart.mean(), apart.max())


def photographs(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in PHOTOS:
        yield name, (folder / name).read_bytes()
    data = (folder / PHOTOS[0]).read_bytes()
    # lying on its side, with an EXIF block that says so
    turned = cv2.rotate(decode_image(data, None), cv2.ROTATE_90_COUNTERCLOCKWISE)
    yield (
        "turned",
        with_orientation(cv2.imencode(".jpg", turned[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes(), 6),
    )
    # without one: the head lies on its side
    yield "on its side", cv2.imencode(".png", turned[..., ::-1])[1].tobytes()


def test_faces_are_found_where_python_finds_them(tab: Tab, shared: Path, detector: Path) -> None:
    network = YuNet(detector)
    for name, data in photographs(shared / "wild"):
        image = decode_image(data, None)
        largest = max(network.detect(image), key=lambda one: one.area)
        found = calling(
            tab,
            """
            const { detect, area } = await import("/page/detect.js");
            const { align } = await import("/page/align.js");
            const { openNetwork } = await import("/page/runtime.js");
            const { fromFile } = await import("/page/photo.js");
            globalThis.detector ??= await openNetwork(bytes(network));
            const picture = await fromFile(new File([bytes(file)], "photo"));
            const faces = await detect(globalThis.detector, picture);
            const largest = faces.reduce((one, other) => (area(other.box) > area(one.box) ? other : one));
            const crop = align(picture, largest.landmarks);
            return [[picture.width, picture.height], largest.landmarks, largest.score, text(crop.data)];
            """,
            file=data,
            network=detector.read_bytes(),
        )
        size, landmarks, score, crop = found
        assert tuple(size) == image.shape[1::-1], name
        eyes = float(np.linalg.norm(largest.landmarks[1] - largest.landmarks[0]))
        # a hundredth of the distance of the eyes is a third of a pixel of the crop
        assert np.abs(np.array(landmarks) - largest.landmarks).max() < 0.01 * eyes, name
        assert abs(score - largest.score) < 0.01, name
        pixels = np.frombuffer(base64.b64decode(crop), np.uint8).reshape(112, 112, 4)[..., :3].astype(int)
        assert np.abs(pixels - align(image, largest.landmarks)).mean() < 2.5, name


# --- the page as a whole --------------------------------------------------------------------------------------------
def nothing_leaks(tab: Tab, site: Site, file: bytes, pictures: list[Images], secrets: bytes) -> None:
    """No request holds an image or a secret, and none went elsewhere."""
    asked = tab.events("Network.requestWillBeSent")
    assert asked and all(one["request"]["url"].startswith((site.url, f"blob:{site.url}")) for one in asked)
    assert not tab.events("Network.webSocketCreated")
    sent = [one for one in site.requests if one.body]
    # what the browser says it sent is what came
    assert len(sent) == sum(one["request"].get("hasPostData", False) for one in asked)
    assert {one.path for one in sent} <= {
        "/api/v1/recognition/faces",
        "/api/v1/recognition/recognize",
        "/api/v1/recognition/subjects/Ada Lovelace/verify",
    }
    for one in site.requests:
        for part in (one.head, one.body):
            assert images_in(part, file, pictures) == [], one.path
            assert secrets not in part
            assert b"photo-of" not in part


def test_enrol_recognise_and_verify(tab: Tab, site: Site, deployment: Path, tmp_path: Path) -> None:
    photo = saved(face(0), tmp_path / "photo-of-ada.png")
    assert "Choose an aligned crop" in text(tab, "status")
    assert tab.evaluate("document.getElementById('aligned').disabled && document.getElementById('recognise').disabled")
    fill(tab, "key", site.key)
    choose(tab, photo)
    assert text(tab, "alert") == "" and "Ready" in text(tab, "status")
    np.testing.assert_array_equal(shown(tab, "picture"), face(0))
    assert np.abs(shown(tab, "crop").astype(int) - fit_crop(face(0), 32)).max() <= 1
    assert shown(tab, "payload").std() > 20 and "27 channels, each" in text(tab, "payload-note")
    told = text(tab, "payload-note")
    fill(tab, "subject", "Ada Lovelace")
    assert click(tab, "enrol") == "Ada Lovelace is enrolled."
    assert ADA_WAS_FOUND.search(click(tab, "recognise"))
    assert ADA_WAS_FOUND.search(click(tab, "verify"))
    choose(tab, saved(face(2), tmp_path / "photo-of-another.png"))
    fill(tab, "subject", "Charles / Babbage")
    assert click(tab, "enrol") == "Charles / Babbage is enrolled."
    click(tab, "recognise")
    assert tab.evaluate("document.querySelectorAll('#answer li').length") == 2
    secrets = (deployment / "client" / "secrets.safetensors").read_bytes()[-64:]
    nothing_leaks(tab, site, photo.read_bytes(), [face(0), face(2), fit_crop(face(0), 32)], secrets)
    assert complaints(tab) == []
    bodies = [one.body for one in site.requests if one.body]
    # of one photo, two queries may draw the same of 18 kinds of payload; of two photos nothing is alike
    assert len(bodies) == 5 and not set(bodies[:3]) & set(bodies[3:])
    assert f"{len(bodies[0]):,} bytes as float16 (not dct:0.02, which this page cannot compute)" in told

    client = Protector(deployment / "client")
    payloads = [
        Payload.from_bytes(body, client.contract.schema, contract=client.contract.id).tensors["channels"].numpy()
        for body in bodies
    ]
    graph = GraphProtector(deployment / "client")
    crop, secret = to_tensor(fit_crop(face(0), 32)[None]), load_file(deployment / "client" / "secrets.safetensors")
    possible = [graph.protect(crop, secret, {"kind": torch.tensor([kind])})["channels"] for kind in range(18)]
    for payload in payloads[:3]:
        apart = [np.abs(payload - one).max() for one in possible]
        # one of 255 levels in the crop may fall to either side
        assert min(apart) < 0.02 * np.abs(payload).max()


def test_messages_are_coded_as_the_contract_says(
    browser: Chromium, runtime: Path, deployment: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "deployment"
    shutil.copytree(deployment, copy)
    for half in ("client", "server"):
        # the coding is no part of the contract's id
        dataclasses.replace(Contract.load(copy / half), coding="int8").save(copy / half)
    with serving(copy, tmp_path / "gallery.db", copy, runtime) as site:
        tab = opened(browser, site)
        fill(tab, "key", site.key)
        choose(tab, saved(face(0), tmp_path / "photo.png"))
        told = text(tab, "payload-note")
        fill(tab, "subject", "Ada Lovelace")
        assert click(tab, "enrol") == "Ada Lovelace is enrolled."
        assert ADA_WAS_FOUND.search(click(tab, "recognise"))
        body = next(one.body for one in site.requests if one.body)
    assert told.endswith(f"; {len(body):,} bytes as int8")
    # a byte a value, two numbers a channel and a header
    assert 27 * 32 * 32 < len(body) < 27 * 32 * 32 + 27 * 8 + 1000


def test_a_photo_is_aligned_and_stays(
    browser: Chromium, runtime: Path, deployment: Path, shared: Path, detector: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "photo-of-somebody.jpg"
    photo.write_bytes((shared / "wild" / PHOTOS[0]).read_bytes())
    image = decode_image(photo.read_bytes(), None)
    crop = align(image, max(YuNet(detector).detect(image), key=lambda one: one.area).landmarks)
    with serving(deployment, tmp_path / "gallery.db", deployment, runtime, detector) as site:
        tab = opened(browser, site)
        fill(tab, "key", site.key)
        choose(tab, photo)
        assert text(tab, "alert") == ""
        fill(tab, "subject", "Ada Lovelace")
        assert click(tab, "enrol") == "Ada Lovelace is enrolled."
        assert ADA_WAS_FOUND.search(click(tab, "recognise"))
        assert ADA_WAS_FOUND.search(click(tab, "verify"))
        own = shown(tab, "crop")
        assert np.abs(own.astype(int) - fit_crop(crop, 32)).mean() < 2.5
        secrets = (deployment / "client" / "secrets.safetensors").read_bytes()[-64:]
        nothing_leaks(tab, site, photo.read_bytes(), [image, crop, fit_crop(crop, 32), own], secrets)
        # the search finds an image where there is one
        assert images_in(own.tobytes(), photo.read_bytes(), [own])
        blank = saved(np.full((200, 300, 3), 90, np.uint8), tmp_path / "wall.png")
        choose(tab, blank)
        assert text(tab, "alert") == "no face was found in this photo"
        assert tab.evaluate("document.getElementById('recognise').disabled")
        assert complaints(tab) == []


def test_secrets_of_the_users_own_file_stay(browser: Chromium, runtime: Path, deployment: Path, tmp_path: Path) -> None:
    client = tmp_path / "client"
    client.mkdir()
    for path in (deployment / "client").iterdir():
        if "secrets" not in path.name:
            (client / path.name).write_bytes(path.read_bytes())
    secrets = deployment / "client" / "secrets.safetensors"
    photo = saved(face(0), tmp_path / "photo-of-ada.png")
    with serving(deployment, tmp_path / "gallery.db", client, runtime) as site:
        tab = opened(browser, site)
        fill(tab, "key", site.key)
        choose(tab, photo)
        assert text(tab, "alert") == "choose the file with this client's secrets"
        tab.choose_file("#secrets", photo)
        time.sleep(0.05)
        settled(tab)
        assert "this is no file of secrets" in text(tab, "alert")
        tab.choose_file("#secrets", secrets)
        time.sleep(0.05)
        settled(tab)
        # the photo waited for its client
        assert text(tab, "alert") == "" and "Ready" in text(tab, "status")
        fill(tab, "subject", "Ada Lovelace")
        assert click(tab, "enrol") == "Ada Lovelace is enrolled."
        nothing_leaks(tab, site, photo.read_bytes(), [face(0), fit_crop(face(0), 32)], secrets.read_bytes()[-64:])
        assert complaints(tab) == []


def test_refusals_are_told_and_got_over(tab: Tab, site: Site, tmp_path: Path) -> None:
    photo = saved(face(0), tmp_path / "photo-of-ada.png")
    choose(tab, photo)
    assert "enter the API key" in text(tab, "alert")
    fill(tab, "key", "wrong")
    settled(tab)
    assert "the server refused with 401: x-api-key is missing or unknown" in text(tab, "alert")
    fill(tab, "key", site.key)
    settled(tab)
    assert text(tab, "alert") == "" and "Ready" in text(tab, "status")
    fill(tab, "subject", "nobody at all")
    assert "the server refused with 404: there is no such subject" in click(tab, "verify")
    assert not tab.evaluate("document.getElementById('verify').disabled")
    no_image = tmp_path / "notes.png"
    no_image.write_text("no image")
    choose(tab, no_image)
    assert text(tab, "alert") == "notes.png is no image that this browser can read"
    assert tab.evaluate("document.getElementById('recognise').disabled")
    choose(tab, saved(face(0)[:, :100], tmp_path / "oblong.png"))
    assert "100 x 112 is not square" in text(tab, "alert")


def test_after_a_lost_answer_the_same_is_sent_again(tab: Tab, site: Site, tmp_path: Path) -> None:
    fill(tab, "key", site.key)
    choose(tab, saved(face(3), tmp_path / "photo.png"))
    fill(tab, "subject", "Lost And Found")
    # the server gets the request and answers; the answer does not arrive
    tab.evaluate(
        """(() => {
          const real = window.fetch;
          window.fetch = async (...asked) => {
            window.fetch = real;
            await real(...asked);
            throw new TypeError("nothing came back");
          };
        })()"""
    )
    assert "nothing came back" in click(tab, "enrol")
    assert not tab.evaluate("document.getElementById('enrol').disabled")
    assert click(tab, "enrol") == "Lost And Found is enrolled."
    lost, again = (one for one in site.requests if one.path == "/api/v1/recognition/faces")
    assert lost.body and lost.body == again.body
    name = re.search(rb"idempotency-key\n([0-9a-f]{32})", lost.head)
    assert name is not None and name[1] in again.head
    # one face, and the next question is another message under another name
    listed = httpx.get(
        f"{site.url}api/v1/recognition/faces", params={"subject": "Lost And Found"}, headers={"x-api-key": site.key}
    )
    assert listed.json()["total_elements"] == 1
    assert click(tab, "enrol") == "Lost And Found is enrolled."
    third = [one for one in site.requests if one.method == "POST"][-1]
    assert third.body != lost.body and name[1] not in third.head


def test_where_nothing_is_protected_the_page_says_so(
    browser: Chromium, tab: Tab, runtime: Path, tmp_path: Path
) -> None:
    assert tab.evaluate("document.getElementById('warning').hidden")
    export_method(create("arcface", SPEC), tmp_path / "deployment")
    with serving(tmp_path / "deployment", tmp_path / "gallery.db", tmp_path / "deployment", runtime) as site:
        plain = opened(browser, site)
        expected = "Warning: arcface protects nothing: what clients send is the picture of the face itself."
        assert text(plain, "warning") == expected and not plain.evaluate("document.getElementById('warning').hidden")


def test_the_policy_keeps_the_page_at_home(tab: Tab, site: Site) -> None:
    """What a page that was tampered with could try."""
    elsewhere = "http://127.0.0.1:9/x"
    for attempt in (
        f"fetch('{elsewhere}', {{ method: 'POST', body: 'x', mode: 'no-cors' }})",
        f"import('{elsewhere}.js')",
        f"new Promise((yes, no) => Object.assign(new Image(), {{ onload: yes, onerror: no, src: '{elsewhere}' }}))",
    ):
        assert tab.evaluate(f"{attempt}.then(() => 'done', () => 'refused')") == "refused"
    tab.evaluate(
        "document.head.append(Object.assign(document.createElement('script'), { textContent: 'injected = 1' }))"
    )
    assert tab.evaluate("typeof injected") == "undefined"
    told = " ".join(event["entry"]["text"] for event in tab.events("Log.entryAdded"))
    assert all(f'directive: "{rule}' in told for rule in ("connect-src", "script-src", "img-src")), told
    assert "inline" in told


def test_the_camera(tab: Tab, site: Site) -> None:
    """Chromium's camera of moving colours, oblong, so it cannot pass for a crop."""
    fill(tab, "key", site.key)
    click(tab, "camera")
    assert tab.evaluate("!document.getElementById('viewfinder').hidden && document.activeElement.id") == "shoot"
    tab.wait_for("document.getElementById('video').videoWidth > 0")
    click(tab, "shoot")
    assert "is not square, so not an aligned crop" in text(tab, "alert")
    assert shown(tab, "picture").std() > 5
    assert tab.evaluate("document.getElementById('viewfinder').hidden && !document.getElementById('video').srcObject")
    assert not any(one.body for one in site.requests)


def test_it_works_by_keyboard_and_has_names(tab: Tab) -> None:
    order = []
    for _ in range(8):
        for kind in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", {"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9})
        order.append(tab.evaluate("document.activeElement.id"))
    assert order[:3] == ["key", "photo", "camera"]
    nameless = tab.evaluate(
        """[...document.querySelectorAll("input, button, canvas, video, pre")].filter((one) =>
             !one.labels?.length && !one.textContent.trim() && !one.ariaLabel).map((one) => one.id)"""
    )
    assert nameless == []
    for width in (320, 390, 1000):
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False},
        )
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
