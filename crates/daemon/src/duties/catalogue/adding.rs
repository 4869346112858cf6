//! A model comes in, at the cloud: checked, folded, stored, registered, and named
//! unless it is only another version.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use tierline_proto::limits::MODELS_MAX;
use tierline_proto::v1::{Code, Failure, ModelAddHeader};

use super::known::unknown_model;
use super::{Catalogue, Change, Entry, SERVICE_FILE, versions};
use crate::duties::artefacts::upload::{Uploaded, Uploads};
use crate::golden::Golden;
use crate::models::{Manifest, Prepared};

impl Catalogue {
    /// Refuses a model that can't be added here, whatever it is.
    ///
    /// # Errors
    /// When models come from above, the name is none, or there are too many.
    pub fn check_new_model(&self, header: &ModelAddHeader) -> Result<(), Failure> {
        if !self.cx.parents.is_empty() {
            let above = self.cx.parents.first().map_or_else(String::new, |parent| parent.name());
            let text = format!("{} takes its models from {above}", self.cx.me.name());
            return Err(Failure::new(Code::Forbidden, text)
                .with_help("add the model on the cloud node; every node below gets it from there"));
        }
        tierline_proto::name::check_model(&header.name)
            .map_err(|e| Failure::new(Code::InvalidInput, e.to_string()).with_help("choose another --name"))?;
        if header.name.contains('@') && self.known.named(&header.name).is_none() {
            let text = format!("`{}` is no model's name: what follows an `@` is a version", header.name);
            return Err(Failure::new(Code::InvalidInput, text).with_help("choose another --name"));
        }
        versions::read_card(&header.card)?;
        if header.push && self.known.named(&header.name).is_none() {
            return Err(unknown_model(&header.name, &self.known.list())
                .with_help("the first version of a model is added: `tierline model add`"));
        }
        match header.files.first().map(|file| file.name.as_str()) {
            Some("model.onnx") if self.known.service(&header.name).is_some() => {
                return Err(self.check_free(&header.name).err().unwrap_or_default());
            }
            Some("model.onnx" | SERVICE_FILE) => {}
            _ => return Err(Failure::new(Code::Protocol, "the first file must be model.onnx or service.toml")),
        }
        let known = self.known.list().len();
        if known >= MODELS_MAX && self.known.named(&header.name).is_none() {
            let text = format!("the site has {known} models, the most that it can");
            return Err(Failure::new(Code::TooLarge, text).with_help("remove some: `tierline model rm NAME`"));
        }
        Ok(())
    }

    /// Takes in a model: checks, folds, stores and names it, or registers it as
    /// another version of what its name means.
    ///
    /// # Errors
    /// When the name is taken, the files are no valid model, or the disk is full.
    pub async fn add_model(self: &Arc<Self>, header: ModelAddHeader, uploads: Uploads) -> Result<Entry, Failure> {
        self.check_new_model(&header)?;
        let (card, push) = (versions::read_card(&header.card)?, header.push);
        let turn = self.artefacts.reading.lock().await;
        let catalogue = Arc::clone(self);
        let prepare = move || catalogue.prepare(&header, uploads);
        let (uploads, golden, mut source, prepared, mut manifest) =
            self.cx.tasks.blocking("model preparation", prepare).await??;
        drop(turn);
        // What is stored and not named yet must not be taken for what a removal left.
        let turn = self.artefacts.naming.lock().await;
        self.artefacts.put_file(&prepared).await?;
        for (input, mut sample) in uploads {
            let digest = self.artefacts.put_file(sample.rewound()).await?;
            manifest.sample.insert(input, digest.to_string());
        }
        for (_, mut file) in golden {
            self.artefacts.put_file(file.rewound()).await?;
        }
        manifest.check().map_err(|text| Failure::new(Code::InvalidInput, text))?;
        let source = self.artefacts.put_file(source.rewound()).await?;
        let (manifest, row) = self.register(manifest, Some(source), &card).await?;
        if push {
            return Entry::new(manifest, row.manifest);
        }
        let before = self.known.named(&row.name);
        let entry = self.adopt_manifest_as(manifest, row.manifest).await?;
        self.put_into_production(&row, before.as_ref()).await?;
        drop(turn);
        self.tell_children();
        // The same model under another name is measured already; what is expected of it may be new.
        if self.known.profile(entry.model).is_none() || entry.manifest.golden.is_some() {
            self.tell(&Change::Unprofiled(&entry));
        }
        Ok(entry)
    }

    /// Reads what came of a model, and folds it: its samples, its golden values,
    /// a file with the prepared model, and its manifest. Blocks.
    fn prepare(
        &self,
        header: &ModelAddHeader,
        uploads: Uploads,
    ) -> Result<(Samples, Samples, Uploaded, File, Manifest), Failure> {
        let invalid = |e: &dyn std::fmt::Display| Failure::new(Code::InvalidInput, e.to_string());
        let mut files = header.files.iter().map(|file| file.name.as_str()).zip(uploads.files);
        let (_, mut source) = files.next().ok_or_else(|| Failure::new(Code::Protocol, "no file came"))?;
        let (mut samples, mut golden) = (Samples::new(), Samples::new());
        for (name, file) in files {
            match name.strip_prefix("sample/") {
                Some(input) => drop(samples.insert(input.to_owned(), file)),
                None => drop(golden.insert(name.to_owned(), file)),
            }
        }
        let bytes = source.read()?;
        let source_digest = crate::models::digest(&bytes);
        let existing = self.known.named(&header.name).filter(|_| !header.replace && !header.push);
        if existing.as_ref().is_some_and(|existing| existing.manifest.source_digest != source_digest) {
            let text = format!("`{}` already names another model", header.name);
            return Err(Failure::new(Code::AlreadyExists, text).with_help(
                "push it as another version (`tierline model push`), add --replace, or choose another name",
            ));
        }
        let model = tierline_graph::Model::parse(bytes).map_err(|e| invalid(&e))?;
        let prepared = Prepared::fold(model, &self.cx.device.engine).map_err(|e| invalid(&e.error))?;
        // Engines take them in one piece.
        prepared.model.check_one_file().map_err(|e| invalid(&e))?;
        let mut shapes = sample_shapes(&mut samples)?;
        shapes.extend(header.shapes.iter().map(|s| (s.name.clone(), s.shape.clone())));
        let shapes = crate::models::profile_shapes(&prepared, shapes)
            .map_err(|e| invalid(&e.error).with_help("fix the free axes with --shape, or give a --sample"))?;
        let mut manifest = prepared
            .manifest(&header.name, source_digest, shapes, header.cuts_max as usize)
            .map_err(|e| invalid(&e.error))?;
        for (input, sample) in &mut samples {
            manifest.sample.insert(input.clone(), crate::models::digest(&sample.read()?));
        }
        let values = golden.iter_mut().map(|(name, file)| Ok((name.clone(), file.read()?)));
        let values = values.collect::<Result<BTreeMap<_, _>, Failure>>()?;
        manifest.golden = Golden::read(&values, header.golden_tolerance, &manifest.inputs, &manifest.outputs)
            .map_err(|text| Failure::new(Code::InvalidInput, text))?;
        if let Some(existing) = existing {
            manifest.version = existing.manifest.version;
            if existing.manifest != manifest {
                return Err(measured_otherwise(&existing.manifest, &manifest));
            }
        }
        let file = self.artefacts.store().unnamed()?;
        let mut writer = std::io::BufWriter::new(&file);
        prepared.model.write(&mut writer).map_err(|e| self.artefacts.store().refused(e))?;
        std::io::Write::flush(&mut writer).map_err(|e| self.artefacts.store().refused(e))?;
        drop(writer);
        Ok((samples, golden, source, file, manifest))
    }
}

/// The same file under the same name, to be measured at other sizes: every
/// node would do it again.
fn measured_otherwise(existing: &Manifest, given: &Manifest) -> Failure {
    let shapes = |manifest: &Manifest| {
        let all = manifest.input_shapes.iter().map(|(name, shape)| {
            format!("{name}={}", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
        });
        all.collect::<Vec<_>>().join(" ")
    };
    let text = if existing.input_shapes == given.input_shapes {
        format!("`{}` is that model already, with other cuts or samples", given.name)
    } else {
        format!("`{}` is that model already, measured at {}", given.name, shapes(existing))
    };
    Failure::new(Code::AlreadyExists, text)
        .with_help("with --replace every node drops its measurements and measures it again")
}

/// Inputs' samples, as they came.
type Samples = BTreeMap<String, Uploaded>;

fn sample_shapes(samples: &mut Samples) -> Result<BTreeMap<String, Vec<u64>>, Failure> {
    samples
        .iter_mut()
        .map(|(name, npy)| {
            let tensor = tierline_codec::npy::read(&npy.read()?)
                .map_err(|e| Failure::new(Code::InvalidInput, format!("sample `{name}`: {e}")))?;
            Ok((name.clone(), tensor.shape().iter().map(|&d| d as u64).collect()))
        })
        .collect()
}
