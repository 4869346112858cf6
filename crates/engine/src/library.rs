//! Looks at an ONNX Runtime library before anything trusts it.
//!
//! The one place with unsafe code: loading a shared library and asking it for
//! its version. A file that is no whole library is refused before the system's
//! loader sees it, since mapping a truncated file can kill the process.

use std::ffi::{CStr, c_char};
use std::path::Path;

/// The oldest ONNX Runtime whose interface the bindings know (1.x).
pub(crate) const MINOR_MIN: u32 = ort::MINOR_VERSION;

/// The first members of the structure that `OrtGetApiBase` returns.
#[repr(C)]
struct ApiBase {
    get_api: unsafe extern "system" fn(u32) -> *const std::ffi::c_void,
    get_version_string: unsafe extern "system" fn() -> *const c_char,
}

/// The library's version, such as `1.32.0`, or why it can't be used.
pub(crate) fn version(path: &Path) -> Result<String, String> {
    whole(path)?;
    let version = ask(path)?;
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(1), Some(minor)) if minor >= MINOR_MIN => Ok(version),
        _ => Err(format!("its version is {version}; 1.{MINOR_MIN} or newer 1.x is needed")),
    }
}

#[allow(unsafe_code)]
fn ask(path: &Path) -> Result<String, String> {
    // SAFETY: running a library's initialisers is what loading ONNX Runtime
    // means; the operator named the file or put it where libraries are.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| format!("it does not load ({e})"))?;
    // SAFETY: every ONNX Runtime exports this symbol with this type.
    let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const ApiBase>(b"OrtGetApiBase\0") }
        .map_err(|_| "it is not ONNX Runtime: it has no OrtGetApiBase".to_owned())?;
    // SAFETY: takes nothing, returns a pointer to a static of the library.
    let base = unsafe { entry().as_ref() }.ok_or("its OrtGetApiBase returns nothing")?;
    // SAFETY: the structure's first two members never changed since 1.0.
    let text = unsafe { (base.get_version_string)() };
    if text.is_null() {
        return Err("it states no version".to_owned());
    }
    // SAFETY: a static, NUL-terminated string of the library, which is still
    // loaded here.
    let version = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: takes a number; an unknown version gives null.
    let api = unsafe { (base.get_api)(MINOR_MIN) };
    // Older versions answer null, which the version check words better.
    if api.is_null() && version.split('.').nth(1).and_then(|m| m.parse().ok()).is_some_and(|m: u32| m >= MINOR_MIN) {
        return Err(format!("version {version} lacks interface {MINOR_MIN}"));
    }
    // Its threads and statics don't survive being unloaded and loaded again.
    std::mem::forget(library);
    Ok(version)
}

/// Refuses files that are no whole ELF file where libraries are ELF files.
fn whole(path: &Path) -> Result<(), String> {
    let len = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    let mut header = [0u8; 64];
    std::fs::File::open(path)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut header))
        .map_err(|e| format!("it is no library: {e}"))?;
    if &header[..4] != b"\x7fELF" {
        return Err("it is no library: it has no ELF header".to_owned());
    }
    let number =
        |at: usize, bytes: usize| header[at..at + bytes].iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    // 64-bit and 32-bit files keep the section table's place apart.
    let (offset, size, count) = match header[4] {
        2 => (number(40, 8), number(58, 2), number(60, 2)),
        _ => (number(32, 4), number(46, 2), number(48, 2)),
    };
    // The section table is the last thing in the file.
    if offset.saturating_add(size * count) > len {
        return Err(format!("it is cut short at {len} bytes; copy it again"));
    }
    Ok(())
}
