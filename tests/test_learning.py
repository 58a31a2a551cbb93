"""Learning on the embedded demo dataset: the last policy must beat the data, as a user would see it."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

FLAGS = {
    "saq_iql": ["--bc-steps=4000", "--total-steps=5000"],
    "saq_cql": ["--bc-steps=4000", "--total-steps=5000"],
    "saq_brac": ["--bc-steps=4000", "--total-steps=5000"],
}


def train(algorithm, runs_dir, *flags):
    command = [sys.executable, str(ROOT / f"{algorithm}.py"), *flags, "--hidden-dim=128", "--device=cpu"]
    subprocess.run([*command, f"--runs-dir={runs_dir}"], check=True)
    (folder,) = runs_dir.iterdir()
    return folder


@pytest.fixture(scope="module")
def vqvae(tmp_path_factory):
    flags = ["--vqvae-steps=5000", "--total-steps=1", "--final-eval-episodes=1"]
    return train("saq_bc", tmp_path_factory.mktemp("vqvae"), *flags) / "vqvae.pt"


@pytest.mark.parametrize("algorithm", FLAGS)
def test_the_policy_beats_the_demo_data(vqvae, tmp_path, algorithm):
    """The data succeed 53.8%. Seeds 1 to 3 gave IQL 97, 75, 82, CQL 88, 83, 92, BRAC 98, 86, 95: 65 leaves 10."""
    folder = train(algorithm, tmp_path, f"--vqvae-path={vqvae}", *FLAGS[algorithm])
    result = json.loads((folder / "result.json").read_text())
    assert len(result["normalized_scores"]) == 100
    assert result["normalized_score"] > 65 > result["dataset_normalized_return"]
