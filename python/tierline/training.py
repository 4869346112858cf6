"""`tierline train` as a process of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from ._binary import find_binary


@dataclass(frozen=True)
class Epoch:
    """One pass over the examples.

    Attributes:
        number: From 1.
        numbers: Everything that the job reports of it, by name.
    """

    number: int
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Training:
    """A training that is done.

    Attributes:
        model: The trained model's digest.
        file: The trained model.
        accuracy: On the examples that were held out, if there were any.
        loss: The same.
        epochs: All epochs, in order.
    """

    model: str
    file: str
    accuracy: float | None
    loss: float | None
    epochs: list[Epoch]


def train(
    job: str | PathLike[str],
    *,
    out: str | PathLike[str] | None = None,
    data: str | PathLike[str] | None = None,
    replace: bool = False,
    threads: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Training:
    """Trains on this machine as a job file says, and returns when it is done.

    Args:
        job: The file; its model and data are found as by `tierline train JOB --local`.
        out: Folder for the model and its checkpoints; else beside the job.
        data: Tierline's data folder, where data sets have their names; else the user's.
        replace: Whether a training that the folder already holds may go.
        threads: Threads within an operator; 0 takes every core.
        on_epoch: Called after each epoch.

    Raises:
        RuntimeError: It failed; the message is what it said.
    """
    command = [find_binary()]
    if data is not None:
        command += ["--data", fspath(data)]
    command += ["train", fspath(job), "--local", "--json", "--threads", str(threads)]
    if out is not None:
        command += ["--out", fspath(out)]
    if replace:
        command.append("--replace")
    epochs: list[Epoch] = []
    done: dict[str, Any] | None = None
    # A file takes whatever it says; a pipe would have to be read.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    event = json.loads(line)
                    if event.get("event") == "epoch":
                        numbers = {key: value for key, value in event.items() if key != "event"}
                        epochs.append(Epoch(int(event["epoch"]), numbers))
                        if on_epoch is not None:
                            on_epoch(epochs[-1])
                    elif event.get("event") == "done":
                        done = event
            except BaseException:
                process.terminate()
                raise
        errors.seek(0)
        said = errors.read().strip()
    if process.returncode != 0 or done is None:
        raise RuntimeError(said or f"`{' '.join(command)}` ended with {process.returncode}")
    return Training(done["model"], done["file"], done.get("accuracy"), done.get("loss"), epochs)
