"""nibble load-test against nibble's own server and against servers that misbehave.

Usage: load_test.py NIBBLE_BINARY SOURCE_DIR SHARED_DATA
"""
import http.server
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from serve_test import NIBBLE, STORIES, Server


def load_test(url, *options, status=0):
    """The document and what was printed."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "load.json"
        done = subprocess.run([NIBBLE, "load-test", url, "--quiet", "--output", str(output),
                               *map(str, options)], capture_output=True, text=True, timeout=120)
        assert done.returncode == status, (done.returncode, done.stderr)
        document = json.loads(output.read_text()) if output.exists() else None
        return document, done.stdout + done.stderr


@unittest.skipUnless(STORIES.is_dir(), "the reference model is absent")
class LoadTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(STORIES, "--max-sequences", 64)
        cls.url = f"http://127.0.0.1:{cls.server.port}"

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def test_closed_loop(self):
        before = self.server.metrics()["vllm:generation_tokens_total"]
        document, text = load_test(
            self.url, "--concurrency", "1,8", "--requests", 16, "--warmup", 2, "--input-length", 20,
            "--output-length", 12, "--slo-ttft-ms", 60000, "--slo-tpot-ms", 0)
        self.assertEqual(document["schema"], "nibble.load-test/1")
        self.assertEqual(document["model"], "stories260K")
        self.assertEqual([run["concurrency"] for run in document["runs"]], [1, 8])
        for run in document["runs"]:
            self.assertEqual((run["requests"], run["completed"], run["failures"]), (16, 16, {}))
            # Answers have their full length: the end of sequence does not end them.
            self.assertEqual(run["output_tokens"], 16 * 12)
            self.assertEqual(run["input_tokens"], 16 * 20)
            self.assertAlmostEqual(run["output_tokens_per_second"] * run["seconds"], 16 * 12,
                                   places=6)
            for key in ("time_to_first_token_ms", "time_per_output_token_ms", "end_to_end_ms"):
                latency = run[key]
                self.assertTrue(0 < latency["p50"] <= latency["p90"] <= latency["p99"]
                                <= latency["max"], latency)
            self.assertGreater(run["end_to_end_ms"]["p50"], run["time_to_first_token_ms"]["p50"])
            self.assertEqual(run["goodput_share"], 0)
        self.assertIn("8 clients", text)
        after = self.server.wait_idle()["vllm:generation_tokens_total"]
        self.assertEqual(after - before, 2 * 18 * 12)

    def test_poisson(self):
        document, _ = load_test(self.url, "--request-rates", "200", "--requests", 60,
                                "--input-length", 5, "--output-length", 5, "--slo-ttft-ms", 60000)
        [run] = document["runs"]
        self.assertEqual((run["request_rate"], run["completed"]), (200, 60))
        self.assertEqual(run["goodput_share"], 1)
        # The last request is sent after 60 / 200 s on average.
        self.assertGreater(run["seconds"], 0.1)

    def test_ends_after_its_seconds(self):
        start = time.monotonic()
        document, _ = load_test(self.url, "--concurrency", 4, "--seconds", 1, "--output-length", 5,
                                "--input-length", 5)
        self.assertLess(time.monotonic() - start, 30)
        self.assertGreater(document["runs"][0]["completed"], 4)

    def test_many_streams(self):
        document, _ = load_test(self.url, "--concurrency", 500, "--requests", 500, "--warmup", 0,
                                "--input-length", 8, "--output-length", 8)
        self.assertEqual(document["runs"][0]["completed"], 500)

    def test_texts_from_a_file(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("Once upon a time\n\nA cat \"sat\"\r\n")
            file.flush()
            document, _ = load_test(self.url, "--prompts", file.name, "--requests", 4,
                                    "--output-length", 4)
        self.assertIsNone(document["workload"]["input_length"])
        self.assertEqual(document["runs"][0]["completed"], 4)

    def test_wrong_usage(self):
        for options, status in ((("--concurrency", "0"), 2), (("--request-rates", "-1"), 2),
                                (("--concurrency", "1", "--request-rates", "1"), 2),
                                (("--output-length", "0"), 2)):
            load_test(self.url, *options, status=status)
        load_test("https://localhost", status=2)
        # Nobody listens there.
        _, text = load_test("http://127.0.0.1:1", status=3)
        self.assertIn("no connection", text)


class Unruly(http.server.ThreadingHTTPServer):
    """Answers each request in another way."""
    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), UnrulyHandler)
        self.lock = threading.Lock()
        self.count = 0


def chunk(text, **more):
    return b"data: " + json.dumps({"choices": [{"text": text}], **more}).encode() + b"\n\n"


class UnrulyHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            kind = self.server.count % 9
            self.server.count += 1
        if kind == 0:
            self.send_response(429)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if kind == 1:
            self.connection.close()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        parts = {2: [chunk("a")],  # no [DONE]
                 3: [chunk("a"), b"data: {nonsense\n\n", b"data: [DONE]\n\n"],
                 4: [b'data: {"error": {"message": "x"}}\n\n', b"data: [DONE]\n\n"],
                 5: [b"data: " + b"x" * (2 << 20)],
                 6: [b"data: [DONE]\n\n"],
                 # A server that counts nothing, in unusual pieces.
                 7: [b"data: {\"choices\": [{\"te", b"xt\": \"a\"}]}\r\n\r\n: note\r\n\r\n",
                     chunk("b") + chunk("c"), chunk(""), b"data: [DONE]\n\n"],
                 8: [chunk("a"), None]}[kind]
        try:
            for part in parts:
                if part is None:
                    time.sleep(4)
                else:
                    self.wfile.write(part)
                    self.wfile.flush()
                time.sleep(0.01)
        except OSError:
            pass
        self.close_connection = True


class FailureTest(unittest.TestCase):
    def test_failures_are_counted_by_kind(self):
        server = Unruly()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            document, text = load_test(
                f"http://127.0.0.1:{server.server_address[1]}/", "--model", "m", "--concurrency",
                3, "--requests", 18, "--warmup", 0, "--timeout", 1.5)
        finally:
            server.shutdown()
            server.server_close()
        [run] = document["runs"]
        self.assertEqual(run["failures"], {
            "HTTP 429": 2, "connection closed": 2, "ended without [DONE]": 2, "not JSON": 2,
            "error in the stream": 2, "an event too long": 2, "no tokens": 2, "timeout": 2})
        self.assertEqual((run["requests"], run["completed"]), (18, 2))
        self.assertEqual(run["output_tokens"], 6)
        self.assertIn("2 of 18 requests failed at 3 clients: HTTP 429", text)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
