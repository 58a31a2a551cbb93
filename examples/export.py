"""Export the policy of a finished run of any saq_*.py as an ONNX file, which onnxruntime runs without PyTorch.

    pip install -r requirements-export.txt
    python examples/export.py RUN policy.onnx                           # in the run's own action mode
    python examples/export.py RUN policy.onnx --action-mode greedy

    observation   (B, observation_dim) float32, as in the dataset
    action        (B, action_dim) float32, in the environment's units and within its bounds

The file is written only if onnxruntime and PyTorch agree on random observations and on observations of the dataset.
"""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks
from examples.act import Policy, find_run, load_policy, make_task
from saq_bc import fail
from tasks.common import quiet
from vqvae import replace_file

TOLERANCE = 1e-5  # largest difference of an action, as a share of its range


@dataclass
class Args:
    # folder of a finished run, and the file to write
    paths: Annotated[list[Path], tyro.conf.arg(metavar="RUN FILE.onnx"), tyro.conf.Positional]
    action_mode: Literal["mean", "greedy", "sampled"] | None = None  # mean or greedy; None: as in the run


class ExportedPolicy(torch.nn.Module):
    """A policy in one action mode, from observations (B, observation_dim) to actions (B, action_dim) in robot units."""

    def __init__(self, policy: Policy, action_mode: str, low: np.ndarray, high: np.ndarray):
        super().__init__()
        self.policy, self.action_mode = policy, action_mode
        for name, value in {"low": low, "high": high, "center": (low + high) / 2, "scale": (high - low) / 2}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        action = self.policy(observation, self.action_mode)
        return (self.center + self.scale * action).clamp(self.low, self.high)


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
            fail("an ONNX file draws no samples; choose --action-mode mean or greedy")
        onnx_bytes = export(policy, model, action_mode)
        observations = {"random": random_observations(policy), "dataset": dataset_observations(policy.args)}
        session = onnxruntime.InferenceSession(onnx_bytes)
        difference, agrees, gaps = compare(session, policy, model, action_mode, torch.cat([*observations.values()]))
        counts = " and ".join(f"{len(rows)} {name}" for name, rows in observations.items() if len(rows))
        result = f"actions differ from PyTorch's by up to {difference:.1e} of their range on {counts} observations"
        if not agrees:
            fail(f"{result}; {path} is not written")
        replace_file(path, lambda file: file.write(onnx_bytes))
    except OSError as error:
        fail(error)
    print(f"{path}: {action_mode} actions of {policy.algorithm}; {result}")
    if len(gaps):
        print(f"on {len(gaps)} of them it takes PyTorch's second code, whose logit is at most {gaps.max():.1e} lower")


def export(policy: Policy, model: dict[str, Any], action_mode: str) -> bytes:
    """The content of the ONNX file. Its metadata names the algorithm, the data, the mode and the bounds of actions."""
    import onnx_ir.passes.common

    low, high = np.array(model["action_low"]), np.array(model["action_high"])
    example = torch.zeros(2, len(policy.vqvae.standardize.mean))
    with quiet():
        program = torch.onnx.export(
            ExportedPolicy(policy, action_mode, low, high).eval(), (example,), dynamo=True, verbose=False,
            input_names=["observation"], output_names=["action"], dynamic_shapes=[{0: torch.export.Dim("batch")}],
        )  # fmt: skip
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)  # stack traces with paths of this machine
    program.model.metadata_props.update(
        algorithm=policy.algorithm, env_id=policy.args.env_id, action_mode=action_mode,
        action_low=json.dumps(model["action_low"]), action_high=json.dumps(model["action_high"]),
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


def compare(
    session, policy: Policy, model: dict[str, Any], action_mode: str, observations: torch.Tensor
) -> tuple[float, bool, np.ndarray]:
    """Compare the actions of an onnxruntime session with PyTorch's.

    The tolerance is 1e-5 of an action's range. It is larger where float32 rounds more coarsely: for logits above 100,
    whose rounding passes through the softmax, and for bounds far from 0. If the logits of a greedy policy's two best
    codes are equal up to rounding, the session may take the second code. Its action is then compared with the action
    of that code.

    Returns:
        difference: the largest difference of an action, as a share of its range.
        agrees: whether all differences are within the tolerance.
        gaps: for each observation where the session takes the second code, how much lower that code's logit is.
    """
    low, high = np.array(model["action_low"]), np.array(model["action_high"])
    batches = [observations[:1], *observations[1:].split(100)]  # the number of rows in a batch is free
    ours = np.concatenate([session.run(None, {"observation": batch.numpy()})[0] for batch in batches])

    def difference(actions: torch.Tensor) -> np.ndarray:
        """Difference (N, action_dim) to actions (N, action_dim) in [-1, 1], as a share of the range."""
        theirs = low + (high - low) * (actions.clamp(-1, 1).double().numpy() + 1) / 2
        return np.abs(ours - theirs) / (high - low)

    with torch.no_grad():
        logits = policy.logits(observations)
    largest_logit = logits.abs().max().item()
    rounding = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32)) / (high - low)
    tolerance = TOLERANCE * max(1, largest_logit / 100) + 2 * rounding
    result = difference(policy(observations, action_mode))
    gaps = np.empty(0)
    if action_mode == "greedy":
        best, codes = logits.topk(min(2, logits.shape[1]))
        gap = (best[:, 0] - best[:, -1]).numpy()
        second = difference(policy.vqvae.decode(observations, codes[:, -1]))
        is_tie = gap <= 3e-6 * largest_logit  # rounding changes a logit by about 4e-7 of the largest
        takes_second = is_tie & ~(result <= tolerance).all(1) & (second <= tolerance).all(1)
        result[takes_second] = second[takes_second]
        gaps = gap[takes_second]
    return result.max(), bool((result <= tolerance).all()), gaps


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
