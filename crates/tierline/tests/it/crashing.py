"""A client in the middle of a stream, to be killed there: crashing.py ADDRESS MODEL."""
import queue
import sys
import threading

import numpy as np
import tritonclient.grpc as triton

address, model = sys.argv[1:]
client = triton.InferenceServerClient(address)
of = client.get_model_metadata(model).inputs[0]
given = triton.InferInput(of.name, list(of.shape), of.datatype)
given.set_data_from_numpy(np.zeros(list(of.shape), np.float32))
answers = queue.Queue()
client.start_stream(lambda result, error: answers.put(result))
for _ in range(50):
    client.async_stream_infer(model, [given])
answers.get(timeout=30)
print("said", flush=True)
threading.Event().wait()
