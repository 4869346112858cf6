"""Deep learning across end devices, edge nodes and the cloud.

The package carries the `tierline` binary and three ways to use it from Python:

- :func:`serve` serves ONNX models from this machine;
- :class:`Client` asks a node, or anything that speaks the Open Inference
  Protocol, with NumPy arrays in and out;
- :func:`train` runs a training job.
"""

from ._binary import find_binary
from .client import Answer, Client, Error
from .server import Server, serve
from .training import Epoch, Training, train

__all__ = [
    "Answer",
    "Client",
    "Epoch",
    "Error",
    "Server",
    "Training",
    "find_binary",
    "serve",
    "train",
]
