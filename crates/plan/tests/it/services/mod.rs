//! Services: what is refused of a SERVICE.toml, and what is made of tensors,
//! held against what NumPy and ONNX Runtime make of them (`make.py`).

mod files;
mod tensors;
