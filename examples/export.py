"""Export the policy of a finished run of any saq_*.py as an ONNX file, which onnxruntime runs without PyTorch.

    pip install -r requirements-export.txt
    python examples/export.py RUN policy.onnx                           # in the run's own action mode
    python examples/export.py RUN policy.onnx --action-mode greedy

    observation   (B, observation_dim) float32, as in the dataset
    action        (B, action_dim) float32, in the environment's units and within its bounds

The file is written only if onnxruntime and PyTorch agree on random observations and, if the dataset is on this machine,
on observations of the dataset.
"""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks
from examples.act import Policy, find_run, load_policy, make_task
from saq_bc import fail
from tasks.common import quiet
from vqvae import replace_file

TOLERANCE = 1e-4  # largest difference of an action, as a share of its range; rounding makes about 3e-6


@dataclass
class Args:
    # folder of a finished run, and the file to write
    paths: Annotated[list[Path], tyro.conf.arg(metavar="RUN FILE.onnx"), tyro.conf.Positional]
    action_mode: Literal["mean", "greedy"] | None = None  # None: as in the run


class ExportedPolicy(torch.nn.Module):
    """A policy in one action mode, from observations (B, observation_dim) to actions (B, action_dim) in robot units."""

    def __init__(self, policy: Policy, action_mode: str, low: torch.Tensor, high: torch.Tensor):
        super().__init__()
        self.policy, self.action_mode = policy, action_mode
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        action = self.policy(observation, self.action_mode)
        center, half_range = (self.low + self.high) / 2, (self.high - self.low) / 2
        return (center + half_range * action).clamp(self.low, self.high)


def main(args: Args) -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        fail(f"{', '.join(missing)} not found; pip install -r requirements-export.txt")
    import onnxruntime

    if not args.paths or args.paths[-1].suffix != ".onnx":
        fail("name the folder of one run and the file to write, which ends in .onnx")
    folder, path = find_run(args.paths[:-1]), args.paths[-1].expanduser()
    try:
        policy, model = load_policy(folder)
        action_mode = args.action_mode or policy.args.action_mode
        if action_mode == "sampled":
            fail("sampled actions cannot be exported; choose --action-mode mean or greedy")
        low, high = torch.tensor(model["action_low"]), torch.tensor(model["action_high"])
        exported = ExportedPolicy(policy, action_mode, low, high).eval()
        onnx_bytes = export(exported)
        observations = {"random": random_observations(policy), "dataset": dataset_observations(policy.args)}
        session = onnxruntime.InferenceSession(onnx_bytes)
        difference = largest_difference(session, exported, torch.cat([*observations.values()]))
        counts = " and ".join(f"{len(rows)} {name}" for name, rows in observations.items() if len(rows))
        result = f"actions differ from PyTorch's by up to {difference:.1e} of their range on {counts} observations"
        if not difference <= TOLERANCE:
            fail(f"{result}; {path} is not written")
        replace_file(path, lambda file: file.write(onnx_bytes))
    except OSError as error:
        fail(error)
    print(f"{path}: {action_mode} actions of {policy.algorithm}; {result}")


def export(exported: ExportedPolicy) -> bytes:
    """The content of the ONNX file. Its metadata names the algorithm, the data, the mode and the bounds of actions."""
    import onnx_ir.passes.common

    policy = exported.policy
    example = torch.zeros(2, len(policy.vqvae.standardize.mean))
    with quiet():
        program = torch.onnx.export(
            exported, (example,), dynamo=True, verbose=False,
            input_names=["observation"], output_names=["action"], dynamic_shapes=[{0: torch.export.Dim("batch")}],
        )  # fmt: skip
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)  # stack traces with paths of this machine
    program.model.metadata_props.update(
        algorithm=policy.algorithm, env_id=policy.args.env_id, action_mode=exported.action_mode,
        action_low=json.dumps(exported.low.tolist()), action_high=json.dumps(exported.high.tolist()),
    )  # fmt: skip
    return program.model_proto.SerializeToString()


def random_observations(policy: Policy) -> torch.Tensor:
    """1000 draws from a normal distribution with the dataset's mean and standard deviation."""
    standardize = policy.vqvae.standardize
    std = torch.where(standardize.std.isinf(), 1.0, standardize.std)  # infinite for a constant column
    return torch.normal(standardize.mean.expand(1000, -1), std, generator=torch.Generator().manual_seed(0))


def dataset_observations(run: SimpleNamespace) -> torch.Tensor:
    """Up to 1000 evenly spaced observations of the run's dataset; none if it is not on this machine."""
    try:
        if run.dataset_path is None and not tasks.locate(run.env_id)[0].exists():
            return torch.empty(0)
        observations = make_task(run).dataset()["observations"]
    except (tasks.TaskError, OSError):
        return torch.empty(0)
    rows = np.linspace(0, len(observations) - 1, min(len(observations), 1000)).astype(int)
    return torch.from_numpy(observations[rows])


def largest_difference(session, exported: ExportedPolicy, observations: torch.Tensor) -> float:
    """The largest difference between actions of an onnxruntime session and PyTorch's, as a share of their range."""
    batches = [observations[:1], *observations[1:].split(100)]  # any number of rows must work
    ours = np.concatenate([session.run(None, {"observation": batch.numpy()})[0] for batch in batches])
    theirs = exported(observations).numpy()
    action_range = (exported.high - exported.low).numpy()
    action_range[action_range == 0] = 1.0  # an action that is constant in the data
    return float((np.abs(ours - theirs) / action_range).max())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
