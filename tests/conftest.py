"""Fixtures that every room's tests share."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from ppfr.auditing.card import (
    Audited,
    AuditedFaces,
    Card,
    Control,
    Estimate,
    Finding,
    FurtherEstimate,
    Network,
    ThreatRecord,
    Times,
    estimate_leak,
    proves,
    verdict,
    worst_finding,
)

# two test processes on two cores: threads of their own would only get in each other's way
torch.set_num_threads(1)

# a busy machine is no reason to fail, and one commit gives one result: `--hypothesis-profile search` draws new examples
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", _PATIENT)
settings.register_profile("ppfr", _PATIENT, derandomize=True)
settings.load_profile("ppfr")

ROOT = Path(__file__).resolve().parent.parent

# what a test needs shows in its fixtures
NEEDS = {"shared": "faces", "browser": "browser", "postgres": "postgres"}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Several processes take whole files each, so that a file's fixtures are made once."""
    if config.getoption("numprocesses", None) and config.getoption("dist") == "no":
        config.option.dist = "loadfile"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, marker in NEEDS.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


def pytest_collection_finish() -> None:
    """Modules stay for good: the garbage collector, which some of what is tested calls, need not look at them again."""
    gc.collect()
    gc.freeze()


# what libraries add to the environment when they are imported is theirs
_WATCHED = ("PPFR_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "OMP_", "HOME", "PATH", "TMPDIR")


def process_state() -> dict[str, Any]:
    """What a test could change for those that come after it."""
    return {
        **{name: value for name, value in os.environ.items() if name.startswith(_WATCHED)},
        "working directory": os.getcwd(),
        "torch": (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        ),
        "NumPy's errors": np.geterr(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "logging": logging.root.manager.disable,
    }


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Tests run in any order, so each leaves the process as it found it."""
    before = process_state()
    yield
    after = process_state()
    changed = {name: (value, after.get(name)) for name, value in before.items() if after.get(name) != value}
    assert not changed and set(after) == set(before), f"left behind: {changed} {sorted(set(after) - set(before))}"


def shared_path() -> Path | None:
    """The optional folder of real faces, weights and golden numbers, or None."""
    path = Path(os.environ.get("PPFR_SHARED", ROOT.parent / "shared"))
    return path if (path / "golden").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    path = shared_path()
    if path is None:
        pytest.skip("needs the shared folder (golden numbers, real faces): set PPFR_SHARED")
    return path


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        with np.load(shared / "golden" / name) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small PartialFace, exported for its clients and its server."""
    from ppfr.serving.deployment.export import export_method
    from support.deployments import build_method

    folder = tmp_path_factory.mktemp("deployment")
    exported = export_method(build_method(), folder, coding="dct:0.02")
    assert exported.difference < 1e-4
    return folder


# --- cards of audits that never ran --------------------------------------------------------------------------------
CARD_MEASURE = "Rank-1 of recovered images, by the judge"


def card_figure(value: float, spread: float = 0.05) -> Estimate:
    return Estimate(value=value, low=max(0.0, value - spread), high=min(1.0, value + spread))


def card_finding(attack: str, *, leak: float = 1.0, control: float = 1.0, ceiling: float = 1.0) -> Finding:
    proof = estimate_leak(CARD_MEASURE, card_figure(control), card_figure(ceiling, 0), 0.02, 20)
    return Finding(
        attack=attack,
        title=attack,
        threat=ThreatRecord(
            sees="one payload", knows="the method", has=["public faces"], pairs=0, text="sees one payload; knows ..."
        ),
        status="reliable" if proves(proof) else "unreliable",
        result=estimate_leak(CARD_MEASURE, card_figure(leak), card_figure(ceiling, 0), 0.02, 40),
        control=Control(target="the image in the payload's own shapes", result=proof, passed=proves(proof)),
        further={
            "SSIM": FurtherEstimate(value=0.9, low=0.8, high=0.95),
            "pair accuracy": FurtherEstimate(value=0.8, low=0.7, high=0.9),
        },
    )


def card(
    *,
    name: str = "toy",
    findings: list[Finding] | None = None,
    accuracy: float | None = 0.95,
    payload_bytes: int = 1000,
    **changes: Any,
) -> Card:
    if findings is None:
        refused = Finding(attack="template-inversion", title="T", threat=None, status="not applicable", reason="why")
        findings = [card_finding("linear-inversion"), card_finding("linkage", control=0.1), refused]
    worst = worst_finding(findings)
    values = {
        "method": Audited(
            name=name,
            title=f"Toy <{name}>",
            paper="none",
            protects=True,
            secrets=["draw"],
            departures="",
            payload="pixels (3, 24, 20) float32",
            payload_bytes=payload_bytes,
            settings={"bits": 8},
            sha256=None,
        ),
        "faces": AuditedFaces(name="toy", people=40, photos=3, public_faces=100, public_people=50, synthetic=False),
        "judge": Network(name="judge.onnx", sha256="a" * 64, preprocessing="RGB"),
        "recogniser": Network(name="own.ckpt", sha256="b" * 64),
        "teacher": None,
        "profile": "fast",
        "seed": 0,
        "cut": ["40 people instead of all"],
        "accuracy": None if accuracy is None else card_figure(accuracy, 0.01),
        "findings": findings,
        "privacy": None if worst is None or worst.result is None else worst.result.privacy,
        "worst": None if worst is None else worst.attack,
        "verdict": verdict("Toy", findings),
        "versions": {"ppfr": "0.1.0"},
        "times": Times(started="2026-01-01T00:00:00+0000", seconds=61.0, attacks={"linear-inversion": 3.0}),
    }
    return Card(**{**values, **changes})


@pytest.fixture
def make_finding() -> Callable[..., Finding]:
    return card_finding


@pytest.fixture
def make_card() -> Callable[..., Card]:
    return card
