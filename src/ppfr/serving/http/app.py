"""The HTTP server: CompreFace's routes, with payloads in place of photos."""

from __future__ import annotations

import json
import logging
import queue
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException as StarletteHTTPException

from ppfr.serving.contract import Candidate
from ppfr.serving.gallery.api_keys import ApiKey, Role
from ppfr.serving.gallery.database import MOST_NAME
from ppfr.serving.gallery.faces import Face
from ppfr.serving.http.limits import RateLimit
from ppfr.serving.http.web import Page, add_page
from ppfr.serving.search.index import SearchUnavailable
from ppfr.serving.service import Service
from ppfr.util.errors import GalleryError, PayloadError, ServiceError

_LOG = logging.getLogger("ppfr.serving.access")
_MOST_RESULTS = 100
_PAGE = 20
# a message holds two images at most, and its tensors in full at worst
_IMAGES = 2
_SLACK = 1 << 16


@dataclass(frozen=True)
class ServerLimits:
    """Requests a second and at once for each API key; bytes of a body are bounded by the payload's schema."""

    rate: float = 50.0
    burst: int = 100


class SubjectBody(BaseModel):
    """A subject's name."""

    subject: str = Field(min_length=1, max_length=MOST_NAME)


class Metrics:
    """Metrics for Prometheus: by route, without names of people."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("ppfr_requests", "Requests", ["method", "route", "status"], registry=self.registry)
        self.seconds = Histogram("ppfr_request_seconds", "Time to answer", ["route"], registry=self.registry)
        faces = Gauge("ppfr_indexed_faces", "Templates in the index", registry=self.registry)
        faces.set_function(lambda: len(service.index))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)


def create_app(service: Service, limits: ServerLimits = ServerLimits(), page: Page | None = None) -> FastAPI:
    """The application; it closes `service` when it ends. OpenAPI lies at /openapi.json, a page for it at /docs.

    With a `page`, the web client is at /.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(title="ppfr", summary="Recognise people from protected payloads", lifespan=lifespan)
    app.state.service = service
    app.state.metrics = Metrics(service)
    app.state.limit = RateLimit(limits.rate, limits.burst)
    app.include_router(_ROUTER)
    if page is not None:
        add_page(app, page, Depends(_caller(None)))
    app.middleware("http")(_observed)
    for error, handler in _HANDLERS.items():
        app.add_exception_handler(error, handler)
    return app


# --- authentication and bodies -----------------------------------------------------------------------------------
def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _caller(role: Role | None) -> Callable[..., Awaitable[ApiKey]]:
    """The caller's API key, which must be for `role`; None permits any key."""

    async def check(request: Request, x_api_key: Annotated[str, Header(max_length=200)] = "") -> ApiKey:
        service = _service(request)
        key = await run_in_threadpool(service.gallery.api_keys.authenticate, x_api_key) if x_api_key else None
        host = request.client.host if request.client else "unknown"
        wait = request.app.state.limit.wait(key.id if key else f"host {host}")
        if wait:
            raise HTTPException(429, "too many requests", {"Retry-After": str(int(wait) + 1)})
        if key is None:
            raise HTTPException(401, "x-api-key is missing or unknown")
        request.state.key = key.id
        if role is not None and key.role not in (role, Role.ADMIN):
            raise HTTPException(403, f"this key is for {key.role}; the request needs one for {role} or admin")
        return key

    return check


Served = Annotated[Service, Depends(_service)]
Enroller = Annotated[ApiKey, Depends(_caller(Role.ENROL))]
Recogniser = Annotated[ApiKey, Depends(_caller(Role.RECOGNISE))]
Admin = Annotated[ApiKey, Depends(_caller(Role.ADMIN))]
Name = Annotated[str, Query(min_length=1, max_length=MOST_NAME)]
PathName = Annotated[str, Path(min_length=1, max_length=MOST_NAME)]
FaceId = Annotated[str, Path(max_length=36)]


async def _message(request: Request) -> bytes:
    """The body, a message of `Payload.to_bytes`; no more of it is read than one can be long."""
    most = _IMAGES * _service(request).contract.schema.nbytes + _SLACK
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise HTTPException(413, f"the body is longer than {most} bytes, more than any payload of this deployment")
    return bytes(body)


Message = Annotated[bytes, Depends(_message)]
_PAYLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": meaning,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"message": {"type": "string"}, "code": {"type": "integer"}},
                    "required": ["message", "code"],
                }
            }
        },
    }
    for status, meaning in {
        400: "a payload or value that is refused",
        401: "no valid x-api-key",
        403: "a key of another role",
        404: "not found",
        413: "too large",
        429: "too many requests",
        503: "the database or the index is unavailable, or too many payloads wait",
    }.items()
}
_ROUTER = APIRouter()
_API = APIRouter(prefix="/api/v1", responses=_ERRORS)


# --- subjects ----------------------------------------------------------------------------------------------------
@_API.post("/recognition/subjects", status_code=201)
def add_subject(service: Served, body: SubjectBody, key: Enroller) -> dict[str, str]:
    """Add a subject without a face."""
    service.gallery.subjects.add(body.subject, key.id)
    return {"subject": body.subject}


@_API.get("/recognition/subjects")
def list_subjects(service: Served, key: Enroller) -> dict[str, list[str]]:
    """Names of all subjects."""
    return {"subjects": service.gallery.subjects.names()}


@_API.put("/recognition/subjects/{subject:path}")
def rename_subject(service: Served, subject: PathName, body: SubjectBody, key: Enroller) -> dict[str, bool]:
    """Rename a subject; if the new name exists, the faces move there."""
    if not service.gallery.subjects.rename(subject, body.subject, key.id):
        raise HTTPException(404, "there is no such subject")
    return {"updated": True}


@_API.delete("/recognition/subjects/{subject:path}")
def delete_subject(service: Served, subject: PathName, key: Enroller) -> dict[str, str]:
    """Remove a subject and its templates for good."""
    if service.gallery.subjects.delete(subject, key.id) is None:
        raise HTTPException(404, "there is no such subject")
    service.index.try_refresh()
    return {"subject": subject}


@_API.delete("/recognition/subjects")
def delete_all_subjects(service: Served, key: Admin) -> dict[str, int]:
    """Remove every subject and template for good."""
    deleted = service.gallery.subjects.delete_all(key.id)
    service.index.try_refresh()
    return {"deleted": deleted}


# --- faces -------------------------------------------------------------------------------------------------------
@_API.post("/recognition/faces", status_code=201, openapi_extra=_PAYLOAD)
async def enrol(
    service: Served,
    subject: Name,
    key: Enroller,
    message: Message,
    idempotency_key: Annotated[str | None, Header(min_length=8, max_length=100)] = None,
) -> dict[str, str]:
    """Enrol a face: the body is a payload. Repeating a call with its Idempotency-Key enrols nothing twice."""
    # a key counts for the caller alone
    own = None if idempotency_key is None else f"{key.id} {idempotency_key}"
    face = await run_in_threadpool(service.enrol, message, subject, request=own, actor=key.id)
    return _face(face)


@_API.get("/recognition/faces")
def list_faces(
    service: Served,
    key: Enroller,
    subject: Annotated[str | None, Query(max_length=MOST_NAME)] = None,
    page: Annotated[int, Query(ge=0, le=1 << 31)] = 0,
    size: Annotated[int, Query(ge=1, le=1000)] = _PAGE,
) -> dict[str, Any]:
    """Enrolled faces, oldest first, by page."""
    enrolled = service.gallery.faces
    count = enrolled.count(subject)
    faces = enrolled.find(subject, offset=page * size, limit=size)
    return {
        "faces": [_face(face) for face in faces],
        "page_number": page,
        "page_size": size,
        "total_pages": -(-count // size),
        "total_elements": count,
    }


@_API.delete("/recognition/faces")
def delete_faces(service: Served, subject: Name, key: Enroller) -> dict[str, int]:
    """Remove all faces of a subject, who stays."""
    deleted = service.gallery.faces.delete_of(subject, key.id)
    service.index.try_refresh()
    return {"deleted": deleted}


@_API.delete("/recognition/faces/{image_id}")
def delete_face(service: Served, image_id: FaceId, key: Enroller) -> dict[str, str]:
    """Remove a face for good."""
    face = service.gallery.faces.delete(image_id, key.id)
    if face is None:
        raise HTTPException(404, "there is no such face")
    service.index.try_refresh()
    return _face(face)


# --- recognition -------------------------------------------------------------------------------------------------
@_API.post("/recognition/recognize", openapi_extra=_PAYLOAD)
async def recognize(
    service: Served, key: Recogniser, message: Message, limit: Annotated[int, Query(ge=1, le=_MOST_RESULTS)] = 1
) -> dict[str, Any]:
    """The most similar subjects; similarity is a cosine in [-1,1]."""
    found = await run_in_threadpool(service.recognise, message, limit)
    return {"result": [{"subjects": [asdict(one) for one in found]}]}


@_API.post("/recognition/faces/{image_id}/verify", openapi_extra=_PAYLOAD)
async def verify_face(service: Served, image_id: FaceId, key: Recogniser, message: Message) -> dict[str, Any]:
    """How similar a probe is to one enrolled face."""
    return _verified(await run_in_threadpool(service.verify_face, message, image_id), "there is no such face")


@_API.post("/recognition/subjects/{subject:path}/verify", openapi_extra=_PAYLOAD)
async def verify_subject(service: Served, subject: PathName, key: Recogniser, message: Message) -> dict[str, Any]:
    """How similar a probe is to the nearest face of a subject (not among CompreFace's routes)."""
    found = await run_in_threadpool(service.verify_subject, message, subject)
    return _verified(found, "there is no such subject, or it has no face")


@_API.post("/verification/verify", openapi_extra=_PAYLOAD)
async def verify_pair(service: Served, key: Recogniser, message: Message) -> dict[str, Any]:
    """How similar two faces are; the body is one message with both payloads. Nothing is stored."""
    similarity = await run_in_threadpool(service.verify_pair, message)
    return {"result": [{"face_matches": [{"similarity": similarity}]}]}


# --- for operators -----------------------------------------------------------------------------------------------
@_ROUTER.get("/healthz")
def healthz(service: Served) -> dict[str, Any]:
    """Whether the database answers, and which contract is served."""
    service.gallery.ping()
    return {"status": "ok", "contract": service.contract.id}


@_ROUTER.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


_ROUTER.include_router(_API)


# --- answers -----------------------------------------------------------------------------------------------------
async def _observed(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Count and log a request, by its route: paths hold names of people."""
    started = time.perf_counter()
    status = 500
    try:
        response = await call_next(request)
        status = response.status_code
        return response
    finally:
        seconds = time.perf_counter() - started
        route = getattr(request.scope.get("route"), "path", "unknown")
        request.app.state.metrics.observe(request.method, route, status, seconds)
        line = {"method": request.method, "route": route, "status": status, "ms": round(1000 * seconds, 1)}
        _LOG.info(json.dumps(line | {"key": getattr(request.state, "key", None)}))


def _face(face: Face) -> dict[str, str]:
    return {"image_id": face.id, "subject": face.subject}


def _verified(found: Candidate | None, absent: str) -> dict[str, Any]:
    if found is None:
        raise HTTPException(404, absent)
    return {"result": [asdict(found)]}


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"message": message, "code": status}, status, headers)


def _answers(status: int, message: str | None = None, *, logged: bool = False) -> Any:
    """A handler of exceptions that answers with a message, the exception's own if None."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        if logged:
            _LOG.error("%s: %s", message, type(error).__name__)
        return _error(status, message or str(error), {"Retry-After": "1"} if status == 503 else None)

    return answer


async def _http_error(request: Request, error: Any) -> JSONResponse:
    return _error(error.status_code, str(error.detail), error.headers)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    return _error(400, "; ".join(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors()))


_UNAVAILABLE = "the database or the index is unavailable; try again"
_HANDLERS: dict[type[Exception], Any] = {
    StarletteHTTPException: _http_error,
    RequestValidationError: _invalid,
    PayloadError: _answers(400),
    GalleryError: _answers(400),
    queue.Full: _answers(503, "too many payloads wait; try again"),
    ServiceError: _answers(503),
    SearchUnavailable: _answers(503, _UNAVAILABLE, logged=True),
    OperationalError: _answers(503, _UNAVAILABLE, logged=True),
    Exception: _answers(500, "the server failed; see its log"),
}
