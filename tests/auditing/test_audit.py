"""The audit: what it must find on targets whose answer is known, whom it refuses, and that it repeats itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import Attack, Recovery, create_attack
from ppfr.attacks.threat import Has, Sees, ThreatModel
from ppfr.auditing import trials
from ppfr.auditing.audit import audit, audit_run
from ppfr.auditing.card import NO_JUDGE, Card, Network
from ppfr.auditing.evidence import Audit, load_audit, refuse_repository
from ppfr.auditing.payload_pictures import payload_picture
from ppfr.auditing.profiles import PROFILES, Profile, find_profile
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.methods import Method, MethodInfo, Payload
from ppfr.methods.custom import custom_method
from ppfr.util.errors import AttackError, DataError, MethodError

PEOPLE, PHOTOS, SIZE = 12, 7, (24, 24)
SMALL = Profile("fast", people=None, control_people=8, views=2, accuracy_images=None)


class PixelJudge:
    """Compares pixels, coarsely."""

    name, sha256, preprocessing, embedding_size, backbone = "pixels", "f" * 64, "none", 108, None

    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        return F.avg_pool2d(images + 0.01, 4).flatten(1)


class Spy(Attack[Recovery]):
    """Returns what a test asks for."""

    name, title = "spy", "Spy"

    def __init__(self, recover: Callable[[Attacker, Payload], Tensor], sees: Sees = Sees.PAYLOAD) -> None:
        super().__init__()
        self._recover, self._sees = recover, sees

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return ThreatModel(sees=self._sees)

    def run(self, attacker: Attacker, payload: Payload) -> Recovery:
        return Recovery(self._recover(attacker, payload))


def photos(people: int, seed: int) -> FaceSet:
    """People whom a judge of pixels tells apart."""
    rng = np.random.default_rng(seed)
    faces = rng.integers(40, 215, (people, 6, 6, 3)).repeat(4, 1).repeat(4, 2)
    pixels = (faces[:, None] * 0.9 + rng.normal(0, 6, (people, PHOTOS, *SIZE, 3))).clip(0, 255).astype(np.uint8)
    flat = pixels.reshape(-1, *SIZE, 3)
    owners = [f"person {number // PHOTOS:02}" for number in range(len(flat))]
    return FaceSet(f"toys {seed}", owners, lambda rows: flat[rows], names=[str(n) for n in range(len(flat))], size=24)


@pytest.fixture(scope="module")
def faces() -> tuple[FaceSet, FaceSet]:
    return photos(30, 1), photos(PEOPLE, 2)


@pytest.fixture
def judge() -> Any:
    return PixelJudge()


def client(function: Callable[[Tensor], Tensor], **options: Any) -> Method:
    return custom_method("toy", lambda images, generator: function(images), input_size=SIZE, **options)


def run(method: Method, faces: Any, judge: Any, **options: Any) -> Audit:
    return audit(method, faces, judge=judge, profile=SMALL, **{"with_attacks": ["linear-inversion"], **options})


def test_an_unprotected_client_leaks_all_there_is(faces: Any, judge: Any) -> None:
    found = run(client(lambda images: images), faces, judge)
    card = found.card
    assert card.privacy == 0
    assert card.worst == "linear-inversion"
    (finding,) = card.findings
    assert finding.status == "reliable" and finding.result is not None and finding.control is not None
    assert finding.result.leak.value == finding.result.ceiling.value == 1
    assert finding.result.people == PEOPLE and finding.control.result.people == 8
    assert finding.threat is not None and finding.threat.knows == "the method's public parameters"
    assert "hides nobody" in card.verdict
    (evidence,) = found.evidence
    assert evidence.labels[:2] == ("best", "median") and evidence.likeness[0] >= evidence.likeness[1] > 0.99
    assert evidence.measure == "cosine" and evidence.recovered is not None
    assert np.abs(evidence.recovered.astype(int) - evidence.photos).max() <= 0.01 * 255
    photos_sent = client(lambda images: images).protect(to_tensor(evidence.photos), torch.Generator())
    shown = [payload_picture(photos_sent, row) for row in range(len(evidence.photos))]
    assert np.abs(np.stack(shown).astype(int) - evidence.sent).max() <= 1


def test_a_constant_payload_leaks_chance(faces: Any, judge: Any) -> None:
    card = run(client(lambda images: 0 * images), faces, judge).card
    (finding,) = card.findings
    assert finding.status == "reliable" and finding.result is not None
    assert finding.result.leak.low <= finding.result.chance <= finding.result.leak.high
    assert card.privacy == pytest.approx(1, abs=1e-6)
    assert "no proof" in card.verdict


def test_a_plain_blur_is_broken(faces: Any, judge: Any) -> None:
    def blur(images: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, stride=1)

    card = run(client(blur), faces, judge).card
    assert card.privacy is not None and card.privacy < 0.1


def test_mixing_with_other_images_is_beyond_linear_inversion_and_says_so(faces: Any, judge: Any) -> None:
    public = torch.rand(20, 3, *SIZE, generator=torch.Generator().manual_seed(9)) * 2 - 1

    def mix(images: Tensor, generator: torch.Generator) -> Tensor:
        others = public[torch.randint(len(public), (len(images), 3), generator=generator)]
        signs = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
        return signs * (0.4 * images + 0.2 * others.sum(1))

    card = run(custom_method("instahide", mix, input_size=SIZE), faces, judge).card
    (finding,) = card.findings
    assert finding.status == "not applicable" and "draws are too many" in finding.reason
    assert card.privacy is None and "nothing can be said" in card.verdict


def test_an_attack_that_fails_on_the_weakened_target_does_not_count(faces: Any, judge: Any) -> None:
    grey = Spy(lambda attacker, payload: torch.full((len(payload), 3, *SIZE), 0.5))
    card = run(client(lambda images: 0 * images), faces, judge, with_attacks=[grey]).card
    (finding,) = card.findings
    assert finding.status == "unreliable" and "it got only 0%" in finding.reason
    assert card.privacy is None and "1 attack unreliable" in card.verdict


@pytest.mark.parametrize("sees", [Sees.PAYLOADS_OF_IMAGE, Sees.PAYLOADS_OF_PERSON])
def test_several_payloads_are_of_one_image_or_of_one_person(faces: Any, judge: Any, sees: Sees) -> None:
    views: list[list[Payload]] = []

    def first(attacker: Attacker, payload: Payload) -> Tensor:
        count = len(payload) // attacker.payloads_per_image
        views.append([payload.select(range(first, first + count)) for first in range(0, len(payload), count)])
        return (views[-1][0]["payload"] / 2 + 0.5).clamp(0, 1)

    def send(images: Tensor, generator: torch.Generator) -> Tensor:
        return images + 0.001 * torch.randn(images.shape, generator=generator)

    card = run(custom_method("toy", send, input_size=SIZE), faces, judge, with_attacks=[Spy(first, sees)]).card
    assert card.privacy == 0
    one, two = (view["payload"] for view in views[0])
    distance = float((one - two).abs().mean())
    # fresh noise on one image, or another photo of the person
    assert 0.0005 < distance < 0.003 if sees is Sees.PAYLOADS_OF_IMAGE else 0.01 < distance < 0.2


def test_templates_prove_themselves_on_those_of_the_recogniser(faces: Any, judge: Any) -> None:
    class Own(PixelJudge):
        name, sha256 = "own", "0" * 64

    own: Any = Own()

    def decode(attacker: Attacker, payload: Payload) -> Tensor:
        pixels = payload["template"].reshape(-1, 3, 6, 6)
        return (F.interpolate(pixels, SIZE) / 2 + 0.5).clamp(0, 1)

    server = client(lambda images: images, embed=lambda tensors: own.embed(tensors["payload"]))
    card = run(server, faces, judge, recogniser=own, with_attacks=[Spy(decode, Sees.TEMPLATES)]).card
    assert card.privacy == 0
    assert card.findings[0].control is not None and "templates of own" in card.findings[0].control.target
    assert card.accuracy is not None and card.accuracy.value > 0.95
    without = run(client(lambda images: images), faces, judge, with_attacks=[Spy(decode, Sees.TEMPLATES)]).card
    assert without.findings[0].status == "not applicable" and "has no server" in without.findings[0].reason
    assert without.accuracy is None


def test_links_of_templates_are_shown_and_are_no_part_of_the_score(faces: Any, judge: Any) -> None:
    class Own(PixelJudge):
        name, sha256 = "own", "0" * 64

    own: Any = Own()
    server = client(lambda images: images, embed=lambda tensors: own.embed(tensors["payload"]))
    card = run(server, faces, judge, recogniser=own, with_attacks=["cross-matching"]).card
    (finding,) = card.findings
    assert finding.status == "reliable" and not finding.finds_people and finding.result is not None
    assert finding.result.privacy == 0 and finding.result.leak == finding.result.ceiling
    assert "D_sys" in finding.result.measure and "share all secrets" in finding.notes["matching"]
    assert card.privacy is None and "no attack that identifies people was run" in card.verdict


def timeless(card: Card) -> dict[str, Any]:
    return card.model_dump(exclude={"times"})


@pytest.mark.slow
def test_a_seed_repeats_a_card_and_another_one_stays_within_its_intervals(faces: Any, judge: Any) -> None:
    def coarse(images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 12)

    def attack(attacker: Attacker, payload: Payload) -> Tensor:
        return (F.interpolate(payload["payload"], SIZE) / 2 + 0.5).clamp(0, 1)

    first, again, other = (
        run(client(coarse, weakened=coarse), faces, judge, with_attacks=[Spy(attack)], seed=seed).card
        for seed in (3, 3, 4)
    )
    assert timeless(first) == timeless(again)
    assert timeless(first) != timeless(other)
    before, after = (card.findings[0].result for card in (first, other))
    assert before is not None and after is not None
    assert before.leak.low <= after.leak.value <= before.leak.high


@pytest.mark.slow
def test_chunks_give_the_same_card(faces: Any, judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = client(lambda images: images)
    whole = run(method, faces, judge).card
    monkeypatch.setattr(trials, "_CHUNK", 5 * method.schema.nbytes)
    assert timeless(run(method, faces, judge).card) == timeless(whole)


def test_a_judge_who_took_part_is_refused(faces: Any, judge: Any) -> None:
    method = client(lambda images: images)
    with pytest.raises(AttackError, match="the judge pixels is the attacker's own recogniser"):
        run(method, faces, judge, recogniser=judge)
    with pytest.raises(AttackError, match=r"is the method's teacher \(t\.ckpt"):
        run(method, faces, judge, teacher=Network(name="t.ckpt", sha256=judge.sha256))


def test_a_judge_who_guesses_measures_nothing(faces: Any, judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PixelJudge, "embed", lambda self, images, flip=False: torch.ones(len(images), 4))
    with pytest.raises(AttackError, match="a judge that only guesses cannot measure a leak"):
        run(client(lambda images: images), faces, judge)


def test_mistakes_are_named_before_any_work(faces: Any, judge: Any) -> None:
    method = client(lambda images: images)
    with pytest.raises(AttackError, match="no attack 'magic'; known"):
        run(method, faces, judge, with_attacks=["magic"])
    with pytest.raises(AttackError, match="no audit profile 'slow'; known: fast, standard, full"):
        audit(method, faces, judge=judge, profile="slow")


def test_a_run_without_its_secrets_is_refused(tmp_path: Any, judge: Any) -> None:
    import ppfr

    ppfr.save(ppfr.create("partialface", "mobilefacenet", width=0.125, embedding_size=16), tmp_path)
    (tmp_path / "secrets.safetensors").unlink()
    with pytest.raises(MethodError, match="secrets"):
        audit_run(tmp_path, "synthetic:people=10,images=4", judge=judge)


def test_profiles_say_what_they_cut() -> None:
    assert find_profile("full").cut() == []
    assert any("40 people attacked" in line for line in PROFILES["fast"].cut())
    assert all(PROFILES[name].cut() for name in ("fast", "standard"))
    assert "linear-inversion: steps 10, newton 8, iterations 15" in PROFILES["fast"].cut(
        [create_attack("linear-inversion")]
    )


def test_without_a_judge_recoveries_give_pictures_and_similarity_only(faces: Any, tmp_path: Path) -> None:
    found = run(client(lambda images: images), faces, None)
    (finding,) = found.card.findings
    assert finding.status == "no judge" and finding.reason == NO_JUDGE
    assert finding.result is None and finding.control is None and finding.threat is not None
    assert set(finding.further) == {"SSIM", "PSNR"} and finding.further["SSIM"].value > 0.99
    assert found.card.judge is None and found.card.privacy is None and found.card.worst is None
    assert NO_JUDGE in found.card.verdict and "mean SSIM of 1.00" in found.card.verdict
    (evidence,) = found.evidence
    assert evidence.measure == "SSIM" and evidence.labels[:2] == ("best", "median") and len(evidence.photos) >= 4
    found.save(tmp_path)
    again = load_audit(tmp_path)
    assert again.card == found.card
    (read,) = again.evidence
    assert (read.title, read.labels, read.likeness, read.caption) == (
        evidence.title,
        evidence.labels,
        evidence.likeness,
        evidence.caption,
    )
    for name in ("photos", "sent", "recovered"):
        np.testing.assert_array_equal(getattr(read, name), getattr(evidence, name))


def test_without_a_judge_attacks_that_need_none_count_as_usual(faces: Any) -> None:
    class Own(PixelJudge):
        name, sha256 = "own", "0" * 64

    own: Any = Own()
    server = client(lambda images: images, embed=lambda tensors: own.embed(tensors["payload"]))
    attacks = ["identity-linkage", "linear-inversion", "cross-matching"]
    card = run(server, faces, None, recogniser=own, with_attacks=attacks).card
    assert [finding.status for finding in card.findings] == ["reliable", "no judge", "reliable"]
    assert card.worst == "identity-linkage" and card.privacy is not None and card.privacy < 0.1
    assert "hides nobody" in card.verdict and f"recovered images: {NO_JUDGE}" in card.verdict


def test_payloads_are_shown_where_no_attack_recovers_images(faces: Any, judge: Any) -> None:
    (evidence,) = run(client(lambda images: images), faces, judge, with_attacks=[]).evidence
    assert evidence.recovered is None and evidence.sent.shape[0] == len(evidence.photos) == len(evidence.labels) == 6


def test_real_faces_stay_out_of_repositories(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    refuse_repository(tmp_path / "deep" / "card", synthetic=True)
    with pytest.raises(DataError, match="lies inside the git repository"):
        refuse_repository(tmp_path / "deep" / "card", synthetic=False)
