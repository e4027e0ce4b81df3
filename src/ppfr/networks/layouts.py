"""Layer names of public projects for the same networks, and the architecture that a state_dict belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ppfr.networks import iresnet
from ppfr.networks.base import Backbone, Dimensions
from ppfr.networks.mobilefacenet import BLOCKS
from ppfr.networks.preprocessing import Preprocessing
from ppfr.networks.registry import empty_backbone
from ppfr.networks.weightfile import State
from ppfr.util.errors import CheckpointError

REDUCTION = 16  # the last features of every backbone here have 1/16 of the input's height and width


@dataclass(frozen=True)
class CheckpointLayout:
    """Layer names of a project: a key that identifies it, the conversion to our names, and its preprocessing."""

    name: str
    mark: str
    convert: Callable[[State], State]
    preprocessing: Preprocessing


def find_layout(state: State, file: str) -> CheckpointLayout:
    """Return the layout whose mark is among the keys of `state`. Raises CheckpointError that names `file`."""
    for layout in LAYOUTS:
        if layout.mark in state:
            return layout
    raise CheckpointError(
        f"{file} holds no backbone that ppfr knows; expected the names of "
        f"{', '.join(layout.name for layout in LAYOUTS)}; its {len(state)} keys "
        f"begin with {', '.join(list(state)[:6])}"
    )


def infer_backbone(state: State, file: str) -> Backbone:
    """Build the network, without values, that a state_dict in our names belongs to.

    Depth, squeeze-excitation, width, input channels, embedding size and input size come from names and
    shapes. Raises CheckpointError that names `file`.
    """
    if "input_layer.0.weight" in state:
        return _infer_iresnet(state, file)
    return _infer_lightcnn(state) if "conv1.filter.weight" in state else _infer_mobilefacenet(state)


# --- names ---


def _keep(state: State) -> State:
    return state


def _renamer(table: dict[str, str]) -> Callable[[State], State]:
    """Replace the first matching beginning of every key; a key that none matches stays as it is."""

    def convert(state: State) -> State:
        renamed: State = {}
        for key, value in state.items():
            old = next((old for old in table if key.startswith(old)), "")
            renamed[table.get(old, "") + key.removeprefix(old)] = value
        return renamed

    return convert


_INSIGHTFACE_UNIT = {
    "bn1": "res_layer.0",
    "conv1": "res_layer.1",
    "bn2": "res_layer.2",
    "prelu": "res_layer.3",
    "conv2": "res_layer.4",
    "bn3": "res_layer.5",
    "downsample": "shortcut_layer",
}
_INSIGHTFACE_ENDS = {
    "conv1.": "input_layer.0.",
    "bn1.": "input_layer.1.",
    "prelu.": "input_layer.2.",
    "bn2.": "output_layer.0.",
    "fc.": "output_layer.3.",
    "features.": "output_layer.4.",
}


def _convert_insightface(state: State) -> State:
    """Number the units of layer1..layer4 through, as `body.0`, `body.1`, and so on."""
    units = {tuple(map(int, found.groups())) for key in state if (found := _STAGED.match(key))}
    names = dict(_INSIGHTFACE_ENDS)
    for index, (stage, unit) in enumerate(sorted(units)):
        for theirs, ours in _INSIGHTFACE_UNIT.items():
            names[f"layer{stage}.{unit}.{theirs}."] = f"body.{index}.{ours}."
    return _renamer(names)(state)


_STAGED = re.compile(r"layer([1-4])\.(\d+)\.")

# the layers of an inverted bottleneck in the Sequential of MobileFaceNet_Pytorch
_SEQUENTIAL = {
    0: "conv.conv",
    1: "conv.bn",
    2: "conv.prelu",
    3: "conv_dw.conv",
    4: "conv_dw.bn",
    5: "conv_dw.prelu",
    6: "project.conv",
    7: "project.bn",
}
_NARROW_BLOCKS = [
    "conv_23",
    *(f"conv_3.model.{index}" for index in range(4)),
    "conv_34",
    *(f"conv_4.model.{index}" for index in range(6)),
    "conv_45",
    *(f"conv_5.model.{index}" for index in range(2)),
]
_NARROW_NAMES = {
    "dw_conv1.": "conv2_dw.",
    "conv2.": "conv_6_sep.",
    "linear7.": "output_layer.conv_6_dw.",
    "linear1.conv.": "output_layer.linear.",
    "linear1.bn.": "output_layer.bn.",
    **{
        f"blocks.{block}.conv.{layer}.": f"{name}.{part}."
        for block, name in enumerate(_NARROW_BLOCKS)
        for layer, part in _SEQUENTIAL.items()
    },
}


def _convert_narrow(state: State) -> State:
    """Rename, and turn the last 1x1 convolution into the linear map that it is."""
    state = _renamer(_NARROW_NAMES)(state)
    if (weight := state.get("output_layer.linear.weight")) is not None and weight.ndim == 4:
        state["output_layer.linear.weight"] = weight.flatten(1)
    return state


_CLIENT_NAMES = {
    **{f"body_{index}.": f"{name}." for index, name in enumerate(BLOCKS)},
    "input_layer.0.": "conv1.conv.",
    "input_layer.1.": "conv1.bn.",
    "input_layer.2.": "conv1.prelu.",
    "input_layer.": "conv1.",
    "output_layer.0.": "output_layer.conv_6_dw.conv.",
    "output_layer.1.": "output_layer.conv_6_dw.bn.",
    "output_layer.3.": "output_layer.linear.",
    "output_layer.4.": "output_layer.bn.",
}

_HALF = Preprocessing()
LAYOUTS = (
    CheckpointLayout("TFace", "body.0.res_layer.0.weight", _keep, _HALF),
    CheckpointLayout("TFace MobileFaceNet", "conv_23.conv.conv.weight", _keep, _HALF),
    CheckpointLayout("arcface_torch", "layer1.0.bn1.weight", _convert_insightface, _HALF),
    CheckpointLayout(
        "MobileFaceNet_Pytorch",
        "dw_conv1.conv.weight",
        _convert_narrow,
        Preprocessing(std=(128.0, 128.0, 128.0)),
    ),
    CheckpointLayout("LightCNN", "conv1.filter.weight", _keep, _HALF),
    CheckpointLayout("DuetFace or PRO-Face C client", "body_0.conv.weight", _renamer(_CLIENT_NAMES), _HALF),
)

# --- networks ---


def _infer_iresnet(state: State, file: str) -> Backbone:
    name = _iresnet_name(state, file)
    stem, in_channels = _shape(state, "input_layer.0.weight", (iresnet.STEM_CHANNELS, 3))[:2]
    embedding_size, inputs = _shape(state, "output_layer.3.weight", (512, 0))
    (last,) = _shape(state, "output_layer.0.weight", (0,))
    input_size = _input_size(inputs // last if last else 0)
    return empty_backbone(name, Dimensions(in_channels, embedding_size, stem / iresnet.STEM_CHANNELS, input_size))


def _iresnet_name(state: State, file: str) -> str:
    units = len({key.split(".")[1] for key in state if key.startswith("body.")})
    bottleneck = "body.0.res_layer.7.weight" in state
    squeeze = "body.0.res_layer.se_block.fc1.weight" in state
    insightface = "output_layer.4.weight" in state
    for name, plan in iresnet.PLANS.items():
        if (sum(plan.units), plan.bottleneck, plan.squeeze, plan.insightface) == (
            units,
            bottleneck,
            squeeze,
            insightface,
        ):
            return name
    kind = ("bottleneck " if bottleneck else "") + ("SE " if squeeze else "")
    known = ", ".join(f"{name} ({sum(plan.units)})" for name, plan in iresnet.PLANS.items())
    raise CheckpointError(f"{file} holds an IResNet of {units} {kind}units, which ppfr does not build: it has {known}")


def _input_size(positions: int) -> tuple[int, int]:
    """Find height and width from the number of positions of the last features: square, or 7x6 for 112x96."""
    side = round(positions**0.5)
    if positions == 42:
        return 7 * REDUCTION, 6 * REDUCTION
    # a number that fits no input leaves the default, and the comparison of shapes reports the layer
    return (side * REDUCTION, side * REDUCTION) if side and side * side == positions else (112, 112)


def _infer_mobilefacenet(state: State) -> Backbone:
    stem, in_channels = _shape(state, "conv1.conv.weight", (64, 3))[:2]
    height, width = _shape(state, "output_layer.conv_6_dw.conv.weight", (512, 1, 7, 7))[2:]
    embedding_size = _shape(state, "output_layer.linear.weight", (512, 512))[0]
    affine = "output_layer.bn.weight" in state
    bias = "output_layer.linear.bias" in state
    return empty_backbone(
        "mobilefacenet-client" if bias else "mobilefacenet-96" if affine else "mobilefacenet",
        Dimensions(in_channels, embedding_size, stem / 64, (height * REDUCTION, width * REDUCTION)),
    )


def _infer_lightcnn(state: State) -> Backbone:
    twice_stem, in_channels = _shape(state, "conv1.filter.weight", (96, 3))[:2]
    embedding_size, inputs = _shape(state, "fc.weight", (256, 0))
    (twice_last,) = _shape(state, "block4.0.conv1.filter.bias", (0,))
    return empty_backbone(
        "lightcnn-29v2" if "group1.conv.filter.weight" in state else "lightcnn-29v4",
        Dimensions(
            in_channels, embedding_size, twice_stem / 96, _input_size(2 * inputs // twice_last if twice_last else 0)
        ),
    )


def _shape(state: State, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of `state[key]`, or `default` where it is missing or has other dimensions.

    A wrong guess is harmless: the comparison of all shapes that follows reports the layer.
    """
    shape = tuple(state[key].shape) if key in state else ()
    return shape if len(shape) >= len(default) and min(shape, default=0) > 0 else default
