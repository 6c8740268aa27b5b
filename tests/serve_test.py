"""The server through its sockets: answers, streams, many clients, bad clients, the end.

Usage: serve_test.py NIBBLE_BINARY SOURCE_DIR SHARED_DATA
"""
import concurrent.futures
import http.client
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import server_process
from server_process import PROMPT, received_before_the_cut

NIBBLE, SOURCE, SHARED = (pathlib.Path(p).resolve() for p in sys.argv[1:4])
STORIES = SHARED / "models" / "stories260K"
TEMPLATE = ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}")


class Server(server_process.Server):
    """Of the program under test."""

    def __init__(self, model, *options):
        super().__init__(NIBBLE, model, *options)


@unittest.skipUnless(STORIES.is_dir(), "the reference model is absent")
class StoriesTest(unittest.TestCase):
    """A server for all of a class's tests, and a directory."""

    @classmethod
    def options(cls):
        """Of the server, more than it always has; may put files into cls.dir."""
        return []

    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(tempfile.mkdtemp(prefix="nibble-serve-"))
        cls.model = cls.dir / "stories"
        shutil.copytree(STORIES, cls.model)
        (cls.model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
        cls.server = Server(cls.model, "--max-sequences", 16, *cls.options())

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        shutil.rmtree(cls.dir, ignore_errors=True)
        assert status == 0, f"the server ended with {status}"

    def tearDown(self):
        self.server.wait_idle()


class ServeTest(StoriesTest):
    def test_answers_small_questions(self):
        status, _, text = self.server.request("GET", "/health")
        self.assertEqual((status, json.loads(text)), (200, {"status": "ok"}))
        self.assertEqual(json.loads(self.server.request("GET", "/version")[2]).keys(), {"version"})
        _, _, text = self.server.request("GET", "/v1/models")
        self.assertEqual([m["id"] for m in json.loads(text)["data"]], ["stories"])
        status, headers, text = self.server.request("GET", "/metrics")
        self.assertEqual((status, headers["Content-Type"]), (200, "text/plain; version=0.0.4"))
        self.assertIn('vllm:num_requests_running{model_name="stories"} 0\n', text)
        self.assertIn("# TYPE vllm:e2e_request_latency_seconds histogram\n", text)

    def test_completes_as_the_command_line_does(self):
        answer = self.server.complete(model="stories", prompt=PROMPT, max_tokens=40, temperature=0)
        choice = answer["choices"][0]
        text = subprocess.run(
            [NIBBLE, "generate", str(self.model), "--prompt", PROMPT, "--max-tokens", "40",
             "--quiet"], capture_output=True, text=True, check=True).stdout
        self.assertEqual(choice["text"].strip(), text.strip())
        self.assertEqual(choice["text"][0], ",", "the text continues the prompt")
        self.assertEqual(choice["finish_reason"], "length")
        self.assertEqual(answer["usage"]["completion_tokens"], 40)

    def test_streams_what_it_answers(self):
        for body in ({"temperature": 0}, {"temperature": 1, "seed": 7}, {"n": 3, "seed": 1},
                     {"logprobs": 2, "seed": 3}, {"stop": [" the", "was a"], "temperature": 0},
                     {"frequency_penalty": 1, "min_p": 0.05, "seed": 2}, {"echo": True, "seed": 4},
                     {"echo": True, "logprobs": 1, "seed": 5, "max_tokens": 0}):
            body = {"prompt": PROMPT, "max_tokens": 60, **body}
            with self.subTest(body=body):
                whole = self.server.complete(**body)
                chunks = self.server.stream(**body, stream_options={"include_usage": True})
                self.assertEqual(chunks[-1]["choices"], [])
                self.assertEqual(chunks[-1]["usage"], whole["usage"])
                for choice in whole["choices"]:
                    parts = [c["choices"][0] for c in chunks[:-1]
                             if c["choices"][0]["index"] == choice["index"]]
                    self.assertEqual("".join(p["text"] for p in parts), choice["text"])
                    self.assertEqual(parts[-1]["finish_reason"], choice["finish_reason"])
                    self.assertTrue(all(p["finish_reason"] is None for p in parts[:-1]))
                    if "logprobs" in body:
                        for key, values in choice["logprobs"].items():
                            streamed = [v for p in parts for v in p["logprobs"][key]]
                            self.assertEqual(streamed, values)
                for stop in body.get("stop", []):
                    self.assertNotIn(stop, whole["choices"][0]["text"])
                    self.assertEqual(whole["choices"][0]["finish_reason"], "stop")

    def test_scores_prompts(self):
        """As lm-evaluation-harness asks: token ids, batches, echo, one new token."""
        ids = [1, 403, 407, 261, 378]
        answer = self.server.complete(prompt=[ids, ids[:3]], echo=True, max_tokens=1, logprobs=1,
                                      temperature=0)
        for prompt, choice in zip((ids, ids[:3]), answer["choices"]):
            logprobs = choice["logprobs"]
            self.assertEqual(len(logprobs["tokens"]), len(prompt) + 1)
            self.assertIsNone(logprobs["token_logprobs"][0])
            self.assertIsNone(logprobs["top_logprobs"][0])
            for i in range(1, len(prompt) + 1):
                value = logprobs["token_logprobs"][i]
                self.assertEqual(logprobs["top_logprobs"][i][logprobs["tokens"][i]], value)
                self.assertLessEqual(value, max(logprobs["top_logprobs"][i].values()))
        output = self.dir / "score.json"
        subprocess.run([NIBBLE, "score", str(self.model), "--token-ids", ",".join(map(str, ids)),
                        "--output", str(output), "--quiet"], check=True, capture_output=True)
        scored = [t["logprob"] for t in json.loads(output.read_text())["tokens"]]
        self.assertEqual(answer["choices"][0]["logprobs"]["token_logprobs"][:-1], scored)

    def test_chats(self):
        body = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 30,
                "seed": 3, "logprobs": True, "top_logprobs": 2}
        whole = self.server.complete("/v1/chat/completions", **body)
        choice = whole["choices"][0]
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertEqual(len(choice["logprobs"]["content"]), 30)
        chunks = [c["choices"][0] for c in self.server.stream("/v1/chat/completions", **body)]
        self.assertEqual(chunks[0]["delta"], {"role": "assistant", "content": ""})
        self.assertEqual("".join(c["delta"].get("content", "") for c in chunks),
                         choice["message"]["content"])
        prompt = "user: Tell me a story.\nassistant:"
        plain = self.server.complete(prompt=prompt, max_tokens=30, seed=3)
        # The template writes no BOS; the completion's tokenizer adds one.
        self.assertEqual(plain["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"] + 1)

    def test_concurrent_answers_are_their_own(self):
        bodies = [{"prompt": PROMPT[:4 + i % 12], "max_tokens": 20 + 3 * i, "seed": i}
                  for i in range(32)]
        alone = [self.server.complete(**body)["choices"] for body in bodies]
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            together = list(pool.map(lambda body: self.server.complete(**body)["choices"], bodies))
            streams = list(pool.map(lambda body: self.server.stream(**body), bodies))
        self.assertEqual(together, alone)
        for chunks, choices in zip(streams, alone):
            self.assertEqual("".join(c["choices"][0]["text"] for c in chunks), choices[0]["text"])

    def test_full_cache_preempts(self):
        server = Server(self.model, "--max-sequences", 16, "--kv-tokens", 512)
        try:
            bodies = [{"prompt": PROMPT, "max_tokens": 200, "seed": i, "logit_bias": {"2": -100}}
                      for i in range(8)]
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                together = list(pool.map(lambda b: server.complete(**b)["choices"], bodies))
            self.assertGreater(server.wait_idle()["vllm:num_preemptions_total"], 0)
            self.assertEqual(together, [self.server.complete(**b)["choices"] for b in bodies])
        finally:
            self.assertEqual(server.stop(), 0)

    def test_a_prompt_seen_before_is_not_computed_again(self):
        before = self.server.metrics()
        system = [5 + i * 7 % 400 for i in range(300)]
        answers = [self.server.complete(prompt=system + own, max_tokens=20, seed=1, n=2)
                   for own in ([1, 2, 3], [4, 5], [1, 2, 3])]
        cached = [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers]
        self.assertEqual(cached, [0, 288, 288])
        self.assertEqual(answers[2]["choices"], answers[0]["choices"])
        chunks = self.server.stream(prompt=system, max_tokens=2,
                                    stream_options={"include_usage": True})
        self.assertEqual(chunks[-1]["usage"]["prompt_tokens_details"], {"cached_tokens": 288})
        # A prompt whose scores are wanted is computed.
        scored = self.server.complete(prompt=system, max_tokens=1, echo=True, logprobs=1)
        self.assertEqual(scored["usage"]["prompt_tokens_details"], {"cached_tokens": 0})
        self.assertEqual(len(scored["choices"][0]["logprobs"]["tokens"]), 301)
        after = self.server.wait_idle()
        counts = [after[name] - before[name] for name in ("vllm:prefix_cache_queries_total",
                                                          "vllm:prefix_cache_hits_total")]
        self.assertEqual(counts, [2 * (303 + 302 + 303) + 300, 288 + 4 * 288 + 288])
        server = Server(self.model, "--no-prefix-cache", "--batch-invariant")
        try:
            for _ in range(2):
                answer = server.complete(prompt=system + [1, 2, 3], max_tokens=20, seed=1, n=2)
                self.assertEqual(answer["choices"], answers[0]["choices"])
                details = answer["usage"]["prompt_tokens_details"]
                self.assertEqual(details, {"cached_tokens": 0})
            self.assertEqual(server.wait_idle()["vllm:prefix_cache_queries_total"], 0)
        finally:
            self.assertEqual(server.stop(), 0)

    def test_tokenizes_as_vllm_does(self):
        def ask(path, body):
            status, _, text = self.server.request("POST", path, body)
            return status, json.loads(text)
        status, whole = ask("/tokenize", {"prompt": PROMPT, "return_token_strs": True})
        self.assertEqual(status, 200, whole)
        self.assertEqual(set(whole), {"count", "max_model_len", "tokens", "token_strs"})
        self.assertEqual((whole["count"], whole["max_model_len"]), (len(whole["tokens"]), 512))
        self.assertEqual(whole["token_strs"][0], "<s>")
        _, bare = ask("/tokenize", {"prompt": PROMPT, "add_special_tokens": False})
        self.assertEqual(bare["tokens"], whole["tokens"][1:])
        self.assertIsNone(bare["token_strs"])
        self.assertEqual(ask("/detokenize", {"tokens": bare["tokens"]})[1], {"prompt": PROMPT})
        _, chat = ask("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]})
        _, same = ask("/tokenize", {"prompt": "user: Hi\nassistant:",
                                    "add_special_tokens": False})
        self.assertEqual(chat["tokens"], same["tokens"])
        for path, body, param in (("/tokenize", {}, "prompt"), ("/tokenize", {"prompt": 1}, "prompt"),
                                  ("/detokenize", {"tokens": [512]}, "tokens"),
                                  ("/detokenize", {"tokens": [-1]}, "tokens"),
                                  ("/tokenize", {"prompt": "word " * 10000}, "prompt")):
            status, answer = ask(path, body)
            self.assertEqual((status, answer["error"]["param"]), (400, param))
        self.assertEqual(ask("/tokenize", {"prompt": "a", "model": "other"})[0], 404)
        info = json.loads(self.server.request("GET", "/tokenizer_info")[2])
        self.assertEqual((info["bos_token"], info["eos_token"]), ("<s>", "</s>"))
        self.assertEqual(info["chat_template"], TEMPLATE)

    def test_two_models(self):
        other = self.dir / "other"
        shutil.copytree(STORIES, other)
        done = subprocess.run([NIBBLE, "serve", f"a={self.model}", f"b={self.dir / 'none'}"],
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("model b: ", done.stderr)
        self.assertNotIn("serving", done.stdout)
        for arguments in ([self.model, self.model], [f"a={self.model}", f"a={other}"],
                          [self.model, other, "--model-name", "x"]):
            done = subprocess.run([NIBBLE, "serve", *map(str, arguments)], capture_output=True,
                                  text=True, timeout=60)
            self.assertEqual(done.returncode, 2, done.stderr)
        server = Server([f"a={self.model}", f"b={other}"], "--chat-template", "chatml")
        try:
            _, _, text = server.request("GET", "/v1/models")
            self.assertEqual([m["id"] for m in json.loads(text)["data"]], ["a", "b"])
            ask = {"prompt": PROMPT, "max_tokens": 10, "temperature": 0}
            answers = {name: server.complete(model=name, **ask) for name in "ab"}
            self.assertEqual({n: a["model"] for n, a in answers.items()}, {"a": "a", "b": "b"})
            self.assertEqual(answers["a"]["choices"], answers["b"]["choices"])
            self.assertEqual(server.complete(**ask)["model"], "a")
            status, _, text = server.request("POST", "/v1/completions", {"model": "c", **ask})
            self.assertEqual(status, 404)
            self.assertIn('this server has "a", "b"', json.loads(text)["error"]["message"])
            counts = server.labelled_metrics()
            self.assertEqual(counts['vllm:generation_tokens_total{model_name="a"}'], 20)
            self.assertEqual(counts['vllm:generation_tokens_total{model_name="b"}'], 10)
            info = json.loads(server.request("GET", "/tokenizer_info")[2])
            self.assertIn("<|im_start|>", info["chat_template"])
        finally:
            self.assertEqual(server.stop(), 0)

    def test_disconnects_leave_nothing(self):
        before = self.server.metrics()["vllm:generation_tokens_total"]
        for _ in range(20):
            clients = [self.server.open_stream(max_tokens=480, logit_bias={"2": -100})
                       for _ in range(10)]
            for client in clients:
                client.close()
        # Whole answers are given up too.
        body = json.dumps({"prompt": PROMPT, "max_tokens": 480, "n": 8}).encode()
        client = socket.create_connection(("127.0.0.1", self.server.port))
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
                       + body)
        time.sleep(0.02)
        client.close()
        after = self.server.wait_idle()["vllm:generation_tokens_total"]
        self.assertLess(after - before, 200 * 480 + 8 * 480)

    def test_bad_requests_are_told_what_is_wrong(self):
        post = "/v1/completions"
        for method, path, body, status, param in (
                ("POST", post, "{", 400, None),
                ("POST", post, {}, 400, "prompt"),
                ("POST", post, {"prompt": PROMPT, "temperature": "hot"}, 400, "temperature"),
                ("POST", post, {"prompt": PROMPT, "n": 10**9}, 400, "n"),
                ("POST", post, {"prompt": [-1]}, 400, "prompt"),
                ("POST", post, {"prompt": [512]}, 400, "prompt"),
                ("POST", post, {"prompt": PROMPT, "logit_bias": {"512": 1}}, 400,
                 "logit_bias"),
                ("POST", post, {"prompt": PROMPT, "max_tokens": 10**6}, 400, "max_tokens"),
                ("POST", post, {"prompt": "word " * 10000}, 400, "prompt"),
                ("POST", post, {"prompt": PROMPT, "model": "other"}, 404, "model"),
                ("POST", "/v1/chat/completions", {"messages": []}, 400, "messages"),
                ("POST", post, b" " * (9 << 20), 413, None),
                ("GET", post, None, 405, None),
                ("POST", "/v1/models", {}, 405, None),
                ("GET", "/nothing", None, 404, None),
                ("GET", "/" + "x" * 20000, None, 431, None)):
            with self.subTest(path=path[:30], body=str(body)[:80]):
                got, _, text = self.server.request(method, path, body)
                self.assertEqual(got, status, text)
                error = json.loads(text)["error"]
                self.assertEqual(set(error), {"message", "type", "param", "code"})
                self.assertEqual(error["param"], param)
        _, _, text = self.server.request("POST", post, {"prompt": [5] * 500, "max_tokens": 100})
        self.assertIn("500 prompt tokens and 100 new ones exceed the context of 512", text)
        with socket.create_connection(("127.0.0.1", self.server.port)) as client:
            client.sendall(b"nonsense\r\n\r\n")
            self.assertIn(b"HTTP/1.1 400", client.recv(4096))

    def test_keeps_connections(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        for i in range(6):
            body = {"prompt": PROMPT, "max_tokens": 5, "stream": i % 2 == 1}
            connection.request("POST", "/v1/completions", json.dumps(body))
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            response.read()
            if i == 0:
                first = connection.sock
            self.assertIs(connection.sock, first)
        connection.close()

    def test_limits(self):
        key = self.dir / "key"
        key.write_text("secret\n")
        server = Server(self.model, "--api-key-file", key, "--max-sequences", 2, "--max-queue", 2,
                        "--header-timeout", 1, "--body-timeout", 1, "--write-timeout", 1,
                        "--max-connections", 4)
        try:
            good = {"Authorization": "Bearer secret"}
            for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"},
                            {"Authorization": "Bearer secretx"}, {"Authorization": "Bearer "}):
                for path in ("/v1/models", "/metrics", "/nothing"):
                    self.assertEqual(server.request("GET", path, headers=headers)[0], 401)
            self.assertEqual(server.request("GET", "/health")[0], 200)
            self.assertEqual(server.request("GET", "/metrics", headers=good)[0], 200)
            status, headers, text = server.request(
                "POST", "/v1/completions", {"prompt": PROMPT, "n": 5}, headers=good)
            self.assertEqual((status, "Retry-After" in headers), (429, True), text)
            # Who is slow to ask is left: the headers, then the body.
            for text in (b"GET / HT", b"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer secret"
                         b"\r\nContent-Length: 9\r\n\r\n{"):
                with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
                    client.sendall(text)
                    start = time.monotonic()
                    self.assertEqual(client.recv(100), b"")
                    self.assertLess(time.monotonic() - start, 8)
            # So is who does not take an answer, while others get theirs.
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.settimeout(10)
                client.connect(("127.0.0.1", server.port))
                body = json.dumps({"prompt": PROMPT, "max_tokens": 500, "n": 3, "logprobs": 20,
                                   "stream": True, "logit_bias": {"2": -100}}).encode()
                client.sendall(b"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer secret\r\n"
                               b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
                status, _, _ = server.request("POST", "/v1/completions",
                                              {"prompt": PROMPT, "max_tokens": 5}, headers=good)
                self.assertEqual(status, 200)
                time.sleep(3)
                text = received_before_the_cut(client)
                self.assertTrue(text.startswith(b"HTTP/1.1 200"))
                self.assertNotIn(b"[DONE]", text)
            # Connections beyond the limit are closed; when others leave there is room again.
            time.sleep(0.5)
            clients = [socket.create_connection(("127.0.0.1", server.port), timeout=10)
                       for _ in range(4)]
            time.sleep(0.2)
            with self.assertRaises((OSError, http.client.HTTPException)):
                server.request("GET", "/health")
            for client in clients:
                client.close()
            time.sleep(0.5)
            self.assertEqual(server.request("GET", "/health")[0], 200)
        finally:
            self.assertEqual(server.stop(), 0)

    def test_term_finishes_what_runs(self):
        server = Server(self.model)
        client = server.open_stream(max_tokens=500, n=32, logit_bias={"2": -100})
        server.terminate()
        deadline = time.monotonic() + 30
        while server.request("GET", "/health", None)[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        for method, path, body in (("GET", "/health", None),
                                   ("POST", "/v1/completions", {"prompt": PROMPT})):
            status, headers, text = server.request(method, path, body)
            self.assertEqual(status, 503, text)
            self.assertIn("Retry-After", headers)
        text = b""
        while b"[DONE]" not in text:
            more = client.recv(65536)
            if not more:
                break
            text += more
        client.close()
        self.assertEqual(text.count(b'"finish_reason":"length"'), 32)
        self.assertEqual(server.process.wait(timeout=60), 0)
        server.stop()

    def test_term_cuts_what_takes_too_long(self):
        server = Server(self.model, "--max-sequences", 64, "--drain-timeout", 0)
        clients = [server.open_stream(max_tokens=500, n=4, logit_bias={"2": -100})
                   for _ in range(16)]
        server.terminate()
        for client in clients:
            self.assertNotIn(b"[DONE]", received_before_the_cut(client))
            client.close()
        self.assertEqual(server.process.wait(timeout=60), 0)
        server.stop()

    def test_refuses_to_be_open(self):
        for host in ("0.0.0.0", "::"):
            done = subprocess.run([NIBBLE, "serve", str(self.model), "--host", host],
                                  capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("--api-key-file", done.stderr)
        port = self.server.port
        done = subprocess.run([NIBBLE, "serve", str(self.model), "--port", str(port)],
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 3, done.stderr)

    def test_refuses_less_for_all_bodies_than_for_one(self):
        done = subprocess.run([NIBBLE, "serve", str(self.model), "--max-body-bytes", "6",
                               "--max-total-body-bytes", "5"],
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("--max-total-body-bytes 5: want at least --max-body-bytes 6", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
