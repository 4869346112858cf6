"""Flower's side: FedAvg on one vector of numbers, to which each client adds ones and noise.

Both apps of a Flower project; times of rounds go to the file that the run's
configuration names.
"""

import json
import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context):
    # Each its own: Flower sends what is the same once.
    draw = np.random.default_rng(context.node_id).standard_normal
    arrays = [a + 1.0 + draw(a.shape, dtype=a.dtype) for a in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 8, "loss": 0.1})
    return Message(content=RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


class Timed(FedAvg):
    ends = []

    def aggregate_train(self, *args, **kwargs):
        made = super().aggregate_train(*args, **kwargs)
        self.ends.append(time.time())
        return made


@server.main()
def main(grid: Grid, context: Context):
    said = context.run_config
    clients = int(said["clients"])
    strategy = Timed(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=clients,
        min_available_nodes=clients,
        min_evaluate_nodes=0,
    )
    numbers = ArrayRecord([np.zeros(int(said["numbers"]), dtype=np.float32)])
    # Rounds are timed, not waiting for clients to connect.
    while len(list(grid.get_node_ids())) < clients:
        time.sleep(0.1)
    begun = time.time()
    result = strategy.start(grid=grid, initial_arrays=numbers, num_rounds=int(said["rounds"]))
    ended = time.time()
    mean = float(result.arrays.to_numpy_ndarrays()[0].mean())
    times = [b - a for a, b in zip([begun, *strategy.ends], strategy.ends)]
    with open(str(said["out"]), "w") as file:
        json.dump({"rounds": times, "seconds": ended - begun, "mean": mean}, file)
