"""A peer that serves one ONNX model over the Open Inference Protocol:
peer.py kserve|mlserver NAME MODEL HTTP_PORT GRPC_PORT FOLDER"""

import json
import pathlib
import subprocess
import sys

import onnxruntime


class Session:
    """The same runtime as ours, with its own defaults."""

    def __init__(self, model):
        self.inner = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.input = self.inner.get_inputs()[0].name
        self.output = self.inner.get_outputs()[0].name

    def run(self, x):
        return self.inner.run([self.output], {self.input: x})[0]


def kserve(name, model, http_port, grpc_port):
    from kserve import InferOutput, InferResponse, Model, ModelServer

    class Served(Model):
        def __init__(self):
            super().__init__(name)
            self.session = Session(model)
            self.ready = True

        async def predict(self, payload, headers=None, response_headers=None):
            y = self.session.run(payload.inputs[0].as_numpy())
            out = InferOutput(name=self.session.output, shape=list(y.shape), datatype="FP32")
            out.set_data_from_numpy(y, binary_data=True)
            return InferResponse(response_id=payload.id or "1", model_name=self.name, infer_outputs=[out])

    ModelServer(http_port=http_port, grpc_port=grpc_port, workers=1, enable_docs_url=False).start([Served()])


RUNTIME = """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from peer import Session

class Served(MLModel):
    async def load(self):
        self.session = Session(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        y = self.session.run(NumpyCodec.decode_input(payload.inputs[0]))
        out = NumpyCodec.encode_output(self.session.output, y)
        return InferenceResponse(model_name=self.name, outputs=[out])
"""


def mlserver(name, model, http_port, grpc_port, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peer.py").write_text(pathlib.Path(__file__).read_text())
    (folder / "runtime.py").write_text(RUNTIME)
    # Inference in the process that answers: a worker of its own is a hop more.
    settings = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": 0, "parallel_workers": 0, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings | {"metrics_endpoint": None}))
    spec = {"name": name, "implementation": "runtime.Served", "parameters": {"uri": model}}
    (folder / "model-settings.json").write_text(json.dumps(spec))
    program = pathlib.Path(sys.executable).with_name("mlserver")
    sys.exit(subprocess.call([program, "start", str(folder)], cwd=folder))


if __name__ == "__main__":
    which, name, model, http_port, grpc_port, folder = sys.argv[1:]
    if which == "kserve":
        kserve(name, model, int(http_port), int(grpc_port))
    else:
        mlserver(name, model, int(http_port), int(grpc_port), folder)
