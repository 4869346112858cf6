//! Finds the engines of this machine and chooses one.
//!
//! Order: the library named by the caller, `ORT_DYLIB_PATH`, the caller's
//! folders, folders of Python packages, the system's library folders. rten
//! is what remains.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::error::EngineError;
use crate::{Engine, ort, rten};

/// Which engine is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// ONNX Runtime where it is found, else rten.
    #[default]
    Auto,
    /// ONNX Runtime; rten only stands in, and `Discovered` says why.
    OnnxRuntime,
    /// rten, without looking for anything else.
    Rten,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "onnxruntime" => Ok(Self::OnnxRuntime),
            "rten" => Ok(Self::Rten),
            other => Err(format!("no engine `{other}`; choose auto, onnxruntime or rten")),
        }
    }
}

/// Where to look for ONNX Runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Which engine is wanted.
    pub choice: Choice,
    /// The library, or its folder, as configured.
    pub library: Option<PathBuf>,
    /// Whether `ORT_DYLIB_PATH` counts.
    pub environment: bool,
    /// More folders, such as the node's data folder.
    pub folders: Vec<PathBuf>,
    /// Whether to look among Python packages and in the system's folders.
    pub system: bool,
}

impl Default for Search {
    fn default() -> Self {
        Self { choice: Choice::Auto, library: None, environment: true, folders: Vec::new(), system: true }
    }
}

/// What became of one candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CandidateState {
    /// It runs the models.
    Chosen,
    /// It would work, but another was preferred.
    Passed,
    /// It can't be used, and why.
    Rejected(String),
}

/// One candidate, for `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// `onnxruntime` or `rten`.
    pub engine: &'static str,
    /// What pointed to it: `configuration`, `ORT_DYLIB_PATH`, `folder`,
    /// `python package`, `system`, `built in`.
    pub origin: &'static str,
    /// The library, if it is a file.
    pub path: Option<PathBuf>,
    /// What became of it.
    pub state: CandidateState,
}

/// The engine chosen, and every candidate with what became of it.
pub struct Discovered {
    /// The engine to use.
    pub engine: Arc<dyn Engine>,
    /// Its library; `None` for the embedded engine.
    pub library: Option<PathBuf>,
    /// Every candidate, in the order tried.
    pub considered: Vec<Considered>,
    /// Whether the engine is another than `Search::choice` asked for.
    pub fallback: bool,
}

impl std::fmt::Debug for Discovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovered")
            .field("engine", &self.engine.name())
            .field("version", &self.engine.version())
            .field("library", &self.library)
            .field("considered", &self.considered)
            .finish_non_exhaustive()
    }
}

/// Chooses an engine; there always is one.
#[must_use]
pub fn discover(search: &Search) -> Discovered {
    let mut considered = Vec::new();
    let mut found: Option<(Arc<dyn Engine>, PathBuf)> = None;
    if search.choice != Choice::Rten {
        for (origin, path) in candidates(search) {
            let state = match &found {
                Some(_) => CandidateState::Passed,
                None => match ort::engine(&path) {
                    Ok(engine) => {
                        found = Some((engine, path.clone()));
                        CandidateState::Chosen
                    }
                    Err(e) => CandidateState::Rejected(e.to_string()),
                },
            };
            considered.push(Considered { engine: ort::NAME, origin, path: Some(path), state });
        }
        if considered.is_empty() {
            let reason = EngineError::LibraryMissing { tried: places(search) }.to_string();
            let state = CandidateState::Rejected(reason);
            considered.push(Considered { engine: ort::NAME, origin: "search", path: None, state });
        }
    }
    let state = if found.is_some() { CandidateState::Passed } else { CandidateState::Chosen };
    considered.push(Considered { engine: rten::NAME, origin: "built in", path: None, state });
    let fallback = found.is_none() && search.choice == Choice::OnnxRuntime;
    let (engine, library) = match found {
        Some((engine, path)) => (engine, Some(path)),
        None => (crate::rten(), None),
    };
    Discovered { engine, library, considered, fallback }
}

/// ONNX Runtime from the first usable candidate.
pub(crate) fn onnxruntime(search: &Search) -> Result<Arc<dyn Engine>, EngineError> {
    if let Some(path) = ort::loaded() {
        return ort::engine(&path);
    }
    let mut first = None;
    for (_, path) in candidates(search) {
        match ort::engine(&path) {
            Ok(engine) => return Ok(engine),
            // The first is the one most wanted.
            Err(e) => first = first.or(Some(e)),
        }
    }
    Err(first.unwrap_or_else(|| EngineError::LibraryMissing { tried: places(search) }))
}

/// Libraries to try, most wanted first, each once.
fn candidates(search: &Search) -> Vec<(&'static str, PathBuf)> {
    let mut all = Vec::new();
    // Named outright: kept even when missing, so that the reason is told.
    let named = search.library.clone().map(|p| ("configuration", p));
    let variable = search.environment.then(|| std::env::var_os("ORT_DYLIB_PATH")).flatten();
    let variable = variable.filter(|v| !v.is_empty()).map(|v| ("ORT_DYLIB_PATH", PathBuf::from(v)));
    for (origin, path) in named.into_iter().chain(variable) {
        let inside = if path.is_dir() { in_folder(&path) } else { Vec::new() };
        if inside.is_empty() {
            all.push((origin, path));
        } else {
            all.extend(inside.into_iter().map(|p| (origin, p)));
        }
    }
    for (origin, folder) in folders(search) {
        all.extend(in_folder(&folder).into_iter().map(|p| (origin, p)));
    }
    let mut seen = HashSet::new();
    all.retain(|(_, path)| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
    all
}

fn places(search: &Search) -> Vec<PathBuf> {
    let folders = folders(search).into_iter().map(|(_, f)| f);
    search.library.clone().into_iter().chain(folders.filter(|f| f.is_dir())).collect()
}

fn folders(search: &Search) -> Vec<(&'static str, PathBuf)> {
    let mut folders: Vec<_> = search.folders.iter().map(|f| ("folder", f.clone())).collect();
    if !search.system {
        return folders;
    }
    for prefix in prefixes() {
        for python in entries(&prefix.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                folders.push(("python package", python.join(packages).join("onnxruntime").join("capi")));
            }
        }
    }
    let variable = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&variable).filter(|p| !p.as_os_str().is_empty()).map(|p| ("system", p)));
    let fixed = [
        "/usr/local/lib",
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/opt/onnxruntime/lib",
        "/opt/homebrew/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib/arm-linux-gnueabihf",
        "/usr/lib/riscv64-linux-gnu",
    ];
    folders.extend(fixed.iter().map(|p| ("system", PathBuf::from(p))));
    folders
}

/// Where Python keeps packages, the environment in use first: `pip install`
/// puts them into the one whose `python3` is found first.
fn prefixes() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect();
    for folder in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        // Links lead from a folder of programs to the installation.
        let python = folder.join("python3").canonicalize().ok().filter(|python| python.is_file());
        prefixes.extend(python.and_then(|python| Some(python.parent()?.parent()?.to_owned())));
        prefixes.extend(folder.parent().filter(|_| folder.join("python3").exists()).map(Path::to_owned));
    }
    prefixes.extend(home.as_ref().map(|home| home.join(".local")));
    // Its `python3` is a script that says which installation is in use.
    let pyenv = variable("PYENV_ROOT").or_else(|| Some(home?.join(".pyenv")));
    let mut versions = pyenv.map_or_else(Vec::new, |root| entries(&root.join("versions"), ""));
    versions.reverse();
    prefixes.extend(versions);
    prefixes.extend([PathBuf::from("/usr/local"), PathBuf::from("/usr")]);
    let mut seen = HashSet::new();
    prefixes.retain(|prefix| seen.insert(prefix.clone()));
    prefixes
}

/// ONNX Runtime libraries directly in `folder`, newest version first.
pub(crate) fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let name = format!("{}onnxruntime", std::env::consts::DLL_PREFIX);
    let mut found: Vec<PathBuf> = entries(folder, &name)
        .into_iter()
        .filter(|p| {
            // `.so`, `.so.1.32.0`, `.1.32.0.dylib`, `.dll`; not `_providers_*`.
            let rest = p.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(&name));
            rest.is_some_and(|r| r.starts_with('.') && r.contains(std::env::consts::DLL_SUFFIX)) && p.is_file()
        })
        .collect();
    found.sort_by_key(|p| std::cmp::Reverse(numbers(p)));
    found
}

fn numbers(path: &Path) -> Vec<u32> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(listed) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = listed
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(prefix)))
        .collect();
    found.sort();
    found
}
