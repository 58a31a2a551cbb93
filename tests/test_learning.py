"""Learning on the embedded demo dataset: the last policy must beat the data, as a user would see it."""

import json
import os
import subprocess
import sys

from conftest import ROOT


def test_saq_cql_beats_the_demo_data(tmp_path):
    """The data succeed 53.8%. Seeds 1 and 2 gave 82 and 78; 65 leaves 13 to the worse one."""
    flags = ["--vqvae-steps=5000", "--bc-steps=0", "--total-steps=6000", "--hidden-dim=128", "--target-period=100"]
    command = [sys.executable, str(ROOT / "saq_cql.py"), *flags, "--device=cpu", f"--runs-dir={tmp_path}"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (folder,) = tmp_path.iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert len(result["normalized_scores"]) == 100
    assert result["normalized_score"] > 65 > result["dataset_normalized_return"]
