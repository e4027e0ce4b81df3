"""How thorough an audit is: who is attacked, and how much each attack may spend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppfr.attacks.base import Attack
from ppfr.attacks.budget import BUDGETS, Budget
from ppfr.util.errors import AttackError


@dataclass(frozen=True)
class Profile:
    """Settings of an audit.

    At most `people` are attacked, and `control_people` in the control of an attack (None: all); `photos` other
    photos of each person are searched. `views` payloads of an image or a person are seen by attackers who see several.
    The method's own accuracy is measured on `accuracy_images` of each person (None: all). An attack declares its own
    options for a profile by name (`Attack.profile_options`).
    """

    name: str
    people: int | None
    control_people: int | None
    views: int
    accuracy_images: int | None
    photos: int = 3

    @property
    def budget(self) -> Budget:
        """What each attack may spend."""
        return BUDGETS[self.name]

    def options(self, attack: type[Attack[Any]]) -> Mapping[str, Any]:
        """Options that this profile sets for an attack."""
        return attack.profile_options.get(self.name, {})

    def cut(self, attacks: Sequence[Attack[Any]] = ()) -> list[str]:
        """Differences from the full profile that make an audit of these attacks cheaper, in words."""
        full = PROFILES["full"]
        if self == full:
            return []
        lines = [
            f"at most {self.budget.faces:,} public faces to learn from instead of {full.budget.faces:,}",
            f"attacks that train or optimise take 1/{full.budget.effort / self.budget.effort:g} of their steps",
            f"{self.views} payloads instead of {full.views} for attackers who see several",
        ]
        if self.people is not None:
            lines.append(f"at most {self.people} people attacked instead of all")
        if self.control_people is not None:
            lines.append(f"controls run on at most {self.control_people} people")
        if self.accuracy_images is not None:
            lines.append(f"the method's own accuracy is measured on {self.accuracy_images} images of each person")
        for attack in attacks:
            if options := self.options(type(attack)):
                lines.append(f"{attack.name}: {', '.join(f'{key} {value}' for key, value in options.items())}")
        return lines


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "fast",
            people=40,
            control_people=20,
            views=3,
            accuracy_images=6,
        ),
        Profile("standard", people=None, control_people=40, views=6, accuracy_images=None),
        Profile("full", people=None, control_people=None, views=12, accuracy_images=None),
    )
}


def find_profile(profile: Profile | str) -> Profile:
    """A profile by name, or as it is; raises AttackError for an unknown name."""
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise AttackError(f"no audit profile {profile!r}; known: {', '.join(PROFILES)}")
    return PROFILES[profile]
