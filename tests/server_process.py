"""A nibble server as a process, and its clients, for tests."""
import http.client
import json
import re
import signal
import socket
import subprocess
import time

PROMPT = "Once upon a time"


def received_before_the_cut(client):
    """What a server sent before it closed the connection, or reset it."""
    text = b""
    try:
        while more := client.recv(65536):
            text += more
    except ConnectionResetError:
        pass
    return text


class Server:
    """A server process, on a free port where none is given."""

    def __init__(self, nibble, models, *options, port=0):
        models = [models] if not isinstance(models, list) else models
        self.process = subprocess.Popen(
            [nibble, "serve", *map(str, models), "--port", str(port), "--threads", "2", "--quiet",
             *map(str, options)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not found:
            self.process.kill()
            raise AssertionError(f"no server: {line!r} {self.process.communicate()}")
        self.port = int(found.group(1))

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Status, headers, body as text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read().decode()
        finally:
            connection.close()

    def complete(self, path="/v1/completions", **body):
        status, _, text = self.request("POST", path, body)
        assert status == 200, (status, text)
        return json.loads(text)

    def stream(self, path="/v1/completions", **body):
        """The chunks, all but [DONE]."""
        status, headers, text = self.request("POST", path, {**body, "stream": True})
        assert status == 200, (status, text)
        assert headers["Content-Type"].startswith("text/event-stream"), headers
        events = text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""], events[-2:]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    def labelled_metrics(self):
        """By name and labels."""
        _, _, text = self.request("GET", "/metrics")
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
                for line in text.splitlines() if line and line[0] != "#"}

    def metrics(self):
        """By name; of one model."""
        return {name.split("{")[0]: value for name, value in self.labelled_metrics().items()}

    def wait_idle(self, seconds=60):
        """Until nothing runs or waits and no KV block is held; the metrics then."""
        end = time.monotonic() + seconds
        while True:
            metrics = self.metrics()
            if (metrics["vllm:num_requests_running"] == metrics["vllm:num_requests_waiting"] ==
                    metrics["vllm:kv_cache_usage_perc"] == 0):
                return metrics
            assert time.monotonic() < end, f"it is never idle: {metrics}"
            time.sleep(0.02)

    def open_request(self, receive_bytes=None, **body):
        """A socket on which a completion was asked for."""
        text = json.dumps({"prompt": PROMPT, **body}).encode()
        client = socket.socket()
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(120)
        client.connect(("127.0.0.1", self.port))
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                       % (len(text), text))
        return client

    def open_stream(self, **body):
        """A socket on which a stream has begun."""
        client = self.open_request(stream=True, **body)
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        return client

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            return 1024 * int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def stop(self):
        """Ends it; its exit status."""
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()
            self.process.stderr.close()
