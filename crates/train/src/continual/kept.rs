//! What is kept between tasks, and its file: safetensors, with what isn't a
//! tensor in the header.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use tierline_graph::tensor::element_count;
use tierline_graph::{DataType, Elements, Model, Tensor, step};

use super::memory::{EXAMPLES_MAX, Form, Item, Target};
use super::{Memory, Owners, Penalty, Replay, TASKS_MAX};
use crate::checkpoint::whole;
use crate::data::CLASSES_MAX;
use crate::error::TrainError;
use crate::trainer::Flat;

/// Bytes of a file at most.
pub const KEPT_BYTES_MAX: u64 = 1 << 36;

/// Key in the file's header.
const HEADER: &str = "tierline.kept";

/// Version of what stands there.
const VERSION: u32 = 1;

/// What is kept of the tasks so far, besides the model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// How many there were.
    pub tasks: u64,
    /// Classes that they had.
    pub classes: Vec<u32>,
    /// Examples.
    pub memory: Option<Memory>,
    /// What EWC holds, before its weight.
    pub ewc: Option<Penalty>,
    /// What SI holds, before its weight.
    pub si: Option<Penalty>,
    /// Whose weights are.
    pub owners: Option<Owners>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    tasks: u64,
    classes: Vec<u32>,
    memory: Option<MemoryHeader>,
    ewc: bool,
    si: bool,
    owners: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryHeader {
    settings: Replay,
    seed: u64,
    form: Form,
    came: Vec<(u32, u64)>,
}

impl Kept {
    /// Bytes of what is kept, the model left out.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let penalties = self.ewc.iter().chain(&self.si).map(Penalty::bytes).sum::<u64>();
        self.memory.as_ref().map_or(0, Memory::bytes) + penalties + self.owners.as_ref().map_or(0, Owners::bytes)
    }

    /// Refuses what was kept of another model.
    ///
    /// # Errors
    /// Naming what doesn't fit.
    pub fn check(&self, model: &Model) -> Result<(), TrainError> {
        let weights = step::parameters(model, &[])?;
        let graph = model.graph();
        let sizes: HashMap<&str, usize> = graph
            .initializer
            .iter()
            .filter(|t| weights.iter().any(|w| w == t.name()))
            .map(|t| (t.name(), t.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).product()))
            .collect();
        let held = self.ewc.iter().chain(&self.si).flat_map(|p| p.stiffness.iter().map(|(n, v)| (n, v.len())));
        let owned = self.owners.iter().flat_map(|of| of.0.iter().map(|(n, v)| (n, v.len())));
        for (name, len) in held.chain(owned) {
            match sizes.get(name.as_str()) {
                Some(own) if *own == len => {}
                Some(own) => {
                    let text = format!("of weight `{name}` {len} numbers were kept, and the model's has {own}");
                    return Err(TrainError::Continual(format!("{text}; it is of another model")));
                }
                None => {
                    let text = format!("numbers of a weight `{name}` were kept, which the model hasn't");
                    return Err(TrainError::Continual(format!("{text}; it is of another model")));
                }
            }
        }
        Ok(())
    }

    /// Writes the file; it appears whole or not at all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let failed = |reason: String| TrainError::Kept { path: path.to_owned(), reason };
        let file = self.to_bytes().map_err(failed)?;
        let partial = path.with_extension("safetensors.partial");
        whole(&partial, &file).and_then(|()| std::fs::rename(&partial, path)).map_err(|source| {
            // What is left of it helps nobody; the error that counts is `source`.
            let _ = std::fs::remove_file(&partial);
            failed(format!("cannot be written: {source}; the one before it, if there was one, is as it was"))
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it can't be read, is too large or broken, or of another version.
    pub fn load(path: &Path) -> Result<Self, TrainError> {
        let failed = |reason: String| TrainError::Kept { path: path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(|e| failed(format!("cannot be read: {e}")))?.len();
        if size > KEPT_BYTES_MAX {
            return Err(failed(format!("{size} bytes are too many; the limit is {KEPT_BYTES_MAX}")));
        }
        let bytes = std::fs::read(path).map_err(|e| failed(format!("cannot be read: {e}")))?;
        Self::parse(&bytes).map_err(failed)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// What can't be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let memory = self.memory.as_ref().map(|memory| MemoryHeader {
            settings: memory.settings.clone(),
            seed: memory.seed,
            form: memory.form.clone(),
            came: memory.came.iter().map(|(class, n)| (*class, *n)).collect(),
        });
        let header = Header {
            version: VERSION,
            tasks: self.tasks,
            classes: self.classes.clone(),
            memory,
            ewc: self.ewc.is_some(),
            si: self.si.is_some(),
            owners: self.owners.is_some(),
        };
        let mut parts: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        if let Some(memory) = self.memory.as_ref().filter(|memory| !memory.is_empty()) {
            let n = memory.items.len();
            let dtype =
                memory.form.dtype().and_then(dtype).ok_or("its features are of a type that files don't have")?;
            let features = memory.items.iter().flat_map(|item| item.features.iter().copied()).collect();
            parts.push(("memory.features".into(), dtype, [&[n], &memory.form.shape[..]].concat(), features));
            if memory.form.classes.is_some() {
                let classes = memory.items.iter().flat_map(|item| item.class().to_le_bytes()).collect();
                parts.push(("memory.classes".into(), Dtype::U32, vec![n], classes));
            } else {
                let values = memory.items.iter().flat_map(|item| match &item.target {
                    Target::Values(values) => values.clone(),
                    Target::Class(_) => Vec::new(),
                });
                let shape = [&[n], &memory.form.values[..]].concat();
                parts.push(("memory.values".into(), Dtype::F32, shape, f32s(values)));
            }
            if memory.form.logits > 0 {
                let logits = f32s(memory.logits().into_iter());
                parts.push(("memory.logits".into(), Dtype::F32, vec![n, memory.form.logits], logits));
            }
        }
        for (of, penalty) in [("ewc", &self.ewc), ("si", &self.si)] {
            for (what, flat) in penalty.iter().flat_map(|p| [("stiffness", &p.stiffness), ("anchor", &p.anchor)]) {
                parts.extend(flat.iter().map(|(name, values)| {
                    let bytes = f32s(values.iter().copied());
                    (format!("{of}.{what}/{name}"), Dtype::F32, vec![values.len()], bytes)
                }));
            }
        }
        for (name, of) in self.owners.iter().flat_map(|owners| &owners.0) {
            parts.push((format!("owner/{name}"), Dtype::U8, vec![of.len()], of.clone()));
        }
        let text = serde_json::to_string(&header).map_err(|e| e.to_string())?;
        let views = parts.iter().map(|(name, dtype, shape, bytes)| {
            Ok((name.clone(), TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| format!("`{name}`: {e}"))?))
        });
        let views: Vec<_> = views.collect::<Result<_, String>>()?;
        safetensors::serialize(views, Some(HashMap::from([(HEADER.to_owned(), text)]))).map_err(|e| e.to_string())
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let broken = |e: &dyn std::fmt::Display| format!("it is broken ({e}); take an older one, or begin anew");
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| broken(&e))?;
        let text = metadata.metadata().as_ref().and_then(|m| m.get(HEADER));
        let text = text.ok_or("it holds tensors, and nothing of earlier tasks")?;
        let header: Header = serde_json::from_str(text).map_err(|e| broken(&e))?;
        if header.version != VERSION {
            return Err(format!("it is of version {}; this Tierline reads {VERSION}", header.version));
        }
        if header.tasks > TASKS_MAX as u64 || header.classes.len() > CLASSES_MAX {
            return Err(broken(&"it tells of more tasks or classes than there can be"));
        }
        let file = SafeTensors::deserialize(bytes).map_err(|e| broken(&e))?;
        let memory = header.memory.map(|memory| remembered(&file, memory)).transpose().map_err(|e| broken(&e))?;
        let held = |of: &str| -> Result<Penalty, String> {
            let part = |what: &str| named(&file, &format!("{of}.{what}/"));
            let it = Penalty { stiffness: part("stiffness")?, anchor: part("anchor")? };
            let sizes = |flat: &Flat| flat.iter().map(|(name, v)| (name.clone(), v.len())).collect::<Vec<_>>();
            if sizes(&it.stiffness) != sizes(&it.anchor) {
                return Err(format!("what `{of}` holds, and to where, are of other weights"));
            }
            match it.stiffness.values().flatten().all(|x| *x >= 0.0) {
                true => Ok(it),
                false => Err(format!("`{of}` has a stiffness below 0")),
            }
        };
        let ewc = header.ewc.then(|| held("ewc")).transpose().map_err(|e| broken(&e))?;
        let si = header.si.then(|| held("si")).transpose().map_err(|e| broken(&e))?;
        let owners = header.owners.then(|| owned(&file, header.tasks)).transpose().map_err(|e| broken(&e))?;
        Ok(Self { tasks: header.tasks, classes: header.classes, memory, ewc, si, owners })
    }
}

/// Numbers under names that begin so, all finite.
fn named(file: &SafeTensors<'_>, prefix: &str) -> Result<Flat, String> {
    let mut found = Flat::new();
    for (name, view) in file.tensors() {
        if let Some(weight) = name.strip_prefix(prefix) {
            found.insert(weight.to_owned(), numbers(&name, &view)?);
        }
    }
    Ok(found)
}

fn numbers(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, String> {
    if view.dtype() != Dtype::F32 {
        return Err(format!("`{name}` is {:?}", view.dtype()));
    }
    let values = Elements::from_bytes(DataType::F32, view.data()).map_err(|e| e.to_string())?;
    match values {
        Elements::F32(values) if values.iter().all(|x| x.is_finite()) => Ok(values),
        _ => Err(format!("`{name}` holds something that isn't finite")),
    }
}

fn owned(file: &SafeTensors<'_>, tasks: u64) -> Result<Owners, String> {
    let mut found = BTreeMap::new();
    for (name, view) in file.tensors() {
        let Some(weight) = name.strip_prefix("owner/") else { continue };
        if view.dtype() != Dtype::U8 || view.data().iter().any(|&owner| u64::from(owner) > tasks) {
            return Err(format!("`{name}` names tasks that there weren't"));
        }
        found.insert(weight.to_owned(), view.data().to_vec());
    }
    Ok(Owners(found))
}

fn remembered(file: &SafeTensors<'_>, header: MemoryHeader) -> Result<Memory, String> {
    let MemoryHeader { settings, seed, form, came } = header;
    settings.check().map_err(|e| e.to_string())?;
    let dtype = form.dtype().ok_or("its features are of no type")?;
    let of_one = element_count(&form.shape).map_err(|e| e.to_string())?;
    let width = dtype.size().and_then(|size| of_one.checked_mul(size)).filter(|width| *width > 0);
    let width = width.ok_or("its features are of no size")?;
    let per = element_count(&form.values).map_err(|e| e.to_string())?;
    let mut memory = Memory { settings, seed, form, items: Vec::new(), came: came.into_iter().collect() };
    let Ok(features) = file.tensor("memory.features") else { return Ok(memory) };
    let n = features.data().len() / width;
    let fits = features.shape().first() == Some(&n) && features.data().len() == n * width;
    if !fits || n > EXAMPLES_MAX || Some(features.dtype()) != self::dtype(dtype) {
        return Err("its examples are of another form than it says".into());
    }
    let checked = Tensor::from_bytes(dtype, [&[n], &memory.form.shape[..]].concat(), features.data());
    let checked = checked.map_err(|e| e.to_string())?;
    let finite = match checked.elements() {
        Elements::F32(v) => v.iter().all(|x| x.is_finite()),
        Elements::F64(v) => v.iter().all(|x| x.is_finite()),
        _ => true,
    };
    if !finite {
        return Err("an example holds something that isn't finite".into());
    }
    let view = |name: &str| file.tensor(name).map_err(|e| format!("`{name}`: {e}"));
    let targets: Vec<Target> = match memory.form.classes {
        Some(count) => {
            let classes = view("memory.classes")?;
            let (whole, _) = classes.data().as_chunks::<4>();
            let classes: Vec<u32> = whole.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
            if count > CLASSES_MAX || classes.len() != n || classes.iter().any(|&class| class as usize >= count) {
                return Err("an example is of a class that there isn't".into());
            }
            classes.into_iter().map(Target::Class).collect()
        }
        None => {
            let values = numbers("memory.values", &view("memory.values")?)?;
            if per == 0 || values.len() != n * per {
                return Err("its examples have other targets than it says".into());
            }
            values.chunks(per).map(|values| Target::Values(values.to_vec())).collect()
        }
    };
    let logits = match memory.form.logits {
        0 => Vec::new(),
        _ => numbers("memory.logits", &view("memory.logits")?)?,
    };
    if Some(logits.len()) != n.checked_mul(memory.form.logits) {
        return Err("its examples have other logits than it says".into());
    }
    let each = memory.form.logits;
    memory.items = features
        .data()
        .chunks(width)
        .zip(targets)
        .enumerate()
        .map(|(at, (features, target))| {
            let logits = logits[at * each..(at + 1) * each].to_vec();
            Item { features: features.into(), target, logits }
        })
        .collect();
    Ok(memory)
}

fn f32s(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// Types that data sets have, as files name them.
fn dtype(dtype: DataType) -> Option<Dtype> {
    Some(match dtype {
        DataType::U8 => Dtype::U8,
        DataType::I8 => Dtype::I8,
        DataType::U16 => Dtype::U16,
        DataType::I16 => Dtype::I16,
        DataType::U32 => Dtype::U32,
        DataType::I32 => Dtype::I32,
        DataType::U64 => Dtype::U64,
        DataType::I64 => Dtype::I64,
        DataType::F16 => Dtype::F16,
        DataType::F32 => Dtype::F32,
        DataType::F64 => Dtype::F64,
        DataType::Bool => Dtype::BOOL,
        _ => return None,
    })
}
