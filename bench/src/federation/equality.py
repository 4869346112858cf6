"""PyTorch's side: FedAvg, written as its paper has it, on a given partition.

`equality.py NETWORK.onnx FOLDER SHARES.json SEED ROUNDS BATCH RATE THREADS`
prints the accuracy on the test set behind each round.
"""

import json
import sys

import onnx
import torch
import torch.nn.functional as F
from peer import Net, idx


def main(path, folder, shares, seed, rounds, size, rate, threads):
    rounds, size, rate = int(rounds), int(size), float(rate)
    torch.set_num_threads(int(threads))
    torch.manual_seed(int(seed))
    with open(shares) as file:
        shares = [torch.tensor(share) for share in json.load(file)]
    constants = [t.name for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    net = Net(path, set(constants), torch.float32).train()
    pictures, test = (
        torch.from_numpy(idx(folder, f"{part}-images-idx3-ubyte")).float().flatten(1) / 255 for part in ("train", "t10k")
    )
    classes, wanted = (torch.from_numpy(idx(folder, f"{part}-labels-idx1-ubyte")).long() for part in ("train", "t10k"))
    print(json.dumps({"version": torch.__version__}), flush=True)
    weights = list(net.parameters())
    model = [w.detach().clone() for w in weights]
    for _ in range(rounds):
        mean = [torch.zeros_like(m, dtype=torch.float64) for m in model]
        for share in shares:
            with torch.no_grad():
                for w, m in zip(weights, model):
                    w.copy_(m)
            optimizer = torch.optim.SGD(weights, lr=rate)
            for chosen in share[torch.randperm(len(share))].split(size):
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(net(pictures[chosen]), classes[chosen]).backward()
                optimizer.step()
            with torch.no_grad():
                for s, w in zip(mean, weights):
                    s += w.double() * (len(share) / sum(map(len, shares)))
        model = [s.float() for s in mean]
        with torch.no_grad():
            for w, m in zip(weights, model):
                w.copy_(m)
            right = sum((net(x).argmax(1) == y).sum().item() for x, y in zip(test.split(1000), wanted.split(1000)))
        print(json.dumps({"accuracy": right / len(test)}), flush=True)


main(*sys.argv[1:])
