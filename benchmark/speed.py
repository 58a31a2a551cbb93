"""Time of each gradient step over the time of the bare matrix multiplications that its equations need.

Step and multiplications take turns in one process, at the same shapes and number of threads, so that the ratio does not
depend on the machine's load. 1.0 would be a step that does nothing but multiply.

    python benchmark/speed.py                # as the algorithm files run by default
    python benchmark/speed.py --compile      # with torch.compile
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from saq_bc import behavior_loss, mlp
from saq_brac import brac_loss
from saq_cql import cql_loss
from saq_iql import iql_loss
from vqvae import VQVAE, follow, train_vqvae


class Args(NamedTuple):
    hidden_dim: int = 512  # width of the hidden layers
    batch_size: int = 256  # rows per step
    threads: int = 2  # of PyTorch
    steps: int = 200  # to time, after 20 to warm up
    observation_dim: int = 28  # number of observation dimensions (demo dataset: 28)
    action_dim: int = 4  # number of action dimensions (demo dataset: 4)
    layer_norm: bool = True  # normalize the hidden layers of Q and V, as the algorithm files do by default
    compile: bool = False  # compile the losses


def multiplications(batch: int, layers: list[tuple[int, int, str]]) -> Callable[[], None]:
    """The matrix multiplications of layers (inputs, outputs, needs) for a batch.

    `needs` says which products the equations ask for: `y` = x W', `w` = the weight's gradient g' x, `x` = the input's
    gradient g W.
    """
    operands = [(torch.randn(batch, i), torch.randn(o, i), torch.randn(batch, o), needs) for i, o, needs in layers]

    def multiply() -> None:
        for x, weight, gradient, needs in operands:
            if "y" in needs:
                x @ weight.T
            if "w" in needs:
                gradient.T @ x
            if "x" in needs:
                gradient @ weight

    return multiply


def in_turns(steps: int, multiply: Callable[[], None], times: list[tuple[float, float]]) -> Iterator[int]:
    """Yield step numbers; append to `times` how long the caller took for each, and `multiply` after it."""
    for step in range(2, steps + 22):  # step 1 of the VQ-VAE also initializes the codebook
        start = time.perf_counter()
        yield step
        middle = time.perf_counter()
        multiply()
        times.append((middle - start, time.perf_counter() - middle))


def main(args: Args) -> None:
    """Print one line per phase: milliseconds of the step, of its multiplications, and the ratio of the medians."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    obs, act, hidden, codes = args.observation_dim, args.action_dim, args.hidden_dim, 64
    rows = 20_000
    observations, actions = torch.randn(rows, obs), torch.rand(rows, act) * 2 - 1
    behavior_data = {"observations": observations, "codes": torch.randint(codes, (rows,))}
    transitions = behavior_data | {"returns": torch.randn(rows), "discounts": torch.full((rows,), 0.99)}
    transitions["next_observations"] = observations.roll(-1, 0)
    brac_data = transitions | {"next_log_pi_b": torch.randn(rows, codes).log_softmax(1)}
    vqvae = VQVAE(obs, act, codebook_size=codes, hidden_dim=hidden)

    def train(loss, networks: list[torch.nn.Module], averages: list[torch.nn.Module], data, *settings) -> Callable:
        """Steps of loss(*networks, a batch of data, *settings), after which averages follow the first network."""
        optimizer = torch.optim.AdamW([p for network in networks for p in network.parameters()], fused=True)
        loss = torch.compile(loss) if args.compile else loss

        def run(steps: Iterator[int]) -> None:
            for _ in steps:
                index = torch.randint(rows, (args.batch_size,))
                metrics = loss(*networks, {name: column[index] for name, column in data.items()}, *settings)
                optimizer.zero_grad()
                metrics["loss"].backward()
                optimizer.step()
                for average in averages:
                    follow(average, networks[0], 0.005)

        return run

    q, v = (mlp(vqvae.standardize, outputs, hidden, args.layer_norm) for outputs in (codes, 1))
    q_target, acting, behavior = copy.deepcopy(q), copy.deepcopy(q), copy.deepcopy(q)
    latent = vqvae.config["embedding_dim"]
    encoder = [(obs + act, hidden, "yw"), (hidden, hidden, "ywx"), (hidden, latent, "ywx")]
    decoder = [(obs + latent, hidden, "ywx"), (hidden, hidden, "ywx"), (hidden, act, "ywx")]
    q_layers = [(obs, hidden, "yw"), (hidden, hidden, "ywx"), (hidden, codes, "ywx")]
    v_layers = [*q_layers[:2], (hidden, 1, "ywx")]
    forward_q, forward_v = ([(i, o, "y") for i, o, _ in layers] for layers in (q_layers, v_layers))
    phases = {
        "VQ-VAE": (
            lambda steps: train_vqvae(vqvae, observations, actions, steps, args.batch_size, compile=args.compile),
            [*encoder, (latent, codes, "y"), *decoder],
        ),
        "SAQ-BC, pi_b": (train(behavior_loss, [q], [acting], behavior_data), q_layers),
        "SAQ-CQL": (
            train(cql_loss, [q, q_target, behavior], [acting], transitions, 4.0, "expected"),
            q_layers + 3 * forward_q,
        ),
        "SAQ-IQL": (
            train(iql_loss, [q, q_target, v], [q_target, acting], transitions, 0.7),
            q_layers + v_layers + forward_q + forward_v,
        ),
        "SAQ-BRAC": (
            train(brac_loss, [q, q_target], [q_target, acting], brac_data, 3.0),
            q_layers + forward_q,
        ),
    }
    for name, (run, layers) in phases.items():
        times: list[tuple[float, float]] = []
        run(in_turns(args.steps, multiplications(args.batch_size, layers), times))
        step, bare = 1e3 * np.median(times[20:], axis=0)
        print(f"{name:<16} step {step:7.2f} ms   multiplications {bare:7.2f} ms   ratio {step / bare:.2f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
