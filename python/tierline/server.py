"""`tierline serve` as a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import IO

from ._binary import find_binary
from .client import Client

Paths = str | PathLike[str] | Sequence[str | PathLike[str]] | Mapping[str, str | PathLike[str]]


class Server:
    """Models being served; ends with :meth:`close` or its `with` block.

    Attributes:
        http: Where it answers HTTP; `None` when it doesn't.
        grpc: Where it answers gRPC; `None` when it doesn't.
        models: Names of the models.
    """

    def __init__(
        self, process: subprocess.Popen[str], said: IO[str], http: str | None, grpc: str | None, models: list[str]
    ) -> None:
        self._process = process
        self._said = said
        self.http = http
        self.grpc = grpc
        self.models = models

    def client(self, *, timeout: float = 30.0) -> Client:
        """A client of this server.

        Raises:
            ValueError: It doesn't answer HTTP.
        """
        if self.http is None:
            raise ValueError("this server doesn't answer HTTP")
        return Client(self.http, timeout=timeout)

    def close(self, *, grace: float = 30.0) -> None:
        """Ends it once what it admitted is answered; kills it after `grace` seconds."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()


def serve(
    models: Paths,
    *,
    http: str = "127.0.0.1:0",
    grpc: str = "127.0.0.1:0",
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 0,
) -> Server:
    """Serves ONNX models from this machine, and returns once they can be asked.

    Args:
        models: A file or a folder of them, several, or files by the names they are asked for.
        http: Address for HTTP, port 0 for any that is free; `off`: none.
        grpc: The same for gRPC.
        shapes: Sizes to measure for, by input, where inputs have free axes; else 1.
        threads: Threads within an operator; 0 takes every core.

    Raises:
        RuntimeError: It doesn't start; the message is what it said.
    """
    names: list[str] = []
    if isinstance(models, Mapping):
        names, files = list(models), [fspath(path) for path in models.values()]
    elif isinstance(models, (str, PathLike)):
        files = [fspath(models)]
    else:
        files = [fspath(path) for path in models]
    command = [find_binary(), "serve", "--json", "--http", http, "--grpc", grpc, "--threads", str(threads)]
    for name in names:
        command += ["--name", name]
    for name, shape in (shapes or {}).items():
        command += ["--shape", f"{name}={','.join(str(size) for size in shape)}"]
    command += [str(Path(file)) for file in files]
    # A file takes whatever it says; a pipe would have to be read.
    said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event.get("event") == "serving":
            return Server(process, said, event.get("http"), event.get("grpc"), event["models"])
    process.wait()
    process.stdout.close()
    with said:
        said.seek(0)
        raise RuntimeError(said.read().strip() or f"`{' '.join(command)}` ended with {process.returncode}")
