"""Writes the fixtures of layouts: networks as the public's tools leave them, and what stock ONNX Runtime makes of each.

    python make.py            # all of them, into `files/`
    python make.py quantised  # those whose names hold this

Needs onnx, onnxruntime, onnx_ir and sympy. `files/NAME/` holds a model with what lies beside it, and `values`: a GraphProto
whose tensors are what goes in (`0/given/x`) and what comes out (`0/made/y`), and whose text says how near a runtime on
another machine comes (`apart`), and whether the file is only right on machines of one kind (`machine`).
"""

import contextlib
import copy
import json
import logging
import pathlib
import random
import shutil
import sys
import tempfile

import numpy
import onnx
import onnx.compose
import onnx.inliner
import onnx_ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, parser
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference
from onnxruntime.transformers import float16, optimizer

import networks

FOLDER = pathlib.Path(__file__).resolve().parent / "files"
LEVELS = onnxruntime.GraphOptimizationLevel
# What a rounding step of eight bits makes of a result, where machines round differently.
STEP = 0.05
CASES = []


def case(name, make, inputs, *, apart=1e-5, machine=False, reference=None, unfused=False):
    """`make(folder)` writes `model.onnx` there, or gives the model. `reference` gives the model that ONNX Runtime takes,
    where it refuses this layout. `unfused`: as the file says it, where ONNX Runtime's fusions round more than that, or
    compute something else (weights of two bits whose width is no multiple of four, in 1.32)."""
    CASES.append(dict(name=name, make=make, inputs=inputs, apart=apart, machine=machine, reference=reference,
                      unfused=unfused))


def waves(*shape):
    count = numpy.arange(numpy.prod(shape), dtype=numpy.float64)
    return numpy.sin(count * 0.618).reshape(shape).astype(numpy.float32)


def pictures(batch):
    return {"x": waves(batch, 3, 6, 6)}


def sentences(batch, length):
    ids = (numpy.arange(batch * length).reshape(batch, length) * 7 + 1) % 12
    mask = numpy.ones((batch, length), numpy.int64)
    mask[:, length - 1] = 0
    return {"input_ids": ids.astype(numpy.int64), "attention_mask": mask}


def series(batch):
    return {"x": waves(batch, 5, 3)}


def rows(batch, width=16):
    return {"x": waves(batch, width)}


PICTURES = [pictures(1), pictures(2)]
SENTENCES = [sentences(1, 4), sentences(2, 6)]
SERIES = [series(1), series(2)]
ROWS = [rows(1), rows(2)]


class Samples(CalibrationDataReader):
    """What static quantisation measures the network's values on."""

    def __init__(self, inputs):
        self.left = list(inputs)

    def get_next(self):
        return self.left.pop() if self.left else None


@contextlib.contextmanager
def files(model):
    """Paths of the model and of what a tool makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        given = pathlib.Path(folder) / "given.onnx"
        onnx.save(model, given)
        yield str(given), str(pathlib.Path(folder) / "made.onnx")


# Quantised by `onnxruntime.quantization`.

def prepared(model):
    with files(model) as (given, made):
        quant_pre_process(given, made, skip_symbolic_shape=True)
        return onnx.load(made)


def static(model, inputs, **options):
    def make(_):
        with files(prepared(model)) as (given, made):
            quantization.quantize_static(given, made, Samples(inputs), **options)
            return onnx.load(made)
    return make


def dynamic(model, **options):
    def make(folder):
        with files(prepared(model(folder) if callable(model) else model)) as (given, made):
            quantization.quantize_dynamic(given, made, **options)
            return onnx.load(made)
    return make


QDQ, OPERATORS = {"quant_format": QuantFormat.QDQ}, {"quant_format": QuantFormat.QOperator}
PER_CHANNEL = {"per_channel": True, "reduce_range": True}
U8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}
S8 = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "reduce_range": True}
U16 = {"activation_type": QuantType.QUInt16, "weight_type": QuantType.QInt8}
QUANTISED = [("qdq", QDQ | U8), ("qdq_channels", QDQ | PER_CHANNEL), ("operators", OPERATORS | U8),
             ("operators_channels", OPERATORS | PER_CHANNEL)]
for kind, options in QUANTISED:
    case(f"quantised_cnn_{kind}", static(networks.cnn(), PICTURES, **options), PICTURES, apart=STEP)
for kind, options in QUANTISED[1:3]:
    case(f"quantised_depthwise_{kind}", static(networks.depthwise(), PICTURES, **options), PICTURES, apart=STEP)
case("quantised_transformer_qdq", static(networks.transformer(17), SENTENCES, **QDQ, **U8,
     op_types_to_quantize=["MatMul", "Gemm", "Gather"]), SENTENCES, apart=STEP)
case("quantised_transformer_operators", static(networks.transformer(17), SENTENCES, **OPERATORS, **U8), SENTENCES, apart=STEP)
case("quantised_cnn_signed", static(networks.cnn(), PICTURES, **QDQ, **S8), PICTURES, apart=STEP)
case("quantised_cnn_16_bits_newer", static(networks.cnn(21), PICTURES, **QDQ, **U16), PICTURES, apart=STEP)
case("quantised_cnn_4_bits", static(networks.perceptron(21), ROWS, **QDQ, activation_type=QuantType.QUInt8,
                                    weight_type=QuantType.QInt4), ROWS, apart=STEP)
case("quantised_recurrent_qdq", static(networks.recurrent(), SERIES, **QDQ, **U8), SERIES, apart=STEP)
# Weights stay numbers, quantised where they are used.
case("dynamic_transformer", dynamic(networks.transformer(17)), SENTENCES, apart=STEP)
case("dynamic_perceptron_channels", dynamic(networks.perceptron(), per_channel=True, reduce_range=True), ROWS, apart=STEP)
case("dynamic_recurrent", dynamic(networks.recurrent()), SERIES, apart=STEP)
case("dynamic_cnn", dynamic(networks.cnn(), weight_type=QuantType.QUInt8), PICTURES, apart=STEP)
case("dynamic_perceptron", dynamic(networks.perceptron(9)), ROWS, apart=STEP)


# Weights of few bits.

def few_bits(model, config):
    def make(_):
        quantizer = MatMulNBitsQuantizer(copy.deepcopy(model), algo_config=config)
        quantizer.process()
        return quantizer.model.model
    return make


def default(**options):
    return DefaultWeightOnlyQuantConfig(**options)


case("bits_4", few_bits(networks.perceptron(), default(block_size=16, is_symmetric=True)), ROWS, apart=1e-3)
case("bits_4_zero_points", few_bits(networks.perceptron(), default(block_size=32, is_symmetric=False)), ROWS, apart=1e-3)
case("bits_4_accuracy", few_bits(networks.perceptron(), default(block_size=16, accuracy_level=4)), ROWS, apart=STEP)
case("bits_8", few_bits(networks.perceptron(), default(block_size=16, bits=8)), ROWS, apart=1e-3)
case("bits_4_qdq", few_bits(networks.perceptron(21), default(block_size=16, quant_format=QuantFormat.QDQ)), ROWS, unfused=True)
case("bits_4_qdq_zero_points", few_bits(networks.perceptron(21), default(block_size=16, quant_format=QuantFormat.QDQ,
                                                                          is_symmetric=False)), ROWS, unfused=True)
case("bits_4_transformer", few_bits(networks.transformer(21, hidden=16), default(block_size=16, op_types_to_quantize=("MatMul",
     "Gather"), quant_axes=(("MatMul", 0), ("Gather", 1)))), SENTENCES, apart=1e-3)


def bnb4(_):
    quantizer = MatMulBnb4Quantizer(networks.perceptron(), MatMulBnb4Quantizer.NF4, 16)
    quantizer.process()
    return quantizer.model.model


case("bits_4_nf4", bnb4, ROWS, apart=1e-3)


# Halves.

def half(model, **options):
    return lambda _: float16.convert_float_to_float16(copy.deepcopy(model), **options)


case("half_cnn", half(networks.cnn(), keep_io_types=True), PICTURES, apart=5e-3)
case("half_cnn_outside_too", half(networks.cnn()), [{"x": i["x"].astype(numpy.float16)} for i in PICTURES], apart=5e-3)
case("half_transformer_mixed", half(networks.transformer(17), keep_io_types=True, op_block_list=["LayerNormalization",
     "Softmax", "Gemm"]), SENTENCES, apart=5e-3)
case("half_recurrent", half(networks.recurrent(), keep_io_types=True), SERIES, apart=5e-3)


# Saved by ONNX Runtime as it had optimised them.

def saved(model, level, folder=None, **entries):
    """`model` may be what makes it."""
    def make(folder):
        given = model(folder) if callable(model) else model
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(folder / "model.onnx")
        for key, value in entries.items():
            options.add_session_config_entry(f"session.{key}", value)
        onnxruntime.InferenceSession(given.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return make


for kind, level in ("basic", LEVELS.ORT_ENABLE_BASIC), ("extended", LEVELS.ORT_ENABLE_EXTENDED):
    case(f"saved_{kind}_cnn", saved(networks.cnn(), level), PICTURES)
case("saved_extended_transformer", saved(networks.transformer(), LEVELS.ORT_ENABLE_EXTENDED), SENTENCES)
case("saved_extended_depthwise", saved(networks.depthwise(), LEVELS.ORT_ENABLE_EXTENDED), PICTURES)
case("saved_extended_recurrent", saved(networks.recurrent(), LEVELS.ORT_ENABLE_EXTENDED), SERIES)
case("saved_all_cnn", saved(networks.cnn(), LEVELS.ORT_ENABLE_ALL), PICTURES, machine=True)
case("saved_all_blocked", saved(networks.blocked(), LEVELS.ORT_ENABLE_ALL), PICTURES, machine=True)
case("saved_all_depthwise", saved(networks.depthwise(), LEVELS.ORT_ENABLE_ALL), PICTURES, machine=True)
case("saved_extended_quantised_cnn", saved(static(networks.cnn(), PICTURES, **QDQ, **U8), LEVELS.ORT_ENABLE_EXTENDED),
     PICTURES, apart=STEP)
case("saved_all_quantised_cnn", saved(static(networks.cnn(), PICTURES, **QDQ, **U8), LEVELS.ORT_ENABLE_ALL), PICTURES,
     apart=STEP, machine=True)
case("saved_extended_dynamic_transformer", saved(dynamic(networks.transformer(17)), LEVELS.ORT_ENABLE_EXTENDED), SENTENCES,
     apart=STEP)
case("saved_extended_dynamic_recurrent", saved(dynamic(networks.recurrent()), LEVELS.ORT_ENABLE_EXTENDED), SERIES, apart=STEP)
case("saved_extended_bits_4_qdq", saved(few_bits(networks.perceptron(21), default(block_size=16, quant_format=QuantFormat.QDQ)),
     LEVELS.ORT_ENABLE_EXTENDED), ROWS, apart=STEP)
case("saved_beside", saved(networks.transformer(17), LEVELS.ORT_ENABLE_EXTENDED, **{
    "optimized_model_external_initializers_file_name": "weights.bin",
    "optimized_model_external_initializers_min_size_in_bytes": "64"}), SENTENCES)


# The optimiser of transformers.

def fused(model, half=False, **options):
    def make(_):
        with files(model) as (given, _):
            found = optimizer.optimize_model(given, "bert", num_heads=2, hidden_size=4, **options)
            if half:
                found.convert_float_to_float16(keep_io_types=True)
            return found.model
    return make


case("fused_transformer", fused(networks.transformer(), opt_level=0), SENTENCES)
case("fused_transformer_half", fused(networks.transformer(17), half=True, opt_level=0), SENTENCES, apart=5e-3)
case("fused_transformer_quantised", dynamic(fused(networks.transformer(), opt_level=0), extra_options={"DefaultTensorType": 1}), SENTENCES, apart=STEP)


# Shapes inferred, or fixed.

def symbolic(model):
    return lambda _: SymbolicShapeInference.infer_shapes(copy.deepcopy(model), auto_merge=True, guess_output_rank=True)


case("shapes_symbolic_transformer", symbolic(networks.transformer(17)), SENTENCES)
case("shapes_inferred_cnn", lambda _: onnx.shape_inference.infer_shapes(networks.cnn(), data_prop=True), PICTURES)


def fixed(_):
    made = symbolic(networks.transformer(17))(None)
    make_dim_param_fixed(made.graph, "N", 2)
    make_dim_param_fixed(made.graph, "S", 5)
    return made


case("shapes_fixed_transformer", fixed, [sentences(2, 5)])


# Other operator sets.

def converted(model, opset):
    return lambda _: onnx.version_converter.convert_version(model, opset)


for before, opset in (9, 13), (9, 7), (17, 25):
    case(f"converted_cnn_{before}_{opset}", converted(networks.cnn(before), opset), PICTURES)
for opset in 18, 23:
    case(f"converted_depthwise_{opset}", converted(networks.depthwise(14), opset), PICTURES)
case("converted_transformer_22", converted(networks.transformer(13), 22), SENTENCES)
case("converted_recurrent_22", converted(networks.recurrent(), 22), SERIES)


# Weights beside the model.

def beside(model, **options):
    def make(folder):
        made = copy.deepcopy(model)
        onnx.save(made, folder / "model.onnx", save_as_external_data=True, size_threshold=0, **options)
    return make


def by_ir(folder):
    """As PyTorch's exporter writes large models."""
    onnx_ir.save(onnx_ir.from_proto(networks.cnn()), folder / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=0)


case("beside_by_ir", by_ir, PICTURES)
case("beside_in_one_file", beside(networks.cnn(), location="model.onnx.data"), PICTURES)
case("beside_each_alone", beside(networks.perceptron(), all_tensors_to_one_file=False), [rows(2)])


def beside_in_parts(folder):
    """Two files, one of them further down, with room between what they hold."""
    made = networks.transformer(17)
    (folder / "more").mkdir()
    files = {name: bytearray(b"\x07" * 5) for name in ("first.bin", "more/second part.bin")}
    large = [t for t in made.graph.initializer if len(t.raw_data) > 8]
    for i, weight in enumerate(t for t in large if t.data_type == TensorProto.FLOAT):
        name = list(files)[i % 2]
        held = files[name]
        held.extend(bytes(-len(held) % 16))
        place = [("location", name), ("offset", str(len(held))), ("length", str(len(weight.raw_data))), ("checksum", "none")]
        held.extend(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in place)
    for name, held in files.items():
        (folder / name).write_bytes(held)
    return made


case("beside_in_parts", beside_in_parts, SENTENCES)


def beside_attributes(folder):
    """Constant nodes whose values are beside the model."""
    made = networks.perceptron()
    for weight in list(made.graph.initializer):
        node = helper.make_node("Constant", [], [weight.name], value=weight)
        made.graph.node.insert(0, node)
    del made.graph.initializer[:]
    onnx.save(made, folder / "model.onnx", save_as_external_data=True, size_threshold=0, convert_attribute=True,
              location="attributes.bin")


case("beside_attributes", beside_attributes, [rows(2)])


# Ways of writing the same.

def changed(model, *changes):
    def make(_):
        made = copy.deepcopy(model)
        for change in changes:
            change(made)
        return made
    return make


def listed(made):
    """Weights are inputs as well, in front of and behind the real one."""
    values = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in made.graph.initializer]
    inputs = [*values[:3], *made.graph.input, *values[3:]]
    del made.graph.input[:]
    made.graph.input.extend(inputs)


def of_ir(version):
    def change(made):
        made.ir_version = version
    return change


def shuffled(made):
    nodes = list(made.graph.node)
    random.Random(3).shuffle(nodes)
    del made.graph.node[:]
    made.graph.node.extend(nodes)


def unnamed(made):
    for node in made.graph.node:
        node.ClearField("name")


def one_name(made):
    for node in made.graph.node:
        node.name = "node"


def renamed(made):
    """Names as no programmer would choose them."""
    forms = ["a b {}", "{}, {}", "Модель/{}", "x:{}:0", "层{}", "'{}\"", " {} ", "-{}", "{}=1", "[{}]", "a\\{}", "{}\t", "é{}", "@{}.5",
             "model/layer_{}/BiasAdd;model/layer_{}/Relu", "#{}"]
    names = {}
    fixed = {v.name for v in made.graph.input} - {"x"}
    def name(old):
        if not old or old in fixed:
            return old
        return names.setdefault(old, forms[len(names) % len(forms)].replace("{}", str(len(names))))
    for node in made.graph.node:
        node.input[:] = [name(i) for i in node.input]
        node.output[:] = [name(o) for o in node.output]
        node.name = name(node.name)
    for value in [*made.graph.input, *made.graph.output, *made.graph.initializer, *made.graph.value_info]:
        value.name = name(value.name)


def misdeclared(made):
    """What exporters write of types and sizes that they don't know: only a name, a type, a rank, the sizes of a sample."""
    outputs = [o for n in made.graph.node for o in n.output if o != "y"]
    for i, name in enumerate(outputs):
        rank = 4 if i < 9 else 2
        shapes = [None, [None] * rank, ["?"] * rank, [9] * rank, [f"{name}_{i}" for i in range(rank)]]
        made.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[i % 5]))
    made.graph.output[0].type.tensor_type.ClearField("shape")


def annotated(made):
    entry = lambda k, v: onnx.StringStringEntryProto(key=k, value=v)
    made.ir_version = 10
    made.producer_name, made.producer_version, made.model_version, made.domain = "exporter", "1.0", 7, "org.example"
    made.doc_string = "notes " * 10
    made.metadata_props.extend([entry("author", "somebody"), entry("classes", "a,b,c,d,e")])
    made.graph.metadata_props.append(entry("graph", "g"))
    made.graph.doc_string = "more notes"
    for node in made.graph.node:
        node.doc_string = "a node"
        node.metadata_props.append(entry("namespace", "model.layer"))
    for value in [*made.graph.input, *made.graph.output]:
        value.doc_string = "a value"
        value.metadata_props.append(entry("kind", "user"))
    annotation = made.graph.quantization_annotation.add()
    annotation.tensor_name = made.graph.node[0].output[0]
    annotation.quant_parameter_tensor_names.append(entry("SCALE_TENSOR", made.graph.initializer[0].name))
    made.opset_import.extend([helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1),
                              helper.make_opsetid("ai.onnx.training", 1), helper.make_opsetid("org.nobody", 4)])
    made.graph.input[0].type.denotation = "IMAGE"
    made.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"


def for_training(made):
    info = made.training_info.add()
    info.initialization.CopyFrom(parser.parse_graph("start () => (float[1] s) { s = Constant<value_floats = [1.0]>() }"))
    info.algorithm.CopyFrom(parser.parse_graph("learn (float[1] g) => (float[1] h) { h = Neg(g) }"))
    weight = made.graph.initializer[0].name
    info.initialization_binding.append(onnx.StringStringEntryProto(key=weight, value="s"))
    info.update_binding.append(onnx.StringStringEntryProto(key=weight, value="h"))


def typed(made):
    """Numbers in the fields of their types."""
    for weight in made.graph.initializer:
        values = numpy_helper.to_array(weight)
        weight.CopyFrom(helper.make_tensor(weight.name, weight.data_type, weight.dims, values.flatten().tolist()))
        assert not weight.raw_data


def as_constants(made):
    """Weights in Constant nodes."""
    for weight in list(made.graph.initializer):
        made.graph.node.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))
    del made.graph.initializer[:]


def sparse(made):
    for weight in list(made.graph.initializer):
        values = numpy_helper.to_array(weight)
        if values.dtype != numpy.float32 or values.size < 20:
            continue
        values = numpy.where(abs(values) > 0.25, values, 0).flatten()
        places = numpy.flatnonzero(values)
        if len(made.graph.sparse_initializer) % 2 and len(weight.dims) > 1:
            places = numpy.stack(numpy.unravel_index(places, weight.dims), 1)
        indices = numpy_helper.from_array(places.astype(numpy.int64), f"{weight.name}_at")
        kept = numpy_helper.from_array(values[values != 0], weight.name)
        made.graph.sparse_initializer.append(helper.make_sparse_tensor(kept, indices, list(weight.dims)))
        made.graph.initializer.remove(weight)


case("listed_old", changed(networks.cnn(9), listed, of_ir(3)), PICTURES)
case("listed_new", changed(networks.transformer(17), listed), SENTENCES)
case("shuffled_cnn", changed(networks.cnn(), shuffled), PICTURES, reference=networks.cnn)
case("shuffled_transformer", changed(networks.transformer(), shuffled, unnamed), SENTENCES, reference=networks.transformer)
case("unnamed", changed(networks.cnn(), unnamed), PICTURES)
case("one_name", changed(networks.recurrent(), one_name), SERIES, reference=networks.recurrent)
case("misdeclared", changed(networks.cnn(), misdeclared), PICTURES)
case("annotated", changed(networks.cnn(), annotated, for_training), PICTURES)
case("typed", changed(networks.transformer(17), typed), SENTENCES)
case("typed_halves", lambda f: changed(half(networks.cnn(), keep_io_types=True)(f), typed)(f), PICTURES, apart=5e-3)
case("typed_bytes", lambda f: changed(static(networks.cnn(), PICTURES, **OPERATORS, **U8)(f), typed)(f), PICTURES, apart=STEP)
case("as_constants", changed(networks.cnn(), as_constants), PICTURES)
case("sparse", changed(networks.perceptron(), sparse), [rows(1), rows(3)])
odd = changed(networks.cnn(), renamed)
case("odd_names", odd, [{odd(None).graph.input[0].name: i["x"]} for i in PICTURES])


# Graphs within graphs.

def functions(_):
    return parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18, "local" : 1, "local.inner" : 2]>
        network (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {1, 2, 3, 4, 0, 1, 0, 1, 2, 0, 2, 0, 0, -1, 1, 1}> {
            a = local.Dense <slope = 0.25> (x, w)
            b = local.Relu (a)
            c = local.inner.Twice (b)
            d = Add (a, c)
            y = local.Dense (d, w)
        }
        <domain: "local", opset_import: ["" : 18, "local.inner" : 2]>
        Dense <slope: float = 0.1> (x, w) => (y) {
            m = MatMul (x, w)
            l = LeakyRelu <alpha: float = @slope> (m)
            y = local.inner.Twice (l)
        }
        <domain: "local", opset_import: ["" : 18]>
        Relu (x) => (y) { s = Sigmoid (x) y = Mul (s, x) }
        <domain: "local.inner", opset_import: ["" : 16]>
        Twice (x) => (y) {
            two = Constant <value_float = 2.0> ()
            z = Constant <value_float = 0.0> ()
            total = ReduceSum <keepdims = 0> (x)
            positive = Greater (total, z)
            y = If (positive) <
                then_branch = more () => (m) { m = Mul (x, two) },
                else_branch = less () => (l) { l = Div (x, two) }
            >
        }
    """)


LINES = [{"x": waves(1, 4)}, {"x": waves(3, 4)}]
case("functions", functions, LINES)


def functions_within(_):
    """The whole model is one call: layers in layers, one under two overloads, attributes handed down and left out, an input left
    out, values inside, the same names everywhere."""
    return parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18, "pkg.torch" : 1]>
        network (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) <float[4, 4] w = {1, 2, 3, 4, 0, 1, 0, 1, 2, 0, 2, 0, 0, -1, 1, 1}> {
            y, z = pkg.torch.Whole (x, w)
        }
        <domain: "pkg.torch", opset_import: ["" : 18, "pkg.torch" : 1]>
        Whole (x, w) => (y, b) {
            a = pkg.torch.Block <slope = 0.25, to = [0]> (x, w)
            b = pkg.torch.Block (a, w, x)
            m, t = pkg.torch.Both (b)
            y = Add (m, t)
        }
        <domain: "pkg.torch", opset_import: ["" : 18, "pkg.torch" : 1]>
        Block <slope: float = 0.1, to> (x, w, more) => (y) {
            m = MatMul (x, w)
            low = Constant <value_float = -2.0> ()
            c = Clip (m, low)
            l = LeakyRelu <alpha: float = @slope> (c)
            total = ReduceSum <keepdims = 0> (l)
            zero = Constant <value_float = 0.0> ()
            positive = Greater (total, zero)
            y = If (positive) <
                then_branch = more () => (p) { two = Constant <value_float = 2.0> () p = Mul (l, two) },
                else_branch = less () => (q) { q = pkg.torch.Both:half (l) }
            >
        }
        <domain: "pkg.torch", opset_import: ["" : 18]>
        Both (x) => (a, y) { a = Neg (x) y = Tanh (a) }
        <domain: "pkg.torch", overload: "half", opset_import: ["" : 18]>
        Both (x) => (y) { two = Constant <value_float = 2.0> () y = Div (x, two) }
    """)


case("functions_within", functions_within, LINES)


case("functions_inlined", lambda f: onnx.inliner.inline_local_functions(functions(f)), LINES)


def composed(_):
    """Two models, one behind the other, kept apart by a prefix."""
    first, second = networks.perceptron(), networks.perceptron()
    del second.graph.initializer[:]
    for weight, shape in ("w1", (5, 4)), ("w2", (4, 4)), ("b2", (4,)), ("w3", (4, 2)):
        second.graph.initializer.append(numpy_helper.from_array(waves(*shape), weight))
    second.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    second.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    return onnx.compose.merge_models(first, second, [("y", "x")], prefix1="first/", prefix2="second/")


case("composed", composed, [{"first/x": waves(1, 16)}, {"first/x": waves(3, 16)}])


def bodies(_):
    return parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        network (float[N, 4] x) => (float[N, 4] y, float[R, N, 4] all)
        <float[4, 4] w = {0.5, 0.25, 0, 1, 0, 1, 0, 0.5, 0.25, 0, 0.5, 0, 0, -1, 1, 0.125}, int64 rounds = {3}, bool go = {1}> {
            a = MatMul (x, w)
            b, all = Loop (rounds, go, a) <
                body = round (int64 i, bool c, float[N, 4] h) => (bool c, float[N, 4] j, float[N, 4] k) {
                    m = MatMul (h, w)
                    j = Tanh (m)
                    s = Cast <to = 1> (i)
                    k = Add (j, s)
                }
            >
            s, t = Scan <num_scan_inputs = 1, body = step (float[4] total, float[4] row) => (float[4] sum, float[4] each) {
                sum = Add (total, row)
                each = Mul (sum, first)
            }> (first, b)
            none = Constant <value_int = 0> ()
            first = Gather <axis = 0> (b, none)
            y = Add (t, b)
        }
    """)


def ordered_bodies():
    made = bodies(None)
    nodes = list(made.graph.node)
    nodes.sort(key=lambda n: ["MatMul", "Loop", "Constant", "Gather", "Scan", "Add"].index(n.op_type))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


case("bodies", bodies, LINES, reference=ordered_bodies)
case("bodies_saved", saved(lambda _: ordered_bodies(), LEVELS.ORT_ENABLE_EXTENDED), LINES)


# Outputs and inputs of other kinds.

def ends(_):
    """An output that is an input, a weight, or read further on; one name left out; outputs that nothing else needs."""
    return parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        network (float[N, 4] x, float scale, int64 n) => (float[N, 4] x, float[4, 4] w, float[N, 4] b, float[N, 2] top, float y)
        <float[4, 4] w = {0.5, 0.25, 0, 1, 0, 1, 0, 0.5, 0.25, 0, 0.5, 0, 0, -1, 1, 0.125}, int64[1] k = {2}> {
            a = MatMul (x, w)
            b = Mul (a, scale)
            top, places = TopK (b, k)
            c, mask = Dropout (b)
            f = Cast <to = 1> (n)
            d = Mul (c, f)
            y = ReduceSum <keepdims = 0> (d)
        }
    """)


case("ends", ends, [{"x": waves(n, 4), "scale": networks.number(1.5), "n": networks.number(n, numpy.int64)} for n in (1, 3)])


def classic(_):
    """As converters of scikit-learn write it, with a label in words."""
    nodes = [
        helper.make_node("Scaler", ["x"], ["scaled"], domain="ai.onnx.ml", offset=[0.1, 0.2, 0.0, -0.1], scale=[1.0, 2.0, 0.5, 1.0]),
        helper.make_node("LinearClassifier", ["scaled"], ["label", "scores"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"],
                         coefficients=[float(v) for v in waves(12)], intercepts=[0.1, 0.0, -0.1], multi_class=1, post_transform="SOFTMAX"),
        helper.make_node("Normalizer", ["scores"], ["y"], domain="ai.onnx.ml", norm="L1"),
        helper.make_node("LabelEncoder", ["label"], ["number"], domain="ai.onnx.ml", keys_strings=["a", "b", "c"],
                         values_int64s=[10, 20, 30]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "classic", [info("x", TensorProto.FLOAT, ["N", 4])], [
        info("label", TensorProto.STRING, ["N"]), info("y", TensorProto.FLOAT, ["N", 3]), info("number", TensorProto.INT64, ["N"])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)


case("classic", classic, LINES)


# Weights of types that only weights have.

def narrow(kind, opset, block=None, zero=None):
    """A product with a weight of this type, made a number where it is used."""
    def make(_):
        text = f"""
            <ir_version: {11 if opset > 22 else 10}, opset_import: ["" : {opset}]>
            network (float[N, 4] x) => (float[N, 6] y) {{
                a = Tanh (x)
                d = DequantizeLinear <axis = {0 if block else 1}{f", block_size = {block}" if block else ""}> (w, scale{", zero" if zero else ""})
                b = MatMul (a, d)
                y = Exp (b)
            }}
        """
        made = parser.parse_model(text)
        rng = numpy.random.default_rng(5)
        shape = [2, 6] if block else [6]
        low = 0 if helper.tensor_dtype_to_string(kind).startswith("TensorProto.U") else -1
        top = {TensorProto.INT2: 1, TensorProto.UINT2: 3}.get(kind, 5)
        values = rng.integers(low * top, top, [4, 6]).flatten().astype(numpy.float32).tolist()
        made.graph.initializer.append(helper.make_tensor("w", kind, [4, 6], values))
        made.graph.initializer.append(numpy_helper.from_array(rng.uniform(0.05, 0.2, shape).astype(numpy.float32), "scale"))
        if zero:
            made.graph.initializer.append(helper.make_tensor("zero", kind, shape, [1.0] * int(numpy.prod(shape))))
        return made
    return make


for name, opset in ("FLOAT8E4M3FN", 19), ("FLOAT8E4M3FNUZ", 19), ("FLOAT8E5M2", 19), ("FLOAT8E5M2FNUZ", 21):
    case(f"narrow_{name.lower()}", narrow(getattr(TensorProto, name), opset), LINES, unfused=True)
for name, opset in ("INT4", 21), ("UINT4", 21), ("INT16", 21), ("UINT16", 21), ("INT2", 25), ("UINT2", 25):
    kind = getattr(TensorProto, name)
    case(f"narrow_{name.lower()}", narrow(kind, opset, zero=True), LINES, unfused=True)
    case(f"narrow_{name.lower()}_blocks", narrow(kind, opset, block=2, zero=True), LINES, unfused=True)


def cast_weights(kind, opset=19):
    def make(_):
        made = parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : {opset}]>
            network (float[N, 4] x) => (float[N, 6] y) {{ a = Tanh (x) d = Cast <to = 1> (w) b = MatMul (a, d) y = Exp (b) }}
        """)
        made.graph.initializer.append(helper.make_tensor("w", kind, [4, 6], waves(24).tolist()))
        return made
    return make


for name in "BFLOAT16", "FLOAT16", "DOUBLE", "FLOAT8E5M2":
    case(f"cast_{name.lower()}", cast_weights(getattr(TensorProto, name)), LINES)


def main(wanted):
    # Shape inference leaves a file where it is run.
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_all(wanted)


def write_all(wanted):
    logging.disable(logging.WARNING)
    if not wanted:
        shutil.rmtree(FOLDER, ignore_errors=True)
    onnxruntime.set_default_logger_severity(3)
    for c in CASES:
        if wanted and not any(w in c["name"] for w in wanted):
            continue
        write(c)


def write(c):
    folder = FOLDER / c["name"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    made = c["make"](folder)
    if made is not None:
        path.write_bytes(made.SerializeToString(deterministic=True))
    source = str(path) if c["reference"] is None else c["reference"]().SerializeToString()
    options = onnxruntime.SessionOptions()
    if c["unfused"]:
        options.graph_optimization_level = LEVELS.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    tensors = []
    for i, given in enumerate(c["inputs"]):
        names = [output.name for output in session.get_outputs()]
        values = dict(zip(names, session.run(names, given)))
        tensors += [numpy_helper.from_array(v, f"{i}/given/{n}") for n, v in given.items()]
        tensors += [numpy_helper.from_array(v, f"{i}/made/{n}") for n, v in values.items()]
        for name, value in values.items():
            assert value.dtype.kind != "f" or numpy.isfinite(value).all(), f"{c['name']}: {name} is {value}"
    values = helper.make_graph([], c["name"], [], [], tensors)
    values.doc_string = json.dumps({"apart": c["apart"], "machine": c["machine"]})
    (folder / "values").write_bytes(values.SerializeToString(deterministic=True))
    operators = sorted({n.op_type for n in onnx.load(path, load_external_data=False).graph.node})
    print(f"{c['name']}: {sum(f.stat().st_size for f in folder.iterdir())} bytes; {' '.join(operators)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
