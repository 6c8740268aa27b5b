#!/usr/bin/env python3
"""Each folder of src/ may include only itself and the folders before it in the build's list.

Usage: folder_order_test.py SOURCE_DIR "base;tensor;..."
"""
import pathlib
import re
import sys


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    order = sys.argv[2].split(";")
    rank = {folder: i for i, folder in enumerate(order)}
    problems = []
    checked = 0
    for path in sorted((root / "src").rglob("*")):
        if path.suffix not in (".h", ".cc", ".cu", ".cuh"):
            continue
        folder = path.parent.relative_to(root / "src").as_posix()
        if folder not in rank:
            problems.append(f"{path}: folder {folder} is not in the build's list")
            continue
        for included in re.findall(r'^\s*#\s*include\s+"src/([^"]+)"', path.read_text(), re.M):
            target = pathlib.PurePosixPath(included).parent.as_posix()
            checked += 1
            if target not in rank:
                problems.append(f"{path}: includes src/{included}, an unknown folder")
            elif rank[target] > rank[folder]:
                problems.append(f"{path}: {folder} must not use {target} (src/{included})")
            # The implementations of one contract know nothing of each other; their tests compare them.
            elif path.stem.endswith(("_test", "test_util")):
                continue
            elif target != folder and target.startswith("ops/") and folder.startswith("ops/"):
                problems.append(f"{path}: {folder} must not use its sibling {target}")
    print("\n".join(problems) or f"{checked} includes, all in order")
    return 1 if problems or checked == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
