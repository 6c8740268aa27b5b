"""A headless Chromium, driven through the DevTools protocol over a pair of pipes."""
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")


class Browser:
    """One tab. `problems` are errors of the page's scripts and what its policy refused; `urls` is
    what it asked for."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="nibble-chromium-")
        their_in, self.out = os.pipe()
        self.inp, their_out = os.pipe()
        command = [CHROMIUM, "--headless=new", "--remote-debugging-pipe", "--no-first-run",
                   "--disable-gpu", "--disable-background-networking", "--disable-extensions",
                   "--disable-dev-shm-usage", "--hide-scrollbars",
                   f"--user-data-dir={self.profile}"]
        if os.geteuid() == 0:
            command.append("--no-sandbox")  # as root it has none
        # The browser reads from descriptor 3 and writes to 4.
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{their_in} 4>&{their_out}', "bash", *command],
            pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(their_in)
        os.close(their_out)
        self.pending = b""
        self.next_id = 1
        self.session = None
        self.problems = []
        self.urls = []
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.command("Target.attachToTarget", targetId=target,
                                    flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.command(f"{domain}.enable")
        self.resize(1280, 800)

    def close(self):
        os.close(self.out)
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.inp)
        shutil.rmtree(self.profile, ignore_errors=True)

    def _message(self, timeout):
        end = time.monotonic() + timeout
        while b"\0" not in self.pending:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.inp], [], [], left)[0]:
                raise TimeoutError("Chromium does not answer")
            more = os.read(self.inp, 1 << 20)
            if not more:
                raise EOFError("Chromium ended")
            self.pending += more
        text, self.pending = self.pending.split(b"\0", 1)
        return json.loads(text)

    def _note(self, event):
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"].get("exception", {}).get(
                "description", str(params)))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])

    def command(self, method, **params):
        message = {"id": self.next_id, "method": method, "params": params}
        self.next_id += 1
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message(60)
            if answer.get("id") == message["id"]:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def resize(self, width, height, mobile=False):
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height,
                     deviceScaleFactor=1, mobile=mobile)

    def prefer(self, scheme):
        """light or dark, as a system setting."""
        self.command("Emulation.setEmulatedMedia",
                     features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url):
        self.command("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script):
        """The value of an expression, awaited."""
        answer = self.command("Runtime.evaluate", expression=script, awaitPromise=True,
                              returnByValue=True)
        assert "exceptionDetails" not in answer, (script, answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait(self, script, seconds=60):
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > end:
                raise AssertionError(f"never: {script}\n{self.problems}\n"
                                     + self.run("document.body.innerText"))
            time.sleep(0.05)
        return value

    def press(self, key, text=None, modifiers=0):
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, " ": 32}
        options = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key],
                   "modifiers": modifiers}
        down = {"text": text} if text else {}
        self.command("Input.dispatchKeyEvent", type="keyDown", **options, **down)
        self.command("Input.dispatchKeyEvent", type="keyUp", **options)

    def type(self, selector, text):
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.command("Input.insertText", text=text)

    def fill(self, selector, value):
        """Sets a control as its user would, with the event."""
        self.run(f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
                 f" if (e.type === 'checkbox') e.checked = {json.dumps(value)};"
                 f" else e.value = {json.dumps(value)};"
                 " e.dispatchEvent(new Event('change', {bubbles: true})); })()")

    def click(self, selector):
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def screenshot(self, path):
        data = self.command("Page.captureScreenshot", format="png")["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))

    def accessible_names(self):
        """(role, name) of what a screen reader sees."""
        nodes = self.command("Accessibility.getFullAXTree")["nodes"]
        return [(n.get("role", {}).get("value"), n.get("name", {}).get("value", ""))
                for n in nodes if not n["ignored"]]
