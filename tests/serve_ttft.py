"""Times to the first token of requests with one system prompt: the first, and those after it.

By hand:

    serve_ttft.py NIBBLE_BINARY MODEL [TOKENS [OPTION...]]

The system prompt is TOKENS (2000) token ids; each request adds 20 of its own. Options go to `nibble
serve`.
"""
import pathlib
import random
import sys
import time

from server_process import Server


def first_token_ms(server, prompt):
    start = time.monotonic()
    client = server.open_request(prompt=prompt, max_tokens=4, stream=True)
    text = b""
    while b"data: " not in text:
        text += client.recv(65536)
    milliseconds = 1000 * (time.monotonic() - start)
    while b"[DONE]" not in text:
        text += client.recv(65536)
    client.close()
    return milliseconds


def main():
    nibble, model = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    server = Server(pathlib.Path(nibble).resolve(), f"m={model}", *sys.argv[4:])
    try:
        draw = random.Random(1)
        system = [draw.randrange(5, 30000) for _ in range(tokens)]
        times = [first_token_ms(server, system + [draw.randrange(5, 30000) for _ in range(20)])
                 for _ in range(6)]
        counts = server.metrics()
    finally:
        server.stop()
    print("ms to the first token:", ", ".join(f"{t:.0f}" for t in times))
    print(f"the first took {times[0] / sorted(times[1:])[2]:.1f} times the median of the others;",
          f"{counts['vllm:prefix_cache_hits_total']:.0f} of",
          f"{counts['vllm:prefix_cache_queries_total']:.0f} tokens were in the cache")


if __name__ == "__main__":
    main()
