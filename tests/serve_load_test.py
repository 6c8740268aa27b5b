"""Many clients, bad clients, full caches and ends of the server, with counts from the command line.

Usage: serve_load_test.py NIBBLE_BINARY SHARED_DATA [--streams N] [--drops N] [--slow N]

CTest runs it with small counts. docs/results/serving.md has the figures of large ones.
"""
import argparse
import asyncio
import json
import pathlib
import resource
import socket
import sys
import time
import unittest

from server_process import PROMPT, Server, received_before_the_cut

PARSER = argparse.ArgumentParser()
PARSER.add_argument("nibble", type=pathlib.Path)
PARSER.add_argument("shared", type=pathlib.Path)
PARSER.add_argument("--streams", type=int, default=100, help="at a time")
PARSER.add_argument("--drops", type=int, default=400, help="clients that leave")
PARSER.add_argument("--slow", type=int, default=6, help="clients that do not read, and not write")
OPTIONS = PARSER.parse_args()
NIBBLE = OPTIONS.nibble.resolve()
STORIES = OPTIONS.shared.resolve() / "models" / "stories260K"
NO_END = {"logit_bias": {"2": -100}}  # the model's end of sequence


def say(text):
    print(text, file=sys.stderr, flush=True)


def body_of(i):
    """Requests that differ in prompt, length, sampling and rules."""
    body = {"prompt": PROMPT[:4 + i % 12], "max_tokens": 10 + i % 40, "seed": i,
            "temperature": [1, 0.7, 1.5][i % 3]}
    if i % 7 == 0:
        body["presence_penalty"] = 0.5
    if i % 11 == 0:
        body["stop"] = [" the"]
    return body


async def stream(port, body, began=lambda: None):
    """The text of a stream, read to its end over a connection of its own."""
    text = json.dumps({**body, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(text), text))
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        began()
        events = b""
        while size := int((await reader.readline()).strip() or b"0", 16):
            events += (await reader.readexactly(size + 2))[:-2]
    finally:
        writer.close()
    parts = events.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""], parts[-2:]
    choices = [json.loads(p.removeprefix("data: "))["choices"][0] for p in parts[:-2]]
    assert choices[-1]["finish_reason"] in ("stop", "length"), choices[-1]
    return "".join(choice["text"] for choice in choices)


def streams(port, bodies):
    """Their texts, all at once."""
    async def run():
        return await asyncio.gather(*(stream(port, body) for body in bodies))
    return asyncio.run(run())


@unittest.skipUnless(STORIES.is_dir(), "the reference model is absent")
class ServeLoadTest(unittest.TestCase):
    def serve(self, *options, port=0):
        server = Server(NIBBLE, STORIES, *options, port=port)
        self.addCleanup(server.stop)
        return server

    def test_streams_are_their_own(self):
        server = self.serve("--batch-invariant", "--max-queue", OPTIONS.streams,
                            "--max-connections", OPTIONS.streams + 100)
        bodies = [body_of(i) for i in range(OPTIONS.streams)]
        alone = [server.complete(**body)["choices"][0]["text"] for body in bodies]
        start = time.monotonic()
        together = streams(server.port, bodies)
        say(f"{len(bodies)} streams at once took {time.monotonic() - start:.1f} s")
        self.assertEqual(together, alone)
        server.wait_idle()
        self.assertEqual(server.stop(), 0)

    def test_clients_that_leave_leave_nothing(self):
        server = self.serve("--max-queue", 100_000, "--max-connections", 1000)
        sizes = []
        for i in range(OPTIONS.drops):
            kind = i % 4
            if kind == 0:  # before it asks, half-way through asking, after asking, in the answer
                socket.create_connection(("127.0.0.1", server.port), timeout=30).close()
            elif kind == 1:
                with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
                    client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99\r\n\r\n{")
            elif kind == 2:
                server.open_request(max_tokens=400, n=2, **NO_END).close()
            else:
                server.open_stream(max_tokens=400, **NO_END).close()
            if i % max(1, OPTIONS.drops // 10) == 0:
                sizes.append(server.resident_bytes())
        metrics = server.wait_idle()
        sizes.append(server.resident_bytes())
        say(f"resident MB while {OPTIONS.drops} clients leave: "
            f"{', '.join(f'{size / 1e6:.1f}' for size in sizes)}")
        self.assertLess(sizes[-1], sizes[len(sizes) // 3] + (20 << 20))
        self.assertLess(metrics["vllm:generation_tokens_total"], OPTIONS.drops // 4 * 3 * 400)
        body = {"prompt": PROMPT, "max_tokens": 5, "seed": 1}
        self.assertEqual(server.complete(**body)["usage"]["completion_tokens"], 5)
        self.assertEqual(server.stop(), 0)

    def test_slow_clients_are_cut_and_others_are_not(self):
        server = self.serve("--header-timeout", 2, "--body-timeout", 2, "--write-timeout", 2,
                            "--max-sequences", 4 * OPTIONS.slow)
        clients = [server.open_request(receive_bytes=4096, max_tokens=490, n=3, logprobs=20,
                                       stream=True, **NO_END) for _ in range(OPTIONS.slow)]
        writers = []
        for _ in range(OPTIONS.slow):
            writers.append(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            writers[-1].sendall(b"POST /v1/completions HT")
        end = time.monotonic() + 6
        answers = 0
        while time.monotonic() < end:
            usage = server.complete(prompt=PROMPT, max_tokens=5, **NO_END)["usage"]
            self.assertEqual(usage["completion_tokens"], 5)
            for client in writers:
                try:
                    client.sendall(b"x")  # a byte now and then does not help
                except OSError:
                    pass
            answers += 1
        say(f"{answers} answers beside {2 * OPTIONS.slow} slow clients")
        for client in writers:
            try:
                self.assertEqual(client.recv(100), b"")
            except ConnectionResetError:
                pass
            client.close()
        for client in clients:
            text = received_before_the_cut(client)
            self.assertTrue(text.startswith(b"HTTP/1.1 200"))
            self.assertNotIn(b"[DONE]", text)
            client.close()
        server.wait_idle()
        self.assertEqual(server.stop(), 0)

    def test_full_cache_preempts_and_all_finish(self):
        server = self.serve("--max-sequences", 64, "--kv-tokens", 1024)
        bodies = [{"prompt": PROMPT, "max_tokens": 100 + i % 50, "seed": i, **NO_END}
                  for i in range(max(32, OPTIONS.streams // 10))]
        together = streams(server.port, bodies)
        preemptions = server.wait_idle()["vllm:num_preemptions_total"]
        say(f"{len(bodies)} texts in a cache of 1024 tokens: {preemptions:.0f} preemptions")
        self.assertGreater(preemptions, 0)
        self.assertEqual(together, [server.complete(**b)["choices"][0]["text"] for b in bodies])
        self.assertEqual(server.stop(), 0)

    def test_ends_and_begins_again(self):
        server = self.serve()
        body = {"prompt": PROMPT, "max_tokens": 300, "seed": 1, **NO_END}
        expected = server.complete(**body)["choices"][0]["text"]

        async def run():
            began = asyncio.Semaphore(0)
            tasks = [asyncio.create_task(stream(server.port, body, began.release))
                     for _ in range(20)]
            for _ in tasks:
                await began.acquire()
            server.terminate()
            return await asyncio.gather(*tasks)
        self.assertEqual(asyncio.run(run()), [expected] * 20)
        self.assertEqual(server.process.wait(timeout=60), 0)
        again = self.serve(port=server.port)
        self.assertEqual(again.port, server.port)
        self.assertEqual(again.complete(**body)["choices"][0]["text"], expected)
        self.assertEqual(again.stop(), 0)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, OPTIONS.streams + 1024), hard))
    unittest.main(argv=sys.argv[:1])
