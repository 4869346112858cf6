# Takes models, pictures and operator tests out of the fetched packages.
import glob, os, pathlib, shutil, sys, zipfile

root = pathlib.Path(sys.argv[1])
models, pictures, cases = root / "models", root / "pictures", root / "onnx-node-tests"
for folder in (models, pictures):
    folder.mkdir(exist_ok=True)

def wheel(name):
    return zipfile.ZipFile(glob.glob(str(root / "wheels" / (name + "-*.whl")))[0])

with wheel("rapidocr_onnxruntime") as archive:
    for source, target in (
        ("ch_PP-OCRv4_det_infer", "ppocr-det"),
        ("ch_PP-OCRv4_rec_infer", "ppocr-rec"),
        ("ch_ppocr_mobile_v2.0_cls_infer", "ppocr-cls"),
    ):
        (models / (target + ".onnx")).write_bytes(archive.read(f"rapidocr_onnxruntime/models/{source}.onnx"))
with wheel("scikit_image") as archive:
    for name in ("page.png", "text.png", "astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png"):
        (pictures / name).write_bytes(archive.read("skimage/data/" + name))

import onnx
import onnxruntime

data = pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data"
for light in (data / "light").glob("*.onnx"):
    shutil.copy(light, models / light.name.replace("light_", "light-"))

if (data / "node").is_dir():
    shutil.rmtree(cases, ignore_errors=True)
    shutil.copytree(data / "node", cases)
else:
    # Newer packages make the operator tests on demand instead of carrying them.
    import argparse
    import onnx.backend.test.case.node as node_tests
    import onnx.backend.test.cmd_tools as tools

    class Nodes:
        @staticmethod
        def collect_testcases():
            return node_tests.collect_testcases()

    tools.model_test = Nodes
    made = root / "onnx-generated"
    shutil.rmtree(made, ignore_errors=True)
    tools.generate_data(argparse.Namespace(output=str(made)))
    shutil.rmtree(cases, ignore_errors=True)
    os.rename(made / "node", cases)
    shutil.rmtree(made, ignore_errors=True)

library = sorted(glob.glob(str(pathlib.Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime.so*")) +
                 glob.glob(str(pathlib.Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime.*.dylib")))[0]
(root / "onnxruntime.path").write_text(library)
