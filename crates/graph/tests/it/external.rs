//! Weights in files beside the model: written, read, and never from elsewhere.

use std::path::Path;

use protobuf::Message;
use tierline_graph::onnx::{AttributeProto, ModelProto, StringStringEntryProto, TensorProto};
use tierline_graph::{LoadError, Model};

use crate::assets;
use crate::text::proto;

const MODEL: &str = "x: f32[1,32]\nw = f32[32,32]\ns = i64{1,32}\na = MatMul(x, w)\nb = Reshape(a, s)";

fn external(tensor: &mut TensorProto, location: &str, place: &[(&str, &str)]) {
    tensor.raw_data = None;
    tensor.data_location = Some(1);
    tensor.external_data = [("location", location)]
        .iter()
        .chain(place)
        .map(|(key, value)| StringStringEntryProto {
            key: Some((*key).to_owned()),
            value: Some((*value).to_owned()),
            ..StringStringEntryProto::default()
        })
        .collect();
}

/// Loads the model from `folder` with `w` at this location.
fn load_at(folder: &Path, location: &str, place: &[(&str, &str)]) -> Result<Model, LoadError> {
    let mut model = proto(MODEL);
    external(&mut model.graph.mut_or_insert_default().initializer[0], location, place);
    let path = folder.join("m.onnx");
    std::fs::write(&path, model.write_to_bytes().unwrap()).unwrap();
    Model::load(&path)
}

#[track_caller]
fn refused(result: Result<Model, LoadError>, why: &str) {
    let error = result.expect_err("it must be refused");
    assert!(matches!(&error, LoadError::External { tensor, .. } if tensor == "w"), "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

fn weights() -> Vec<u8> {
    (0..32 * 32).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

#[test]
fn weights_are_read_from_their_place() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    let mut bytes = vec![7; 100];
    bytes.extend(weights());
    bytes.extend([9; 50]);
    std::fs::write(folder.path().join("sub/w.bin"), &bytes).unwrap();
    std::fs::write(folder.path().join("plain.bin"), weights()).unwrap();
    let cases: [(&str, &[(&str, &str)]); 3] = [
        ("sub/w.bin", &[("offset", "100"), ("length", "4096")]),
        ("./sub/w.bin", &[("offset", "100"), ("length", "4096"), ("checksum", "unread")]),
        ("plain.bin", &[]),
    ];
    for (location, place) in cases {
        let model = load_at(folder.path(), location, place).unwrap();
        let weight = &model.graph().initializer[0];
        assert_eq!(weight.raw_data(), weights(), "{location}");
        assert!(weight.external_data.is_empty() && weight.data_location.is_none());
    }
}

#[test]
fn places_that_are_not_there_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("w.bin"), weights()).unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    let huge = u64::MAX.to_string();
    refused(load_at(folder.path(), "gone.bin", &[]), "cannot be found");
    refused(load_at(folder.path(), "folder", &[]), "not a plain file");
    refused(load_at(folder.path(), "w.bin", &[("offset", "1"), ("length", "4096")]), "outside the file's 4096");
    refused(load_at(folder.path(), "w.bin", &[("offset", &huge), ("length", &huge)]), "outside the file's 4096");
    refused(load_at(folder.path(), "w.bin", &[("offset", "-1")]), "offset `-1` is no number");
    refused(load_at(folder.path(), "w.bin", &[("length", "many")]), "length `many` is no number");
    // The file is there, but holds something else.
    let error = load_at(folder.path(), "w.bin", &[("length", "8")]).unwrap_err();
    assert_eq!(error.to_string(), "constant `w`: shape [32, 32] of f32 takes 4096 bytes; the file has 8");
}

#[test]
fn no_path_leads_out_of_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, weights()).unwrap();
    let folder = outside.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let absolute = secret.to_str().unwrap();
    for location in ["", "../secret", "sub/../../secret", "./../secret", absolute, "/etc/passwd"] {
        refused(load_at(&folder, location, &[]), "must be a plain path below the model's folder");
    }
}

#[cfg(unix)]
#[test]
fn no_link_leads_out_of_the_folder() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), weights()).unwrap();
    let folder = outside.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    symlink("../secret", folder.join("link")).unwrap();
    symlink(outside.path(), folder.join("up")).unwrap();
    refused(load_at(&folder, "link", &[]), "leads out of the model's folder");
    refused(load_at(&folder, "up/secret", &[]), "leads out of the model's folder");
    // Links within the folder are fine.
    std::fs::write(folder.join("w.bin"), weights()).unwrap();
    symlink("w.bin", folder.join("inner")).unwrap();
    load_at(&folder, "inner", &[]).unwrap();
}

/// Download caches keep a store of files, and a folder of links per revision.
#[cfg(unix)]
#[test]
fn a_linked_model_may_have_its_data_in_its_store() {
    use std::os::unix::fs::symlink;
    let cache = tempfile::tempdir().unwrap();
    let (store, revision) = (cache.path().join("blobs"), cache.path().join("revision"));
    std::fs::create_dir(&store).unwrap();
    std::fs::create_dir(&revision).unwrap();
    std::fs::write(store.join("2222"), weights()).unwrap();
    symlink("../blobs/2222", revision.join("w.bin")).unwrap();
    let mut model = proto(MODEL);
    external(&mut model.graph.mut_or_insert_default().initializer[0], "w.bin", &[]);
    std::fs::write(store.join("1111"), model.write_to_bytes().unwrap()).unwrap();
    symlink("../blobs/1111", revision.join("m.onnx")).unwrap();
    let model = Model::load(&revision.join("m.onnx")).unwrap();
    assert_eq!(model.graph().initializer[0].raw_data(), weights());
}

#[test]
fn bytes_without_files_are_refused_wherever_the_constant_hides() {
    let mut hidden =
        TensorProto { name: Some("w".to_owned()), dims: vec![1], data_type: Some(1), ..Default::default() };
    external(&mut hidden, "../secret", &[]);
    let mut attribute = AttributeProto::new();
    attribute.set_name("value".to_owned());
    attribute.t = Some(hidden.clone()).into();
    let places: [fn(&mut ModelProto, AttributeProto); 4] = [
        |m, a| m.graph.mut_or_insert_default().initializer[0] = a.t.unwrap(),
        |m, a| m.graph.mut_or_insert_default().node[0].attribute.push(a),
        |m, a| {
            let sparse = tierline_graph::onnx::SparseTensorProto { values: a.t, ..Default::default() };
            m.graph.mut_or_insert_default().sparse_initializer.push(sparse);
        },
        |m, a| {
            let function = tierline_graph::onnx::FunctionProto {
                domain: Some("local".to_owned()),
                attribute_proto: vec![a],
                ..Default::default()
            };
            m.functions.push(function);
        },
    ];
    let folder = tempfile::tempdir().unwrap();
    for place in places {
        let mut model = proto(MODEL);
        place(&mut model, attribute.clone());
        let bytes = model.write_to_bytes().unwrap();
        let error = Model::parse(bytes.clone().into()).unwrap_err();
        assert!(error.to_string().contains("give the path of the model file"), "{error}");
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, bytes).unwrap();
        refused(Model::load(&path), "must be a plain path");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Weights go beside the model when one file can't hold them; the limit of
/// 2 GiB is lowered so that the test needs no such model.
#[test]
fn large_models_are_saved_with_their_weights_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let mut model = proto(MODEL);
    let graph = model.graph.mut_or_insert_default();
    graph.initializer[0].set_raw_data(weights().into());
    // Numbers in the typed field are moved too.
    let typed = (0..512).map(|i| i as f32).collect();
    graph.initializer.push(TensorProto {
        name: Some("v".to_owned()),
        dims: vec![512],
        data_type: Some(1),
        float_data: typed,
        ..TensorProto::default()
    });
    let model = Model::from_proto(model).unwrap();

    model.save(&path).unwrap();
    assert_eq!(names(folder.path()), ["m.onnx"]);
    assert_eq!(Model::load(&path).unwrap(), model);

    model.save_within(&path, 2_000).unwrap();
    assert_eq!(names(folder.path()), ["m.onnx", "m.onnx.data"]);
    assert!(std::fs::metadata(&path).unwrap().len() <= 2_000);
    assert_eq!(std::fs::metadata(folder.path().join("m.onnx.data")).unwrap().len(), 4096 + 2048);
    let loaded = Model::load(&path).unwrap();
    let constants = |m: &Model| -> Vec<_> {
        let read = tierline_graph::constant::tensor_from_proto;
        m.graph().initializer.iter().map(|t| (t.name().to_owned(), read(t).unwrap())).collect()
    };
    assert_eq!(constants(&loaded), constants(&model));
    assert_eq!(loaded.graph().node, model.graph().node);

    // Again, over itself.
    loaded.save_within(&path, 2_000).unwrap();
    assert_eq!(constants(&Model::load(&path).unwrap()), constants(&model));
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let model = Model::from_proto(proto(MODEL)).unwrap();
    let error = model.save_within(&path, 10).unwrap_err();
    assert!(matches!(error, LoadError::TooLarge { max: 10, .. }), "{error}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
    let error = model.save(&folder.path().join("gone/m.onnx")).unwrap_err();
    assert!(matches!(error, LoadError::Write { .. }), "{error}");
}

/// A real model, over to external data and back.
#[test]
fn a_real_model_survives_external_data() {
    let Some(model) = assets::model("ppocr-cls") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cls.onnx");
    model.save_within(&path, 200_000).unwrap();
    assert_eq!(names(folder.path()), ["cls.onnx", "cls.onnx.data"]);
    let mut loaded = Model::load(&path).unwrap().proto().clone();
    let mut whole = model.proto().clone();
    // The same numbers may stand in typed fields or as raw bytes. This model
    // keeps its weights in Constant nodes.
    let values = |m: &mut ModelProto| -> Vec<_> {
        let graph = m.graph.mut_or_insert_default();
        let mut constants = std::mem::take(&mut graph.initializer);
        constants.extend(graph.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.t.take()));
        constants
            .iter()
            .map(|t| (t.name().to_owned(), tierline_graph::constant::tensor_from_proto(t).unwrap()))
            .collect()
    };
    assert_eq!(values(&mut loaded), values(&mut whole));
    assert_eq!(loaded, whole);
}

/// What no one file holds has a digest all the same. Zeros that nobody wrote
/// take no memory.
#[test]
fn more_than_one_file_holds_is_written_as_a_stream() {
    const ELEMENTS: usize = 560_000_000;
    let mut proto = proto(MODEL);
    let graph = proto.graph.mut_or_insert_default();
    graph.initializer.push(TensorProto {
        name: Some("large".to_owned()),
        dims: vec![ELEMENTS as i64],
        data_type: Some(1),
        raw_data: Some(vec![0; 4 * ELEMENTS].into()),
        ..TensorProto::default()
    });
    let model = Model::from_proto(proto).unwrap();
    assert!(matches!(model.to_bytes(), Err(LoadError::TooLarge { .. })));
    struct Count(u64);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    let told = model.write(&mut count).unwrap();
    assert!(told == count.0 && told > 4 * ELEMENTS as u64);
}
