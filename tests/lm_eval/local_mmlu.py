"""MMLU's questions from its original CSV files, for lm-evaluation-harness."""
import csv
import pathlib


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [{"question": question, "choices": choices, "answer": "ABCD".index(answer)}
                for question, *choices, answer in csv.reader(file)]


def load(data, subject, **_):
    """The splits dev and test of a subject; `data` holds the folders dev/ and test/."""
    import datasets  # the harness's own
    folder = pathlib.Path(data)
    return {split: datasets.Dataset.from_list(rows(folder / split / f"{subject}_{split}.csv"))
            for split in ("dev", "test")}
