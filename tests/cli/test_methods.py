"""Every method by its name on the command line: trained, evaluated, and photos protected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ppfr
from ppfr.methods.common.files import SECRETS_FILE
from support.commands import FAST, photo, ppfr_command

DATA = "synthetic:people=8,images=2"
# what keeps a costly client cheap here
LIGHT = {"avih": ("options.iterations=2", "options.key_width=0.125"), "peep": ("options.components=4",)}

# seconds each on one core; `partialface` is the trained run of the other tests here
SLOW = {"arcface-fd", "avih", "cloak", "dctdp", "duetface", "minusface", "partialface", "ppfr-fd", "proface-c"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ppfr.method_names()]
)
def test_a_method_is_trained_evaluated_and_protects_by_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sent = tmp_path / "run", tmp_path / "sent"
    changes = [word for change in LIGHT.get(name, ()) for word in ("--set", change)]
    assert ppfr_command("train", name, "--data", DATA, "--out", run, *FAST, *changes) == 0
    capsys.readouterr()
    assert ppfr_command("evaluate", run, "--data", DATA, "--no-flip", "--json") == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["method"] == name
    assert 0 <= evaluated["verification"]["accuracy"] <= 1
    assert ppfr_command("protect", run, photo(tmp_path / "a.png"), "--out", sent, "--seed", 1) == 0
    method = ppfr.load(run)
    payload = ppfr.Payload.load(sent / "a.safetensors", method.schema)
    assert payload.nbytes == evaluated["cost"]["payload_bytes_raw"]
    assert method.embed(payload).shape == (1, 16)
    # the server's half alone reads what was sent
    (run / SECRETS_FILE).unlink(missing_ok=True)
    assert bool((ppfr.load(run).embed(payload) == method.embed(payload)).all())
