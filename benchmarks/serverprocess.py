"""A real `ppfr serve` to measure, of a tiny network unless a deployment is given, for the benchmarks of serving."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import torch

from ppfr.methods import BackboneSpec, create
from ppfr.serving.contract import Contract
from ppfr.serving.deployment.export import export_method
from ppfr.serving.gallery.api_keys import Role
from ppfr.serving.gallery.gallery import Gallery
from ppfr.serving.runtime.protector import Protector
from ppfr.util.keyring import Keyring


def tiny_deployment(folder: Path) -> Path:
    """A PartialFace whose network takes a millisecond: what is measured is all that lies around it."""
    export_method(create("partialface", BackboneSpec("ir18", 16, 0.125, (32, 32))), folder, coding="dct:0.02")
    return folder


def messages(deployment: Path, count: int, seed: int = 0) -> list[bytes]:
    """What a client sends for as many images of noise."""
    client = Protector(deployment / "client")
    generator = torch.Generator().manual_seed(seed)
    size = client.contract.input_size
    return [client.to_bytes(torch.rand((1, 3, *size), generator=generator) * 2 - 1, generator) for _ in range(count)]


class Server:
    """One gallery, and the process that serves it, again and again."""

    def __init__(self, deployment: Path, folder: Path, *, gallery: str | None = None, index: str = "exact") -> None:
        self._deployment, self._folder, self._index = deployment, folder, index
        self.gallery = gallery or f"sqlite:///{folder / 'gallery.db'}"
        self.key_file = folder / "gallery.key"
        self.keyring = Keyring.create()
        self.keyring.save(self.key_file)
        contract = Contract.load(deployment / "server")
        opened = Gallery(self.gallery, self.keyring, contract.id, contract.embedding_size)
        self.headers = {"x-api-key": opened.api_keys.create("benchmark", Role.ADMIN)[1]}
        opened.close()
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def beside(self) -> Server:
        """Another process, not started yet, that serves the same gallery."""
        other = copy.copy(self)
        other.port, other._process = _free_port(), None
        return other

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def command(self) -> list[str]:
        options = {"gallery": self.gallery, "key-file": self.key_file, "index": self._index, "port": self.port}
        given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return [sys.executable, "-m", "ppfr", "serve", str(self._deployment), *given, "--rate", "1000000"]

    def start(self) -> None:
        """Start the process and wait until it answers."""
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/healthz", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise SystemExit(f"the server did not start: {(self._folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL: nothing is finished, flushed or closed."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            os.kill(self._process.pid, how)
            self._process.wait()
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
