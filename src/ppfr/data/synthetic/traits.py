"""What a drawn face is made of, as numbers: a person's traits, the hair of an occasion, the shot of one picture.

Lengths are in pixels of the 112 x 112 ArcFace template, from a point midway between the eyes; y points down.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

# as in people, traits go together: so many factors carry so much of each trait's variance
_FACTORS, _COMMON = 8, 0.85
_LOADINGS = np.random.default_rng(1).standard_normal((100, _FACTORS))
_LOADINGS /= np.linalg.norm(_LOADINGS, axis=1, keepdims=True)


def _trait(mean: float, spread: float) -> Any:
    return field(metadata={"mean": mean, "spread": spread})


@dataclass(frozen=True)
class Traits:
    """What makes one person: each number is drawn from a normal distribution cut at two deviations."""

    # proportions
    eye_distance: float = _trait(17.6, 1.1)
    nose_length: float = _trait(20.5, 2.0)
    mouth_height: float = _trait(40.5, 2.2)
    chin_height: float = _trait(63.0, 3.0)
    face_width: float = _trait(37.0, 1.6)
    forehead_width: float = _trait(0.95, 0.03)
    cheek_width: float = _trait(0.97, 0.03)
    jaw_width: float = _trait(0.81, 0.055)
    chin_width: float = _trait(0.53, 0.06)
    depth: float = _trait(34.0, 3.0)
    # eyes and brows
    eye_length: float = _trait(7.6, 0.7)
    eye_opening: float = _trait(3.2, 0.6)
    eye_tilt: float = _trait(0.5, 0.8)
    eye_peak: float = _trait(0.46, 0.07)
    eye_depth: float = _trait(4.0, 1.2)
    lid_crease: float = _trait(2.0, 0.8)
    iris_size: float = _trait(3.4, 0.2)
    iris_tone: float = _trait(1.1, 1.1)
    eye_bags: float = _trait(0.35, 0.3)
    brow_height: float = _trait(10.0, 1.4)
    brow_thickness: float = _trait(1.9, 0.6)
    brow_length: float = _trait(9.2, 1.2)
    brow_arch: float = _trait(1.6, 1.2)
    brow_tilt: float = _trait(0.0, 1.2)
    brow_density: float = _trait(0.75, 0.2)
    brow_ridge: float = _trait(1.8, 1.2)
    # nose
    nose_height: float = _trait(11.0, 1.8)
    nose_bridge: float = _trait(3.2, 0.5)
    nose_hump: float = _trait(0.4, 1.0)
    nose_tip: float = _trait(4.2, 0.7)
    nose_wings: float = _trait(7.0, 1.0)
    nose_turn: float = _trait(0.0, 1.1)
    # mouth and chin
    mouth_width: float = _trait(13.4, 1.3)
    upper_lip: float = _trait(3.8, 0.95)
    lower_lip: float = _trait(4.9, 1.0)
    cupid_bow: float = _trait(0.9, 0.5)
    mouth_corners: float = _trait(0.6, 0.7)
    lip_colour: float = _trait(0.45, 0.22)
    chin_bump: float = _trait(3.0, 1.2)
    chin_cleft: float = _trait(0.2, 0.5)
    # flesh and age
    cheekbones: float = _trait(2.5, 1.3)
    cheek_hollow: float = _trait(0.8, 1.0)
    folds: float = _trait(0.9, 0.6)
    forehead_bump: float = _trait(1.0, 1.0)
    asymmetry: float = _trait(0.0, 0.5)
    # colour
    melanin: float = _trait(0.34, 0.24)
    redness: float = _trait(0.0, 0.05)
    flush: float = _trait(0.5, 0.25)
    blotches: float = _trait(0.03, 0.015)
    freckles: float = _trait(-0.3, 0.7)
    moles: float = _trait(0.4, 0.8)
    beard: float = _trait(-0.3, 0.4)
    # hair and ears
    hair_tone: float = _trait(1.1, 1.0)
    hairline: float = _trait(-37.0, 2.0)
    hair_length: float = _trait(-5.0, 35.0)
    hair_waves: float = _trait(0.5, 0.4)
    ear_size: float = _trait(9.5, 1.0)
    ear_spread: float = _trait(2.6, 0.9)


@dataclass(frozen=True)
class Hair:
    """A person's hair on one occasion: its own tendency, differently cut and combed."""

    tone: float
    line: float
    peak: float
    temples: float
    slope: float
    volume: float
    length: float
    waves: float


@dataclass(frozen=True)
class Shot:
    """What changes from picture to picture of one person; angles in radians."""

    yaw: float
    pitch: float
    roll: float
    smile: float
    mouth_open: float
    eyelids: float
    brows: float
    gaze: tuple[float, float]
    light: Points  # towards the lamp, unit length
    lamp: float  # its share of all light
    light_colour: Points
    shadow: float
    sheen: float
    exposure: float
    white_balance: Points
    contrast: float
    blur: float
    noise: float
    misalignment: Points  # of the five landmarks, in pixels
    glasses: float  # 0 for none, else the darkness of the frame
    stubble: float


def draw_traits(rng: np.random.Generator) -> Traits:
    """Draw a person.

    As in people, traits go together: a few factors carry most of each trait's variance, the rest is its own. Without
    them no two of so many independent numbers would ever resemble each other, and recognition would be trivial.
    """
    traits = fields(Traits)
    own = rng.standard_normal(len(traits))
    common = _LOADINGS[: len(traits)] @ rng.standard_normal(_FACTORS)
    drawn = np.clip(np.sqrt(_COMMON) * common + np.sqrt(1 - _COMMON) * own, -2, 2)
    spread = {trait.name: trait.metadata["spread"] * value for trait, value in zip(traits, drawn, strict=True)}
    return Traits(**{trait.name: trait.metadata["mean"] + float(spread[trait.name]) for trait in traits})


def draw_hair(traits: Traits, rng: np.random.Generator) -> Hair:
    """Draw one occasion's hair for a person."""

    def near(tendency: float, spread: float) -> float:
        return tendency + spread * float(np.clip(rng.standard_normal(), -2, 2))

    return Hair(
        tone=near(traits.hair_tone, 0.3),
        line=near(traits.hairline, 3.0),
        peak=near(0.0, 2.0),
        temples=near(13.0, 4.5),
        slope=near(0.0, 0.1),
        volume=near(5.0, 2.2),
        length=near(traits.hair_length, 25.0),
        waves=near(traits.hair_waves, 0.2),
    )


def draw_shot(rng: np.random.Generator) -> Shot:
    """Draw the circumstances of one picture."""

    def normal(spread: float, most: float = 2.0) -> float:
        return spread * float(np.clip(rng.standard_normal(), -most, most))

    azimuth, elevation = normal(0.95, 1.5), 0.35 + normal(0.4)
    light = np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    return Shot(
        yaw=normal(0.23),
        pitch=normal(0.15),
        roll=normal(0.03),
        smile=float(np.clip(rng.normal(0.3, 0.5), -0.4, 1.1)),
        mouth_open=max(0.0, float(rng.normal(-0.15, 0.45))),
        eyelids=float(np.clip(rng.normal(1.0, 0.2), 0.25, 1.3)),
        brows=normal(1.0),
        gaze=(normal(0.9), normal(0.4)),
        light=light,
        lamp=float(rng.uniform(0.45, 0.92)),
        light_colour=1 + np.clip(rng.normal(0, 0.07, 3), -0.15, 0.15),
        shadow=float(rng.uniform(0.2, 0.8)),
        sheen=float(rng.uniform(0.0, 0.35)),
        exposure=float(np.exp(normal(0.24))),
        white_balance=np.exp(np.clip(rng.normal(0, 0.06, 3), -0.12, 0.12)),
        contrast=float(np.exp(normal(0.12))),
        blur=max(0.0, float(rng.normal(0.45, 0.5))),
        noise=float(rng.uniform(0.0, 0.035)),
        misalignment=np.clip(rng.normal(0, 1.3, (5, 2)), -2.6, 2.6),
        glasses=float(rng.uniform(0.2, 1.0)) if rng.random() < 0.16 else 0.0,
        stubble=max(0.0, normal(0.2)),
    )
