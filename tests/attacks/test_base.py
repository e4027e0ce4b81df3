"""The door: threat models, and results that are whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import Attack, AttackOptions, Recovery, attack_names, create_attack, register
from ppfr.attacks.threat import Has, Knows, Sees, ThreatModel
from ppfr.methods import Method, MethodInfo, Payload
from ppfr.util.errors import AttackError, PayloadError

NEEDS = ThreatModel(Sees.PAYLOAD, Knows.METHOD, frozenset({Has.FACES}))


class Guess(Attack[Recovery]):
    """Returns whatever a test asks for."""

    name = "guess"
    title = "Guess"

    def __init__(self, result: Callable[[int], Recovery] | None = None) -> None:
        super().__init__()
        self.result = result or (lambda rows: Recovery(torch.full((rows, 3, 24, 20), 0.5)))

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return NEEDS

    def run(self, attacker: Attacker, payload: Payload) -> Recovery:
        return self.result(len(payload))


@pytest.fixture
def target(toy: Callable[..., Method]) -> Method:
    return toy(lambda images: {"pixels": images})


@pytest.fixture
def payload(target: Method, images: Tensor, generator: torch.Generator) -> Payload:
    return target.protect(images, generator)


def test_threat_model_reads_in_one_line() -> None:
    threat = ThreatModel(Sees.PAYLOADS_OF_IMAGE, Knows.SECRETS, frozenset({Has.PAIRS, Has.FACES}), pairs=500)
    assert str(threat) == (
        "sees several payloads of one image; knows the deployment's secrets; "
        "has public faces and 500 payload/image pairs"
    )
    assert str(ThreatModel()) == "sees one payload; knows nothing; has no data"


@pytest.mark.parametrize(
    ("granted", "covered"),
    [
        (NEEDS, True),
        (replace(NEEDS, knows=Knows.SECRETS), True),
        (replace(NEEDS, knows=Knows.NOTHING), False),
        (replace(NEEDS, sees=Sees.PAYLOADS_OF_PERSON), True),
        (replace(NEEDS, sees=Sees.TEMPLATES), False),
        (replace(NEEDS, has=frozenset()), False),
        (replace(NEEDS, has=frozenset({Has.FACES, Has.QUERIES})), True),
    ],
)
def test_cover(granted: ThreatModel, covered: bool) -> None:
    assert (not granted.lacks(NEEDS)) is covered
    assert not granted.lacks(granted)


def test_several_payloads_are_not_covered_by_one_and_pairs_are_counted() -> None:
    assert ThreatModel().lacks(ThreatModel(sees=Sees.PAYLOADS_OF_IMAGE))
    many, few = (ThreatModel(has=frozenset({Has.PAIRS}), pairs=pairs) for pairs in (100, 10))
    assert not many.lacks(few)
    assert few.lacks(many) == ["100 pairs instead of 10"]
    with pytest.raises(AttackError, match="positive number of pairs"):
        ThreatModel(has=frozenset({Has.PAIRS}))


def test_result_carries_who_did_it_to_whom_under_which_threat(target: Method, payload: Payload) -> None:
    found = Guess()(target, payload)
    assert (found.attack, found.target, found.threat) == ("guess", "toy", NEEDS)
    assert found.seconds > 0
    stronger = replace(NEEDS, knows=Knows.SECRETS)
    assert Guess()(target, payload, threat=stronger).threat == stronger


def test_threat_model_must_cover_the_attack(target: Method, payload: Payload) -> None:
    with pytest.raises(
        AttackError, match=r"guess on toy: needs knowledge of the method, public faces, which .*no data"
    ):
        Guess()(target, payload, threat=ThreatModel())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda rows: Recovery(torch.zeros(rows - 1, 3, 24, 20)), r"images \(5, 3, 24, 20\).*expected \(6, 3"),
        (lambda rows: Recovery(torch.zeros(rows, 3, 20, 24)), r"expected \(6, 3, 24, 20\)"),
        (lambda rows: Recovery(torch.zeros(rows, 3, 24, 20, dtype=torch.uint8)), "uint8"),
        (lambda rows: Recovery(torch.full((rows, 3, 24, 20), 1.01)), r"values in \[1.01, 1.01\]; expected \[0, 1\]"),
        (lambda rows: Recovery(torch.full((rows, 3, 24, 20), -0.01)), r"expected \[0, 1\]"),
        (lambda rows: Recovery(torch.full((rows, 3, 24, 20), torch.nan)), r"not finite in rows \[0, 1, 2, 3, 4, 5\]"),
        (lambda rows: Recovery(torch.zeros(rows, 3, 24, 20), hypotheses=("one",)), "1 hypotheses for 6 payloads"),
        (lambda rows: Recovery(torch.zeros(rows, 3, 24, 20), misfit=torch.zeros(2)), "2 misfit for 6 payloads"),
    ],
)
def test_incomplete_results_are_caught(
    target: Method, payload: Payload, result: Callable[[int], Recovery], message: str
) -> None:
    with pytest.raises(AttackError, match=message):
        Guess(result)(target, payload)


def test_the_door_is_sealed() -> None:
    with pytest.raises(TypeError, match="sealed; write `run`"):
        type("Sneaky", (Guess,), {"__call__": lambda self: None})


def test_foreign_payloads_and_faces_are_refused(
    toy: Callable[..., Method], target: Method, payload: Payload, images: Tensor
) -> None:
    other = toy(lambda images: {"grey": images.mean(1, keepdim=True)})
    with pytest.raises(PayloadError, match="missing tensors"):
        Guess()(other, payload)
    with pytest.raises(AttackError, match="public faces: images are 24x19"):
        Guess()(target, payload, faces=images[..., :19])
    with pytest.raises(AttackError, match="no public faces"):
        Guess()(target, payload, faces=images[:0])
    broken = Payload(target.schema, {"pixels": payload["pixels"] * torch.nan})
    with pytest.raises(PayloadError, match="not finite"):
        Guess()(target, broken)


def test_registry_knows_attacks_by_name_and_refuses_unknown_options() -> None:
    assert "linear-inversion" in attack_names()
    assert isinstance(create_attack("linear-inversion", steps=3).options, AttackOptions)
    with pytest.raises(AttackError, match=r"no attack 'magic'; known: .*linear-inversion"):
        create_attack("magic")
    with pytest.raises(
        AttackError, match=r"linear-inversion: stepz: .*Options: iterations, newton, precision, steps, tensors"
    ):
        create_attack("linear-inversion", stepz=3)
    taken = type("Other", (Guess,), {"name": "linear-inversion"})
    with pytest.raises(AttackError, match="is taken by"):
        register(taken)
