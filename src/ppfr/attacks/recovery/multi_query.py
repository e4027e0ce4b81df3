"""Multi-query union: joint MAP estimate of an image from several payloads of it."""

from __future__ import annotations

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import register
from ppfr.attacks.inverse.face_prior import FacePrior
from ppfr.attacks.inverse.stochastic_client import StochasticClient
from ppfr.attacks.recovery.linear_inversion import LinearInversion
from ppfr.attacks.threat import Has, Sees, ThreatModel
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.info import MethodInfo


@register
class MultiQueryUnion(LinearInversion):
    """The MAP estimate of an image given payloads y_1 to y_n of it, by joint least squares through all their clients.

    Minimises sum_j |A_j x - y_j|^2 / (2 noise^2) + the priors of linear inversion, where A_j is the client under the
    hypothesis assigned to y_j. Payloads under one hypothesis are averaged, and the noise is estimated from their
    differences. A client that lists no hypotheses is admitted if its draws only add noise that does not depend on the
    image (`StochasticClient.without_noise`).
    """

    name = "multi-query-union"
    title = "Multi-query union"
    payloads_per_image = 6

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        alone = super().needs(target, holds)
        return ThreatModel(Sees.PAYLOADS_OF_IMAGE, alone.knows, alone.has)

    def candidates(self, attacker: Attacker, prior: FacePrior) -> list[Hypothesis]:
        """Every possible client, or the one without its noise; raises AttackError where there are too many."""
        tensors = list(attacker.schema.tensors)
        stochastic = StochasticClient(attacker.target.name, tensors, attacker.client, prior)
        return attacker.hypotheses() or [stochastic.without_noise()]
