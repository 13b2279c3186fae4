"""An agent that is a process only while it has a task: it runs ruff on a folder.

Input, on stdin: `{"input": {"folder": "server"}, …}`. Its last line on stdout is the result.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter


def main() -> None:
    """Check the folder of the one task."""
    folder = json.load(sys.stdin)["input"]["folder"]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", "--", folder]
    ruff = subprocess.run(command, capture_output=True, text=True, check=False)
    if ruff.returncode not in (0, 1):  # 0: nothing found; 1: something found; else it did not run
        message = ruff.stderr.strip() or f"ruff ended with {ruff.returncode}"
        print(json.dumps({"error": {"class": "INVALID", "reason": "RUFF_FAILED", "message": message}}))
        return
    rules = Counter(finding["code"] or "syntax" for finding in json.loads(ruff.stdout))
    print(json.dumps({"result": {"folder": folder, "findings": rules.total(), "rules": rules}}))


if __name__ == "__main__":
    main()
