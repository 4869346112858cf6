"""Which of the ONNX operator tests the Python package of ONNX Runtime passes.

Usage: python reference.py FOLDER > python-onnxruntime-VERSION.txt

FOLDER holds <case>/model.onnx and <case>/test_data_set_0/*.pb. One line per
case that passes; comparison as the ONNX project's own runner does it
(relative 1e-3, absolute 1e-7).
"""

import glob
import os
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper


def load(path, kind):
    with open(path, "rb") as file:
        data = file.read()
    field = kind.WhichOneof("value")
    if field == "sequence_type":
        message = onnx.SequenceProto()
        message.ParseFromString(data)
        return numpy_helper.to_list(message)
    if field == "optional_type":
        message = onnx.OptionalProto()
        message.ParseFromString(data)
        return numpy_helper.to_optional(message)
    message = onnx.TensorProto()
    message.ParseFromString(data)
    return numpy_helper.to_array(message)


def same(given, expected):
    if expected is None:
        return given is None
    if isinstance(expected, list):
        return len(given) == len(expected) and all(map(same, given, expected))
    given = np.asarray(given)
    if given.shape != expected.shape or given.dtype != expected.dtype:
        return False
    if expected.dtype.kind in "OSU":
        return bool(np.array_equal(given, expected))
    np.testing.assert_allclose(given.astype(expected.dtype), expected, rtol=1e-3, atol=1e-7)
    return True


def passes(case):
    model = onnx.load(os.path.join(case, "model.onnx"))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    data = os.path.join(case, "test_data_set_0")

    def values(what, declared):
        paths = [os.path.join(data, f"{what}_{i}.pb") for i in range(len(glob.glob(os.path.join(data, f"{what}_*.pb"))))]
        return [load(path, value.type) for path, value in zip(paths, declared)]

    inputs = values("input", model.graph.input)
    expected = values("output", model.graph.output)
    given = session.run(None, {value.name: array for value, array in zip(model.graph.input, inputs)})
    return len(given) == len(expected) and all(map(same, given, expected))


def main():
    ort.set_default_logger_severity(4)
    names = sorted(os.path.basename(os.path.dirname(p)) for p in glob.glob(os.path.join(sys.argv[1], "*", "model.onnx")))
    passed = []
    for name in names:
        try:
            if passes(os.path.join(sys.argv[1], name)):
                passed.append(name)
        except Exception as error:  # noqa: BLE001: any failure is just a case not passed
            print(f"{name}: {str(error).splitlines()[0] if str(error) else type(error)}", file=sys.stderr)
    print(f"# onnxruntime {ort.__version__}, onnx {onnx.__version__}: {len(passed)} of {len(names)} cases pass")
    print("\n".join(passed))


if __name__ == "__main__":
    main()
