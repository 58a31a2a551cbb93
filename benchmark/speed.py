"""Speed of the gradient steps, a line a phase.

On the CPU: the time of a step over that of the bare matrix multiplications that its equations need. The two take turns
in one process, at the same shapes and number of threads, so that the ratio does not depend on the machine's load. 1.0
is a step that only multiplies. On a GPU: steps a second, kernels a step, and the share of time in which a kernel runs.

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
from vqvae import VQVAE, follow, gradient_step, minimize, train_vqvae


class Args(NamedTuple):
    hidden_dim: int = 512  # width of the hidden layers
    batch_size: int = 256  # rows per step
    threads: int = 1  # of PyTorch on the CPU
    steps: int = 200  # to time, after 20 to warm up; on a GPU ten times as many
    observation_dim: int = 28  # number of observation dimensions (demo dataset: 28)
    action_dim: int = 4  # number of action dimensions (demo dataset: 4)
    layer_norm: bool = True  # normalize the hidden layers, as the algorithm files do by default
    compile: bool = False  # compile the steps


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
    for _ in range(steps + 20):
        start = time.perf_counter()
        yield 2  # not 1, which initializes the codebook
        middle = time.perf_counter()
        multiply()
        times.append((middle - start, time.perf_counter() - middle))


def on_gpu(steps: int, figures: list[float]) -> Iterator[int]:
    """Yield step numbers; append to `figures` the caller's steps a second, kernels a step and share of busy time."""
    yield from [2] * 20
    torch.cuda.synchronize()
    start = time.perf_counter()
    yield from [2] * steps
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        yield from [2] * 20
        torch.cuda.synchronize()
    kernels = [e.time_range.elapsed_us() for e in profile.events() if str(e.device_type).endswith("CUDA")]
    figures += [1 / seconds, len(kernels) / 20, sum(kernels) / 20e6 / seconds]


def main(args: Args) -> None:
    """Print a line a phase."""
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")  # as the algorithm files do, and so the next line
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_device(device)
    obs, act, hidden, codes = args.observation_dim, args.action_dim, args.hidden_dim, 64
    rows = 20_000
    observations, actions = torch.randn(rows, obs), torch.rand(rows, act) * 2 - 1
    log_pi_b = torch.randn(rows, codes).log_softmax(1)
    behavior_data = {"observations": observations, "codes": torch.randn(rows, codes).softmax(1)}
    transitions = behavior_data | {"returns": torch.randn(rows), "discounts": torch.full((rows,), 0.99)}
    transitions["next_observations"] = observations.roll(-1, 0)
    tables = transitions | {"log_pi_b": log_pi_b, "next_log_pi_b": log_pi_b.roll(-1, 0)}
    vqvae = VQVAE(obs, act, codebook_size=codes, hidden_dim=hidden, layer_norm=args.layer_norm)

    def train(loss, networks: list[torch.nn.Module], averages: list[torch.nn.Module], data, *settings) -> Callable:
        """Steps of loss(*networks, a batch of data, *settings), after which averages follow the first network."""
        learned = [p for network in networks if network is not q_target for p in network.parameters()]
        optimizer = torch.optim.AdamW(learned, fused=True)

        @gradient_step(optimizer, torch.Generator(device).manual_seed(0), rows, args.batch_size, args.compile)
        def update(index: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
            metrics = loss(*networks, {name: column[index] for name, column in data.items()}, *settings)
            minimize(metrics["loss"], optimizer)
            for average in averages:
                follow(average, networks[0], weight)
            return metrics

        return lambda steps: [update(0.005) for _ in steps]

    q, v = (mlp(vqvae.standardize, outputs, hidden, args.layer_norm) for outputs in (codes, 1))
    q_target, acting = copy.deepcopy(q), copy.deepcopy(q)
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
            train(cql_loss, [q, q_target], [q_target, acting], tables, 4.0, "expected"),
            q_layers + forward_q,
        ),
        "SAQ-IQL": (
            train(iql_loss, [q, q_target, v], [q_target, acting], transitions, 0.7),
            q_layers + v_layers + forward_q + forward_v,
        ),
        "SAQ-BRAC": (
            train(brac_loss, [q, q_target], [q_target, acting], tables, 3.0),
            q_layers + forward_q,
        ),
    }
    for name, (run, layers) in phases.items():
        if device.type == "cuda":
            run(on_gpu(10 * args.steps, figures := []))
            rate, kernels, busy = figures
            print(f"{name:<16} {rate:7.0f} steps/s   {kernels:4.0f} kernels a step   busy {busy:.2f}", flush=True)
            continue
        run(in_turns(args.steps, multiplications(args.batch_size, layers), times := []))
        step, bare = 1e3 * np.median(times[20:], axis=0)
        print(f"{name:<16} step {step:7.2f} ms   multiplications {bare:7.2f} ms   ratio {step / bare:.2f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
