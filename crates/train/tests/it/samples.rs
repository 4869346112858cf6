//! A small data set of every format, as real bytes on a disk.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::{Compression, write::GzEncoder};
use image::{DynamicImage, ImageFormat, RgbImage};
use parquet::basic::Compression as Packing;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use tierline_codec::npy;
use tierline_graph::{Elements, Tensor};
use tierline_train::data::{DataError, Dataset, Source};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A data set on disk, and the files it is read from.
pub struct Sample {
    pub name: &'static str,
    pub source: Source,
    pub files: Vec<PathBuf>,
}

/// A source from its JSON, with `$` for the folder.
pub fn source(folder: &Path, json: &str) -> Source {
    serde_json::from_str(&json.replace('$', folder.to_str().unwrap())).unwrap()
}

/// What comes of reading a source, given as [`source`] takes it.
pub fn load(folder: &Path, json: &str) -> Result<Dataset, DataError> {
    source(folder, json).load()
}

/// The error's words.
pub fn refusal(folder: &Path, json: &str) -> String {
    load(folder, json).map(|d| d.len()).unwrap_err().to_string()
}

pub fn write(path: PathBuf, bytes: &[u8]) -> PathBuf {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

pub fn idx(code: u8, shape: &[u32], body: &[u8]) -> Vec<u8> {
    let sizes = shape.iter().flat_map(|size| size.to_be_bytes());
    [0, 0, code, shape.len() as u8].into_iter().chain(sizes).chain(body.iter().copied()).collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn npz(arrays: &[(&str, Tensor)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, tensor) in arrays {
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        writer.start_file(format!("{name}.npy"), options).unwrap();
        writer.write_all(&npy::write(tensor).unwrap()).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Bytes 0, 1, 2 and on, as a tensor.
pub fn counting(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::new(shape, Elements::U8((0..count).map(|i| i as u8).collect())).unwrap()
}

pub fn labels(of_each: &[i64]) -> Tensor {
    Tensor::new([of_each.len()], Elements::I64(of_each.to_vec())).unwrap()
}

/// A picture of one colour.
pub fn picture(format: ImageFormat, height: u32, width: u32, color: [u8; 3]) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(RgbImage::from_pixel(width, height, image::Rgb(color))).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Three columns: a number, a list of two, a label.
pub fn parquet(rows: &[(f64, [f64; 2], i64)], packing: Packing) -> Vec<u8> {
    let schema = "message m {
        REQUIRED DOUBLE size;
        REQUIRED GROUP place (LIST) { REPEATED GROUP list { REQUIRED DOUBLE element; } }
        REQUIRED INT64 label;
    }";
    // Zstandard with the second version of pages, the others with the first.
    let version = match packing {
        Packing::ZSTD(_) => WriterVersion::PARQUET_2_0,
        _ => WriterVersion::PARQUET_1_0,
    };
    let properties = WriterProperties::builder().set_compression(packing).set_writer_version(version).build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let sizes: Vec<f64> = rows.iter().map(|row| row.0).collect();
    let places: Vec<f64> = rows.iter().flat_map(|row| row.1).collect();
    let labels: Vec<i64> = rows.iter().map(|row| row.2).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(&sizes, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let repeats: Vec<i16> = (0..places.len()).map(|i| i as i16 % 2).collect();
    column.typed::<DoubleType>().write_batch(&places, Some(&vec![1; places.len()]), Some(&repeats)).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&labels, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.into_inner().unwrap()
}

/// Pictures in a group with a field `bytes`, and a text label; all of them
/// optional, as data frames write them.
pub fn parquet_pictures(rows: &[(Vec<u8>, Option<&str>)]) -> Vec<u8> {
    let schema = "message m {
        OPTIONAL GROUP image { OPTIONAL BYTE_ARRAY bytes; OPTIONAL BYTE_ARRAY path (UTF8); }
        OPTIONAL BYTE_ARRAY label (UTF8);
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    // Without a dictionary for pictures, with one for texts: both are read.
    let properties = WriterProperties::builder().set_column_dictionary_enabled("image.bytes".into(), false).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let pictures: Vec<ByteArray> = rows.iter().map(|row| row.0.clone().into()).collect();
    let labels: Vec<ByteArray> = rows.iter().filter_map(|row| Some(row.1?.into())).collect();
    let present = rows.iter().map(|row| i16::from(row.1.is_some())).collect();
    for (values, levels) in [(pictures, vec![2; rows.len()]), (vec![], vec![1; rows.len()]), (labels, present)] {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.into_inner().unwrap()
}

/// Every format, below `folder`; each of six examples at least, in classes.
pub fn samples(folder: &Path) -> Vec<Sample> {
    let sample = |name, json: &str, files: Vec<PathBuf>| Sample { name, source: source(folder, json), files };
    let images = idx(8, &[6, 4, 5], &(0..120).collect::<Vec<u8>>());
    let classes = idx(8, &[6], &[0, 1, 2, 0, 1, 2]);
    let array = npy::write(&counting(&[6, 3, 4, 4])).unwrap();
    let truth = npy::write(&labels(&[0, 1, 2, 0, 1, 2])).unwrap();
    let archive = npz(&[
        ("x_train", counting(&[6, 5, 5, 3])),
        ("y_train", labels(&[2, 1, 0, 2, 1, 0])),
        ("x_test", counting(&[2, 5, 5, 3])),
        ("y_test", labels(&[1, 1])),
    ]);
    let table = b"user,size,weight,species\nann,1,2.5,cat\nbob,3,4,dog\nann,5,6e0,cat\nbob,-1,0,dog\ncid,1,1,emu\ncid,2,2,emu\n";
    let rows: Vec<_> = (0..6).map(|i| (i as f64, [i as f64 * 0.5, 1.0], i % 3)).collect();
    let mut pictures = Vec::new();
    for (class, color) in [("blue", [0, 0, 255]), ("red", [255, 0, 0])] {
        for (index, format) in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Png].into_iter().enumerate() {
            let extension = format.extensions_str()[0];
            let path = folder.join(format!("pictures/{class}/{index}.{extension}"));
            pictures.push(write(path, &picture(format, 8, 6, color)));
        }
    }
    let hub: Vec<_> = (0..6)
        .map(|i| (picture(ImageFormat::Png, 3, 2, [i * 40, 0, 0]), Some(if i < 3 { "dark" } else { "light" })))
        .collect();
    let path = |name: &str| folder.join(name);
    vec![
        sample(
            "idx",
            r#"{"format": "idx", "images": "$/i", "labels": "$/l"}"#,
            vec![write(path("i"), &images), write(path("l"), &classes)],
        ),
        sample(
            "idx.gz",
            r#"{"format": "idx", "images": "$/i.gz", "labels": "$/l.gz"}"#,
            vec![write(path("i.gz"), &gzip(&images)), write(path("l.gz"), &gzip(&classes))],
        ),
        sample(
            "npy",
            r#"{"format": "npy", "features": "$/x.npy", "labels": "$/y.npy"}"#,
            vec![write(path("x.npy"), &array), write(path("y.npy"), &truth)],
        ),
        sample("npz", r#"{"format": "npz", "path": "$/a.npz"}"#, vec![write(path("a.npz"), &archive)]),
        sample(
            "csv",
            r#"{"format": "csv", "path": "$/t.csv", "label": "species", "group": "user"}"#,
            vec![write(path("t.csv"), table)],
        ),
        sample("folder", r#"{"format": "folder", "path": "$/pictures"}"#, pictures),
        sample(
            "parquet",
            r#"{"format": "parquet", "path": "$/plain.parquet"}"#,
            vec![write(path("plain.parquet"), &parquet(&rows, Packing::UNCOMPRESSED))],
        ),
        sample(
            "parquet, snappy",
            r#"{"format": "parquet", "path": "$/snappy.parquet"}"#,
            vec![write(path("snappy.parquet"), &parquet(&rows, Packing::SNAPPY))],
        ),
        sample(
            "parquet, zstd",
            r#"{"format": "parquet", "path": "$/zstd.parquet"}"#,
            vec![write(path("zstd.parquet"), &parquet(&rows, Packing::ZSTD(Default::default())))],
        ),
        sample(
            "parquet of pictures",
            r#"{"format": "parquet", "path": "$/hub.parquet", "pictures": {"color": "grey"}}"#,
            vec![write(path("hub.parquet"), &parquet_pictures(&hub))],
        ),
    ]
}
