"""The package at work: `python test_package.py MODEL.onnx INPUT SIZE` with the package on the path."""

import sys
import threading
import unittest

import numpy as np
import onnxruntime
import tierline
from tierline import _tensors

MODEL, INPUT, SIZE = sys.argv[1], sys.argv[2], int(sys.argv[3])


class Tensors(unittest.TestCase):
    def test_what_is_sent_is_what_comes_back(self):
        rng = np.random.default_rng(1)
        for name in ["bool", "uint8", "int16", "uint32", "int64", "float16", "float32", "float64"]:
            array = (rng.random((3, 4)) * 100).astype(name)
            back = _tensors.decode(_tensors.encode(array), _tensors.datatype(array), [3, 4])
            np.testing.assert_array_equal(array, back)
        for odd in [np.arange(12).reshape(3, 4).T, np.arange(12, dtype=">i4"), np.float32(2.5), np.zeros((0, 3))]:
            array = np.asarray(odd)
            back = _tensors.decode(_tensors.encode(array), _tensors.datatype(array), list(array.shape))
            np.testing.assert_array_equal(array, back)
        words = np.array([["one", ""], ["drei", "four\0"]], dtype=object)
        back = _tensors.decode(_tensors.encode(words), _tensors.datatype(words), [2, 2])
        self.assertEqual([[w.decode() for w in row] for row in back.tolist()], words.tolist())

    def test_bf16_comes_as_float32(self):
        numbers = np.array([1.0, -2.5, 0.0, np.inf], np.float32)
        halves = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        np.testing.assert_array_equal(_tensors.decode(halves.tobytes(), "BF16", [4]), numbers)

    def test_what_cannot_be_sent_is_refused(self):
        with self.assertRaisesRegex(TypeError, "complex64"):
            _tensors.datatype(np.zeros(1, np.complex64))


class Serving(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = tierline.serve({"net": MODEL}, threads=1)

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def test_values_are_those_of_onnxruntime(self):
        session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(2)
        with self.server.client() as client:
            self.assertTrue(client.is_ready() and client.is_ready("net"))
            self.assertFalse(client.is_ready("other"))
            self.assertIn("net", [model["name"] for model in client.models()])
            self.assertEqual(client.metadata("net")["inputs"][0]["name"], INPUT)
            for _ in range(3):
                given = rng.standard_normal((1, SIZE), dtype=np.float32)
                answer = client.infer("net", {INPUT: given}, deadline=20.0, tier="here")
                expected = session.run(None, {INPUT: given})
                self.assertEqual(list(answer), [output.name for output in session.get_outputs()])
                for name, value in zip(answer, expected):
                    np.testing.assert_allclose(answer[name], value, rtol=1e-4, atol=1e-5)
                self.assertFalse(answer.degraded)
                self.assertEqual(answer.exit, 0)

    def test_a_refusal_says_why_and_the_next_request_works(self):
        with self.server.client() as client:
            with self.assertRaises(tierline.Error) as refused:
                client.infer("other", {INPUT: np.zeros((1, SIZE), np.float32)})
            self.assertEqual(refused.exception.status, 404)
            kept = client._connection.sock
            self.assertIsNotNone(kept)
            with self.assertRaises(tierline.Error) as refused:
                client.infer("net", {"wrong": np.zeros((1, SIZE), np.float32)})
            self.assertEqual(refused.exception.status, 400)
            self.assertIn("wrong", str(refused.exception))
            self.assertEqual(len(client.infer("net", {INPUT: np.zeros((1, SIZE), np.float32)})), 1)
            self.assertIs(client._connection.sock, kept, "on the same connection")

    def test_threads_may_share_a_client(self):
        with self.server.client() as client:
            sums = {}

            def ask(value):
                answer = client.infer("net", {INPUT: np.full((1, SIZE), value, np.float32)})
                sums[value] = answer[next(iter(answer))]

            threads = [threading.Thread(target=ask, args=(value,)) for value in range(6)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            for value, got in sums.items():
                again = client.infer("net", {INPUT: np.full((1, SIZE), value, np.float32)})
                np.testing.assert_array_equal(got, again[next(iter(again))])
            self.assertEqual(len(sums), 6)

    def test_what_cannot_be_served_says_why(self):
        with self.assertRaisesRegex(RuntimeError, "nowhere.onnx"):
            tierline.serve("nowhere.onnx")
        with self.assertRaisesRegex(RuntimeError, "job"):
            tierline.train("no-job.toml")
        with self.assertRaises(ValueError):
            tierline.Client("ftp://somewhere")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
