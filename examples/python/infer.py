"""Asks a Tierline node on this machine for an answer, over its socket.

Usage: infer.py SOCKET MODEL INPUT=FILE.npy ...

Needs numpy, grpcio, and the messages that grpcio-tools makes of
crates/proto/proto/tierline.proto; docs/guide/operating.md shows how.
"""

import struct
import sys

import grpc
import numpy

import tierline_pb2 as messages
import tierline_pb2_grpc as services

# Bytes of a tensor in one message.
CHUNK_BYTES = 256 << 10

# Element types as ONNX numbers them.
TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}


def encode(array):
    """An array as the codec `raw` has it: a header, then the elements."""
    header = b"TL" + bytes([1, TYPES[array.dtype.name], array.ndim])
    return header + struct.pack(f"<{array.ndim}Q", *array.shape) + numpy.ascontiguousarray(array).tobytes()


def decode(data):
    kind, axes = data[3], data[4]
    dtype = next(name for name, number in TYPES.items() if number == kind)
    shape = struct.unpack_from(f"<{axes}Q", data, 5)
    return numpy.frombuffer(data, dtype, offset=5 + 8 * axes).reshape(shape)


def request(model, inputs):
    """A header that declares the tensors, then each of them in chunks."""
    bodies = [encode(array) for _, array in inputs]
    tensors = [messages.TensorInfo(name=name, codec="raw", length=len(b)) for (name, _), b in zip(inputs, bodies)]
    yield messages.InferChunk(header=messages.InferHeader(model=model, tensors=tensors, deadline_ms=10_000))
    for index, body in enumerate(bodies):
        for offset in range(0, len(body), CHUNK_BYTES):
            chunk = messages.TensorChunk(tensor=index, offset=offset, data=body[offset : offset + CHUNK_BYTES])
            yield messages.InferChunk(tensor=chunk)


def infer(node, model, inputs):
    """The reply, and the outputs by name."""
    answer = node.Infer(request(model, inputs))
    reply = next(answer).reply
    if reply.reply.HasField("failure") and reply.reply.failure.code:
        raise RuntimeError(f"{reply.reply.failure.message}; {reply.reply.failure.help}")
    bodies = [bytearray() for _ in reply.reply.tensors]
    for message in answer:
        bodies[message.tensor.tensor] += message.tensor.data
    return reply, {info.name: decode(bytes(body)) for info, body in zip(reply.reply.tensors, bodies)}


def main(socket, model, *inputs):
    # Without this, gRPC says the socket's path where a host belongs, and the node hangs up.
    channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])
    node = services.LocalStub(channel)
    print("node   ", node.Status(messages.Empty()).node_name)
    pairs = [given.split("=", 1) for given in inputs]
    reply, outputs = infer(node, model, [(name, numpy.load(file)) for name, file in pairs])
    print("model  ", reply.model.hex())
    for stage in reply.reply.stages:
        print("ran    ", stage.node, f"{stage.first_segment}..{stage.last_segment}")
    for name, array in outputs.items():
        print("output ", name, array.dtype, array.shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
