"""Faces from several payloads of one image: what one draw of the client leaves out, another one shows."""

from __future__ import annotations

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import register
from ppfr.attacks.inverse.expected_client import additive_client
from ppfr.attacks.inverse.face_prior import FacePrior
from ppfr.attacks.recovery.linear_inversion import LinearInversion
from ppfr.attacks.threat import Has, Sees, ThreatModel
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.info import MethodInfo


@register
class MultiQueryUnion(LinearInversion):
    """The most probable image given several payloads of it, y_1 to y_n, by one least squares through all their clients.

    Minimises sum_j |A_j x - y_j|^2 / (2 noise^2) + the priors of linear inversion, where A_j is the client under the
    hypothesis that holds for y_j: each payload's draw is found by itself. Payloads under one hypothesis are averaged,
    and what they differ by is the noise that remains. A client that lists no hypotheses is taken if its draws only add
    noise, the same whatever the image (`ppfr.attacks.inverse.expected_client.additive_client`).
    """

    name = "multi-query-union"
    title = "Multi-query union"
    views = 6

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        alone = super().needs(target, holds)
        return ThreatModel(Sees.PAYLOADS_OF_IMAGE, alone.knows, alone.has)

    def candidates(self, attacker: Attacker, prior: FacePrior) -> list[Hypothesis]:
        """Every client there may be, or the one without its noise; raises AttackError where there are too many."""
        return attacker.hypotheses() or [additive_client(attacker, prior)]
