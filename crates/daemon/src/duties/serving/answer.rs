//! One request of an application, however it came: what it wants, its way
//! through the node, its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_graph::Dim;
use tierline_proto::limits::{DEADLINE_MS_MAX, HEDGE_DEFAULT, NAME_BYTES_MAX};
use tierline_proto::oip::{Parameter, Parameters, Request, Response, rest};
use tierline_proto::v1::{Code, Failure, InferHeader, Placement, Reply};

use super::counts::Spent;
use super::{Model, Serving, tensors};
use crate::device::budget::Held;
use crate::duties::inference::{self, Entered};
use crate::runtime::ns;

/// What an application asks, and when.
pub struct Asked {
    /// The model's name.
    pub model: String,
    /// Its version; empty: any.
    pub version: String,
    /// The request.
    pub request: Request,
    /// W3C trace context, where it has one.
    pub trace: String,
    /// Time that the transport gives it.
    pub patience: Option<Duration>,
    /// When its first byte came.
    pub arrived: Instant,
    /// What it holds of the node's memory.
    pub held: Held,
}

impl Serving {
    /// Answers a request, which counts under its model; one that fails counts
    /// where it was read (`UnderWay`).
    pub async fn answer(self: &Arc<Self>, asked: Asked) -> Result<(Response, Arc<Held>), Failure> {
        let model = self.model(&asked.model, &asked.version)?;
        let (name, arrived) = (model.name.clone(), asked.arrived);
        let answered = self.answer_of(model, asked).await;
        if let Ok((_, spent, _)) = &answered {
            self.counts.success(&name, arrived.elapsed(), *spent);
        }
        answered.map(|(response, _, held)| (response, held))
    }

    async fn answer_of(self: &Arc<Self>, model: Model, asked: Asked) -> Result<(Response, Spent, Arc<Held>), Failure> {
        let Asked { mut request, trace, patience, arrived, held, .. } = asked;
        if let Some(raw) = request.raw.take() {
            let [input] = &model.inputs[..] else {
                let text = format!("the model has {} inputs: bytes alone don't say which", model.inputs.len());
                return Err(Failure::new(Code::InvalidInput, text));
            };
            let datatype = input.dtype.and_then(tensors::datatype);
            let (Some(datatype), Some(shape)) = (datatype, &input.shape) else {
                let text = format!("the model doesn't say what `{}` is: send it behind JSON that does", input.name);
                return Err(Failure::new(Code::InvalidInput, text));
            };
            let axes: Vec<Option<u64>> = shape.iter().map(Dim::known).collect();
            request.inputs.push(rest::only_input(&input.name, datatype, &axes, raw)?);
        }
        let outputs = &model.outputs;
        if let Some(unknown) = request.outputs.iter().find(|w| outputs.iter().all(|output| output.name != w.name)) {
            let names: Vec<String> = outputs.iter().map(|output| format!("`{}`", output.name)).collect();
            let text = format!("the model has no output `{}`; it gives {}", unknown.name, names.join(", "));
            return Err(Failure::new(Code::InvalidInput, text));
        }
        let header = header(&model.asked, &request.parameters, trace, patience)?;
        let rows = request.inputs.first().and_then(|input| input.shape.first()).map_or(1, |rows| *rows as u64);
        let inputs = std::mem::take(&mut request.inputs);
        let encoded = inputs.into_iter().map(tensors::encode).collect::<Result<Vec<_>, _>>()?;
        held.take(inference::wire::total(&encoded))?;
        let held = Arc::new(held);
        let read = arrived.elapsed();
        let Entered { plan, version, answer, .. } =
            inference::ask(&self.inference, &header, encoded, arrived, Arc::clone(&held)).await;
        if let Some(failure) = answer.reply.failure.filter(|failure| failure.code() != Code::Ok) {
            return Err(failure);
        }
        let reply = Reply { failure: None, ..answer.reply };
        let begun = Instant::now();
        let mut outputs = answer.outputs;
        if !request.outputs.is_empty() {
            // In the order in which they were asked for.
            let at = |name: &str| request.outputs.iter().position(|wanted| wanted.name == name);
            outputs.retain(|(name, _)| at(name).is_some());
            outputs.sort_by_key(|(name, _)| at(name));
        }
        let outputs = outputs.into_iter().map(|(name, tensor)| tensors::decode(name, tensor));
        let response = Response {
            model: model.name.clone(),
            // A name may mean another version by now.
            version: if version == 0 { model.version } else { version.to_string() },
            id: request.id,
            parameters: told(&reply, plan),
            outputs: outputs.collect::<Result<_, _>>()?,
        };
        let sum = |of: fn(&tierline_proto::v1::StageTiming) -> u64| reply.stages.iter().map(of).sum::<u64>();
        let longest = reply.stages.iter().max_by_key(|stage| stage.compute_ns).filter(|stage| stage.batch_requests > 1);
        let spent = Spent {
            batch: longest.map(|stage| (stage.batch_requests, stage.batch_rows)),
            rows: rows.max(1),
            queue_ns: sum(|stage| stage.queue_ns),
            input_ns: ns(read) + sum(|stage| stage.decode_ns),
            infer_ns: sum(|stage| stage.compute_ns),
            output_ns: ns(begun.elapsed()),
        };
        Ok((response, spent, held))
    }
}

/// What a request's parameters ask of the node.
fn header(
    model: &str,
    parameters: &Parameters,
    trace: String,
    patience: Option<Duration>,
) -> Result<InferHeader, Failure> {
    let invalid = |text: String| Failure::new(Code::InvalidInput, text);
    let number = |name: &str| match parameters.get(name) {
        None => Ok(None),
        Some(Parameter::Int(number)) => match u64::try_from(*number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(invalid(format!("parameter `{name}` is a whole number, 0 or more"))),
        },
        Some(_) => Err(invalid(format!("parameter `{name}` is a whole number, 0 or more"))),
    };
    let placement = match parameters.get("tier") {
        None => Placement::Plan,
        Some(Parameter::Text(tier)) => match tier.as_str() {
            "plan" => Placement::Plan,
            "here" => Placement::Here,
            "edge" => Placement::Edge,
            "cloud" => Placement::Cloud,
            _ => return Err(invalid("parameter `tier` is plan, here, edge or cloud".to_owned())),
        },
        Some(_) => return Err(invalid("parameter `tier` is plan, here, edge or cloud".to_owned())),
    };
    // What Triton calls a timeout is in microseconds; below one of ours is one.
    let timeout = number("timeout")?.filter(|us| *us > 0).map(|us| us.div_ceil(1_000));
    let asked = number("deadline_ms")?.filter(|ms| *ms > 0);
    let patience = patience.map(|patience| u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1));
    let deadline_ms = [timeout, asked, patience].into_iter().flatten().min().unwrap_or(0);
    let narrow = |name: &str, value: Option<u64>| match value.map(u32::try_from) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => Err(invalid(format!("parameter `{name}` is too large"))),
    };
    let hedge = match parameters.get("hedge") {
        None | Some(Parameter::Bool(false)) => 0.0,
        Some(Parameter::Bool(true)) => HEDGE_DEFAULT,
        Some(Parameter::Float(share)) if *share > 0.0 && *share < 1.0 => *share,
        Some(_) => return Err(invalid("parameter `hedge` is true, false or a share between 0 and 1".to_owned())),
    };
    Ok(InferHeader {
        model: model.to_owned(),
        deadline_ms: deadline_ms.min(DEADLINE_MS_MAX),
        placement: placement.into(),
        // One that no other node takes is as good as none.
        trace: Some(trace).filter(|trace| trace.len() <= NAME_BYTES_MAX).unwrap_or_default(),
        exit: narrow("exit", number("exit")?)?,
        priority: narrow("priority", number("priority")?)?.unwrap_or(0),
        hedge,
        ..InferHeader::default()
    })
}

/// What an answer says of how it came about.
fn told(reply: &Reply, plan: String) -> Parameters {
    let mut parameters = Parameters::new();
    let mut say = |name: &str, value| parameters.insert(name.to_owned(), value);
    if let Some(last) = reply.stages.last() {
        say("tier", Parameter::Text(last.role().word().to_owned()));
        say("node", Parameter::Text(last.node.clone()));
    }
    say("exit", Parameter::Int(reply.exit.into()));
    say("degraded", Parameter::Bool(reply.degraded.is_some()));
    if let Some(degraded) = &reply.degraded {
        let cause = degraded.cause().as_str_name();
        say("cause", Parameter::Text(cause.strip_prefix("CAUSE_").unwrap_or(cause).to_lowercase()));
    }
    if !plan.is_empty() {
        say("plan", Parameter::Text(plan));
    }
    parameters
}
