//! Inference rules by family, with free axes: what stays known, and what is
//! refused. Fixed shapes are covered by the operator tests (`node_types`).

use std::collections::BTreeMap;
use std::time::Instant;

use tierline_graph::onnx::{AttributeProto, FunctionProto, attribute_proto::AttributeType};
use tierline_graph::{InferError, Model, Types, infer_types, infer_types_with};

use crate::text::{graph, model, proto};

/// `name dtype[axes]` of a tensor.
fn shown(types: &Types, name: &str) -> String {
    let value = types.get(name).expect("every tensor is listed");
    let dtype = value.dtype.map_or("?".to_owned(), |d| d.to_string());
    let axes = |s: &Vec<tierline_graph::Dim>| s.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    format!("{dtype}{}", value.shape.as_ref().map_or("?".to_owned(), |s| format!("[{}]", axes(s))))
}

fn inferred(text: &str, name: &str) -> String {
    let types = infer_types(&model(text)).unwrap_or_else(|e| panic!("{e}\n{text}"));
    shown(&types, name)
}

/// Each case: statements, and the type of `y`.
fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(&inferred(text, "y"), expected, "{text}");
    }
}

#[test]
fn elementwise_operators_broadcast_symbols() {
    check(&[
        ("x: f32[N,3,H,W]\ny = Relu(x)", "f32[N,3,H,W]"),
        ("x: f32[N,3,H,W]\nb = f32[3,1,1]\ny = Add(x, b)", "f32[N,3,H,W]"),
        ("x: f32[N,S]\nz: f32[N,1]\ny = Mul(x, z)", "f32[N,S]"),
        ("x: f32[N,S]\nz: f32[M,S]\ny = Mul(x, z)", "f32[?,S]"),
        ("x: f32[N,S]\nz: f32[N,S]\ny = Less(x, z)", "bool[N,S]"),
        ("x: f32[N,S]\ny = Cast(x) to=10", "f16[N,S]"),
        ("c: bool[N,1]\na: f32[1,S]\nb = f32[]\ny = Where(c, a, b)", "f32[N,S]"),
        ("x: f32[N,S]\ny = com.example.Unheard(x)", "??"),
    ]);
}

#[test]
fn windows_keep_the_batch_and_what_padding_keeps() {
    check(&[
        ("x: f32[N,3,8,8]\nw = f32[8,3,3,3]\ny = Conv(x, w)", "f32[N,8,6,6]"),
        ("x: f32[N,3,H,W]\nw = f32[8,3,3,3]\ny = Conv(x, w) pads=[1,1,1,1]", "f32[N,8,H,W]"),
        ("x: f32[N,3,H,W]\nw = f32[8,3,3,3]\ny = Conv(x, w) pads=[1,1,1,1] strides=[2,2]", "f32[N,8,?,?]"),
        ("x: f32[N,8,9,9]\nw = f32[8,1,3,3]\ny = Conv(x, w) group=8 dilations=[2,2]", "f32[N,8,5,5]"),
        ("x: f32[N,3,9,H]\nw = f32[8,3,3,3]\ny = Conv(x, w) auto_pad=\"SAME_UPPER\" strides=[2,1]", "f32[N,8,5,H]"),
        ("x: f32[N,8,4,4]\nw = f32[8,3,2,2]\ny = ConvTranspose(x, w) strides=[2,2]", "f32[N,3,8,8]"),
        ("x: f32[N,8,7,7]\ny = MaxPool(x) kernel_shape=[2,2] strides=[2,2] ceil_mode=1", "f32[N,8,4,4]"),
        ("x: f32[N,8,H,W]\ny = GlobalAveragePool(x)", "f32[N,8,1,1]"),
        ("x: u8[N,3,8,8]\nw = i8[8,3,3,3]\ny = ConvInteger(x, w)", "i32[N,8,6,6]"),
    ]);
}

#[test]
fn products_keep_leading_axes() {
    check(&[
        ("a: f32[N,S,768]\nb = f32[768,64]\ny = MatMul(a, b)", "f32[N,S,64]"),
        ("a: f32[N,12,S,64]\nb: f32[N,12,64,S]\ny = MatMul(a, b)", "f32[N,12,S,S]"),
        ("a: f32[8]\nb: f32[N,8,4]\ny = MatMul(a, b)", "f32[N,4]"),
        ("a: f32[N,8]\nb = f32[4,8]\nc = f32[4]\ny = Gemm(a, b, c) transB=1", "f32[N,4]"),
        ("a: f32[N,S,12,64]\nb: f32[N,S,12,64]\ny = Einsum(a, b) equation=\"bqhd,bkhd->bhqk\"", "f32[N,12,S,S]"),
        ("a: f32[N,S,8]\nb: f32[N,T,8]\ny = com.microsoft.FusedMatMul(a, b) transB=1", "f32[N,S,T]"),
    ]);
}

#[test]
fn shapes_that_the_graph_computes_are_followed() {
    // As exporters write it: sizes taken from a shape and put together again.
    let heads = "
        x: f32[N,S,768]
        zero = i64{0}
        one = i64{1}
        twelve = i64{12}
        rest = i64{-1}
        s = Shape(x)
        n = Gather(s, zero)
        t = Gather(s, one)
        target = Concat(n, t, twelve, rest) axis=0
        h = Reshape(x, target)
        y = Transpose(h) perm=[0,2,1,3]";
    let expanded = "
        x: f32[N,1,S]
        two = i64{1}
        sizes = i64{-1,4,-1}
        s = Shape(sizes)
        ones = ConstantOfShape(s)
        all = Cast(ones) to=7
        negative = Equal(sizes, minus)
        minus = i64{-1}
        target = Where(negative, two, sizes)
        y = Expand(x, target)";
    let resized = "
        x: f32[N,8,8,8]
        z: f32[N,8,16,16]
        from = i64{2}
        to = i64{4}
        first = i64{0}
        s = Shape(z)
        spatial = Slice(s, from, to)
        t = Shape(x)
        lead = Slice(t, first, from)
        sizes = Concat(lead, spatial) axis=0
        y = Resize(x, _, _, sizes)";
    check(&[
        (heads, "f32[N,12,S,64]"),
        (expanded, "f32[N,4,S]"),
        (resized, "f32[N,8,16,16]"),
        ("x: f32[N,S,8]\nt = i64{0,-1}\ny = Reshape(x, t)", "f32[N,?]"),
        ("x: f32[N,2,8]\nt = i64{0,-1}\ny = Reshape(x, t)", "f32[N,16]"),
        ("x: f32[?,S,8]\nt = i64{0,0,2,-1}\ny = Reshape(x, t)", "f32[?,S,2,4]"),
        ("x: f32[N,S]\nt = i64{-1}\nk = i64{1,1,1,1}\nr = Reshape(x, t)\ny = Unsqueeze(r, a)\na = i64{1}", "f32[?,1]"),
        ("x: f32[N,3,4]\ny = Flatten(x)", "f32[N,12]"),
        ("x: f32[N,3]\nr = i64{1,2}\ny = Tile(x, r)", "f32[N,6]"),
        ("x: f32[N,3]\ny = Shape(x)", "i64[2]"),
        ("x: f32[2,3]\ns = Size(x)\ni = i64{1}\nu = Unsqueeze(s, z)\nz = i64{0}\ny = ConstantOfShape(u)", "f32[6]"),
    ]);
}

#[test]
fn cutting_and_joining() {
    check(&[
        ("a: f32[N,3]\nb: f32[N,5]\ny = Concat(a, b) axis=1", "f32[N,8]"),
        ("a: f32[N,3]\nb: f32[M,3]\ny = Concat(a, b) axis=0", "f32[?,3]"),
        ("x: f32[N,9]\ny, b, c = Split(x) axis=1 num_outputs=3", "f32[N,3]"),
        ("x: f32[N,9]\ns = i64{2,7}\nz, y = Split(x, s) axis=1", "f32[N,7]"),
        (
            "x: f32[N,9]\na = i64{1}\nb = i64{9223372036854775807}\nc = i64{1}\nd = i64{2}\ny = Slice(x, a, b, c, d)",
            "f32[N,4]",
        ),
        ("x: f32[N,9]\na = i64{0}\nb = i64{9223372036854775807}\nc = i64{0}\ny = Slice(x, a, b, c)", "f32[N,9]"),
        ("x: f32[N,9]\na = i64{0}\nb = i64{5}\nc = i64{0}\ny = Slice(x, a, b, c)", "f32[?,9]"),
        ("x: f32[N,9]\np = i64{0,1,0,2}\ny = Pad(x, p)", "f32[N,12]"),
        ("opset 9\nx: f32[N,9]\ny = Slice(x) axes=[1] starts=[-3] ends=[100]", "f32[N,3]"),
    ]);
}

#[test]
fn indices_and_reductions() {
    check(&[
        ("x: f32[30,8]\ni: i64[N,S]\ny = Gather(x, i)", "f32[N,S,8]"),
        ("x: f32[N,8]\nk = i64{3}\ny, i = TopK(x, k)", "f32[N,3]"),
        ("x: f32[N,8]\nk = i64{3}\nv, y = TopK(x, k)", "i64[N,3]"),
        ("x: f32[N,8]\ny = NonZero(x)", "i64[2,?]"),
        ("b: f32[N,K,4]\ns: f32[N,C,K]\ny = NonMaxSuppression(b, s)", "i64[?,3]"),
        ("x: i64[N]\nd = i64{10}\nv = f32[2]\ny = OneHot(x, d, v)", "f32[N,10]"),
        ("x: f32[N,S,8]\na = i64{-1}\ny = ReduceMean(x, a)", "f32[N,S,1]"),
        ("opset 13\nx: f32[N,S,8]\ny = ReduceMean(x) axes=[1] keepdims=0", "f32[N,8]"),
        ("x: f32[N,S,8]\ny = ArgMax(x) axis=2 keepdims=0", "i64[N,S]"),
        ("x: f32[N,S]\ny = ReduceSum(x) keepdims=0", "f32[]"),
    ]);
}

#[test]
fn networks_with_state_attention_and_quantisation() {
    let lstm = "x: f32[T,N,16]\nw = f32[2,32,16]\nr = f32[2,32,8]\n";
    let all = format!("{lstm}y, h, c = LSTM(x, w, r) hidden_size=8 direction=\"bidirectional\"");
    let last = format!("{lstm}a, h, y = LSTM(x, w, r) hidden_size=8 direction=\"bidirectional\"");
    let attention = "opset 23\nq: f32[N,S,64]\nk: f32[N,T,64]\nv: f32[N,T,96]\n\
        y = Attention(q, k, v) q_num_heads=4 kv_num_heads=4";
    let norm = "x: f32[N,S,64]\ng = f32[64]\nb = f32[64]\n";
    let mean = format!("{norm}z, y = LayerNormalization(x, g, b) axis=-1");
    let skip = format!("{norm}y, _, _, s = com.microsoft.SkipLayerNormalization(x, x, g, b)");
    check(&[
        (&all, "f32[T,2,N,8]"),
        (&last, "f32[2,N,8]"),
        (attention, "f32[N,S,96]"),
        (&mean, "f32[N,S,1]"),
        (&skip, "f32[N,S,64]"),
        ("x: f32[N,S]\ns = f32[]\nz = i8[]\ny = QuantizeLinear(x, s, z)", "i8[N,S]"),
        ("x: f32[N,S]\ns = f32[]\ny = QuantizeLinear(x, s)", "u8[N,S]"),
        ("x: i8[N,S]\ns = f32[]\ny = DequantizeLinear(x, s)", "f32[N,S]"),
        ("x: f32[N,S]\ny, s, z = DynamicQuantizeLinear(x)", "u8[N,S]"),
        (
            "a: u8[N,S]\ns = f32[]\nz = u8[]\nb: u8[N,1]\ny = com.microsoft.QLinearAdd(a, s, z, b, s, z, s, z)",
            "u8[N,S]",
        ),
        (
            "x: f32[N,S,64]\nw = u8[32,2,16]\ns = f32[64]\ny = com.microsoft.MatMulNBits(x, w, s) K=64 N=32 bits=4",
            "f32[N,S,32]",
        ),
    ]);
}

/// Shapes as ONNX Runtime computed them for these inputs.
#[test]
fn contrib_operators_as_onnx_runtime_has_them() {
    let scales = "s = f32[]\nz = u8[]\n";
    let quantised = |text: &str| inferred(&format!("{scales}{text}"), "y");
    assert_eq!(
        quantised("a: u8[2,3]\nb: u8[2,5]\ny = com.microsoft.QLinearConcat(s, z, a, s, z, b, s, z) axis=1"),
        "u8[2,8]"
    );
    assert_eq!(
        quantised(
            "x: u8[1,8,8,3]\nw = i8[4,3,3,3]\ny = com.microsoft.QLinearConv(x, s, z, w, s, z, s, z) channels_last=1"
        ),
        "u8[1,6,6,4]"
    );
    assert_eq!(
        quantised("x: u8[1,8,8,3]\ny = com.microsoft.QLinearGlobalAveragePool(x, s, z, s, z) channels_last=1"),
        "u8[1,1,1,3]"
    );
    assert_eq!(quantised("a: u8[3,4]\nb = i8[5,4]\ny = com.microsoft.QGemm(a, s, z, b, s, z) transB=1"), "f32[3,5]");
    check(&[
        (
            "q: f32[2,5,32]\nk: f32[2,7,32]\nv: f32[2,7,48]\ny = com.microsoft.MultiHeadAttention(q, k, v) num_heads=4",
            "f32[2,5,48]",
        ),
        (
            "q: f32[2,5,32]\nk: f32[2,7,32]\nv: f32[2,7,32]\na, y = com.microsoft.MultiHeadAttention(q, k, v) num_heads=4",
            "f32[2,4,7,8]",
        ),
        (
            "x: f32[2,5,16]\nw = f32[16,96]\nb = f32[96]\ny = com.microsoft.Attention(x, w, b) num_heads=4",
            "f32[2,5,32]",
        ),
        (
            "t: i32[2,5]\nw = f32[10,32]\np = f32[12,32]\ny = com.microsoft.EmbedLayerNormalization(t, _, w, p)",
            "f32[2,5,32]",
        ),
        ("a: f32[2,4,3]\nb: f32[5,4]\ny = com.microsoft.FusedMatMul(a, b) transA=1 transB=1", "f32[2,3,5]"),
        ("a: u8[2,3,4]\nb = i8[4,5]\ns = f32[]\ny = com.microsoft.MatMulIntegerToFloat(a, b, s, s)", "f32[2,3,5]"),
        ("x: u8[1,8,8,3]\ny = com.microsoft.NhwcMaxPool(x) kernel_shape=[2,2]", "u8[1,7,7,3]"),
        ("a: f32[3,4]\nb: f32[5,4]\ny = com.microsoft.CDist(a, b)", "f32[3,5]"),
    ]);
}

#[test]
fn opsets_read_the_same_operator_differently() {
    check(&[
        ("opset 12\nx: f32[N,8]\ny = Unsqueeze(x) axes=[0]", "f32[1,N,8]"),
        ("opset 13\nx: f32[N,8]\na = i64{0}\ny = Unsqueeze(x, a)", "f32[1,N,8]"),
        ("opset 9\nx: f32[N,8,4,4]\ns = f32{1,1,2,2}\ny = Upsample(x, s)", "f32[N,8,8,8]"),
        ("opset 10\nx: f32[N,8,4,4]\ns = f32{1,1,2,2}\ny = Resize(x, s)", "f32[N,8,8,8]"),
        ("opset 11\nx: f32[N,8,4,4]\ns = f32{1,1,1.5,2}\nr = f32[0]\ny = Resize(x, r, s)", "f32[N,8,6,8]"),
        ("opset 9\nx: f32[N,8]\ny, m = TopK(x) k=3", "f32[N,3]"),
    ]);
}

/// Adds a subgraph as an attribute to a model's last node.
fn with_body(text: &str, name: &str, body: &str, outputs: &[&str]) -> Model {
    let mut proto = proto(text);
    let mut inner = graph(body);
    inner.output.sort_by_key(|o| outputs.iter().position(|name| *name == o.name()));
    assert_eq!(inner.output.iter().map(|o| o.name()).collect::<Vec<_>>(), outputs);
    let mut attribute = AttributeProto::new();
    attribute.set_name(name.to_owned());
    attribute.g = Some(inner).into();
    attribute.set_type(AttributeType::GRAPH as i32);
    proto.graph.mut_or_insert_default().node.last_mut().expect("a node").attribute.push(attribute);
    Model::from_proto(proto).expect("the model is sound")
}

#[test]
fn loops_keep_what_no_round_changes() {
    let text = "x: f32[N,8]\nm = i64{5}\nc = bool[1]\nlast, all = Loop(m, _, x)";
    let kept = "i: i64[]\nc: bool[]\nv: f32[N,8]\nnext = Identity(c)\nw = Relu(v)\nstep = Identity(v)";
    let types = infer_types(&with_body(text, "body", kept, &["next", "w", "step"])).unwrap();
    assert_eq!(shown(&types, "last"), "f32[N,8]");
    assert_eq!(shown(&types, "all"), "f32[5,N,8]");

    let growing = "i: i64[]\nc: bool[]\nv: f32[?,8]\nnext = Identity(c)\nw = Concat(v, v) axis=0\nstep = Identity(v)";
    let types = infer_types(&with_body(text, "body", growing, &["next", "w", "step"])).unwrap();
    assert_eq!(shown(&types, "last"), "f32[?,8]");
    assert_eq!(shown(&types, "all"), "f32[5,?,8]");
}

#[test]
fn scans_stack_their_steps() {
    let text = "s: f32[N]\nx: f32[T,N]\nlast, all = Scan(s, x) num_scan_inputs=1";
    let body = "a: f32[N]\nb: f32[N]\nc = Add(a, b)\nd = Relu(b)";
    let types = infer_types(&with_body(text, "body", body, &["c", "d"])).unwrap();
    assert_eq!(shown(&types, "last"), "f32[N]");
    assert_eq!(shown(&types, "all"), "f32[T,N]");
}

#[test]
fn branches_agree_on_what_both_give() {
    let text = "x: f32[N,8]\nc: bool[]\ny = If(c)";
    let mut model = with_body(text, "then_branch", "a = Relu(x)", &["a"]).proto().clone();
    let mut other = graph("k = i64{1}\nb = ReduceSum(x, k)");
    let mut attribute = AttributeProto::new();
    attribute.set_name("else_branch".to_owned());
    attribute.set_type(AttributeType::GRAPH as i32);
    attribute.g = Some(std::mem::take(&mut other)).into();
    model.graph.mut_or_insert_default().node[0].attribute.push(attribute);
    let types = infer_types(&Model::from_proto(model).unwrap()).unwrap();
    assert_eq!(shown(&types, "y"), "f32[N,?]");
}

fn function(name: &str, inputs: &[&str], body: &str) -> FunctionProto {
    let inner = graph(body);
    let mut function = FunctionProto::new();
    function.set_domain("local".to_owned());
    function.set_name(name.to_owned());
    function.input = inputs.iter().map(|n| (*n).to_owned()).collect();
    function.output = inner.output.iter().map(|o| o.name().to_owned()).collect();
    function.node = inner.node;
    function
}

#[test]
fn functions_are_inferred_with_the_caller_s_attributes() {
    let mut proto = proto("x: f32[N,S,8]\ny = local.Squash(x) over=2");
    let mut squash = function("Squash", &["a"], "b = Relu(a)\nc = ArgMax(b) keepdims=0");
    let mut axis = AttributeProto::new();
    axis.set_name("axis".to_owned());
    axis.set_ref_attr_name("over".to_owned());
    axis.set_type(AttributeType::INT as i32);
    squash.node[1].attribute.push(axis);
    squash.attribute = vec!["over".to_owned()];
    squash.opset_import = proto.opset_import.clone();
    proto.functions.push(squash);
    let types = infer_types(&Model::from_proto(proto).unwrap()).unwrap();
    assert_eq!(shown(&types, "y"), "i64[N,S]");
}

#[test]
fn a_function_that_calls_itself_is_refused() {
    let mut proto = proto("x: f32[N]\ny = local.Again(x)");
    proto.functions.push(function("Again", &["a"], "b = local.Again(a)"));
    // The loader may refuse it first.
    if let Ok(model) = Model::from_proto(proto) {
        assert!(matches!(infer_types(&model), Err(InferError::TooDeep { .. })));
    }
}

#[test]
fn concrete_shapes_replace_symbols() {
    let model = model("x: f32[N,3,H,W]\nz: f32[N,4]\nw = f32[8,3,3,3]\ny = Conv(x, w) strides=[2,2]\nv = Relu(z)");
    let given = BTreeMap::from([("x".to_owned(), vec![2, 3, 9, 11])]);
    let types = infer_types_with(&model, &given).unwrap();
    assert_eq!(shown(&types, "y"), "f32[2,8,4,5]");
    // The same name, the same size.
    assert_eq!(shown(&types, "v"), "f32[2,4]");

    let refused = |name: &str, shape: &[u64]| {
        infer_types_with(&model, &BTreeMap::from([(name.to_owned(), shape.to_vec())])).unwrap_err().to_string()
    };
    assert_eq!(refused("x", &[1, 4, 8, 8]), "input `x` takes shape [N, 3, H, W]; [1, 4, 8, 8] was given");
    assert_eq!(refused("x", &[1, 3]), "input `x` takes shape [N, 3, H, W]; [1, 3] was given");
    assert_eq!(refused("q", &[1]), "the model has no input `q`; its inputs are `x`, `z`");
}

#[test]
fn contradictions_name_node_and_tensor() {
    let cases = [
        (
            "x: f32[N,4,8,8]\nw = f32[8,3,3,3]\ny = Conv(x, w)",
            "node `Conv y`: tensor `x` of shape [N, 4, 8, 8] does not fit [8, 3, 3, 3]: \
             the channels are not the weight's times the group",
        ),
        (
            "x: f32[N,3,8]\nw = f32[8,3,3,3]\ny = Conv(x, w)",
            "node `Conv y`: tensor `w` has 4 axes; the operator takes as many as the data",
        ),
        (
            "x: f32[N,3,2,2]\nw = f32[8,3,3,3]\ny = Conv(x, w)",
            "node `Conv y`, tensor `x`: axis of 2 with 0 of padding is smaller than the window of 3",
        ),
        (
            "a: f32[N,3]\nb: f32[N,4]\ny = Add(a, b)",
            "node `Add y`: tensor `b` of shape [N, 4] does not fit [N, 3]: the axes do not broadcast",
        ),
        ("a: f32[N,3]\nb: i64[N,3]\ny = Add(a, b)", "node `Add y`: tensor `b` holds i64; the operator needs f32"),
        (
            "a: f32[N,3]\nb: f32[2,4]\ny = Concat(a, b) axis=0",
            "node `Concat y`: tensor `b` of shape [2, 4] does not fit [N, 3]: only the axis joined may differ",
        ),
        (
            "a: f32[N,3]\nb: f32[4,5]\ny = MatMul(a, b)",
            "node `MatMul y`: tensor `b` of shape [4, 5] does not fit [N, 3]: the inner sizes of the product differ",
        ),
        ("a: f32[N,3,2]\nb: f32[4,5]\ny = Gemm(a, b)", "node `Gemm y`: tensor `a` has 3 axes; the operator takes 2"),
        (
            "x: f32[2,3]\nt = i64{4,2}\ny = Reshape(x, t)",
            "node `Reshape y`: tensor `x` of shape [2, 3] does not fit [4, 2]: the number of elements differs",
        ),
        ("x: f32[N,3]\ny = Softmax(x) axis=2", "node `Softmax y`: tensor `x` has 2 axes; axis 2 is outside"),
        (
            "x: f32[N,3]\ny = Relu(x)\ny: i64[N,3] declared",
            "tensor `y` is declared as i64 [N, 3] but node `Relu y` computes f32 [N, 3]; export the model again",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(infer_types(&model(text)).expect_err(text).to_string(), expected, "{text}");
    }
}

/// What engines only warn of: the file is valid, its declaration is not.
#[test]
fn a_shape_declared_wrongly_is_told_and_does_not_count() {
    let cases = [
        ("x: f32[N,3]\ny = Relu(x)\ny: f32[N,4] declared", "f32[N,3]", "f32 [N, 4]"),
        ("x: f32[N,3]\ny = Relu(x)\ny: f32[] declared", "f32[N,3]", "f32 []"),
        (
            "x: f32[N,3]\na = Relu(x)\nw = f32[3,2]\ny = MatMul(a, w)\na: f32[1,2,3] declared",
            "f32[N,2]",
            "f32 [1, 2, 3]",
        ),
    ];
    for (text, y, declared) in cases {
        let types = infer_types(&model(text)).unwrap();
        assert_eq!(shown(&types, "y"), y, "{text}");
        let told: Vec<&str> = types.contradictions().iter().map(|c| c.declared.as_str()).collect();
        assert_eq!(told, [declared], "{text}");
    }
    let types = infer_types(&model(cases[0].0)).unwrap();
    assert_eq!(
        types.contradictions()[0].to_string(),
        "tensor `y` is declared as f32 [N, 4] but node `Relu y` computes f32 [N, 3], which counts"
    );
    // Folded, the model says so itself.
    let mut folded = model(cases[0].0);
    tierline_graph::fold::fold(&mut folded, &mut crate::mutations::Never).unwrap();
    assert!(infer_types(&folded).unwrap().contradictions().is_empty());
}

/// Exporters write no axes where they don't know how many there are.
#[test]
fn no_axes_declared_may_be_any() {
    assert_eq!(inferred("x: f32[N]\ny = com.example.Unheard(x)\ny: f32[] declared", "y"), "f32?");
    let text = "x: f32[N]\na = com.example.Unheard(x)\nw = f32[3,2]\ny = MatMul(a, w)\na: f32[] declared";
    assert_eq!(inferred(text, "y"), "f32?");
}

/// An axis that is free at the inputs isn't fixed by the sizes of a sample.
#[test]
fn axes_that_were_followed_stay_free() {
    let text =
        "x: f32[N,3]\na = Relu(x)\nb = com.example.Unheard(a)\ny = Neg(a)\ny: f32[1,3] declared\nb: f32[1,3] declared";
    assert_eq!(inferred(text, "y"), "f32[N,3]");
    assert_eq!(inferred(text, "b"), "f32[1,3]");
    let computed = tierline_graph::infer_computed_types(&model(text)).unwrap();
    assert_eq!((shown(&computed, "y"), shown(&computed, "b")), ("f32[N,3]".into(), "f32?".into()));
}

#[test]
fn the_more_specific_of_inferred_and_declared_wins() {
    let text = "x: f32[N,3,H,W]\nw = f32[8,3,3,3]\ny = Conv(x, w) strides=[2,2]\ny: f32[?,8,4,W2] declared";
    assert_eq!(inferred(text, "y"), "f32[N,8,4,W2]");
    assert_eq!(inferred("x: f32[N]\ny = com.example.Unheard(x)\ny: f32[N,2] declared", "y"), "f32[N,2]");
}

/// Ten thousand nodes, unoptimised build included.
const MILLISECONDS_MAX: u128 = if cfg!(debug_assertions) { 500 } else { 100 };

#[test]
fn ten_thousand_nodes_take_no_time() {
    let mut text = String::from("x0: f32[N,8,32,32]\nw = f32[8,8,3,3]\n");
    for i in 0..5_000 {
        text += &format!("c{i} = Conv(x{i}, w) pads=[1,1,1,1]\nx{} = Add(c{i}, x{i})\n", i + 1);
    }
    let model = model(&text);
    let fastest = (0..3).map(|_| {
        let start = Instant::now();
        assert_eq!(shown(&infer_types(&model).unwrap(), "x5000"), "f32[N,8,32,32]");
        start.elapsed().as_millis()
    });
    let fastest = fastest.min().expect("three runs");
    println!("10,000 nodes inferred in {fastest} ms");
    assert!(fastest < MILLISECONDS_MAX, "{fastest} ms");
}
