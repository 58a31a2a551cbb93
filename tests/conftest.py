"""What the tests share. Datasets beside the repository (`../shared/datasets`) are optional: their tests skip."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # of scripts that tests run, two at once

ALGORITHMS = ("saq_bc", "saq_iql", "saq_cql", "saq_brac")


@pytest.fixture(autouse=True)
def _one_seed_and_thread():
    if torch := sys.modules.get("torch"):  # the tests of tasks/ do without
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture
def shared_datasets() -> Path:
    folder = ROOT.parent / "shared" / "datasets"
    if not folder.is_dir():
        pytest.skip("no shared/datasets beside the repository")
    return folder


@pytest.fixture(scope="session")
def corridor():
    import torch
    from known import Corridor

    torch.manual_seed(0)
    torch.set_num_threads(1)
    return Corridor()
