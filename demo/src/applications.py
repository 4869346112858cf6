"""Applications of the demonstration, by the unmodified tritonclient:
applications.py ask ADDRESS PICTURES LABELS MODEL=PARAMETERS.. | watch ADDRESS PICTURES LABELS MODEL SECONDS"""

import json
import random
import sys
import time

import numpy as np
import tritonclient.http as triton


class Client:
    def __init__(self, address, model):
        self.inner = triton.InferenceServerClient(address)
        self.model = model
        meta = self.inner.get_model_metadata(model)
        self.input, self.output = meta["inputs"][0]["name"], meta["outputs"][-1]["name"]

    def ask(self, picture, parameters):
        given = triton.InferInput(self.input, picture.shape, "FP32")
        given.set_data_from_numpy(picture)
        began = time.time()
        result = self.inner.infer(self.model, [given], parameters=parameters)
        took = time.time() - began
        said = result.get_response()["parameters"]
        scores = result.as_numpy(said.get("output", self.output))
        return int(scores.argmax()), took, said


def answer(client, pictures, labels, i, parameters):
    at = i % len(labels)
    given, took, said = client.ask(pictures[at:at + 1], parameters)
    right = given == int(labels[at])
    return {"at": time.time(), "ms": took * 1e3, "right": right} | {k: said[k] for k in ("node", "exit", "degraded")}


def main():
    verb, address, pictures, labels, *more = sys.argv[1:]
    pictures, labels = np.load(pictures), np.load(labels)
    if verb == "ask":
        asked = [(Client(address, model), json.loads(parameters)) for model, parameters in (m.split("=", 1) for m in more)]
        got = [[] for _ in asked]
        # In turns, in an order of chance: whatever else the machine does meets all alike, and none is always asked
        # behind one that waited for the cloud, with everything between it and the board's processor gone cold.
        turns, chance = list(range(len(asked))), random.Random(1)
        for i in range(len(labels)):
            chance.shuffle(turns)
            for at in turns:
                got[at].append(answer(asked[at][0], pictures, labels, i, asked[at][1]))
        print(json.dumps([{"answers": answers, "failed": []} for answers in got]))
        return
    client, end = Client(address, more[0]), time.time() + float(more[1])
    answers, failed, i = [], [], 0
    while time.time() < end:
        try:
            answers.append(answer(client, pictures, labels, i, {"deadline_ms": 2000}))
        except triton.InferenceServerException as error:
            failed.append(str(error))
        i += 1
    print(json.dumps([{"answers": answers, "failed": failed}]))


if __name__ == "__main__":
    main()
