//! Writes the Rust of the `.proto` files beside them, in pure Rust. With
//! `--check` it writes nothing and fails where something would change.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A file of messages, and what is made of it.
struct Source {
    proto: &'static str,
    rust: &'static str,
    generate: fn(proto: &Path, folder: &Path) -> Result<PathBuf>,
}

const SOURCES: [Source; 3] = [
    Source { proto: "crates/graph/proto/onnx.proto", rust: "crates/graph/src/onnx.rs", generate: onnx },
    Source { proto: "crates/proto/proto/tierline.proto", rust: "crates/proto/src/v1.rs", generate: tierline },
    Source {
        proto: "crates/proto/proto/open_inference.proto",
        rust: "crates/proto/src/oip/messages.rs",
        generate: open_inference,
    },
];

fn main() -> Result<()> {
    let check = std::env::args().any(|arg| arg == "--check");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no repository around this package")?;
    for source in &SOURCES {
        let proto = root.join(source.proto);
        let text = fs::read(&proto).with_context(|| format!("cannot read {}", source.proto))?;
        let folder = tempfile::tempdir()?;
        let made = (source.generate)(&proto, folder.path()).with_context(|| format!("generating {}", source.rust))?;
        let header = format!("// Written by `cargo xtask generate` from {} {:016x}.\n", source.proto, fnv(&text));
        let rust = header + &fs::read_to_string(made)?;
        let path = root.join(source.rust);
        let current = fs::read_to_string(&path).is_ok_and(|before| before == rust);
        if check && !current {
            bail!("{} is not what {} makes; run `cargo xtask generate`", source.rust, source.proto);
        }
        if !current {
            fs::write(&path, rust)?;
            println!("{}", source.rust);
        }
    }
    Ok(())
}

/// ONNX's messages.
fn onnx(proto: &Path, folder: &Path) -> Result<PathBuf> {
    protobuf_codegen::Codegen::new()
        .pure()
        .include(proto.parent().context("a folder")?)
        .input(proto)
        // Weights stay slices of the file they were read from.
        .customize(protobuf_codegen::Customize::default().tokio_bytes(true).lite_runtime(true))
        .out_dir(folder)
        .run()?;
    Ok(folder.join("onnx.rs"))
}

/// Tierline's messages and services.
fn tierline(proto: &Path, folder: &Path) -> Result<PathBuf> {
    grpc(proto, folder)?;
    Ok(folder.join("tierline.v1.rs"))
}

/// Those of the Open Inference Protocol.
fn open_inference(proto: &Path, folder: &Path) -> Result<PathBuf> {
    grpc(proto, folder)?;
    Ok(folder.join("inference.rs"))
}

fn grpc(proto: &Path, folder: &Path) -> Result<()> {
    let descriptors = protox::compile([proto], [proto.parent().context("a folder")?])?;
    tonic_prost_build::configure()
        // Payloads stay slices of the buffer they arrived in.
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(folder)
        .compile_fds(descriptors)?;
    Ok(())
}

/// FNV-1a (Fowler, Noll and Vo), 64 bits: tells one version of a file from
/// another. `xtask/tests/it/generated.rs` has the same.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
