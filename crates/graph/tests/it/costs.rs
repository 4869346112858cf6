//! Static costs of single operators.

use tierline_graph::cost::{NodeCost, cost, parameters, total_macs};
use tierline_graph::infer_types;

use crate::text::model;

fn costs(text: &str) -> Vec<NodeCost> {
    let model = model(text);
    cost(&model, &infer_types(&model).unwrap())
}

#[test]
fn multiply_adds_by_operator() {
    let cases = [
        // 1 * 8 * 6 * 6 outputs, 3 * 3 * 3 taps each.
        ("x: f32[1,3,8,8]\nw = f32[8,3,3,3]\ny = Conv(x, w)", Some(8 * 36 * 27)),
        ("x: f32[1,8,8,8]\nw = f32[8,1,3,3]\ny = Conv(x, w) group=8", Some(8 * 36 * 9)),
        ("x: f32[1,8,4,4]\nw = f32[8,3,2,2]\ny = ConvTranspose(x, w) strides=[2,2]", Some(8 * 16 * 3 * 4)),
        ("a: f32[2,5,7]\nb = f32[7,3]\ny = MatMul(a, b)", Some(2 * 5 * 7 * 3)),
        ("a: f32[7,5]\nb = f32[3,7]\ny = Gemm(a, b) transA=1 transB=1", Some(5 * 7 * 3)),
        ("a: f32[2,4,5,6]\nb: f32[2,4,7,6]\ny = Einsum(a, b) equation=\"bhqd,bhkd->bhqk\"", Some(2 * 4 * 5 * 7 * 6)),
        (
            "x: f32[9,2,16]\nw = f32[1,32,16]\nr = f32[1,32,8]\ny = LSTM(x, w, r) hidden_size=8",
            Some(9 * 2 * (512 + 256)),
        ),
        (
            "opset 23\nq: f32[2,4,5,8]\nk: f32[2,4,6,8]\nv: f32[2,4,6,10]\ny = Attention(q, k, v)",
            Some(2 * 4 * 5 * 6 * 18),
        ),
        ("x: f32[1,3,8,8]\ny = Relu(x)", Some(0)),
        ("x: f32[N,3,8,8]\nw = f32[8,3,3,3]\ny = Conv(x, w)", None),
        ("x: f32[1,3]\ny = com.example.Unheard(x)", None),
    ];
    for (text, macs) in cases {
        assert_eq!(total_macs(&costs(text)), macs, "{text}");
    }
}

#[test]
fn bytes_and_parameters() {
    let text = "x: f32[1,3,8,8]\nw = f32[8,3,3,3]\nb = f32[8]\nt = i64{1,-1}\nc = Conv(x, w, b)\nd = Add(c, c)\ny = Reshape(d, t)";
    let found = costs(text);
    let (input, weight, output) = (4 * 3 * 64, 4 * (216 + 8), 4 * 8 * 36);
    assert_eq!(found[0].bytes_read, Some(input + weight));
    assert_eq!(found[0].bytes_written, Some(output));
    assert_eq!(found[0].parameters, 224);
    // Read twice, in memory once; a shape is no weight.
    assert_eq!(found[1].bytes_read, Some(output));
    assert_eq!(found[2].parameters, 0);
    assert_eq!(parameters(&model(text)), 224);
}

#[test]
fn shared_and_quantised_weights_count_once() {
    let text = "x: f32[4,4]\nw = f32[4,4]\nq = i8[4,4]\ns = f32[]\nz = i8[]\n\
        a = MatMul(x, w)\nb = MatMul(a, w)\nd = DequantizeLinear(q, s, z)\ny = MatMul(b, d)";
    assert_eq!(parameters(&model(text)), 16 + 16 + 1);
}
