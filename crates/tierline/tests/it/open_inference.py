"""Judges a server by the unmodified tritonclient: open_inference.py make FOLDER | judge HTTP GRPC FOLDER | secured HTTP GRPC CA TOKEN.

`make` writes the models that `judge` asks for; answers are compared with ONNX Runtime's."""
import asyncio
import pathlib
import sys

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

KINDS = {  # one model takes one tensor of each datatype that ONNX Runtime adds 0 to, or passes on
    "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32, "uint64": TensorProto.UINT64, "int8": TensorProto.INT8,
    "int16": TensorProto.INT16, "int32": TensorProto.INT32, "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE,
    "bytes": TensorProto.STRING, "bfloat16": TensorProto.BFLOAT16,
}


def make(folder):
    for name, kind in KINDS.items():
        x = helper.make_tensor_value_info("x", kind, ["n", 3])
        y = helper.make_tensor_value_info("y", kind, ["n", 3])
        # Reversed: what comes back is not just what was sent.
        starts, ends, axes, steps = (helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in
                                     [("starts", -1), ("ends", -2**31), ("axes", 1), ("steps", -1)])
        node = helper.make_node("Slice", ["x", "starts", "ends", "axes", "steps"], ["y"])
        graph = helper.make_graph([node], name, [x], [y], [starts, ends, axes, steps])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
        onnx.save(model, folder / f"{name}.onnx")


def sample(kind):
    rng = np.random.default_rng(7)
    if kind == "bytes":
        return np.array([["a", "Grüße", ""], ["b" * 300, "1", "x y"]], dtype=np.object_)
    if kind == "bool":
        return np.array([[True, False, False], [True, True, False]])
    if kind.startswith(("float", "bfloat")):
        return rng.standard_normal((2, 3)).astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    info = np.iinfo(kind)
    return np.array([[info.min, info.max, 1], [2, 3, info.max - 1]], dtype=kind)


def expected(x):
    return x[:, ::-1]


def same(kind, got, want):
    if kind == "bytes":
        got = np.array([[t.decode() if isinstance(t, bytes) else t for t in row] for row in got], dtype=np.object_)
    assert got.shape == want.shape and (np.asarray(got) == want).all(), (kind, got, want)


def check_http(address, folder):
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.get_server_metadata()["name"] == "tierline"
        for kind in KINDS:
            assert client.is_model_ready(kind) and client.is_model_ready(kind, "1")
            meta = client.get_model_metadata(kind)
            datatype = meta["inputs"][0]["datatype"]
            assert meta["inputs"][0]["shape"] == [-1, 3] and meta["versions"] == ["1"], meta
            config = client.get_model_config(kind)
            assert config["max_batch_size"] == 0 and config["input"][0]["dims"] == [-1, 3], config
            x = sample(kind)
            for binary_in in (True, False):
                for binary_out in (True, False):
                    if not binary_in and kind in ("float16", "bfloat16"):
                        continue  # this client has no words for them in JSON
                    given = triton.InferInput("x", x.shape, datatype)
                    given.set_data_from_numpy(x, binary_data=binary_in)
                    wanted = triton.InferRequestedOutput("y", binary_data=binary_out)
                    result = client.infer(kind, [given], outputs=[wanted], request_id="r1")
                    same(kind, result.as_numpy("y"), expected(x))
                    response = result.get_response()
                    assert response["id"] == "r1" and response["model_version"] == "1", response
                    assert response["parameters"]["tier"] == "cloud", response
                    assert response["parameters"]["degraded"] is False, response
        x = sample("float32")
        given = triton.InferInput("x", x.shape, "FP32")
        given.set_data_from_numpy(x)
        same("float32", client.infer("float32", [given]).as_numpy("y"), expected(x))
        client.infer("float32", [given], parameters={"tier": "here", "deadline_ms": 2000}, priority=1, timeout=2_000_000)
        for there in (None, "gzip", "deflate"):
            for back in (None, "gzip", "deflate"):
                x = np.ones((500, 3), np.float32)
                many = triton.InferInput("x", x.shape, "FP32")
                many.set_data_from_numpy(x)
                packed = client.infer("float32", [many], request_compression_algorithm=there,
                                      response_compression_algorithm=back)
                same("float32", packed.as_numpy("y"), x)
        index = client.get_model_repository_index()
        assert {m["name"] for m in index} >= set(KINDS) and {m["state"] for m in index} == {"READY"}, index
        assert len(client.get_inference_statistics()["model_stats"]) == len(index)
        for call, status in [
            (lambda: client.infer("nobody", [given]), "404"),
            (lambda: client.infer("float32", [given], model_version="2"), "404"),
            (lambda: client.get_model_metadata("nobody"), "404"),
            (lambda: client.infer("int32", [given]), "400"),
            (lambda: client.infer("float32", [given], outputs=[triton.InferRequestedOutput("z")]), "400"),
            (lambda: client.infer("float32", [given], parameters={"tier": "moon"}), "400"),
        ]:
            try:
                call()
            except InferenceServerException as e:
                assert e.status() == status and "/" not in e.message().replace("HTTP/1.1", ""), e
            else:
                raise AssertionError(f"no {status}")
        assert not client.is_model_ready("nobody")


def check_grpc(address, folder):
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.get_server_metadata().name == "tierline"
        assert not client.is_model_ready("nobody")
        for kind in KINDS:
            assert client.is_model_ready(kind)
            meta = client.get_model_metadata(kind)
            assert list(meta.inputs[0].shape) == [-1, 3], meta
            config = client.get_model_config(kind, as_json=True)["config"]
            assert config["input"][0]["dims"] == ["-1", "3"], config
            x = sample(kind)
            given = triton.InferInput("x", x.shape, meta.inputs[0].datatype)
            given.set_data_from_numpy(x)
            result = client.infer(kind, [given], request_id="r2", client_timeout=10)
            same(kind, result.as_numpy("y"), expected(x))
            response = result.get_response()
            assert response.id == "r2" and response.parameters["tier"].string_param == "cloud", response
        assert len(client.get_model_repository_index().models) >= len(KINDS)
        x = sample("float32")
        given = triton.InferInput("x", x.shape, "FP32")
        given.set_data_from_numpy(x)
        for call, status in [
            (lambda: client.infer("nobody", [given]), "StatusCode.NOT_FOUND"),
            (lambda: client.infer("float32", [given], model_version="2"), "StatusCode.NOT_FOUND"),
            (lambda: client.infer("int32", [given]), "StatusCode.INVALID_ARGUMENT"),
        ]:
            try:
                call()
            except InferenceServerException as e:
                assert e.status() == status, e
            else:
                raise AssertionError(f"no {status}")
        for packing in (None, "gzip", "deflate"):
            same("float32", client.infer("float32", [given], compression_algorithm=packing).as_numpy("y"), expected(x))
        # A stream: answers in order, a failure in its place.
        import queue
        answers = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        for at in range(20):
            client.async_stream_infer("nobody" if at == 7 else "float32", [given], request_id=str(at))
        for at in range(20):
            result, error = answers.get(timeout=30)
            if at == 7:
                assert error is not None and "nobody" in str(error), (at, error)
            else:
                assert error is None and result.get_response().id == str(at), (at, error)
                same("float32", result.as_numpy("y"), expected(x))
        client.stop_stream()


async def check_aio(http, grpc):
    import tritonclient.grpc.aio as over_grpc
    import tritonclient.http.aio as over_http
    x = sample("float32")
    for triton, address in [(over_http, http), (over_grpc, grpc)]:
        client = triton.InferenceServerClient(address)
        given = triton.InferInput("x", x.shape, "FP32")
        given.set_data_from_numpy(x)
        results = await asyncio.gather(*(client.infer("float32", [given]) for _ in range(32)))
        for result in results:
            same("float32", result.as_numpy("y"), expected(x))
        await client.close()


def check_counts(http, grpc):
    """Both ways in count in one place."""
    import tritonclient.grpc as over_grpc
    import tritonclient.http as over_http
    x = sample("int64")
    with over_http.InferenceServerClient(http) as h, over_grpc.InferenceServerClient(grpc) as g:
        before = h.get_inference_statistics("int64")["model_stats"][0]
        for triton, client in [(over_http, h), (over_grpc, g)]:
            given = triton.InferInput("x", x.shape, "INT64")
            given.set_data_from_numpy(x)
            for _ in range(5):
                client.infer("int64", [given])
        after = h.get_inference_statistics("int64")["model_stats"][0]
        assert after["execution_count"] - before["execution_count"] == 10, (before, after)
        assert after["inference_count"] - before["inference_count"] == 20, (before, after)
        stats = after["inference_stats"]
        assert stats["success"]["count"] == stats["queue"]["count"] == after["execution_count"], after
        assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0, after
        same_there = g.get_inference_statistics("int64", as_json=True)["model_stats"][0]
        assert int(same_there["execution_count"]) == after["execution_count"], same_there


def check_model(http, grpc, path):
    """A real network against ONNX Runtime."""
    import tritonclient.grpc as over_grpc
    import tritonclient.http as over_http
    session = onnxruntime.InferenceSession(str(path))
    given = session.get_inputs()[0]
    shape = [d if isinstance(d, int) else 2 for d in given.shape]
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    want = session.run(None, {given.name: x})[0]
    for triton, address in [(over_http, http), (over_grpc, grpc)]:
        with triton.InferenceServerClient(address) as client:
            tensor = triton.InferInput(given.name, x.shape, "FP32")
            tensor.set_data_from_numpy(x)
            got = client.infer(path.stem, [tensor]).as_numpy(session.get_outputs()[0].name)
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def secured(http, grpc, ca, token):
    """Over TLS, with a token: what it opens, and what stays shut."""
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import InferenceServerException

    who = "Bearer " + pathlib.Path(token).read_text().strip()
    # Certificates name nodes `tierline`; over HTTP the client knows no such wish, and trusts the authority only.
    over_grpc = tritonclient.grpc.InferenceServerClient(
        grpc, ssl=True, root_certificates=ca, channel_args=[("grpc.ssl_target_name_override", "tierline")])
    over_http = tritonclient.http.InferenceServerClient(http, ssl=True, ssl_options={"ca_certs": ca}, insecure=True)
    for triton, client, name in [(tritonclient.grpc, over_grpc, "authorization"), (tritonclient.http, over_http, "Authorization")]:
        headers = {name: who}
        meta = client.get_model_metadata("digits", headers=headers)
        inputs = meta["inputs"] if isinstance(meta, dict) else meta.inputs
        of = inputs[0] if isinstance(inputs[0], dict) else {"name": inputs[0].name, "shape": inputs[0].shape}
        shape = [max(1, int(axis)) for axis in of["shape"]]
        given = triton.InferInput(of["name"], shape, "FP32")
        given.set_data_from_numpy(np.full(shape, 0.5, np.float32))
        assert client.infer("digits", [given], headers=headers).get_response()
        index = client.get_model_repository_index(headers=headers)
        names = [m["name"] for m in index] if isinstance(index, list) else [m.name for m in index.models]
        assert names == ["digits"], names
        for model, shown, says in [("digits", None, "who asks"), ("secret", headers, "may not use"),
                                   ("digits", {name: "Bearer nonsense"}, "no token")]:
            try:
                client.infer(model, [given], headers=shown)
            except InferenceServerException as refused:
                assert says in str(refused), refused
            else:
                raise AssertionError((triton.__name__, model, shown))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(pathlib.Path(sys.argv[2]))
    elif sys.argv[1] == "secured":
        secured(*sys.argv[2:6])
    else:
        http, grpc, folder = sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4])
        check_http(http, folder)
        check_grpc(grpc, folder)
        asyncio.run(check_aio(http, grpc))
        check_counts(http, grpc)
        for path in sys.argv[5:]:
            check_model(http, grpc, pathlib.Path(path))
        print("ok")
