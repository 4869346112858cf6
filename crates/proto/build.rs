//! Generates messages and services from `proto/tierline.proto`, in pure Rust.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/tierline.proto");
    let descriptors = protox::compile(["proto/tierline.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Payloads stay slices of the buffer they arrived in.
        .bytes(".")
        // The file above is all there is to watch.
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
