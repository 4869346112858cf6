//! A model measured on this device: segments, codecs, and the device's own
//! slowness. The same for nodes and for `tierline profile FILE`.

use std::collections::BTreeMap;
use std::fs::TryLockError;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_engine::profiler::{CodecProbe, ProfileOptions, ProgressListener, heads, profile};
use tierline_engine::{Engine, EngineError, LoadOptions, Stop};
use tierline_graph::profile::{CodecProfile, DeviceProfile, ModelProfile};
use tierline_graph::{DataType, Elements, Model, Tensor};
use tierline_store::disk;

use crate::models::Manifest;
use crate::runtime::ns;

/// Time that segments may take to be measured: enough for a stable median on
/// a slow board, short enough to answer while the user waits.
const PROFILE_TIME: Duration = Duration::from_secs(4);

/// What is measured.
pub struct Work<'a> {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The prepared model.
    pub model: &'a Model,
    /// Its manifest: the candidate cuts.
    pub manifest: &'a Manifest,
    /// A sample of every input.
    pub inputs: &'a [(String, Tensor)],
}

/// How a model is measured.
pub struct Measuring {
    /// How sessions are loaded.
    pub load: LoadOptions,
    /// Stands for a device so many times slower.
    pub slowdown: f64,
    /// Who hears of progress.
    pub progress: ProgressListener,
    /// Ends it, and it fails.
    pub stop: Stop,
}

/// Measures a model. Blocks for some seconds.
///
/// # Errors
/// When the engine takes neither the model nor its parts, or not in time.
pub fn measure(work: &Work<'_>, how: Measuring) -> Result<ModelProfile, EngineError> {
    let _turn = turn();
    let Measuring { load, slowdown, progress, stop } = how;
    let digest = work.manifest.digest.clone();
    let options = ProfileOptions { digest, load, budget: PROFILE_TIME, progress, stop, ..ProfileOptions::default() };
    let (engine, cuts, inputs) = (work.engine.as_ref(), &work.manifest.cuts, work.inputs);
    let measured = match work.manifest.exits.as_ref().map(|exits| &exits.stated) {
        None => profile(engine, work.model, cuts, inputs, &options, &mut CodecMeter)?,
        Some(exits) => {
            let trunk = exits.trunk(work.model).map_err(|e| EngineError::Prepare { reason: e.to_string() })?;
            let of_trunk = profile(engine, &trunk, cuts, inputs, &options, &mut CodecMeter)?;
            let head_ns = heads(engine, work.model, exits, cuts, inputs, &options)?;
            ModelProfile { head_ns, ..of_trunk }
        }
    };
    Ok(if slowdown > 1.0 { slowed(measured, slowdown) } else { measured })
}

/// A turn is waited for no longer than this: some nodes' worth of measuring.
/// Better a profile that others blurred than none.
const TURN_TIME_MAX: Duration = Duration::from_secs(60);

/// Nodes of one user on one device measure one after the other: side by side
/// each would measure the others. Without a turn they measure all the same.
fn turn() -> Option<std::fs::File> {
    wait_for(&own_folder()?.join("profile.lock"), TURN_TIME_MAX)
}

fn wait_for(lock: &Path, patience: Duration) -> Option<std::fs::File> {
    const AGAIN: Duration = Duration::from_millis(50);
    let file = disk::open_private(lock).ok()?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < patience => std::thread::sleep(AGAIN),
            Err(_) => return None,
        }
    }
}

/// A folder for what this user's processes agree on until the device restarts.
/// Nobody else may be able to open it: who could, could hold the lock.
fn own_folder() -> Option<PathBuf> {
    let own = rustix::process::geteuid().as_raw();
    let given = std::env::var_os("XDG_RUNTIME_DIR").filter(|given| !given.is_empty()).map(PathBuf::from);
    let folder = match given {
        Some(given) => given.join("tierline"),
        None => std::env::temp_dir().join(format!("tierline-{own}")),
    };
    disk::create_private_folder(&folder).ok()?;
    is_own(&folder, own).then_some(folder)
}

/// Whether a folder is one, this user's, and closed to others. In a place that
/// all write to, somebody else may have made it first, or a link.
fn is_own(folder: &Path, own: u32) -> bool {
    let found = std::fs::symlink_metadata(folder);
    found.is_ok_and(|meta| meta.is_dir() && meta.uid() == own && meta.mode() & 0o077 == 0)
}

/// Bytes of a made-up input at most: what a request could bring as well.
pub const SAMPLE_BYTES_MAX: u64 = 512 << 20;

/// Elements of an input of this shape, if a sample of it may be made up.
fn sample_elements(dtype: DataType, shape: &[u64]) -> Result<usize, String> {
    let width = dtype.size().unwrap_or(1) as u64;
    let bytes = shape.iter().try_fold(width, |n, d| n.checked_mul(*d)).filter(|bytes| *bytes <= SAMPLE_BYTES_MAX);
    bytes.map(|bytes| (bytes / width) as usize).ok_or_else(|| {
        format!("an input of shape {shape:?} is too large to be measured with: {SAMPLE_BYTES_MAX} bytes at most")
    })
}

/// A tensor of seeded noise for profiling: floats in -1..1, small integers.
///
/// # Errors
/// When it would exceed [`SAMPLE_BYTES_MAX`], or the type has no noise.
pub fn synthetic(dtype: DataType, shape: &[u64]) -> Result<Tensor, String> {
    let len = sample_elements(dtype, shape)?;
    let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
    let invalid = |e: &dyn std::fmt::Display| e.to_string();
    let mut rng = fastrand::Rng::with_seed(7);
    let elements = match dtype {
        DataType::F32 => Elements::F32((0..len).map(|_| rng.f32() * 2.0 - 1.0).collect()),
        DataType::F64 => Elements::F64((0..len).map(|_| rng.f64() * 2.0 - 1.0).collect()),
        DataType::F16 => Elements::F16((0..len).map(|_| half::f16::from_f32(rng.f32() * 2.0 - 1.0)).collect()),
        // Ones are valid token ids, masks and lengths alike.
        DataType::I64 => Elements::I64(vec![1; len]),
        DataType::I32 => Elements::I32(vec![1; len]),
        DataType::Bool => Elements::Bool(vec![1; len]),
        DataType::U8 => Elements::U8((0..len).map(|_| rng.u8(..)).collect()),
        DataType::I8 => Elements::I8((0..len).map(|_| rng.i8(..)).collect()),
        other => return Err(format!("no sample can be made up for {other} inputs; give one with --sample")),
    };
    Tensor::new(shape, elements).map_err(|e| invalid(&e))
}

/// The profile of this device slowed by a stated factor.
#[must_use]
pub fn slowed(profile: ModelProfile, factor: f64) -> ModelProfile {
    let model = profile.model.clone();
    let device = DeviceProfile {
        device: String::new(),
        engine: String::new(),
        threads: 0,
        scale: 1.0,
        models: BTreeMap::from([(model.clone(), profile.clone())]),
    };
    let mut slow = device.scaled("", factor).models.remove(&model).unwrap_or_else(|| profile.clone());
    // The slowdown stretches what the engine computes; codecs run at full speed.
    for (to, from) in slow.cuts.iter_mut().chain([&mut slow.input]).zip(profile.cuts.iter().chain([&profile.input])) {
        to.clone_from(from);
    }
    slow
}

/// Measures codecs on the tensors of cuts: bytes, times, and the error that
/// they cause in the model's outputs.
#[derive(Debug, Default)]
pub struct CodecMeter;

/// Repetitions of a codec; the quickest counts.
const CODEC_RUNS: usize = 3;

impl CodecProbe for CodecMeter {
    fn probe(
        &mut self,
        _tensor: &str,
        value: &Tensor,
        run_suffix: &mut dyn FnMut(&Tensor) -> Result<Vec<Tensor>, EngineError>,
    ) -> Vec<CodecProfile> {
        let exact = run_suffix(value).ok();
        let usable = tierline_codec::codecs().iter().filter(|codec| codec.accepts(value.dtype()));
        usable
            .filter_map(|codec| {
                let (mut data, mut encode, mut decode, mut back) = (Vec::new(), Duration::MAX, Duration::MAX, None);
                for _ in 0..CODEC_RUNS {
                    data.clear();
                    let started = Instant::now();
                    codec.encode(value, &mut data).ok()?;
                    encode = encode.min(started.elapsed());
                    let started = Instant::now();
                    back = Some(codec.decode(&data).ok()?);
                    decode = decode.min(started.elapsed());
                }
                let loss = if codec.lossless() {
                    0.0
                } else {
                    // A loss that can't be measured counts as total.
                    let changed = run_suffix(&back?).ok();
                    exact.as_ref().zip(changed.as_ref()).map_or(1.0, |(a, b)| difference(a, b))
                };
                Some(CodecProfile {
                    codec: codec.name().to_owned(),
                    bytes: data.len() as u64,
                    encode_ns: ns(encode),
                    decode_ns: ns(decode),
                    loss,
                })
            })
            .collect()
    }
}

/// Root mean square of the difference over that of `exact`, the worst output.
fn difference(exact: &[Tensor], changed: &[Tensor]) -> f64 {
    let of = |(a, b): (&Tensor, &Tensor)| {
        let (Elements::F32(a), Elements::F32(b)) = (a.elements(), b.elements()) else {
            return f64::from(u8::from(a != b));
        };
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = a.iter().zip(b).map(|(x, y)| square(x - y)).sum();
        let size: f64 = a.iter().map(|x| square(*x)).sum();
        if error == 0.0 { 0.0 } else { (error / size.max(f64::MIN_POSITIVE)).sqrt() }
    };
    exact.iter().zip(changed).map(of).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_a_limit() {
        assert_eq!(synthetic(DataType::F32, &[2, 3]).map(|t| t.len()), Ok(6));
        assert_eq!(synthetic(DataType::F32, &[2, 0]).map(|t| t.len()), Ok(0));
        for shape in [&[100_000_000_000][..], &[u64::MAX, 2], &[1 << 20, 1 << 8]] {
            let error = synthetic(DataType::F32, shape).expect_err("too large");
            assert!(error.contains("too large to be measured with"), "{error}");
        }
    }

    #[test]
    fn a_turn_that_never_ends_holds_nobody_up_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("profile.lock");
        let held = wait_for(&lock, Duration::ZERO).expect("it is free");
        assert!(wait_for(&lock, Duration::from_millis(120)).is_none());
        drop(held);
        assert!(wait_for(&lock, Duration::ZERO).is_some());
    }

    #[test]
    fn a_folder_that_others_made_or_may_open_is_not_ours() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(is_own(folder.path(), own) && !is_own(folder.path(), own + 1));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        assert!(!is_own(&link, own));
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        assert!(!is_own(folder.path(), own));
    }
}
