"""What the tests share. Datasets beside the repository (`../shared/datasets`) are optional: their tests skip."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # for scripts that tests run, two at a time

ALGORITHMS = ("saq_bc", "saq_iql", "saq_cql", "saq_brac")


@pytest.fixture(autouse=True)
def _reset_torch():
    torch = sys.modules.get("torch")  # the tests of tasks/ do not import it
    if torch is not None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        torch.set_flush_denormal(False)


@pytest.fixture
def shared_datasets() -> Path:
    folder = ROOT.parent / "shared" / "datasets"
    if not folder.is_dir():
        pytest.skip("no shared/datasets beside the repository")
    return folder


@pytest.fixture(scope="session")
def corridor():
    from known import Corridor

    return Corridor()


@pytest.fixture(scope="session")
def corridor_vqvae(corridor, tmp_path_factory):
    """vqvae.pt of a VQ-VAE with 16 codes, trained on the corridor."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("corridor") / "vqvae.pt"
    corridor.train_vqvae().save(path)
    return path


@pytest.fixture
def learn_corridor(corridor, corridor_vqvae, monkeypatch, tmp_path):
    """learn_corridor(module, **flags): train an algorithm on the corridor and return what it learned."""

    def learn(module, **flags):
        return corridor.learn(module, monkeypatch, vqvae_path=str(corridor_vqvae), run_dir=str(tmp_path), **flags)

    return learn
