"""A method and an attack of another distribution, one file each, work with every command without any other change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppfr.methods import Method
from ppfr.util.errors import MethodError
from ppfr.util.registry import Registry
from support.commands import FAST, TINY

METHOD = '''
"""Small images travel: each value is the mean of a block of pixels, in a secret order of the colours."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from ppfr.methods import (
    ChannelServer,
    Method,
    MethodInfo,
    MethodOptions,
    PayloadSchema,
    ProtectGraph,
    TensorSpec,
    register,
    require_secrets,
    secret_option,
    server_stage,
)


class ThumbnailOptions(MethodOptions):
    block: int = Field(2, ge=1, description="side of a block in pixels")
    order_seed: int = secret_option(0, "seed of the order of the colours")


class ThumbnailServer(ChannelServer):
    def __init__(self, backbone, size):
        super().__init__(backbone, "thumbnail")
        self.size = size

    def trunk_input(self, tensors):
        return F.interpolate(tensors[self.tensor], size=self.size, mode="nearest")


@register
class Thumbnail(Method):
    info = MethodInfo(name="thumbnail", title="Thumbnail", paper="none", secrets=("order",))
    Options = ThumbnailOptions

    def __init__(self, options, backbone, generator):
        super().__init__(options, backbone, generator)
        self.client = nn.Identity()
        self.server = ThumbnailServer(backbone.build(3, generator), self.input_size)
        self.order = torch.randperm(3, generator=torch.Generator().manual_seed(options.order_seed))

    @property
    def schema(self):
        height, width = self.input_size
        shape = (3, height // self.options.block, width // self.options.block)
        return PayloadSchema("thumbnail", {"thumbnail": TensorSpec(shape, "means of blocks, in [-1,1]")})

    def _shrink(self, images, order):
        return {"thumbnail": F.avg_pool2d(images.float(), self.options.block).index_select(1, order)}

    def _protect(self, images, generator):
        require_secrets(self, [self.order])
        return self._shrink(images, self.order.to(images.device))

    def protect_graph(self):
        return ProtectGraph(self._shrink, self.info.secrets)

    def secrets(self):
        require_secrets(self, [self.order])
        return {"order": self.order}

    def set_secrets(self, secrets):
        self.order = secrets["order"].long()

    def drop_secrets(self):
        self.order = None

    def stages(self):
        return [server_stage(self.server, self._protect)]
'''

ATTACK = '''
"""Enlarges the payload."""

import torch.nn.functional as F

from ppfr.attacks import Attack, Recovery, Sees, ThreatModel, register


@register
class Enlargement(Attack[Recovery]):
    name = "enlargement"
    title = "Enlargement"

    def needs(self, target, holds):
        return ThreatModel(sees=Sees.PAYLOAD)

    def run(self, attacker, payload):
        images = next(tensor for tensor in payload.tensors.values() if tensor.ndim == 4 and tensor.shape[1] >= 3)
        enlarged = F.interpolate(images[:, :3].float(), size=attacker.input_size)
        return Recovery((enlarged / 2 + 0.5).clamp(0, 1))
'''


DRIVER = """
import json, sys
from contextlib import redirect_stdout
from ppfr.cli import main

for number, arguments in enumerate(json.loads(sys.argv[1])):
    sys.argv = ["ppfr", *arguments]
    with open(f"{number}.out", "w") as stream, redirect_stdout(stream):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
"""


def install(folder: Path, name: str, points: dict[str, str], **modules: str) -> None:
    """Leave in `folder` what pip leaves there of a distribution with these entry points, a group each."""
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("".join(f"[{group}]\n{point}\n\n" for group, point in points.items()))


def run(site: Path, commands: list[list[str]], folder: Path) -> list[str]:
    """What `ppfr` prints for each of `commands`, in one new process that finds distributions in `site`."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [(folder / f"{number}.out").read_text() for number in range(len(commands))]


@pytest.mark.slow
def test_train_evaluate_audit_and_export(tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "work"
    site.mkdir()
    folder.mkdir()
    install(
        site,
        "thumbnails",
        {
            "ppfr.methods": "thumbnail = thumbnail_method:Thumbnail",
            "ppfr.attacks": "enlargement = enlargement_attack:Enlargement",
        },
        thumbnail_method=METHOD,
        enlargement_attack=ATTACK,
    )
    methods, recipes, _, measured, *_ = run(
        site,
        [
            ["methods", "thumbnail"],
            ["recipes"],
            ["train", "thumbnail", "--data", TINY, "--out", "run", *FAST, "--set", "options.order_seed=5"],
            ["evaluate", "run", "--data", TINY, "--json"],
            ["audit", "run", "--data", TINY, "--attacks", "enlargement", "--out", "card"],
            ["export", "run", "--out", "deployment"],
        ],
        folder,
    )
    assert "Thumbnail" in methods and "options.block = 2" in methods and "thumbnail" in recipes
    assert json.loads(measured)["cost"]["payload_bytes_raw"] == 4 * 3 * 56 * 56
    assert b"order_seed" not in (folder / "run" / "model.safetensors").read_bytes()
    assert (folder / "run" / "secrets.safetensors").exists()
    (finding,) = json.loads((folder / "card" / "card.json").read_text())["findings"]
    assert finding["attack"] == "enlargement"
    assert finding["further"]["SSIM"]["low"] > finding["further"]["SSIM"]["chance"]
    assert "Enlargement" in (folder / "card" / "card.html").read_text()
    assert (folder / "deployment" / "client" / "protect.onnx").exists()
    assert (folder / "deployment" / "server" / "embed.onnx").exists()


def test_a_plugin_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path, "brittle", {"ppfr.methods": "brittle = brittle_method:Brittle"}, brittle_method="import nowhere\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[type[Method]] = Registry("method", "ppfr.methods", MethodError)
    with pytest.raises(MethodError, match=r"'brittle' of brittle .* No module named 'nowhere'; .* uninstall brittle"):
        registry.names()
