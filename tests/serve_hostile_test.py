"""Requests that no client means well: each gets its answer or is cut, and none costs the others.

Usage: serve_hostile_test.py NIBBLE_BINARY SOURCE_DIR SHARED_DATA
"""
import json
import os
import re
import select
import socket
import sys
import time
import unittest

from serve_test import StoriesTest
from server_process import PROMPT, received_before_the_cut

NEXT = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
COMPLETIONS = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
MiB = 1 << 20


def post(body, path=b"/v1/completions", headers=b""):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return (b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s"
            % (path, headers, len(body), body))


class HostileTest(StoriesTest):
    @classmethod
    def options(cls):
        study = cls.dir / "study"
        (study / "models").mkdir(parents=True)
        (study / "report.html").write_text("<p>The report</p>")
        (study / ".hidden.txt").write_text("SECRET")
        (cls.dir / "outside.txt").write_text("SECRET")
        (study / "link.txt").symlink_to(cls.dir / "outside.txt")
        (study / "folder").symlink_to(cls.dir)
        os.mkfifo(study / "pipe.txt")
        return ["--report", study, "--header-timeout", 2, "--body-timeout", 4, "--write-timeout", 4,
                "--max-body-bytes", MiB, "--max-total-body-bytes", 3 * MiB]

    def connect(self):
        client = socket.create_connection(("127.0.0.1", self.server.port), timeout=20)
        self.addCleanup(client.close)
        return client

    def exchange(self, data):
        """What comes until the server closes the connection: within its limits, it always does."""
        client = self.connect()
        client.sendall(data)
        return received_before_the_cut(client)

    def statuses(self, data):
        return [int(s) for s in re.findall(rb"HTTP/1\.[01] (\d+) ", self.exchange(data))]

    def test_where_a_body_ends_is_never_guessed(self):
        """A request in what a proxy takes for a body is not answered."""
        chunks = b"0\r\n\r\n"
        for headers, rest in (
                (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", chunks),
                (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", chunks),
                (b"Transfer-Encoding: identity\r\n", b""),
                (b"Transfer-Encoding: gzip\r\n", b""),
                (b"Transfer-Encoding: xchunked\r\n", b""),
                (b"Transfer-Encoding:\r\n", b""),
                (b"Transfer-Encoding: chunked, identity\r\n", chunks),
                (b"Transfer-Encoding: gzip, chunked\r\n", chunks),
                (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", chunks),
                (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunks),
                (b"Content-Length: 5\r\nContent-Length: 6\r\n", b"12345"),
                (b"Content-Length: -1\r\n", b""), (b"Content-Length: +5\r\n", b"12345"),
                (b"Content-Length: 18446744073709551616\r\n", b""),
                (b"Content-Length : 5\r\n", b"12345"),
                (b"Transfer-Encoding: chunked\r\n", b"zz\r\n"),
                (b"Transfer-Encoding: chunked\r\n", b"1ffffffffffffffff\r\n")):
            with self.subTest(headers=headers):
                self.assertEqual(self.statuses(COMPLETIONS + headers + b"\r\n" + rest + NEXT), [400])
        old = COMPLETIONS.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n"
        self.assertEqual(self.statuses(old + chunks + NEXT), [400])
        # A body that is not read ends the connection.
        self.assertEqual(self.statuses(b"GET /nothing HTTP/1.1\r\nContent-Length: 9\r\n\r\n" + NEXT),
                         [404])
        # What is clear is read, and what follows it answered.
        body = json.dumps({"prompt": PROMPT, "max_tokens": 1}).encode()
        chunked = b"%x;name=value\r\n%s\r\n0\r\nA: b\r\n\r\n" % (len(body), body)
        self.assertEqual(self.statuses(
            COMPLETIONS + b"Transfer-Encoding: Chunked\r\n\r\n" + chunked + NEXT), [200, 200])
        self.assertEqual(self.statuses(post(body) + NEXT * 3), [200] * 4)

    def test_bodies_together_are_limited(self):
        """Of four that would take more than all may, some are refused; what they held is free."""
        part = MiB * 9 // 10
        clients = [self.connect() for _ in range(4)]
        for client in clients:
            client.sendall(COMPLETIONS + b"Content-Length: %d\r\n\r\n" % MiB + b" " * part)
        refused = []
        deadline = time.monotonic() + 3  # less than the time to send a body
        while not refused and time.monotonic() < deadline:
            refused = select.select(clients, [], [], 0.1)[0]
        time.sleep(0.5)  # two may be refused together, one by each of the server's threads
        refused = select.select(clients, [], [], 0)[0]
        self.assertIn(len(refused), (1, 2))
        for client in refused:
            answer = received_before_the_cut(client)
            self.assertIn(b" 503 ", answer.split(b"\r\n")[0])
            self.assertIn(b"Retry-After: 1", answer)
            self.assertIn(b"The bodies of all requests are too large", answer)
        # Beside the others there is room for a fifth of that.
        body = json.dumps({"prompt": PROMPT, "max_tokens": 1}).encode().ljust(part // 5)
        self.assertEqual(self.statuses(post(body)), [200])

    def test_head_has_no_body(self):
        for path, status in (("/health", 200), ("/", 200), ("/report/", 200), ("/nothing", 404),
                             ("/v1/completions", 405)):
            text = self.exchange(b"HEAD %s HTTP/1.1\r\n\r\n" % path.encode() + NEXT)
            head, rest = text.split(b"\r\n\r\n", 1)
            self.assertIn(b"HTTP/1.1 %d " % status, head)
            self.assertRegex(head, rb"Content-Length: [1-9]")
            self.assertTrue(rest.startswith(b"HTTP/1.1 200 "), rest)

    def test_what_is_not_http(self):
        for data in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + b"\0" * 200,
                     b"GET /\r\n\r\n", b"GET / HTTP/1.7\r\n\r\n", b"GET /\0 HTTP/1.1\r\n\r\n",
                     b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n", b"GET / HTTP/1.1\nA: b\n\n"):
            self.assertEqual(self.statuses(data), [400], data[:40])
        self.assertEqual(self.statuses(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n"), [431])
        self.assertEqual(self.statuses(b"OPTIONS * HTTP/1.1\r\n\r\n"), [404])
        self.assertEqual(self.statuses(COMPLETIONS + b"Expect: 100-continue\r\n"
                                       b"Content-Length: 99999999\r\n\r\n"), [413])

    def test_floods_are_not_kept(self):
        """Neither a chunk's endless extensions nor endless trailers cost memory."""
        before = self.server.resident_bytes()
        for start in (b"5;", b"5\r\nhello\r\n0\r\nA: "):
            client = self.connect()
            client.sendall(COMPLETIONS + b"Transfer-Encoding: chunked\r\n\r\n" + start)
            most = before
            try:
                for _ in range(1024):
                    client.sendall(b"a" * 65536)
                    most = max(most, self.server.resident_bytes())
            except OSError:
                pass  # it was cut
            self.assertLess(most - before, 16 * MiB)

    def test_a_client_that_asked_twice_and_left_is_noticed(self):
        before = self.server.metrics()
        for _ in range(8):
            client = self.connect()
            # Many more tokens than any machine makes in the moment until the client leaves.
            client.sendall(post({"prompt": PROMPT, "n": 128, "logit_bias": {"2": -100},
                                 "max_tokens": 500}))
            time.sleep(0.05)  # not read together with it
            client.sendall(NEXT)
            time.sleep(0.05)
            client.close()
        after = self.server.wait_idle()
        tokens = "vllm:generation_tokens_total"
        self.assertLess(after[tokens] - before[tokens], 8 * 128 * 500 / 2)

    def test_bodies(self):
        ask = {"prompt": PROMPT, "max_tokens": 3}
        chat, tokenize = b"/v1/chat/completions", b"/tokenize"
        for body, param in (
                (b'{"prompt":"\xff\xfe"}', None), (b'{"prompt":"\\ud800"}', None),
                (b'{"prompt":' + b"[" * 100000, None), (b'{"a":' * 100000, None), (b"", None),
                (b"[]", None), (b'{"prompt":"a","prompt":"b"}', None),
                (b'{"prompt":"a","temperature":1e999}', None),
                ({**ask, "n": 2**63}, "n"), ({**ask, "n": -1}, "n"), ({**ask, "n": 1.0}, "n"),
                ({**ask, "max_tokens": 2**31 - 1}, "max_tokens"),
                ({**ask, "max_tokens": 2**64}, "max_tokens"), ({**ask, "seed": 2**63}, "seed"),
                ({**ask, "top_k": -2}, "top_k"), ({**ask, "stop": ["a"] * 5}, "stop"),
                ({**ask, "stop": ""}, "stop"), ({**ask, "stop": "x" * 2000}, "stop"),
                ({**ask, "logit_bias": {str(i): 0 for i in range(2000)}}, "logit_bias"),
                ({**ask, "logit_bias": {"99999999999": 0}}, "logit_bias"),
                ({**ask, "logit_bias": {"+5": 0}}, "logit_bias"),
                ({**ask, "prompt": [2**31]}, "prompt"), ({**ask, "prompt": [[]]}, "prompt"),
                ({**ask, "prompt": ["a"] * 129}, "prompt"), ({**ask, "logprobs": 21}, "logprobs"),
                # Each of these is in its range, the answer is not.
                ({"prompt": [5] * 400, "max_tokens": 100, "n": 128, "echo": True, "logprobs": 20},
                 "logprobs")):
            with self.subTest(body=str(body)[:80]):
                status, _, text = self.server.request("POST", "/v1/completions", body)
                self.assertEqual((status, json.loads(text)["error"]["param"]), (400, param), text)
        for path, body, param in (
                (chat, {"messages": [{"role": "user", "content": "x"}] * 5000}, "messages"),
                (chat, {"messages": [{"role": "user", "content": "x" * 500000}]}, "messages"),
                (chat, {"messages": [{"role": "user", "content": "x"}], "n": 128, "logprobs": True,
                        "top_logprobs": 20}, "top_logprobs"),
                (b"/detokenize", b'{"tokens":[' + b"5," * 300000 + b"5]}", "tokens"),
                (tokenize, {"prompt": "x" * 500000}, "prompt")):
            with self.subTest(body=str(body)[:80]):
                status, _, text = self.server.request("POST", path.decode(), body)
                self.assertEqual((status, json.loads(text)["error"]["param"]), (400, param), text)
        # Odd, and within every range.
        for odd in ({"prompt": "a\0b"}, {"stop": ["\0"]}, {"temperature": 5e-324, "logprobs": 1},
                    {"top_p": 5e-324}, {"top_k": 2**31 - 1}, {"min_p": 1}, {"seed": -2**63},
                    {"logit_bias": {str(i): -100 for i in range(512)}}, {"prompt": ""},
                    {f"k\n{i}": 1 for i in range(100)}):
            with self.subTest(odd=str(odd)[:80]):
                [choice] = self.server.complete(**{**ask, **odd})["choices"]
                self.assertIn(choice["finish_reason"], ("length", "stop"))

    def test_a_report_shows_nothing_around_it(self):
        for path in ("../outside.txt", "%2e%2e/outside.txt", "..%2foutside.txt", "link.txt",
                     "%2e%2e%2foutside.txt", "folder/outside.txt", ".hidden.txt", "%2ehidden.txt",
                     "/report.html", "report.html%00.txt", "report.html/", "pipe.txt", "models", "%",
                     "%zz", "./report.html", "..\\outside.txt"):
            text = self.exchange(b"GET /report/%s HTTP/1.1\r\nConnection: close\r\n\r\n"
                                 % path.encode())
            self.assertTrue(text.startswith(b"HTTP/1.1 404 "), (path, text[:100]))
            self.assertNotIn(b"SECRET", text)
        self.assertEqual(self.server.request("GET", "/report/?../x")[2], "<p>The report</p>")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
