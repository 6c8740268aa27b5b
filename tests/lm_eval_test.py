"""lm-evaluation-harness against the server gives the accuracy of `nibble evaluate`.

By hand, in an environment that has `lm-eval[api]`:

    lm_eval_test.py NIBBLE_BINARY MODEL MMLU_DIR [QUESTIONS]

MODEL's tokenizer adds no BOS (the harness asks for tokens without special ones). MMLU_DIR holds
dev/ and test/; QUESTIONS are the first so many of each of two subjects.
"""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from server_process import Server

SUBJECTS = ("anatomy", "astronomy")


def harness(server, model, data, questions, output):
    """Accuracy by subject."""
    arguments = [
        "--model", "local-completions", "--model_args",
        f"model={model},base_url=http://127.0.0.1:{server.port}/v1/completions,"
        "tokenizer_backend=remote,tokenized_requests=True,num_concurrent=8,max_length=2048",
        "--include_path", str(pathlib.Path(__file__).parent / "lm_eval"),
        "--tasks", ",".join(f"local_mmlu_{subject}" for subject in SUBJECTS),
        "--limit", str(questions), "--metadata", json.dumps({"data": str(data)}),
        "--output_path", str(output / "harness")]
    subprocess.run([sys.executable, "-m", "lm_eval", *arguments], check=True)
    files = list((output / "harness").rglob("results*.json"))
    results = json.loads(files[0].read_text())["results"]
    return {subject: results[f"local_mmlu_{subject}"]["acc,none"] for subject in SUBJECTS}


def evaluate(nibble, model, data, questions, output):
    subset = output / "mmlu"
    for split in ("dev", "test"):
        (subset / split).mkdir(parents=True)
        for file in (data / split).glob("*.csv"):
            if file.name.removesuffix(f"_{split}.csv") in SUBJECTS:
                shutil.copy(file, subset / split)
            else:  # it wants all subjects; those that do not count are short
                (subset / split / file.name).write_text("Q,a,b,c,d,A\n" * 5)
    document = output / "evaluate.json"
    subprocess.run([nibble, "evaluate", model, "--data", subset, "--template", "lm-eval",
                    "--questions-per-subject", str(questions), "--output", document, "--quiet"],
                   check=True)
    subjects = json.loads(document.read_text())["subjects"]
    return {subject: subjects[subject]["accuracy"] for subject in SUBJECTS}


def main():
    nibble, model, data = (pathlib.Path(p).resolve() for p in sys.argv[1:4])
    questions = int(sys.argv[4]) if len(sys.argv) > 4 else 40
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder)
        expected = evaluate(nibble, model, data, questions, output)
        server = Server(nibble, f"m={model}")
        try:
            got = harness(server, "m", data, questions, output)
        finally:
            server.stop()
    print("nibble evaluate:", expected)
    print("the harness:    ", got)
    return 0 if all(abs(got[s] - expected[s]) < 1e-6 for s in SUBJECTS) else 1


if __name__ == "__main__":
    sys.exit(main())
