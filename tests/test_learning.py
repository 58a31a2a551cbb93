"""Learning on the embedded demo dataset: the last policy must beat the data."""

import pytest

import saq_bc
import saq_brac
import saq_cql
import saq_iql


@pytest.fixture(scope="module")
def vqvae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqvae")
    args = {"hidden_dim": 128, "device": "cpu", "run_dir": str(folder)}
    saq_bc.main(saq_bc.Args(vqvae_steps=1500, bc_steps=1, final_eval_episodes=1, **args))
    return str(folder / "vqvae.pt")


@pytest.mark.parametrize("algorithm", [saq_iql, saq_cql, saq_brac], ids=lambda module: module.__name__)
def test_the_policy_beats_the_demo_data(vqvae, tmp_path, algorithm):
    """The data succeed 53.8% of the time; seeds 1 and 2 of each algorithm gave 87 to 100%."""
    args = {"hidden_dim": 128, "device": "cpu", "run_dir": str(tmp_path), "vqvae_path": vqvae}
    result = algorithm.main(algorithm.Args(bc_steps=500, rl_steps=1000, final_eval_episodes=30, **args))
    assert len(result["normalized_scores"]) == 30
    assert result["normalized_score"] > 65 > result["dataset_normalized_return"]
