"""The client library: photos in, subjects out; only payloads leave this process."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote

import httpx

from ppfr.data.detection.align import align
from ppfr.data.detection.detector import Detector
from ppfr.data.images import Images, fit_crop, read_image, to_tensor
from ppfr.serving.contract import Candidate
from ppfr.serving.runtime.protector import Protector
from ppfr.util.errors import DataError, ServiceError

Photo = Path | str | Images
_Outcome = httpx.Response | httpx.TransportError
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
_CROP = 112
# too many requests, and faults of a proxy or server that may pass
_RETRIED = {429, 502, 503, 504}
_API = "/api/v1/recognition"


class PhotoProtector:
    """Photo to message: finds the largest face, aligns it and protects it. With no `detector`, photos are crops."""

    def __init__(self, client_dir: Path | str, detector: Detector | None) -> None:
        self._protector = Protector(client_dir)
        self._detector = detector

    def message(self, photo: Photo) -> bytes:
        """The message to send; raises DataError when there is no face, or the file is no image."""
        image = read_image(photo, None) if isinstance(photo, (str, Path)) else photo
        if self._detector is not None:
            faces = self._detector.detect(image)
            if not faces:
                raise DataError(f"{photo if isinstance(photo, (str, Path)) else 'the photo'}: no face was found")
            image = align(image, max(faces, key=lambda face: face.area).landmarks, _CROP)
        size = self._protector.contract.input_size[0]
        return self._protector.to_bytes(to_tensor(fit_crop(image, size)[None]))


class _Requests(Generic[Http]):
    """Requests, retries and results, whichever way requests are sent."""

    _http_class: type[Http]

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
        transport: Any = None,
    ) -> None:
        """`client_dir` is what `ppfr export` wrote, or the `client/` folder in it.

        `detector` finds and aligns the face in a photo (see `ppfr.data.detection.detectors.open_detector`); without
        one, photos are taken for aligned crops. A request that gets no answer or meets a busy server is repeated up to
        `retries` times, after `pause` seconds and twice as long each time. `transport` is httpx's. Raises
        CheckpointError.
        """
        self._photos = PhotoProtector(client_dir, detector)
        self._retries, self._pause = retries, pause
        # a detector is for one thread at a time
        self._protecting = asyncio.Lock()
        self._http: Http = self._http_class(
            base_url=url, headers={"x-api-key": api_key}, timeout=timeout, transport=transport, trust_env=False
        )

    def _enrol(self, photo: Photo, subject: str) -> dict[str, Any]:
        # the same for every attempt: repeating a request whose answer got lost must not enrol twice
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._request("faces", photo, params={"subject": subject}, headers=headers)

    def _recognise(self, photo: Photo, limit: int) -> dict[str, Any]:
        return self._request("recognize", photo, params={"limit": limit})

    def _verify(self, photo: Photo, subject: str) -> dict[str, Any]:
        return self._request(f"subjects/{quote(subject, safe='')}/verify", photo)

    def _request(self, path: str, photo: Photo, **rest: Any) -> dict[str, Any]:
        return {"url": f"{_API}/{path}", "content": self._photos.message(photo), **rest}

    def _wait(self, attempt: int, outcome: _Outcome) -> float | None:
        """Seconds until the next attempt; None when there is none."""
        answer = outcome if isinstance(outcome, httpx.Response) else None
        if attempt >= self._retries or (answer is not None and answer.status_code not in _RETRIED):
            return None
        asked = answer.headers.get("retry-after", "") if answer is not None else ""
        return float(asked) if asked.isdigit() else self._pause * 2**attempt

    def _result(self, outcome: _Outcome) -> Any:
        url = self._http.base_url
        if isinstance(outcome, httpx.TransportError):
            raise ServiceError(f"{url} does not answer ({outcome}); is `ppfr serve` running there?")
        try:
            body = outcome.json()
        except ValueError:
            body = {"message": outcome.text[:200]}
        if outcome.is_success:
            return body
        reason = body.get("message") if isinstance(body, dict) else None
        message = f"{url} refused with {outcome.status_code}: {reason or 'no reason given'}"
        raise ServiceError(message, outcome.status_code)


class Client(_Requests[httpx.Client]):
    """Talks to one server; photos are protected here. For one thread at a time."""

    _http_class = httpx.Client

    def enrol(self, photo: Photo, subject: str) -> str:
        """Store the face under a subject; returns the face's id. Raises DataError and ServiceError."""
        return str(self._send(self._enrol(photo, subject))["image_id"])

    def recognise(self, photo: Photo, limit: int = 1) -> list[Candidate]:
        """The most similar subjects, best first. Raises DataError and ServiceError."""
        return _candidates(self._send(self._recognise(photo, limit))["result"][0]["subjects"])

    def verify(self, photo: Photo, subject: str) -> float:
        """The cosine in [-1,1] of the photo with the nearest face of a subject. Raises DataError and ServiceError."""
        return float(self._send(self._verify(photo, subject))["result"][0]["similarity"])

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send(self, request: dict[str, Any]) -> Any:
        attempt = 0
        while True:
            try:
                outcome: _Outcome = self._http.post(**request)
            except httpx.TransportError as error:
                outcome = error
            wait = self._wait(attempt, outcome)
            if wait is None:
                return self._result(outcome)
            time.sleep(wait)
            attempt += 1


class AsyncClient(_Requests[httpx.AsyncClient]):
    """As `Client`, for asyncio; faces are found and protected in a thread."""

    _http_class = httpx.AsyncClient

    async def enrol(self, photo: Photo, subject: str) -> str:
        """As `Client.enrol`."""
        return str((await self._send(self._enrol, photo, subject))["image_id"])

    async def recognise(self, photo: Photo, limit: int = 1) -> list[Candidate]:
        """As `Client.recognise`."""
        return _candidates((await self._send(self._recognise, photo, limit))["result"][0]["subjects"])

    async def verify(self, photo: Photo, subject: str) -> float:
        """As `Client.verify`."""
        return float((await self._send(self._verify, photo, subject))["result"][0]["similarity"])

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, request_of: Any, *asked: Any) -> Any:
        async with self._protecting:
            request = await asyncio.to_thread(request_of, *asked)
        attempt = 0
        while True:
            try:
                outcome: _Outcome = await self._http.post(**request)
            except httpx.TransportError as error:
                outcome = error
            wait = self._wait(attempt, outcome)
            if wait is None:
                return self._result(outcome)
            await asyncio.sleep(wait)
            attempt += 1


def _candidates(subjects: list[dict[str, Any]]) -> list[Candidate]:
    return [Candidate(str(one["subject"]), float(one["similarity"])) for one in subjects]
