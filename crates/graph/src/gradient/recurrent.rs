//! Recurrent layers: what every step needs is computed for all steps at once;
//! only what one step hands to the one before it runs through a Scan.

use super::context::{Fault, Gradients, RuleContext};
use super::registry::Family;
use crate::emit::{Attribute, node};
use crate::onnx::{GraphProto, NodeProto, ValueInfoProto};

pub(super) const RULES: Family = &[("LSTM", lstm), ("GRU", gru), ("RNN", rnn)];

/// One direction of a layer. Time runs along axis 0, first step first.
struct Direction {
    /// `[time, batch, inputs]`.
    x: String,
    /// `[gates * hidden, inputs]`.
    w: String,
    /// `[gates * hidden, hidden]`.
    r: String,
    /// Bias of the input's share, `[gates * hidden]`.
    wb: Option<String>,
    /// Bias of the state's share.
    rb: Option<String>,
    /// State before each step, `[time, batch, hidden]`.
    before: String,
    /// State behind each step.
    h: String,
    /// First cell state, `[batch, hidden]`.
    c0: String,
    /// Gradient of `h`, and of the last states.
    dy: String,
    dh: String,
    dc: String,
    hidden: i64,
    index: i64,
}

/// Gradients of one direction.
struct Parts {
    x: String,
    w: String,
    r: String,
    wb: String,
    rb: String,
    h0: String,
    c0: Option<String>,
}

fn lstm(s: &mut RuleContext) -> Gradients {
    supported(s, &[("Sigmoid", "Tanh", "Tanh")], 7)?;
    if s.flag("input_forget") {
        return Err(Fault::new("input_forget is not differentiated"));
    }
    layer(s, 4, lstm_direction)
}

fn gru(s: &mut RuleContext) -> Gradients {
    supported(s, &[("Sigmoid", "Tanh", "")], 6)?;
    layer(s, 3, gru_direction)
}

fn rnn(s: &mut RuleContext) -> Gradients {
    supported(s, &[("Tanh", "", "")], 6)?;
    layer(s, 1, rnn_direction)
}

/// Refuses what the rules don't know: other activations, clipping, lengths,
/// peepholes, the batch in front.
fn supported(s: &RuleContext, known: &[(&str, &str, &str)], inputs: usize) -> Result<(), Fault> {
    if let Some(activations) = s.attributes().get("activations") {
        let names: Vec<String> = activations.strings.iter().map(|b| String::from_utf8_lossy(b).into_owned()).collect();
        let usual: Vec<&str> = [known[0].0, known[0].1, known[0].2].into_iter().filter(|n| !n.is_empty()).collect();
        if names.chunks(usual.len()).any(|chunk| chunk != usual) {
            return Err(Fault::new(format!("activations {names:?} are not differentiated, only {usual:?}")));
        }
    }
    if s.attributes().get("clip").is_some() {
        return Err(Fault::new("clip is not differentiated"));
    }
    if s.flag("layout") {
        return Err(Fault::new("layout 1 is not differentiated; export the model with time in front"));
    }
    if s.given(4) {
        return Err(Fault::new("sequence_lens is not differentiated; give whole sequences"));
    }
    if s.given(inputs) {
        return Err(Fault::new("peepholes are not differentiated"));
    }
    Ok(())
}

fn layer(s: &mut RuleContext, gates: i64, rule: fn(&mut RuleContext, &Direction) -> Parts) -> Gradients {
    let recurrent = s.dim(s.x(2), 2);
    let hidden = match s.attributes().int("hidden_size") {
        Some(_) => Some(s.positive_or("hidden_size", 1)?),
        None => recurrent,
    };
    let hidden = hidden.filter(|h| recurrent.is_none_or(|r| r == *h));
    let hidden = hidden.ok_or_else(|| Fault::new("its hidden_size is unknown, or not that of its weights"))?;
    let reverses: &[bool] = match s.choice("direction", &["forward", "reverse", "bidirectional"])? {
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        _ => &[false],
    };
    let mut all = Vec::new();
    for (index, &reverse) in reverses.iter().enumerate() {
        let direction = direction(s, index as i64, reverse, gates, hidden);
        all.push((rule(s, &direction), reverse));
    }
    let mut x: Option<String> = None;
    for (parts, reverse) in &all {
        let dx = if *reverse { flip(s, &parts.x) } else { parts.x.clone() };
        x = Some(match x {
            Some(sum) => s.add(&sum, &dx),
            None => dx,
        });
    }
    let stack = |s: &mut RuleContext, of: &dyn Fn(&Parts) -> String| {
        let zero = s.out.ints(&[0]);
        let each: Vec<String> =
            all.iter().map(|(p, _)| of(p)).map(|name| s.op("Unsqueeze", &[&name, &zero], &[])).collect();
        let each: Vec<&str> = each.iter().map(String::as_str).collect();
        s.op("Concat", &each, &[("axis", Attribute::Int(0))])
    };
    let w = stack(s, &|p| p.w.clone());
    let r = stack(s, &|p| p.r.clone());
    let b = s.given(3).then(|| {
        let wb = stack(s, &|p| p.wb.clone());
        let rb = stack(s, &|p| p.rb.clone());
        s.op("Concat", &[&wb, &rb], &[("axis", Attribute::Int(1))])
    });
    let h0 = s.given(5).then(|| stack(s, &|p| p.h0.clone()));
    let c0 = (s.given(6) && all.iter().all(|(p, _)| p.c0.is_some()))
        .then(|| stack(s, &|p| p.c0.clone().unwrap_or_default()));
    Ok(vec![x, Some(w), Some(r), b, None, h0, c0])
}

/// Turns time round.
fn flip(s: &mut RuleContext, x: &str) -> String {
    let (last, end, axis, step) = (s.out.ints(&[-1]), s.out.ints(&[i64::MIN]), s.out.ints(&[0]), s.out.ints(&[-1]));
    s.op("Slice", &[x, &last, &end, &axis, &step], &[])
}

/// Element `index` of an axis, which goes.
fn pick(s: &mut RuleContext, x: &str, index: i64, axis: i64) -> String {
    let index = s.out.int(index);
    s.op("Gather", &[x, &index], &[("axis", Attribute::Int(axis))])
}

/// Elements `from..to` of an axis.
fn part(s: &mut RuleContext, x: &str, from: i64, to: i64, axis: i64) -> String {
    let (from, to, axis) = (s.out.ints(&[from]), s.out.ints(&[to]), s.out.ints(&[axis]));
    s.op("Slice", &[x, &from, &to, &axis], &[])
}

fn direction(s: &mut RuleContext, index: i64, reverse: bool, gates: i64, hidden: i64) -> Direction {
    let in_order = |s: &mut RuleContext, x: String| if reverse { flip(s, &x) } else { x };
    let x = in_order(s, s.x(0).to_owned());
    let h = pick(s, s.y(0), index, 1);
    let h = in_order(s, h);
    let zero_state = |s: &mut RuleContext, like: &str| {
        let first = pick(s, like, 0, 0);
        s.zeros_like(&first)
    };
    let zero = zero_state(s, &h);
    let state = |s: &mut RuleContext, name: Option<String>| match name {
        Some(name) if !name.is_empty() => pick(s, &name, index, 0),
        _ => zero.clone(),
    };
    let h0 = s.x(5).to_owned();
    let h0 = state(s, Some(h0));
    let c0 = s.x(6).to_owned();
    let c0 = state(s, Some(c0));
    let dh = s.dys(1);
    let dh = state(s, dh);
    let dc = s.dys(2);
    let dc = state(s, dc);
    let dy = match s.dys(0) {
        Some(dy) => {
            let dy = pick(s, &dy, index, 1);
            in_order(s, dy)
        }
        None => s.zeros_like(&h),
    };
    let before = shifted(s, &h0, &h);
    let bias = s.given(3).then(|| pick(s, s.x(3), index, 0));
    let wb = bias.as_ref().map(|b| part(s, b, 0, gates * hidden, 0));
    let rb = bias.as_ref().map(|b| part(s, b, gates * hidden, 2 * gates * hidden, 0));
    let w = pick(s, s.x(1), index, 0);
    let r = pick(s, s.x(2), index, 0);
    Direction { x, w, r, wb, rb, before, h, c0, dy, dh, dc, hidden, index }
}

/// What came before each step: the first state, then all but the last.
fn shifted(s: &mut RuleContext, first: &str, all: &str) -> String {
    let zero = s.out.ints(&[0]);
    let first = s.op("Unsqueeze", &[first, &zero], &[]);
    let rest = part(s, all, 0, -1, 0);
    s.op("Concat", &[&first, &rest], &[("axis", Attribute::Int(0))])
}

/// `x w^T + b` for every step.
fn share(s: &mut RuleContext, x: &str, w: &str, b: Option<&String>) -> String {
    let turned = s.transpose(w, &[1, 0]);
    let product = s.matmul(x, &turned);
    match b {
        Some(b) => s.add(&product, b),
        None => product,
    }
}

/// `g^T x`, summed over steps and batch.
fn outer(s: &mut RuleContext, g: &str, x: &str, rows: i64, columns: i64) -> String {
    let g = s.reshape(g, &[-1, rows]);
    let x = s.reshape(x, &[-1, columns]);
    s.op("Gemm", &[&g, &x], &[("transA", Attribute::Int(1))])
}

/// A Scan over time: `states` as (initial, name within), `inputs` as (all
/// steps, name within), the body's outputs, states first.
fn scan(
    s: &mut RuleContext,
    states: &[(&str, &str)],
    inputs: &[(&str, &str)],
    body: Vec<NodeProto>,
    outputs: &[&str],
    backwards: bool,
) -> Vec<String> {
    let dtype = s.dtype(s.y(0));
    let value = |name: &str| -> ValueInfoProto {
        let info = crate::types::ValueInfo { name: name.to_owned(), dtype: Some(dtype), shape: None };
        crate::slice::value_info_proto(&info)
    };
    let graph = GraphProto {
        name: Some("step".to_owned()),
        node: body,
        input: states.iter().chain(inputs).map(|(_, inner)| value(inner)).collect(),
        output: outputs.iter().map(|o| value(o)).collect(),
        ..GraphProto::default()
    };
    let way = i64::from(backwards);
    let attributes = [
        ("body", Attribute::Graph(graph)),
        ("num_scan_inputs", Attribute::Int(inputs.len() as i64)),
        ("scan_input_directions", Attribute::Ints(vec![way; inputs.len()])),
        ("scan_output_directions", Attribute::Ints(vec![way; outputs.len() - states.len()])),
    ];
    let given: Vec<&str> = states.iter().chain(inputs).map(|(outer, _)| *outer).collect();
    s.out.ops("Scan", &given, outputs.len(), &attributes)
}

/// Names within a Scan's body that no other body has.
fn inner(d: &Direction, s: &mut RuleContext, name: &str) -> String {
    s.out.name(&format!("scan{}/{name}", d.index))
}

/// `x (1 - x)`, the slope of a sigmoid.
fn bump(s: &mut RuleContext, x: &str) -> String {
    let rest = s.number_minus(1.0, x);
    s.mul(x, &rest)
}

/// `1 - x^2`, the slope of a tanh.
fn arch(s: &mut RuleContext, x: &str) -> String {
    let square = s.mul(x, x);
    s.number_minus(1.0, &square)
}

/// Gates in the order input, output, forget, cell (Hochreiter and
/// Schmidhuber, 1997; forget gate of Gers et al., 2000).
fn lstm_direction(s: &mut RuleContext, d: &Direction) -> Parts {
    let hidden = d.hidden;
    let from_x = share(s, &d.x, &d.w, d.wb.as_ref());
    let from_h = share(s, &d.before, &d.r, d.rb.as_ref());
    let gates = s.add(&from_x, &from_h);
    let gate = |s: &mut RuleContext, k: i64, kind: &str| {
        let slice = part(s, &gates, k * hidden, (k + 1) * hidden, -1);
        s.op(kind, &[&slice], &[])
    };
    let (i, o) = (gate(s, 0, "Sigmoid"), gate(s, 1, "Sigmoid"));
    let (f, g) = (gate(s, 2, "Sigmoid"), gate(s, 3, "Tanh"));
    let gained = s.mul(&i, &g);

    // c = f c + i g, which the layer itself gives for the last step only.
    let names: Vec<String> = ["c", "f", "gain", "kept", "next", "out"].iter().map(|n| inner(d, s, n)).collect();
    let [c_in, f_in, gain_in, kept, next, out] = &names[..] else { unreachable!("six names") };
    let body = vec![
        node("Mul", &[f_in, c_in], &[kept], &[]),
        node("Add", &[kept, gain_in], &[next], &[]),
        node("Identity", &[next], &[out], &[]),
    ];
    let c = scan(s, &[(&d.c0, c_in)], &[(&f, f_in), (&gained, gain_in)], body, &[next, out], false).remove(1);
    let c_before = shifted(s, &d.c0, &c);

    let tanh = s.op("Tanh", &[&c], &[]);
    let slope = bump(s, &o);
    let to_o = s.mul(&tanh, &slope);
    let slope = arch(s, &tanh);
    let to_c = s.mul(&o, &slope);
    let slope = bump(s, &i);
    let to_i = s.mul(&g, &slope);
    let slope = bump(s, &f);
    let to_f = s.mul(&c_before, &slope);
    let slope = arch(s, &g);
    let to_g = s.mul(&i, &slope);

    let within = ["dh", "dc", "dy", "to_c", "to_i", "to_o", "to_f", "to_g", "f"];
    let work = ["dh_all", "dh_c", "dc_all", "di", "do", "df", "dg", "gates", "dh_next", "dc_next", "gates_out"];
    let n: Vec<String> = within.iter().chain(&work).map(|name| inner(d, s, name)).collect();
    let at = |name: &str| {
        let position = within.iter().chain(&work).position(|w| *w == name).unwrap_or_default();
        n[position].as_str()
    };
    let body = vec![
        node("Add", &[at("dy"), at("dh")], &[at("dh_all")], &[]),
        node("Mul", &[at("dh_all"), at("to_c")], &[at("dh_c")], &[]),
        node("Add", &[at("dh_c"), at("dc")], &[at("dc_all")], &[]),
        node("Mul", &[at("dc_all"), at("to_i")], &[at("di")], &[]),
        node("Mul", &[at("dh_all"), at("to_o")], &[at("do")], &[]),
        node("Mul", &[at("dc_all"), at("to_f")], &[at("df")], &[]),
        node("Mul", &[at("dc_all"), at("to_g")], &[at("dg")], &[]),
        node("Concat", &[at("di"), at("do"), at("df"), at("dg")], &[at("gates")], &[("axis", Attribute::Int(-1))]),
        node("MatMul", &[at("gates"), &d.r], &[at("dh_next")], &[]),
        node("Mul", &[at("dc_all"), at("f")], &[at("dc_next")], &[]),
        node("Identity", &[at("gates")], &[at("gates_out")], &[]),
    ];
    let states = [(d.dh.as_str(), at("dh")), (d.dc.as_str(), at("dc"))];
    let inputs = [
        (d.dy.as_str(), at("dy")),
        (&to_c, at("to_c")),
        (&to_i, at("to_i")),
        (&to_o, at("to_o")),
        (&to_f, at("to_f")),
        (&to_g, at("to_g")),
        (&f, at("f")),
    ];
    let made = scan(s, &states, &inputs, body, &[at("dh_next"), at("dc_next"), at("gates_out")], true);
    let [h0, c0, dgates] = &made[..] else { unreachable!("three outputs") };
    let sum = s.sum(dgates, &[0, 1], false);
    Parts { c0: Some(c0.clone()), ..weights(s, d, 4, dgates, dgates, &d.before, h0, (&sum, &sum)) }
}

/// What all layers make of the gradients of their gates.
#[allow(clippy::too_many_arguments)]
fn weights(
    s: &mut RuleContext,
    d: &Direction,
    gates: i64,
    from_x: &str,
    from_h: &str,
    state: &str,
    h0: &str,
    (wb, rb): (&str, &str),
) -> Parts {
    let inputs = s.dim(s.x(1), 2).unwrap_or(-1);
    Parts {
        x: s.matmul(from_x, &d.w),
        w: outer(s, from_x, &d.x, gates * d.hidden, inputs),
        r: outer(s, from_h, state, gates * d.hidden, d.hidden),
        wb: wb.to_owned(),
        rb: rb.to_owned(),
        h0: h0.to_owned(),
        c0: None,
    }
}

/// Gates in the order update, reset, hidden (Cho et al., 2014).
fn gru_direction(s: &mut RuleContext, d: &Direction) -> Parts {
    let hidden = d.hidden;
    // PyTorch resets the state's share of the hidden gate; the paper resets
    // the state.
    let after = s.flag("linear_before_reset");
    let from_x = share(s, &d.x, &d.w, d.wb.as_ref());
    let from_h = share(s, &d.before, &d.r, d.rb.as_ref());
    let gate = |s: &mut RuleContext, k: i64| {
        let a = part(s, &from_x, k * hidden, (k + 1) * hidden, -1);
        let b = part(s, &from_h, k * hidden, (k + 1) * hidden, -1);
        (a, b)
    };
    let sigmoid = |s: &mut RuleContext, k: i64| {
        let (a, b) = gate(s, k);
        let sum = s.add(&a, &b);
        s.op("Sigmoid", &[&sum], &[])
    };
    let (z, r) = (sigmoid(s, 0), sigmoid(s, 1));
    let (x_share, h_share) = gate(s, 2);
    let (reset, inside) = if after {
        (h_share.clone(), s.mul(&r, &h_share))
    } else {
        let reset = s.mul(&r, &d.before);
        let rows = part(s, &d.r, 2 * hidden, 3 * hidden, 0);
        let bias = d.rb.as_ref().map(|b| part(s, b, 2 * hidden, 3 * hidden, 0));
        let inside = share(s, &reset, &rows, bias.as_ref());
        (reset, inside)
    };
    let n = s.add(&x_share, &inside);
    let n = s.op("Tanh", &[&n], &[]);

    let gap = s.sub(&d.before, &n);
    let slope = bump(s, &z);
    let to_z = s.mul(&gap, &slope);
    let rest = s.number_minus(1.0, &z);
    let slope = arch(s, &n);
    let to_n = s.mul(&rest, &slope);
    let slope = bump(s, &r);
    let to_r = if after { s.mul(&h_share, &slope) } else { s.mul(&d.before, &slope) };

    let within = ["dh", "dy", "z", "r", "to_z", "to_n", "to_r"];
    let work = [
        "dh_all", "dz", "dn", "dr", "dn_r", "gates_h", "through", "kept", "drh", "lead", "part", "dh_next", "out_x",
        "out_h",
    ];
    let names: Vec<String> = within.iter().chain(&work).map(|name| inner(d, s, name)).collect();
    let at = |name: &str| {
        let position = within.iter().chain(&work).position(|w| *w == name).unwrap_or_default();
        names[position].as_str()
    };
    let last = [("axis", Attribute::Int(-1))];
    let mut body = vec![
        node("Add", &[at("dy"), at("dh")], &[at("dh_all")], &[]),
        node("Mul", &[at("dh_all"), at("to_z")], &[at("dz")], &[]),
        node("Mul", &[at("dh_all"), at("to_n")], &[at("dn")], &[]),
        node("Mul", &[at("dh_all"), at("z")], &[at("kept")], &[]),
    ];
    if after {
        body.extend([
            node("Mul", &[at("dn"), at("to_r")], &[at("dr")], &[]),
            node("Mul", &[at("dn"), at("r")], &[at("dn_r")], &[]),
            node("Concat", &[at("dz"), at("dr"), at("dn_r")], &[at("gates_h")], &last),
            node("MatMul", &[at("gates_h"), &d.r], &[at("through")], &[]),
            node("Add", &[at("kept"), at("through")], &[at("dh_next")], &[]),
        ]);
    } else {
        let rows = part(s, &d.r, 2 * hidden, 3 * hidden, 0);
        let leading = part(s, &d.r, 0, 2 * hidden, 0);
        body.extend([
            node("MatMul", &[at("dn"), &rows], &[at("drh")], &[]),
            node("Mul", &[at("drh"), at("to_r")], &[at("dr")], &[]),
            node("Mul", &[at("drh"), at("r")], &[at("dn_r")], &[]),
            node("Concat", &[at("dz"), at("dr")], &[at("lead")], &last),
            node("MatMul", &[at("lead"), &leading], &[at("through")], &[]),
            node("Add", &[at("kept"), at("through")], &[at("part")], &[]),
            node("Add", &[at("part"), at("dn_r")], &[at("dh_next")], &[]),
            node("Concat", &[at("dz"), at("dr"), at("dn")], &[at("gates_h")], &last),
        ]);
    }
    body.push(node("Concat", &[at("dz"), at("dr"), at("dn")], &[at("out_x")], &last));
    body.push(node("Identity", &[at("gates_h")], &[at("out_h")], &[]));
    let inputs = [
        (d.dy.as_str(), at("dy")),
        (&z, at("z")),
        (&r, at("r")),
        (&to_z, at("to_z")),
        (&to_n, at("to_n")),
        (&to_r, at("to_r")),
    ];
    let outputs = [at("dh_next"), at("out_x"), at("out_h")];
    let made = scan(s, &[(&d.dh, at("dh"))], &inputs, body, &outputs, true);
    let [h0, gates_x, gates_h] = &made[..] else { unreachable!("three outputs") };
    let (wb, rb) = (s.sum(gates_x, &[0, 1], false), s.sum(gates_h, &[0, 1], false));
    let mut parts = weights(s, d, 3, gates_x, gates_h, &d.before, h0, (&wb, &rb));
    if !after {
        // The hidden gate saw the reset state.
        let lead = part(s, gates_h, 0, 2 * hidden, -1);
        let lead = outer(s, &lead, &d.before, 2 * hidden, hidden);
        let tail = part(s, gates_h, 2 * hidden, 3 * hidden, -1);
        let tail = outer(s, &tail, &reset, hidden, hidden);
        parts.r = s.op("Concat", &[&lead, &tail], &[("axis", Attribute::Int(0))]);
    }
    parts
}

/// `h = tanh(W x + R h + b)` (Elman, 1990).
fn rnn_direction(s: &mut RuleContext, d: &Direction) -> Parts {
    let slope = arch(s, &d.h);
    let names: Vec<String> =
        ["dh", "dy", "slope", "all", "gate", "dh_next", "out"].iter().map(|n| inner(d, s, n)).collect();
    let [dh, dy, slope_in, all, gate, next, out] = &names[..] else { unreachable!("seven names") };
    let body = vec![
        node("Add", &[dy, dh], &[all], &[]),
        node("Mul", &[all, slope_in], &[gate], &[]),
        node("MatMul", &[gate, &d.r], &[next], &[]),
        node("Identity", &[gate], &[out], &[]),
    ];
    let made = scan(s, &[(&d.dh, dh)], &[(&d.dy, dy), (&slope, slope_in)], body, &[next, out], true);
    let [h0, gates] = &made[..] else { unreachable!("two outputs") };
    let sum = s.sum(gates, &[0, 1], false);
    weights(s, d, 1, gates, gates, &d.before, h0, (&sum, &sum))
}
