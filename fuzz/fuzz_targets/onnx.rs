//! A model file from a stranger: it is refused, or everything that is done
//! with a model before it runs works on it.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tierline_graph::cost::cost;
use tierline_graph::cuts::{candidates, cuts};
use tierline_graph::fold::{Evaluate, fold};
use tierline_graph::slice::slice;
use tierline_graph::{Model, Tensor, infer_types};

/// Computes nothing: constants are lifted, and no more.
struct Never;

impl Evaluate for Never {
    fn evaluate(&mut self, _: &Model) -> Result<Vec<Tensor>, String> {
        Err("nothing is computed here".to_owned())
    }
}

fuzz_target!(|input: &[u8]| {
    let Ok(mut model) = Model::parse(Bytes::copy_from_slice(input)) else { return };
    let written = model.to_bytes().expect("what was read can be written");
    let again = Model::parse(written.clone().into()).expect("and read again");
    // By length: weights that are no numbers don't equal themselves, and
    // fields that the format doesn't know are written in any order.
    assert_eq!(again.to_bytes().expect("and written again").len(), written.len());
    fold(&mut model, &mut Never).expect("folding what is sound");
    let Ok(types) = infer_types(&model) else { return };
    assert_eq!(cost(&model, &types).len(), model.graph().node.len());
    for cut in candidates(&model, &types, &cuts(&model, &types), 3) {
        slice(&model, &types, &[cut.tensors]).expect("a cut that was found");
    }
});
