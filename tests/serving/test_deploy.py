"""The compose and container files: they parse, and what they call exists. No engine runs here."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from ppfr.cli import application
from ppfr.serving.search.indexes import TOKEN
from ppfr.util.keyring import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
SHELL_DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    return services


def container() -> list[tuple[str, str]]:
    text = (ROOT / "deploy" / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def checked(arguments: list[str]) -> None:
    """Parse a command of ppfr without running it; an unknown command or option ends in an error."""
    command, name, rest = get_command(application()), "ppfr", list(arguments)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        assert name in command.commands, name
        command = command.commands[name]
    command.make_context(name, rest)


def test_the_servers_commands_exist(services: dict[str, Any], tmp_path: Path) -> None:
    command = [SHELL_DEFAULT.sub(r"\1", part) for part in services["server"]["command"]]
    assert command[-2:] == ["--index", "exact"]
    checked(command)
    lines = dict(container())
    assert json.loads(lines["ENTRYPOINT"]) == ["ppfr"]
    checked(json.loads(lines["CMD"]))
    with pytest.raises(Exception, match="no-such-option"):
        checked([*command, "--no-such-option"])
    # what the head of the file and the docs tell to type
    texts = [(ROOT / name).read_text() for name in ("deploy/compose.yaml", "docs/serving.md")]
    told = {line for text in texts for line in re.findall(r"ppfr (gallery [a-z-]+(?: (?:add|list|revoke))?)", text)}
    assert {"gallery keys add", "gallery rotate", "gallery check"} <= told
    for line in told:
        assert CliRunner().invoke(application(), [*line.split(), "--help"]).exit_code == 0, line


def test_variables_are_those_that_the_program_reads(services: dict[str, Any]) -> None:
    server = services["server"]["environment"]
    assert set(server) == {"PPFR_GALLERY", ENVIRONMENT, TOKEN}
    assert server["PPFR_GALLERY"].startswith("postgresql+psycopg://ppfr:")
    assert (
        server["PPFR_GALLERY"].endswith("@database/ppfr")
        and services["database"]["environment"]["POSTGRES_DB"] == "ppfr"
    )
    # no secret stands in the file
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    assert not re.search(r"(PASSWORD|KEY|TOKEN): [^$\s]", text)


def test_services_fit_together(services: dict[str, Any]) -> None:
    assert set(services["server"]["depends_on"]) <= set(services)
    assert services["milvus"]["profiles"] == ["milvus"] and "profiles" not in services["server"]
    mount = services["server"]["volumes"][0].split(":")
    assert mount[1] == services["server"]["command"][1] and mount[2] == "ro"
    # nothing but this machine reaches it until a proxy is put in front
    assert all(port.startswith("127.0.0.1:") for port in services["server"]["ports"])


def test_the_image_copies_what_there_is_and_does_not_run_as_root() -> None:
    steps = container()
    for word, rest in steps:
        if word == "COPY":
            assert all((ROOT / name).exists() for name in rest.split()[:-1])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(word == "RUN" and "'.[serve]'" in rest for word, rest in steps) and "serve" in extras
    assert [rest for word, rest in steps if word == "USER"] == ["ppfr"]
