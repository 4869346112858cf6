"""KServe's own client, unmodified: kserve_client.py HTTP GRPC INPUT EXPECTED, for the model `mlp` and an input of ones."""
import asyncio
import json
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

http, rpc, name, expected = sys.argv[1:]
http = f"http://{http}"
x = np.ones((1, 784), np.float32)
want = np.array(json.loads(expected), np.float32)


def request(binary, **parameters):
    given = InferInput(name, list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    return InferRequest(model_name="mlp", infer_inputs=[given], request_id="r1", parameters=parameters)


def check(answer):
    assert answer.id == "r1" and answer.model_name == "mlp", answer
    np.testing.assert_allclose(answer.outputs[0].as_numpy().ravel(), want, rtol=1e-6)


async def over_http():
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=20))
    assert await client.is_server_live(http) and await client.is_server_ready(http)
    assert await client.is_model_ready(http, "mlp") and not await client.is_model_ready(http, "nobody")
    for there in (False, True):
        for back in (False, True):
            parameters = {"binary_data_output": True} if back else {}
            check(await client.infer(http, request(there, deadline_ms=5_000, **parameters), model_name="mlp"))
    try:
        await client.infer(http, request(True), model_name="nobody")
    except httpx.HTTPStatusError as e:
        assert e.response.status_code == 404 and "nobody" in str(e), e
    else:
        raise AssertionError("no 404")


async def over_grpc():
    client = InferenceGRPCClient(rpc)
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("mlp")
    for raw in (True, False):
        answer = await client.infer(request(raw, tier="here"))
        check(answer)
        assert answer.parameters["degraded"].bool_param is False, answer.parameters
    wrong = request(True)
    wrong.model_name = "nobody"
    try:
        await client.infer(wrong)
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.NOT_FOUND, e
    else:
        raise AssertionError("no NOT_FOUND")


asyncio.run(over_http())
asyncio.run(over_grpc())
print("ok")
