"""What lies in deploy/ as far as it can be checked without running it: the files parse, and what they
ask of nibble exists.

Usage: deploy_test.py NIBBLE_BINARY SOURCE_DIR
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

try:
    import yaml
except ImportError:
    yaml = None

NIBBLE, SOURCE = (pathlib.Path(p).resolve() for p in sys.argv[1:3])
DEPLOY = SOURCE / "deploy"


def serve_options():
    text = subprocess.run([NIBBLE, "serve", "--help"], capture_output=True, text=True,
                          check=True).stdout
    return set(re.findall(r"--[a-z][a-z-]+", text))


class DeployTest(unittest.TestCase):
    def assert_options_exist(self, text):
        used = set(re.findall(r"--[a-z][a-z-]+", text))
        self.assertTrue(used)
        self.assertEqual(used - serve_options(), set())

    def test_unit(self):
        text = (DEPLOY / "nibble.service").read_text()
        command = re.search(r"ExecStart=((?:.*\\\n)*.*)", text).group(1)
        self.assert_options_exist(command)
        # It must have the time to drain.
        self.assertGreater(int(re.search(r"TimeoutStopSec=(\d+)", text).group(1)), 30)
        if shutil.which("systemd-analyze") is None:
            self.skipTest("no systemd-analyze")
        with tempfile.TemporaryDirectory() as folder:
            unit = pathlib.Path(folder) / "nibble.service"
            unit.write_text(text.replace("/usr/local/bin/nibble", str(NIBBLE)))
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)],
                                  capture_output=True, text=True, timeout=60)
            lines = [line for line in done.stderr.splitlines() if "nibble.service" in line]
            self.assertEqual((done.returncode, lines), (0, []), done.stderr)

    @unittest.skipIf(yaml is None, "no python3-yaml")
    def test_kubernetes(self):
        documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
        by_kind = {document["kind"]: document for document in documents}
        self.assertEqual(set(by_kind), {"Service", "PersistentVolumeClaim", "Deployment"})
        deployment = by_kind["Deployment"]["spec"]
        pod = deployment["template"]
        [container] = pod["spec"]["containers"]
        labels = pod["metadata"]["labels"]
        self.assertEqual(deployment["selector"]["matchLabels"], labels)
        self.assertEqual(by_kind["Service"]["spec"]["selector"], labels)
        [port] = container["ports"]
        self.assertEqual(by_kind["Service"]["spec"]["ports"][0]["targetPort"], port["name"])
        self.assertEqual(pod["metadata"]["annotations"]["prometheus.io/port"],
                         str(port["containerPort"]))
        for probe in ("startupProbe", "readinessProbe"):
            self.assertEqual(container[probe]["httpGet"], {"path": "/health", "port": "http"})
        self.assertEqual(container["livenessProbe"]["tcpSocket"]["port"], "http")
        self.assertEqual(set(container["resources"]["limits"]), {"cpu", "memory"})
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        self.assertEqual(mounted, {volume["name"] for volume in pod["spec"]["volumes"]})
        self.assert_options_exist(" ".join(container["args"]))
        drain = int(re.search(r"--drain-timeout=(\d+)", " ".join(container["args"])).group(1))
        self.assertGreater(pod["spec"]["terminationGracePeriodSeconds"], drain)

    def test_dockerfile(self):
        text = (DEPLOY / "Dockerfile").read_text()
        code = re.sub(r"^#.*\n", "", text, flags=re.M)
        self.assert_options_exist("\n".join(
            line for line in code.splitlines() if line.startswith(("ENTRYPOINT", "CMD"))))
        # Every stage that is named is there, and every file that is copied from the source.
        stages = re.findall(r"^FROM \S+ AS (\S+)$", code, re.M)
        for variant in ("cpu", "cuda"):
            for stage in re.findall(r"^FROM (\S+\$\{VARIANT\})", code, re.M):
                self.assertIn(stage.replace("${VARIANT}", variant), stages)
        for stage in re.findall(r"--from=(\S+)", code):
            self.assertIn(stage, stages)
        self.assertTrue((SOURCE / "scripts" / "install-packages").is_file())
        presets = (SOURCE / "CMakePresets.json").read_text()
        for preset in re.findall(r"NIBBLE_PRESET=(\S+)", code):
            self.assertIn(f'"name": "{preset}"', presets)
        # It does not run as root, and the last words are nibble's.
        self.assertRegex(code, r"(?m)^USER \d+$")
        self.assertRegex(code, r'ENTRYPOINT \["nibble", "serve"')


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
