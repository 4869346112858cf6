//! A model from a stranger, differentiated: an error or a training step that
//! is a valid model, never a panic. The length says for which loss.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tierline_graph::Model;
use tierline_graph::step::{Loss, Recipe, Step, trainable};

fuzz_target!(|input: &[u8]| {
    let Ok(model) = Model::parse(Bytes::copy_from_slice(input)) else { return };
    let loss = match input.len() % 3 {
        0 => Recipe::default().loss,
        1 => Loss::Mse,
        _ => Loss::Kl { temperature: 2.0 },
    };
    let Ok(step) = trainable(&model, &Recipe { loss, ..Recipe::default() }) else { return };
    Step::read(step.model).expect("a step describes itself");
});
