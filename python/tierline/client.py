"""A client of the Open Inference Protocol: arrays in, arrays out."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt

from . import _tensors

Array = npt.NDArray[Any]

# What every node's certificate names it.
_NODES = "tierline"

_HEADER_LENGTH = "Inference-Header-Content-Length"


class Error(Exception):
    """A node refused a request, or answered what no node answers.

    Attributes:
        status: The HTTP status; 0 where there was none.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer(Mapping[str, Array]):
    """Outputs by name, and where they come from.

    Attributes:
        model: The model that answered.
        version: Its version.
        outputs: The arrays, by the names of the model's outputs.
        parameters: What the node says of the answer.
    """

    model: str
    version: str
    outputs: dict[str, Array]
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def tier(self) -> str | None:
        """Who ran the last part: `end`, `edge` or `cloud`."""
        return self.parameters.get("tier")

    @property
    def node(self) -> str | None:
        """Its name."""
        return self.parameters.get("node")

    @property
    def exit(self) -> int:
        """The early exit that answered, from 1; 0: the model's end."""
        return int(self.parameters.get("exit", 0))

    @property
    def plan(self) -> str | None:
        """What ran where, in words."""
        return self.parameters.get("plan")

    @property
    def degraded(self) -> bool:
        """Whether the answer did not come the planned way."""
        return bool(self.parameters.get("degraded", False))

    @property
    def cause(self) -> str | None:
        """Why not, as in `link_down`."""
        return self.parameters.get("cause")

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


class _NodeConnection(http.client.HTTPSConnection):
    """Knows a node by its site's authority, whatever address it is reached at."""

    def __init__(self, host: str, port: int | None, *, timeout: float, ca: str) -> None:
        self._ssl = ssl.create_default_context(cafile=ca)
        super().__init__(host, port, timeout=timeout, context=self._ssl)

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._ssl.wrap_socket(self.sock, server_hostname=_NODES)


class Client:
    """Asks one node. Threads may share a client; each request waits for the one before.

    Args:
        url: Where it answers HTTP, as in `http://127.0.0.1:8000`.
        token: Of an application, where the node wants one.
        ca: A file with the certificate of the site's authority (`tierline app create --ca`), by which nodes are
            known that show their own; without it, those count that this machine trusts.
        timeout: Seconds until a node counts as gone.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        ca: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"`{url}` is no address of a node; write it as http://HOST:PORT")
        self._connection: http.client.HTTPConnection
        if ca is not None:
            if parts.scheme != "https":
                raise ValueError(f"`{url}` is not encrypted: an authority says nothing about it")
            self._connection = _NodeConnection(parts.hostname, parts.port, timeout=timeout, ca=ca)
        else:
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._turn = threading.Lock()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        outputs: list[str] | None = None,
        version: str | None = None,
        deadline: float | None = None,
        tier: str | None = None,
        exit: int | None = None,
        priority: int | None = None,
        hedge: bool | float | None = None,
    ) -> Answer:
        """Runs a model.

        Args:
            model: Its name.
            inputs: Arrays by the names of its inputs; what is no array becomes one.
            outputs: Those that are wanted; else all.
            version: Of the model; else its only one.
            deadline: Seconds in which the answer is wanted.
            tier: Where it is to run: `plan` (the rule), `here`, `edge` or `cloud`.
            exit: The early exit that answers at the latest, from 1; 0: none does.
            priority: From 1, which goes first; 0: as others.
            hedge: Send a second copy another way once the first has taken longer than this
                share of recent answers; True: 0.95.

        Raises:
            Error: The node refused it, and says why.
            OSError: The node can't be reached.
        """
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        bodies = {name: _tensors.encode(array) for name, array in arrays.items()}
        wanted = {"deadline_ms": None if deadline is None else max(1, round(deadline * 1e3))}
        wanted |= {"tier": tier, "exit": exit, "priority": priority, "hedge": hedge}
        head: dict[str, Any] = {
            "inputs": [
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": _tensors.datatype(array),
                    "parameters": {"binary_data_size": len(bodies[name])},
                }
                for name, array in arrays.items()
            ],
            "parameters": {key: value for key, value in wanted.items() if value is not None}
            | {"binary_data_output": True},
        }
        if outputs is not None:
            head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        text = json.dumps(head).encode()
        headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(text))}
        answer, said = self._ask("POST", f"{self._model(model, version)}/infer", b"".join([text, *bodies.values()]), headers)
        length = int(said.get(_HEADER_LENGTH, len(answer)))
        reply = self._json(answer[:length])
        tensors, at = {}, length
        for output in reply.get("outputs", []):
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                tensors[output["name"]] = _tensors.of_json(output["data"], output["datatype"], output["shape"])
                continue
            tensors[output["name"]] = _tensors.decode(answer[at : at + size], output["datatype"], output["shape"])
            at += size
        return Answer(
            reply.get("model_name", model), reply.get("model_version", ""), tensors, reply.get("parameters", {})
        )

    def metadata(self, model: str, version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs of a model, as the protocol tells of them."""
        return self._get(self._model(model, version))

    def models(self) -> list[dict[str, Any]]:
        """The models that the node knows."""
        answer, _ = self._ask("POST", "/v2/repository/index", b"{}", {"Content-Type": "application/json"})
        index = json.loads(answer)
        return list(index)

    def is_ready(self, model: str | None = None) -> bool:
        """Whether the node, or a model on it, can be asked."""
        path = "/v2/health/ready" if model is None else f"{self._model(model, None)}/ready"
        try:
            self._ask("GET", path)
        except (Error, OSError):
            return False
        return True

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _model(model: str, version: str | None) -> str:
        path = f"/v2/models/{quote(model, safe='')}"
        return path if version is None else f"{path}/versions/{quote(version, safe='')}"

    @staticmethod
    def _json(text: bytes) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except ValueError as broken:
            raise Error(0, f"the answer is no JSON: {broken}") from broken
        if not isinstance(value, dict):
            raise Error(0, "the answer is no JSON object")
        return value

    def _get(self, path: str) -> dict[str, Any]:
        return self._json(self._ask("GET", path)[0])

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        with self._turn:
            # A connection that was idle may have been closed by now.
            kept = self._connection.sock is not None
            try:
                return self._once(method, path, body, headers or {})
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self._connection.close()
                if not kept:
                    raise
                return self._once(method, path, body, headers or {})
            except Error:
                # It came whole: the connection is good for the next request.
                raise
            except BaseException:
                # What is left of an answer must not be taken for the next.
                self._connection.close()
                raise

    def _once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[bytes, Mapping[str, str]]:
        self._connection.request(method, self._prefix + path, body, {**self._headers, **headers})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status >= 400:
            try:
                message = str(json.loads(answer)["error"])
            except (ValueError, KeyError, TypeError):
                message = answer.decode(errors="replace").strip() or response.reason
            raise Error(response.status, message)
        return answer, response.headers
