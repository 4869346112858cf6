//! Processors on which products of bytes are summed in too few bits.
//!
//! Before there were instructions for it (VNNI), x86 adds two products of
//! unsigned and signed bytes in sixteen bits, and what doesn't fit is cut off:
//! of a model quantised to the full range the sums are wrong, up to half of
//! them, without a word. What is summed from numbers half as large fits.

/// Whether rten sums so: it uses VNNI with AVX-512 alone.
#[cfg(target_arch = "x86_64")]
pub(crate) fn in_rten() -> bool {
    !std::is_x86_feature_detected!("avx512vnni")
}

/// Whether ONNX Runtime does so where it isn't told otherwise.
#[cfg(target_arch = "x86_64")]
pub(crate) fn in_onnxruntime() -> bool {
    !std::is_x86_feature_detected!("avx512vnni") && !std::is_x86_feature_detected!("avxvnni")
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn in_rten() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn in_onnxruntime() -> bool {
    false
}
