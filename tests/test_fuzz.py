"""A short run of the driver that loads mutated files."""

import re
import subprocess
import sys

from conftest import ROOT


def test_mutated_files_are_data_or_one_line():
    words = [sys.executable, ROOT / "tests" / "fuzz.py", "--files", "160"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.findall(r"^(\w+) {'(?:data|line)': \d+, '(?:data|line)': \d+}$", done.stdout, re.M)
    assert {"ogbench", *counted} == {"d4rl", "robomimic", "ogbench", "minari"}
