//! NumPy files: what NumPy writes is read, and what is written is NumPy's.

use proptest::prelude::*;
use tierline_codec::npy::{NpyError, read, write};
use tierline_graph::{DataType, Elements, Tensor};

use crate::laws::tensors;

/// A file with this header and body.
fn file(version: u8, header: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    match version {
        1 => bytes.extend((header.len() as u16).to_le_bytes()),
        _ => bytes.extend((header.len() as u32).to_le_bytes()),
    }
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(tensor in tensors()) {
        match write(&tensor) {
            Ok(bytes) => {
                let got = read(&bytes).unwrap();
                prop_assert_eq!(got.shape(), tensor.shape());
                match tensor.elements() {
                    Elements::String(_) => prop_assert_eq!(&got, &tensor),
                    numbers => prop_assert_eq!(got.elements().as_bytes(), numbers.as_bytes()),
                }
                for length in 0..bytes.len() {
                    prop_assert!(read(&bytes[..length]).is_err() || tensor.is_empty(), "{length} of {}", bytes.len());
                }
            }
            Err(e) => prop_assert!(tensor.dtype() == DataType::BF16, "{e}"),
        }
    }
}

#[test]
fn orders_versions_and_byte_orders() {
    let expected = Tensor::new([2, 3], Elements::I16(vec![1, 2, 3, 4, 5, 6])).unwrap();
    let little: Vec<u8> = [1i16, 2, 3, 4, 5, 6].iter().flat_map(|v| v.to_le_bytes()).collect();
    let big: Vec<u8> = [1i16, 2, 3, 4, 5, 6].iter().flat_map(|v| v.to_be_bytes()).collect();
    let columns: Vec<u8> = [1i16, 4, 2, 5, 3, 6].iter().flat_map(|v| v.to_le_bytes()).collect();
    let header =
        |descr: &str, fortran: &str| format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': (2, 3), }}\n");
    for version in [1, 2, 3] {
        assert_eq!(read(&file(version, &header("<i2", "False"), &little)).unwrap(), expected);
        assert_eq!(read(&file(version, &header(">i2", "False"), &big)).unwrap(), expected);
        assert_eq!(read(&file(version, &header("<i2", "True"), &columns)).unwrap(), expected);
    }
}

#[test]
fn broken_files_say_what_is_wrong() {
    let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
    let error = |bytes: &[u8]| read(bytes).expect_err("it is broken").to_string();
    let cases = [
        (error(b"not numpy"), "not a NumPy file: the magic bytes are missing; write it with numpy.save"),
        (error(b"\x93NUMPY\x01\x00\xff\xff{"), "not a NumPy file: the header is cut short; write it with numpy.save"),
        (error(&file(4, good, &[0; 8])), "not a NumPy file: unknown version; write it with numpy.save"),
        (error(&file(1, good, &[0; 7])), "the file holds 7 bytes of elements; 8 were expected"),
        (error(&file(1, good, &[0; 9])), "the file holds 9 bytes of elements; 8 were expected"),
        (
            error(&file(1, &good.replace("<f4", "<c8"), &[0; 16])),
            "NumPy type `<c8` has no tensor type; convert it, for example with astype(numpy.float32)",
        ),
        (
            error(&file(1, &good.replace("(2,)", "(2"), &[0; 8])),
            "not a NumPy file: the header has no shape; write it with numpy.save",
        ),
        (error(&file(1, &good.replace("<f4", "|b1"), &[0, 7])), "byte 7 is no boolean; booleans are 0 or 1"),
    ];
    for (error, expected) in cases {
        assert_eq!(error, expected);
    }
    // Shapes that no memory holds, and strings that take no bytes.
    for shape in ["(99999999999999999999,)", "(4611686018427387904, 4611686018427387904)", "(536870913,)"] {
        assert!(read(&file(1, &good.replace("(2,)", shape), &[])).is_err(), "{shape}");
    }
    let deep = good.replace("(2,)", &format!("({})", "1, ".repeat(65)));
    assert!(error(&file(1, &deep, &[0; 4])).contains("more axes"));
    let empty = good.replace("<f4", "<U0").replace("(2,)", "(500000000,)");
    assert!(matches!(read(&file(1, &empty, &[])), Err(NpyError::Format(_))));
}

#[test]
fn empty_arrays_of_any_width() {
    for (descr, shape) in
        [("<U9999999999999999999", "(0, 300415,)"), ("<U0", "(0,)"), ("<f4", "(0, 9223372036854775807, 4)")]
    {
        let header = format!("{{'descr': '{descr}', 'fortran_order': True, 'shape': {shape}, }}");
        match read(&file(1, &header, &[])) {
            Ok(tensor) => assert!(tensor.is_empty()),
            Err(e) => panic!("{header}: {e}"),
        }
    }
}

#[test]
fn text_is_read_in_both_byte_orders() {
    let cells = |big: bool| -> Vec<u8> {
        ["é", "ab"]
            .iter()
            .flat_map(|s| {
                let mut codes: Vec<u32> = s.chars().map(u32::from).collect();
                codes.resize(2, 0);
                codes.into_iter().flat_map(move |c| if big { c.to_be_bytes() } else { c.to_le_bytes() })
            })
            .collect()
    };
    let expected = Tensor::new([2], Elements::String(vec!["é".to_owned(), "ab".to_owned()])).unwrap();
    for (descr, big) in [("<U2", false), (">U2", true)] {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2,), }}");
        assert_eq!(read(&file(1, &header, &cells(big))).unwrap(), expected);
    }
}
