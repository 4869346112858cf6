//! Products of matrices.

use super::context::{Fault, Gradients, RuleContext};
use super::registry::Family;
use crate::emit::Attribute;
use crate::types::Dim;

pub(super) const RULES: Family = &[("MatMul", matmul), ("Gemm", gemm), ("Einsum", einsum)];

fn matmul(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let (a, b) = (s.x(0), s.x(1));
    let (rank_a, rank_b) = (s.rank(a)?, s.rank(b)?);
    if rank_a < 2 || rank_b < 2 {
        return vectors(s, &dy, rank_a, rank_b);
    }
    let full = s.y(0);
    let da = if s.wants(0) {
        let other = s.swapped(b, rank_b);
        let product = s.matmul(&dy, &other);
        Some(reduced_batch(s, 0, product, full)?)
    } else {
        None
    };
    let db = if !s.wants(1) {
        None
    } else if rank_b == 2 && rank_a > 2 {
        let columns = |s: &RuleContext, name: &str| s.dim(name, s.rank(name).unwrap_or(1) - 1);
        if let (Some(k), Some(n)) = (columns(s, a).or(s.dim(b, 0)), columns(s, full).or(s.dim(b, 1))) {
            // One large product instead of many small ones and a sum.
            let a = s.reshape(a, &[-1, k]);
            let dy = s.reshape(&dy, &[-1, n]);
            Some(s.op("Gemm", &[&a, &dy], &[("transA", Attribute::Int(1))]))
        } else {
            Some(products(s, &dy, rank_a)?)
        }
    } else {
        Some(products(s, &dy, rank_a)?)
    };
    Ok(vec![da, db])
}

/// The second factor's gradient, a product for each matrix of the first.
fn products(s: &mut RuleContext, dy: &str, rank_a: usize) -> Result<String, Fault> {
    let other = s.swapped(s.x(0), rank_a);
    let product = s.matmul(&other, dy);
    reduced_batch(s, 1, product, s.y(0))
}

/// Sums over the leading axes that broadcasting stretched; the product has
/// the leading axes of `full`, the other two are the input's.
fn reduced_batch(s: &mut RuleContext, i: usize, product: String, full: &str) -> Result<String, Fault> {
    let x = s.x(i);
    let (small, large) = (s.shape(x).unwrap_or_default(), s.shape(full).unwrap_or_default());
    let (rank, rank_full) = (small.len(), large.len());
    let lead = rank_full - rank.min(rank_full);
    let mut axes: Vec<i64> = (0..lead as i64).collect();
    for axis in 0..rank.saturating_sub(2) {
        let (own, other) = (&small[axis], &large[lead + axis]);
        match own {
            Dim::Known(1) if *other != Dim::Known(1) => axes.push((lead + axis) as i64),
            // An axis of a fixed size above 1 can't have been stretched.
            Dim::Known(_) => {}
            _ if *other == Dim::Known(1) || own == other && *own != Dim::Unknown => {}
            _ => return Ok(s.reduced_at_run_time(x, &product, lead)),
        }
    }
    if axes.is_empty() {
        return Ok(product);
    }
    let keep = axes.len() > lead;
    let sum = s.sum(&product, &axes, keep);
    Ok(if keep && lead > 0 { s.reshape_like(&sum, x) } else { sum })
}

/// A vector on one side or both.
fn vectors(s: &mut RuleContext, dy: &str, rank_a: usize, rank_b: usize) -> Gradients {
    let (a, b) = (s.x(0), s.x(1));
    let mut gradients = vec![None, None];
    if rank_a == 1 && rank_b == 1 {
        for (i, other) in [(0, b), (1, a)] {
            gradients[i] = s.wants(i).then(|| s.mul(dy, other));
        }
    } else if rank_a == 1 {
        // a [k], b [.., k, n], y [.., n].
        let (row, column) = (s.out.ints(&[-2]), s.out.ints(&[-1]));
        if s.wants(0) {
            let wide = s.op("Unsqueeze", &[dy, &row], &[]);
            let weighted = s.mul(&wide, b);
            let axes: Vec<i64> = (0..rank_b as i64).filter(|&axis| axis != rank_b as i64 - 2).collect();
            gradients[0] = Some(s.sum(&weighted, &axes, false));
        }
        if s.wants(1) {
            let tall = s.op("Unsqueeze", &[a, &column], &[]);
            let wide = s.op("Unsqueeze", &[dy, &row], &[]);
            gradients[1] = Some(s.mul(&tall, &wide));
        }
    } else {
        // a [.., m, k], b [k], y [.., m].
        let column = s.out.ints(&[-1]);
        let tall = s.op("Unsqueeze", &[dy, &column], &[]);
        gradients[0] = s.wants(0).then(|| s.mul(&tall, b));
        if s.wants(1) {
            let weighted = s.mul(&tall, a);
            let axes: Vec<i64> = (0..rank_a as i64 - 1).collect();
            gradients[1] = Some(s.sum(&weighted, &axes, false));
        }
    }
    Ok(gradients)
}

/// `alpha A' B' + beta C`, each of the two transposed or not.
fn gemm(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let (a, b) = (s.x(0), s.x(1));
    let (ta, tb) = (s.flag("transA"), s.flag("transB"));
    let alpha = s.float_or("alpha", 1.0);
    let beta = s.float_or("beta", 1.0);
    let product = |s: &mut RuleContext, left: &str, transpose_left: bool, right: &str, transpose_right: bool| {
        let attributes = [
            ("alpha", Attribute::Float(alpha as f32)),
            ("transA", Attribute::Int(transpose_left.into())),
            ("transB", Attribute::Int(transpose_right.into())),
        ];
        s.op("Gemm", &[left, right], &attributes)
    };
    let da = s.wants(0).then(|| if ta { product(s, b, tb, &dy, true) } else { product(s, &dy, false, b, !tb) });
    let db = s.wants(1).then(|| if tb { product(s, &dy, true, a, ta) } else { product(s, a, !ta, &dy, false) });
    let dc = if s.wants(2) {
        let sum = s.reduced(2, dy, s.y(0))?;
        Some(if beta == 1.0 { sum } else { s.times(&sum, beta) })
    } else {
        None
    };
    Ok(vec![da, db, dc])
}

/// The gradient of one term is the product of the output's with the others,
/// summed to the term's indices.
fn einsum(s: &mut RuleContext) -> Gradients {
    let equation: String = s.text("equation").chars().filter(|c| !c.is_whitespace()).collect();
    if equation.contains('.') {
        return Err(Fault::new(format!("equation `{equation}`: `...` is not differentiated; name the indices")));
    }
    let (terms, output) = match equation.split_once("->") {
        Some((terms, output)) => (terms, output.to_owned()),
        None => (equation.as_str(), once(&equation)),
    };
    let output = output.as_str();
    let terms: Vec<&str> = terms.split(',').collect();
    let dy = s.dy()?;
    let mut gradients = Vec::new();
    for (i, term) in terms.iter().enumerate() {
        if !s.wants(i) {
            gradients.push(None);
            continue;
        }
        let others: Vec<usize> = (0..terms.len()).filter(|&o| o != i).collect();
        let seen: String = others.iter().map(|&o| terms[o]).chain([output]).collect();
        if term.char_indices().any(|(at, c)| term[..at].contains(c)) {
            return Err(Fault::new(format!("equation `{equation}`: a term takes a diagonal")));
        }
        let left: Vec<&str> = [output].into_iter().chain(others.iter().map(|&o| terms[o])).collect();
        let inputs: Vec<&str> = [dy.as_str()].into_iter().chain(others.iter().map(|&o| s.x(o))).collect();
        // An index of this term alone was summed: every place of it gets the same.
        let kept: String = term.chars().filter(|c| seen.contains(*c)).collect();
        let text = format!("{}->{kept}", left.join(","));
        let mut name = s.op("Einsum", &inputs, &[("equation", Attribute::Text(text))]);
        let lost: Vec<i64> = (0i64..).zip(term.chars()).filter(|(_, c)| !seen.contains(*c)).map(|(i, _)| i).collect();
        if !lost.is_empty() {
            let axes = s.out.ints(&lost);
            let wide = s.op("Unsqueeze", &[&name, &axes], &[]);
            let shape = s.shape_of(s.x(i));
            name = s.op("Expand", &[&wide, &shape], &[]);
        }
        gradients.push(Some(name));
    }
    Ok(gradients)
}

/// The output that an equation without `->` means: indices that occur once,
/// in the order of the alphabet.
fn once(equation: &str) -> String {
    let letters = || equation.chars().filter(|c| *c != ',');
    let mut output: Vec<char> = letters().filter(|c| letters().filter(|d| c == d).count() == 1).collect();
    output.sort_unstable();
    output.into_iter().collect()
}
