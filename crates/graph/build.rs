//! Generates the ONNX message types from `proto/onnx.proto`, in pure Rust.

fn main() {
    println!("cargo::rerun-if-changed=proto/onnx.proto");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("proto")
        .input("proto/onnx.proto")
        // Weights stay slices of the file they were read from.
        .customize(protobuf_codegen::Customize::default().tokio_bytes(true).lite_runtime(true))
        .cargo_out_dir("onnx")
        .run_from_script();
}
