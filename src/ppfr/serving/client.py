"""The client's SDK: photo in, subject out; only payloads leave this process."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from ppfr.data.detection.align import align
from ppfr.data.detection.detector import Detector
from ppfr.data.images import Images, fit_crop, read_image, to_tensor
from ppfr.serving.contract import Candidate
from ppfr.serving.runtime.protector import Protector
from ppfr.util.errors import DataError, ServiceError

Photo = Path | str | Images
_CROP = 112
# what a later attempt may change: too many requests, a proxy's or server's moment of weakness
_AGAIN = {429, 502, 503, 504}
_API = "/api/v1/recognition"


class Shutter:
    """Photo to message: finds the largest face, aligns it and protects it. With no `detector`, photos are crops."""

    def __init__(self, client_dir: Path | str, detector: Detector | None) -> None:
        self._protector = Protector(client_dir)
        self._detector = detector

    def message(self, photo: Photo) -> bytes:
        """What may leave this device; raises DataError when there is no face, or the file is no image."""
        image = read_image(photo, None) if isinstance(photo, (str, Path)) else photo
        if self._detector is not None:
            faces = self._detector.detect(image)
            if not faces:
                raise DataError(f"{photo if isinstance(photo, (str, Path)) else 'the photo'}: no face was found")
            image = align(image, max(faces, key=lambda face: face.area).landmarks, _CROP)
        size = self._protector.contract.input_size[0]
        return self._protector.to_bytes(to_tensor(fit_crop(image, size)[None]))


@dataclass(frozen=True)
class _Call:
    """One request, and how it is retried."""

    path: str
    body: bytes
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class _Requests:
    """What both clients share: how a question becomes a request, and an answer a result."""

    def __init__(self, client_dir: Path | str, detector: Detector | None, retries: int, pause: float) -> None:
        self._shutter = Shutter(client_dir, detector)
        self._retries, self._pause = retries, pause

    def _enrol(self, photo: Photo, subject: str) -> _Call:
        # the same for every attempt: an answer that got lost must not enrol twice
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return _Call(f"{_API}/faces", self._shutter.message(photo), {"subject": subject}, headers)

    def _recognise(self, photo: Photo, limit: int) -> _Call:
        return _Call(f"{_API}/recognize", self._shutter.message(photo), {"limit": limit})

    def _verify(self, photo: Photo, subject: str) -> _Call:
        return _Call(f"{_API}/subjects/{quote(subject, safe='')}/verify", self._shutter.message(photo))

    def _wait(self, attempt: int, answer: httpx.Response | None) -> float:
        asked = answer.headers.get("retry-after", "") if answer is not None else ""
        return float(asked) if asked.isdigit() else self._pause * 2**attempt

    def _goes_on(self, attempt: int, answer: httpx.Response | None) -> bool:
        return attempt < self._retries and (answer is None or answer.status_code in _AGAIN)


class Client(_Requests):
    """Talks to one server; photos are protected here. For one thread at a time."""

    def __init__(
        self,
        url: str,
        client_dir: Path | str,
        api_key: str,
        *,
        detector: Detector | None = None,
        retries: int = 3,
        pause: float = 0.2,
        timeout: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`client_dir` is what `ppfr export` wrote for clients. `detector` finds and aligns the face in a photo (see
        `ppfr.data.detection.detectors.open_detector`); without one, photos are taken for aligned crops. A request that
        meets no answer or a busy server is repeated up to `retries` times, `pause` seconds later and twice as long each
        time. Raises CheckpointError.
        """
        super().__init__(client_dir, detector, retries, pause)
        self._http = httpx.Client(
            base_url=url, headers={"x-api-key": api_key}, timeout=timeout, transport=transport, trust_env=False
        )

    def enrol(self, photo: Photo, subject: str) -> str:
        """Store the face under a subject; returns the face's id. Raises DataError and ServiceError, as all here."""
        return str(self._send(self._enrol(photo, subject))["image_id"])

    def recognise(self, photo: Photo, limit: int = 1) -> list[Candidate]:
        """The most similar subjects, best first."""
        return _candidates(self._send(self._recognise(photo, limit))["result"][0]["subjects"])

    def verify(self, photo: Photo, subject: str) -> float:
        """The cosine in [-1,1] of the photo with the nearest face of a subject."""
        return float(self._send(self._verify(photo, subject))["result"][0]["similarity"])

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send(self, call: _Call) -> Any:
        for attempt in range(self._retries + 1):
            answer, reason = None, ""
            try:
                answer = self._http.post(call.path, params=call.params, content=call.body, headers=call.headers)
            except httpx.TransportError as error:
                reason = str(error)
            if not self._goes_on(attempt, answer):
                break
            time.sleep(self._wait(attempt, answer))
        return _result(answer, reason, self._http.base_url)


class AsyncClient(_Requests):
    """As `Client`, for asyncio; faces are found and protected in a thread."""

    def __init__(
        self,
        url: str,
        client_dir: Path | str,
        api_key: str,
        *,
        detector: Detector | None = None,
        retries: int = 3,
        pause: float = 0.2,
        timeout: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As `Client`."""
        super().__init__(client_dir, detector, retries, pause)
        # a detector is for one thread at a time
        self._turn = asyncio.Lock()
        self._http = httpx.AsyncClient(
            base_url=url, headers={"x-api-key": api_key}, timeout=timeout, transport=transport, trust_env=False
        )

    async def enrol(self, photo: Photo, subject: str) -> str:
        """As `Client.enrol`."""
        async with self._turn:
            call = await asyncio.to_thread(self._enrol, photo, subject)
        return str((await self._send(call))["image_id"])

    async def recognise(self, photo: Photo, limit: int = 1) -> list[Candidate]:
        """As `Client.recognise`."""
        async with self._turn:
            call = await asyncio.to_thread(self._recognise, photo, limit)
        return _candidates((await self._send(call))["result"][0]["subjects"])

    async def verify(self, photo: Photo, subject: str) -> float:
        """As `Client.verify`."""
        async with self._turn:
            call = await asyncio.to_thread(self._verify, photo, subject)
        return float((await self._send(call))["result"][0]["similarity"])

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, call: _Call) -> Any:
        for attempt in range(self._retries + 1):
            answer, reason = None, ""
            try:
                answer = await self._http.post(call.path, params=call.params, content=call.body, headers=call.headers)
            except httpx.TransportError as error:
                reason = str(error)
            if not self._goes_on(attempt, answer):
                break
            await asyncio.sleep(self._wait(attempt, answer))
        return _result(answer, reason, self._http.base_url)


def _result(answer: httpx.Response | None, reason: str, url: httpx.URL) -> Any:
    if answer is None:
        raise ServiceError(f"{url} does not answer ({reason}); is `ppfr serve` running there?")
    try:
        body = answer.json()
    except ValueError:
        body = {"message": answer.text[:200]}
    if answer.is_success:
        return body
    told = body.get("message", "no reason given") if isinstance(body, dict) else "no reason given"
    raise ServiceError(f"{url} refused with {answer.status_code}: {told}", answer.status_code)


def _candidates(subjects: list[dict[str, Any]]) -> list[Candidate]:
    return [Candidate(str(one["subject"]), float(one["similarity"])) for one in subjects]
