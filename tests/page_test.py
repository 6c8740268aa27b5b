"""The page in a headless Chromium: it chats, stops, answers again, compares, shows a report.

Usage: page_test.py NIBBLE_BINARY SOURCE_DIR SHARED_DATA
Exits with 77 (skipped) where there is no Chromium.
"""
import http.client
import http.server
import json
import pathlib
import shutil
import sys
import tempfile
import threading
import time
import unittest

from chromium import CHROMIUM, Browser
from serve_test import STORIES, TEMPLATE, Server

# The last answer's text, and whether all answers are written.
TEXTS = "[...document.querySelectorAll('.turn:last-child .answer .text')].map(e => e.textContent)"
DONE = ("document.querySelectorAll('.answer').length > 0 && "
        "!document.querySelector('.answer[aria-busy=true]')")


class Front(http.server.ThreadingHTTPServer):
    """Passes requests on to a server, with `pause_s` between the pieces of a stream; keeps what is
    posted in `bodies`."""
    daemon_threads = True

    def __init__(self, backend):
        super().__init__(("127.0.0.1", 0), FrontHandler)
        self.backend = backend
        self.pause_s = 0
        self.bodies = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/"


class FrontHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.backend.port, timeout=60)
        try:
            connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name not in ("Connection", "Transfer-Encoding"):
                    self.send_header(name, value)
            self.end_headers()
            while line := answer.readline():
                self.wfile.write(line)
                if body and line == b"\n":
                    time.sleep(self.server.pause_s)
        except OSError:
            pass  # the browser left
        finally:
            connection.close()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body))
        self.do_GET(body)


@unittest.skipUnless(STORIES.is_dir(), "the reference model is absent")
class PageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(tempfile.mkdtemp(prefix="nibble-page-"))
        cls.model = cls.dir / "stories"
        shutil.copytree(STORIES, cls.model)
        (cls.model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
        (cls.dir / "study").mkdir()
        (cls.dir / "study" / "report.html").write_text(
            "<!doctype html><style>p { color: red }</style><title>r</title><p id=p>The report</p>"
            "<script>document.title = 'ran'</script>")
        cls.server = Server([f"one={cls.model}", f"two={cls.model}"])
        cls.front = Front(cls.server)
        cls.browser = Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.front.shutdown()
        cls.front.server_close()
        cls.server.stop()
        shutil.rmtree(cls.dir, ignore_errors=True)

    def setUp(self):
        self.front.pause_s = 0
        self.front.bodies.clear()
        browser = self.browser
        browser.resize(1280, 800)
        browser.open(self.front.url)
        browser.run("localStorage.clear()")
        browser.open(self.front.url)
        browser.wait("document.querySelectorAll('#model option').length === 2")
        browser.fill("#temperature", "0")
        browser.fill("#max_tokens", "30")
        browser.problems.clear()
        browser.urls.clear()

    def tearDown(self):
        self.assertEqual(self.browser.problems, [])
        for url in self.browser.urls:
            self.assertTrue(url.startswith(("http://127.0.0.1:", "data:,")), url)

    def send(self, text):
        self.browser.type("#message", text)
        self.browser.press("Enter", "\r")

    def test_chats(self):
        self.browser.type("#system", "A fairy tale")
        self.send("Once upon")
        self.browser.wait(DONE)
        [first] = self.browser.run(TEXTS)
        messages = [{"role": "system", "content": "A fairy tale"},
                    {"role": "user", "content": "Once upon"}]
        expected = self.server.complete(
            "/v1/chat/completions", model="one", messages=messages, temperature=0, max_tokens=30)
        self.assertEqual(first, expected["choices"][0]["message"]["content"])
        stats = self.browser.run("document.querySelector('.stats').textContent")
        self.assertRegex(stats, r"^30 tokens · [\d.]+ tokens/s · first after \d+ ms · cut")
        self.assertEqual(self.browser.run("document.querySelector('#announcer').textContent"),
                         "The answer is complete.")
        # The second turn carries the first.
        self.send("and then <b>")
        self.browser.wait("document.querySelectorAll('.turn').length === 2")
        self.browser.wait(DONE)
        self.assertEqual(self.front.bodies[-1]["messages"],
                         messages + [{"role": "assistant", "content": first},
                                     {"role": "user", "content": "and then <b>"}])
        self.assertEqual(self.browser.run("document.querySelectorAll('#turns b').length"), 0)
        # The state of the server is shown.
        self.browser.wait("document.querySelectorAll('#state .model-state').length === 2")
        shown = self.browser.run("document.querySelector('#state').innerText")
        self.assertRegex(shown, r"KV cache in use\s+[\d.]+ %")
        self.assertRegex(shown, r"memory\s+[\d.]+ (K|M|G)iB")
        self.browser.click("#clear")
        self.assertEqual(self.browser.run("document.querySelectorAll('.turn').length"), 0)

    def test_sends_the_settings(self):
        settings = {"top_p": 0.9, "top_k": 5, "min_p": 0.05, "presence_penalty": 0.5,
                    "frequency_penalty": -0.5, "seed": 7}
        for name, value in settings.items():
            self.browser.fill(f"#{name}", str(value))
        self.browser.fill("#stop-text", "The")
        self.browser.fill("#model", "two")
        self.send("Once")
        self.browser.wait(DONE)
        body = self.front.bodies[-1]
        for name, value in {**settings, "temperature": 0, "max_tokens": 30, "stop": ["The"],
                            "model": "two", "stream": True}.items():
            self.assertEqual(body[name], value, name)
        # They are remembered, but for a key.
        self.browser.open(self.front.url)
        self.assertEqual(self.browser.run("document.querySelector('#top_k').value"), "5")
        self.browser.wait("document.querySelector('#model').value === 'two'")
        # What the server would refuse is not sent.
        self.browser.fill("#top_p", "3")
        count = len(self.front.bodies)
        self.send("Once")
        self.assertEqual(self.browser.run("document.querySelectorAll('.turn').length"), 0)
        self.assertEqual(len(self.front.bodies), count)

    def test_stops_and_answers_again(self):
        self.front.pause_s = 0.1
        self.browser.fill("#max_tokens", "300")
        self.send("Once upon")
        self.browser.wait(f"{TEXTS}[0].length > 10")
        self.assertTrue(self.browser.run("document.querySelector('#send').disabled"))
        self.browser.press("Escape")
        self.browser.wait(DONE)
        [stopped] = self.browser.run(TEXTS)
        self.assertIn("stopped", self.browser.run("document.querySelector('.stats').textContent"))
        self.server.wait_idle()
        self.front.pause_s = 0
        self.browser.fill("#max_tokens", "60")
        self.browser.click("#regenerate")
        self.browser.wait(DONE)
        [again] = self.browser.run(TEXTS)
        self.assertTrue(again.startswith(stopped), (stopped, again))
        self.assertGreater(len(again), len(stopped))
        # The button stops too.
        self.front.pause_s = 0.1
        self.send("More")
        self.browser.wait(f"{TEXTS}[0].length > 0 && !document.querySelector('#stop').disabled")
        self.browser.click("#stop")
        self.browser.wait(DONE)

    def test_compares(self):
        self.browser.fill("#compare", True)
        self.send("Once upon")
        self.browser.wait("document.querySelectorAll('.answer').length === 2")
        self.browser.wait(DONE)
        one, two = self.browser.run(TEXTS)
        self.assertEqual(one, two)
        self.assertTrue(one)
        self.assertEqual(sorted(body["model"] for body in self.front.bodies), ["one", "two"])
        boxes = ("[...document.querySelectorAll('.answer')].map(e => e.getBoundingClientRect())"
                 ".map(r => [r.left, r.top])")
        (left, top), (right, top2) = self.browser.run(boxes)
        self.assertEqual(top, top2)
        self.assertGreater(right, left + 300)
        # On a phone one stands below the other.
        self.browser.resize(390, 800, mobile=True)
        (left, top), (right, top2) = self.browser.run(boxes)
        self.assertEqual(left, right)
        self.assertGreater(top2, top)

    def test_shows_errors(self):
        self.browser.fill("#max_tokens", "100000")
        self.send("Once")
        self.browser.wait(DONE)
        self.assertIn("exceed", self.browser.run("document.querySelector('.failure').textContent"))
        self.browser.problems.clear()  # the browser logs the 400

    def test_fits_a_phone_and_both_schemes(self):
        self.browser.resize(360, 740, mobile=True)
        self.browser.open(self.front.url)
        self.browser.wait("document.querySelectorAll('#model option').length === 2")
        self.send("Once upon")
        self.browser.wait(DONE)
        self.assertEqual(self.browser.run("document.documentElement.scrollWidth"), 360)
        paper = "getComputedStyle(document.body).backgroundColor"
        self.browser.prefer("light")
        self.assertEqual(self.browser.run(paper), "rgb(255, 255, 255)")
        self.browser.prefer("dark")
        self.assertEqual(self.browser.run(paper), "rgb(22, 24, 27)")
        self.browser.fill("#theme", "light")
        self.assertEqual(self.browser.run(paper), "rgb(255, 255, 255)")

    def test_is_named_and_reachable(self):
        names = self.browser.accessible_names()
        for role, name in names:
            if role in ("button", "textbox", "spinbutton", "combobox", "checkbox", "tab", "meter"):
                self.assertTrue(name, f"a {role} without a name")
        for wanted in (("button", "Send"), ("button", "Stop"), ("textbox", "Message"),
                       ("combobox", "Model"), ("spinbutton", "Temperature"), ("tab", "Chat")):
            self.assertIn(wanted, names)
        # Tab reaches every control that can be used.
        reached = set()
        self.browser.run("document.activeElement.blur()")
        for _ in range(40):
            self.browser.press("Tab")
            reached.add(self.browser.run("document.activeElement.id || "
                                         "document.activeElement.className"))
        for control in ("message", "model", "system", "temperature", "seed", "theme", "chat-tab"):
            self.assertIn(control, reached)

    def test_key_and_report(self):
        key = self.dir / "key"
        key.write_text("secret\n")
        server = Server(self.model, "--api-key-file", key, "--report", self.dir / "study")
        try:
            browser = self.browser
            browser.open(f"http://127.0.0.1:{server.port}/")
            browser.wait("document.querySelector('#notice').textContent.includes('API key')")
            browser.fill("#key", "secret")
            browser.wait("document.querySelectorAll('#model option').length === 1")
            self.assertTrue(browser.run("document.querySelector('#notice').hidden"))
            browser.fill("#max_tokens", "10")
            self.send("Once")
            browser.wait(DONE)
            self.assertTrue(browser.run(TEXTS)[0])
            # The tabs, by the keyboard.
            browser.run("document.querySelector('#chat-tab').focus()")
            browser.press("ArrowRight")
            frame = "document.querySelector('#report-frame').contentDocument"
            browser.wait(f"{frame}?.querySelector('#p')?.textContent === 'The report'")
            self.assertEqual(browser.run(f"getComputedStyle({frame}.querySelector('#p')).color"),
                             "rgb(255, 0, 0)")
            self.assertEqual(browser.run(f"{frame}.title"), "r", "its script did not run")
            self.assertEqual(browser.run("document.activeElement.id"), "report-tab")
            browser.problems.clear()  # the 401 and the script that was refused
        finally:
            server.stop()


if __name__ == "__main__":
    if CHROMIUM is None:
        print("skipped: no chromium")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])
