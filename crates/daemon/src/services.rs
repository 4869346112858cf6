//! A service as a node runs it: which input of which model comes from where,
//! and what its answer is called. `tierline_plan::service` says what users write.
//!
//! Pure: made of what users wrote and of the models' manifests.

use std::collections::BTreeSet;

use tierline_graph::{DataType, Dim, ValueInfo};
use tierline_plan::Service;
use tierline_plan::service::{Kind, Member, Source};

use crate::models::Manifest;

/// Where an input of a model comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum From {
    /// The service's input of this name.
    Input(String),
    /// An output of a member before it.
    Output(usize, String),
    /// Crops of a picture.
    Crops,
}

/// What a service's models are fed, and what it answers with.
#[derive(Debug, Clone, PartialEq)]
pub struct Wiring {
    /// What a caller gives.
    pub inputs: Vec<ValueInfo>,
    /// What the service answers with.
    pub outputs: Vec<ValueInfo>,
    /// For each member: its inputs, and where they come from.
    pub feeds: Vec<Vec<(ValueInfo, From)>>,
    /// For each member: its outputs, and what the service calls them; none where it doesn't answer with them.
    pub names: Vec<Vec<(ValueInfo, Option<String>)>>,
}

/// The output that says which boxes were looked at, `[crops]`.
pub const CROPS_OUTPUT: &str = "crops";

impl Wiring {
    /// Connects a service's members, of which `manifests` has one each.
    ///
    /// # Errors
    /// What doesn't fit, in words.
    pub fn of(service: &Service, manifests: &[Manifest]) -> Result<Self, String> {
        let mut wiring = Self { inputs: Vec::new(), outputs: Vec::new(), feeds: Vec::new(), names: Vec::new() };
        for (member, manifest) in service.members.iter().zip(manifests) {
            let feeds = wiring.feeds_of(service, member, manifest, manifests)?;
            wiring.feeds.push(feeds);
            if let Some(crops) = &member.crops
                && !wiring.inputs.iter().any(|input| input.name == crops.image)
            {
                wiring.inputs.push(ValueInfo { name: crops.image.clone(), dtype: None, shape: None });
            }
            if service.kind != Kind::Chain {
                let judged = judged(member, manifest)?;
                if service.kind == Kind::Ensemble && wiring.outputs.is_empty() {
                    let name = service.output().to_owned();
                    wiring.outputs.push(ValueInfo { name, dtype: Some(DataType::F32), shape: judged.shape.clone() });
                }
            }
            wiring.names.push(manifest.outputs.iter().map(|output| (output.clone(), None)).collect());
        }
        if let Some(quality) = &service.quality
            && !wiring.inputs.iter().any(|input| input.name == quality.input)
        {
            return Err(format!("[quality]: the service has no input `{}`", quality.input));
        }
        match service.kind {
            Kind::Ensemble => {}
            Kind::Cascade => wiring.name_cascade(service)?,
            Kind::Chain => wiring.name_chain(service)?,
        }
        Ok(wiring)
    }

    fn feeds_of(
        &mut self,
        service: &Service,
        member: &Member,
        manifest: &Manifest,
        manifests: &[Manifest],
    ) -> Result<Vec<(ValueInfo, From)>, String> {
        let name = member.name();
        let crops = member.crops.as_ref();
        let known = || quoted(manifest.inputs.iter());
        for wanted in member.inputs.keys().chain(crops.map(|crops| &crops.input)) {
            if !manifest.inputs.iter().any(|input| &input.name == wanted) {
                return Err(format!(
                    "member `{name}`: model `{}` has no input `{wanted}`; it has {}",
                    member.model,
                    known()
                ));
            }
        }
        if let Some(crops) = crops {
            for output in std::iter::once(&crops.boxes).chain(&crops.scores) {
                self.output_of(service, manifests, &crops.of, output)?;
            }
        }
        // Models of one input each are fed the same, whatever they call it.
        let only = self.inputs.first().filter(|_| self.inputs.len() == 1 && manifest.inputs.len() == 1);
        let only = only.filter(|_| service.kind != Kind::Chain).map(|input| input.name.clone());
        let mut feeds = Vec::new();
        for input in &manifest.inputs {
            let from = match member.inputs.get(&input.name) {
                _ if crops.is_some_and(|crops| crops.input == input.name) => From::Crops,
                Some(Source::Output { of, output }) => {
                    let place = self.output_of(service, manifests, of, output)?;
                    From::Output(place, output.clone())
                }
                Some(Source::Input(given)) => From::Input(given.clone()),
                None => From::Input(only.clone().unwrap_or_else(|| input.name.clone())),
            };
            if let From::Input(given) = &from {
                self.takes(given, input, name)?;
            }
            feeds.push((input.clone(), from));
        }
        Ok(feeds)
    }

    /// The place of a member that has an output.
    fn output_of(&self, service: &Service, manifests: &[Manifest], of: &str, output: &str) -> Result<usize, String> {
        let place = service.place(of).ok_or_else(|| format!("there is no member `{of}`"))?;
        let outputs = manifests.get(place).map(|manifest| &manifest.outputs[..]).unwrap_or_default();
        if outputs.iter().any(|known| known.name == output) {
            return Ok(place);
        }
        Err(format!("member `{of}` has no output `{output}`; it has {}", quoted(outputs.iter())))
    }

    /// Counts an input among those of the service.
    fn takes(&mut self, given: &str, wanted: &ValueInfo, member: &str) -> Result<(), String> {
        let Some(known) = self.inputs.iter_mut().find(|input| input.name == given) else {
            self.inputs.push(ValueInfo { name: given.to_owned(), ..wanted.clone() });
            return Ok(());
        };
        if let (Some(known), Some(wanted)) = (known.dtype, wanted.dtype)
            && known != wanted
        {
            return Err(format!("input `{given}` is {known} for the members before `{member}`, which takes {wanted}"));
        }
        known.dtype = known.dtype.or(wanted.dtype);
        let (Some(axes), Some(others)) = (&mut known.shape, &wanted.shape) else {
            known.shape = known.shape.take().or_else(|| wanted.shape.clone());
            return Ok(());
        };
        let unlike = axes.len() != others.len()
            || axes.iter().zip(others).any(|(a, b)| a.known().zip(b.known()).is_some_and(|(a, b)| a != b));
        if unlike {
            let text = |axes: &[Dim]| axes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (known, wanted) = (text(axes), text(others));
            return Err(format!(
                "input `{given}` is [{known}] for the members before `{member}`, which takes [{wanted}]"
            ));
        }
        // An axis that one of them fixes is fixed for all.
        for (axis, other) in axes.iter_mut().zip(others) {
            if axis.known().is_none() && other.known().is_some() {
                *axis = other.clone();
            }
        }
        Ok(())
    }

    /// A cascade's outputs are those of its last model, whoever answers.
    fn name_cascade(&mut self, service: &Service) -> Result<(), String> {
        let last = self.names.len().saturating_sub(1);
        let Some(ends) = self.names.get(last).cloned() else { return Ok(()) };
        let called = |member: &Member, output: &str| {
            member.outputs.iter().find(|(_, own)| *own == output).map(|(name, _)| name.clone())
        };
        let Some(last_member) = service.members.get(last) else { return Ok(()) };
        for (end, _) in &ends {
            let name = called(last_member, &end.name).unwrap_or_else(|| end.name.clone());
            self.outputs.push(ValueInfo { name, ..end.clone() });
        }
        for (member, names) in service.members.iter().zip(&mut self.names) {
            let single = names.len() == 1 && self.outputs.len() == 1;
            for output in &self.outputs {
                let own = member.outputs.get(&output.name).unwrap_or(&output.name).clone();
                let found = names.iter_mut().find(|(known, _)| single || known.name == own);
                let Some((known, name)) = found else {
                    return Err(format!(
                        "member `{}` has no output for `{}` of the cascade's last; say which with \
                         `outputs = {{ {} = \"...\" }}`",
                        member.name(),
                        output.name,
                        output.name
                    ));
                };
                if let (Some(own), Some(wanted)) = (known.dtype, output.dtype)
                    && own != wanted
                {
                    return Err(format!(
                        "output `{}` is {own} of member `{}` and {wanted} of the last",
                        output.name,
                        member.name()
                    ));
                }
                *name = Some(output.name.clone());
            }
        }
        Ok(())
    }

    /// A chain answers with what each of its models gives.
    fn name_chain(&mut self, service: &Service) -> Result<(), String> {
        let mut taken = BTreeSet::new();
        for (member, names) in service.members.iter().zip(&mut self.names) {
            for own in member.outputs.values() {
                if !names.iter().any(|(known, _)| &known.name == own) {
                    let known = quoted(names.iter().map(|(known, _)| known));
                    return Err(format!("member `{}` has no output `{own}`; it has {known}", member.name()));
                }
            }
            if member.crops.is_some() && taken.insert(CROPS_OUTPUT.to_owned()) {
                let (name, shape) = (CROPS_OUTPUT.to_owned(), Some(vec![Dim::Symbol("crops".to_owned())]));
                self.outputs.push(ValueInfo { name, dtype: Some(DataType::I64), shape });
            }
            for (output, name) in names {
                let wished = member.outputs.iter().find(|(_, own)| **own == output.name).map(|(name, _)| name.clone());
                let mut called = wished.unwrap_or_else(|| output.name.clone());
                if !taken.insert(called.clone()) {
                    called = format!("{}/{}", member.name(), output.name);
                    if !taken.insert(called.clone()) {
                        return Err(format!("two outputs would be called `{called}`; rename one with `outputs`"));
                    }
                }
                let mut info = ValueInfo { name: called.clone(), ..output.clone() };
                if let (Some(axes), Some(_)) = (&mut info.shape, &member.crops)
                    && let Some(rows) = axes.first_mut()
                {
                    *rows = Dim::Symbol("crops".to_owned());
                }
                self.outputs.push(info);
                *name = Some(called);
            }
        }
        Ok(())
    }
}

/// The output that is judged or combined.
fn judged<'m>(member: &Member, manifest: &'m Manifest) -> Result<&'m ValueInfo, String> {
    let found = match (&member.judged, &manifest.outputs[..]) {
        (Some(name), outputs) => outputs.iter().find(|output| &output.name == name),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    found.ok_or_else(|| {
        let outputs = quoted(manifest.outputs.iter());
        format!("member `{}`: `judged` must name one of the outputs of `{}`: {outputs}", member.name(), member.model)
    })
}

fn quoted<'v>(values: impl Iterator<Item = &'v ValueInfo>) -> String {
    values.map(|value| format!("`{}`", value.name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use tierline_proto::Code;

    use crate::documents;

    use super::*;

    fn read(json: &str) -> Result<Service, tierline_proto::Failure> {
        documents::read::<Service>(json.as_bytes())
    }

    #[test]
    fn what_other_nodes_say_is_checked() {
        let member = |n: usize| format!(r#"{{"model":"m{n}","threshold":0.5,"criterion":"margin"}}"#);
        let of = |kind: &str, members: &str| format!(r#"{{"schema":1,"kind":"{kind}","member":[{members}]}}"#);
        let plain = r#"{"model":"a"},{"model":"b"}"#;
        assert!(read(&of("ensemble", plain)).is_ok());
        // Of a newer version, with more to say.
        assert!(read(&of("ensemble", plain).replace(r#""kind""#, r#""mood":1,"kind""#)).is_ok());
        let crowd: Vec<String> = (0..10_000).map(member).collect();
        let circle = r#"{"model":"a","inputs":{"x":{"of":"b","output":"y"}}},
            {"model":"b","inputs":{"x":{"of":"a","output":"y"}}}"#;
        let itself = r#"{"model":"a","inputs":{"x":{"of":"a","output":"y"}}},{"model":"b"}"#;
        for (json, part) in [
            (of("cascade", &crowd.join(",")), "10000 members; at most 16"),
            (of("cascade", ""), "this one has 0"),
            (of("heap", plain), "unknown variant"),
            (of("chain", circle), "no member before it"),
            (of("chain", itself), "no member before it"),
            (of("cascade", plain), "needs `criterion` and `threshold`"),
            (of("ensemble", &plain.replace("\"b\"", "\"a\"")), "two members are called `a`"),
        ] {
            let failure = read(&json).unwrap_err();
            assert_eq!(failure.code(), Code::Corrupt);
            assert!(failure.message.contains(part), "{failure}");
        }
    }
}
