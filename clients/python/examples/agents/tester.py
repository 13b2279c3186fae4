"""An agent that is a process only while it has a task: it runs one test file with pytest.

Input, on stdin: `{"input": {"file": "tests/server/test_settings.py"}, …}`. What pytest prints is output of the task, to
be followed live; the last line is the result. A failing test is a finding, not a failure of the agent.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

RAN = (0, 1)  # pytest's exit codes when all tests passed, and when some did not


def main() -> None:
    """Run the file of the one task."""
    file = json.load(sys.stdin)["input"]["file"]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", file]
        code = subprocess.run(command, stderr=subprocess.STDOUT, check=False).returncode
        if code not in RAN:
            message = f"pytest ended with {code}; its output says why"
            print(json.dumps({"error": {"class": "INVALID", "reason": "NO_TESTS_RAN", "message": message}}))
            return
        suite = ElementTree.parse(report).getroot()[0]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = 2 * counts["tests"] - sum(counts.values())
    print(json.dumps({"result": {"file": file, "passed": passed, **counts}}))


if __name__ == "__main__":
    main()
