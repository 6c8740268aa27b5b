"""nibble chat: through a pipe, and on a terminal with Ctrl-C.

Usage: chat_test.py NIBBLE_BINARY SOURCE_DIR SHARED_DATA
"""
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import unittest

NIBBLE, SOURCE, SHARED = (pathlib.Path(p).resolve() for p in sys.argv[1:4])
STORIES = SHARED / "models" / "stories260K"
TEMPLATE = ("{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}"
            "{% endif %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}")


class Terminal:
    """The program on a terminal of its own."""

    def __init__(self, *command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", LC_ALL="C.UTF-8")
            os.execv(command[0], [str(part) for part in command])
        self.text = ""

    def read(self, seconds):
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                return False  # the program ended
        return True

    def wait_for(self, pattern, seconds=60):
        """What came up to and with the pattern, which is then gone."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            if time.monotonic() > end or not self.read(0.2):
                raise AssertionError(f"no {pattern!r} in {self.text!r}")
        text, self.text = self.text[:found.end()], self.text[found.end():]
        return text

    def wait_for_prompt(self):
        self.wait_for("> ")
        # Shown a moment before keys are taken one by one; Ctrl-D would end a line until then.
        while termios.tcgetattr(self.fd)[3] & termios.ICANON:
            time.sleep(0.01)

    def write(self, text):
        os.write(self.fd, text.encode())

    def exit_status(self, seconds=60):
        end = time.monotonic() + seconds
        done = 0
        while not done:
            self.read(0.1)
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"it does not end; last {self.text!r}")
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


@unittest.skipUnless(STORIES.is_dir(), "the reference model is absent")
class ChatTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(tempfile.mkdtemp(prefix="nibble-chat-"))
        cls.model = cls.dir / "stories"
        shutil.copytree(STORIES, cls.model)
        (cls.model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.dir, ignore_errors=True)

    def command(self, *options):
        return [str(NIBBLE), "chat", str(self.model), "--temperature", "0", *map(str, options)]

    def chat(self, text, *options):
        done = subprocess.run(self.command("--max-tokens", 16, *options), input=text,
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout, done.stderr

    def test_carries_the_conversation(self):
        out, err = self.chat("Once\nand then\n")
        self.assertRegex(err, r"\[\d+ \(0 kept\) \+ 16 tokens, first after [\d.]+ s, [\d.]+ tokens/s, cut")
        # The same, one message at a time.
        once, _ = self.chat("Once\n", "--quiet")
        self.assertTrue(out.startswith(once.rstrip("\n")))
        (first, none), (second, kept) = [
            map(int, pair) for pair in re.findall(r"\[(\d+) \((\d+) kept\) \+", err)]
        self.assertGreater(second, first + 16)
        # What the first answer left in the KV cache is not computed again, but for a part of a block.
        self.assertEqual(none, 0)
        self.assertGreaterEqual(kept, max(1, first // 16 * 16))

    def test_commands(self):
        once, _ = self.chat("Once\n", "--quiet")
        out, err = self.chat("Twice\n/reset\nOnce\n/nonsense\n/help\n\n/quit\nnot read\n", "--quiet")
        self.assertTrue(out.endswith(once), out)
        self.assertIn("/nonsense: no such command", err)
        self.assertIn("/system TEXT", err)
        self.assertNotIn("not read", out)
        # Greedy, the same message has the same answer again.
        again, _ = self.chat("Once\n/again\n", "--quiet")
        self.assertEqual(again, once + once)
        system, _ = self.chat("/system A tale\nOnce\n", "--quiet")
        option, _ = self.chat("Once\n", "--quiet", "--system", "A tale")
        self.assertEqual(system, option)
        removed, _ = self.chat("/system\nOnce\n", "--quiet", "--system", "A tale")
        self.assertEqual(removed, once)

    def test_joins_lines(self):
        joined, _ = self.chat("Once\\\nupon\n", "--quiet")
        _, err = self.chat("Once\\\nupon\n")
        self.assertEqual(err.count(" kept) "), 1, err)
        self.assertTrue(joined)

    def test_a_conversation_that_is_too_long(self):
        out, err = self.chat("word " * 600 + "\nOnce\n", "--quiet")
        self.assertRegex(err, r"the conversation's \d+ tokens fill the context of 512")
        once, _ = self.chat("Once\n", "--quiet")
        self.assertEqual(out, once)

    def test_wrong_usage(self):
        for options, status in ((("--temperature", "-1"), 2), (("--context", "1000000"), 2),
                                (("--chat-template", "nonsense"), 3)):
            done = subprocess.run(self.command(*options), input="", capture_output=True, text=True,
                                  timeout=60)
            self.assertEqual(done.returncode, status, done.stderr)

    def test_on_a_terminal(self):
        terminal = Terminal(*self.command("--threads", 1))
        terminal.wait_for_prompt()
        # Ctrl-C at the prompt takes the line back, and does not end the program.
        terminal.write("never sent")
        terminal.wait_for("never sent")
        terminal.write("\x03")
        terminal.wait_for_prompt()
        terminal.write("Once\n")
        terminal.wait_for(r"\[\d+ \(\d+ kept\) \+ \d+ tokens")
        terminal.wait_for_prompt()
        # The last line is in the history.
        terminal.write("\x1b[A")
        terminal.wait_for("Once")
        terminal.write("\x15/quit\n")
        self.assertEqual(terminal.exit_status(), 0)

    def test_ctrl_c_stops_the_answer(self):
        # The scalar reference takes a second for so large a context.
        terminal = Terminal(*self.command("--device", "ref", "--threads", 1, "--context", 512))
        terminal.wait_for_prompt()
        terminal.write("Once upon a time there was\n")
        terminal.wait_for(r"(?s)there was.*?\n.*?\w+ \w+ ")
        terminal.write("\x03")
        stats = terminal.wait_for(r"\[\d+ \(\d+ kept\) \+ \d+ tokens[^\]]*\]")
        self.assertIn("stopped", stats)
        terminal.wait_for_prompt()
        terminal.write("\x04")  # Ctrl-D
        self.assertEqual(terminal.exit_status(), 0)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
