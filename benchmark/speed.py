"""Speed of the gradient steps, one line per phase.

On the CPU: the time of a step divided by the time of the matrix multiplications that its equations need. The two take
turns in one process, with the same shapes and number of threads, so the ratio does not depend on the machine's load. A
step that only multiplies has 1.0. On a GPU: steps per second, kernels per step, and the share of time in which a kernel
runs.

    python benchmark/speed.py                # as the algorithm files run by default
    python benchmark/speed.py --compile      # with torch.compile
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from saq_brac import policy_logits as brac_logits
from saq_brac import td_loss
from saq_cql import cql_loss
from saq_iql import iql_loss, mlp
from vqvae import VQVAE, accelerate, minimize, soft_update, train_vqvae

ROWS = 20_000  # of the random dataset
WARM_UP = 20  # steps that are not timed
GAMMA, TAU, EXPECTILE, CQL_ALPHA, BRAC_ALPHA = 0.99, 0.05, 0.7, 4.0, 3.0
Layers = list[tuple[int, int, str]]


@dataclass
class Args:
    hidden_dim: int = 512  # width of the hidden layers
    batch_size: int = 256  # transitions per step
    threads: int = 1  # of PyTorch on the CPU
    steps: int = 200  # steps to time; on a GPU ten times as many
    observation_dim: int = 28  # as in the demo dataset
    action_dim: int = 4  # as in the demo dataset
    codebook_size: int = 64  # K, the number of codes
    layer_norm: bool = True  # normalize the hidden layers
    compile: bool = False  # torch.compile the steps


def multiplications(batch_size: int, layers: Layers) -> Callable[[], None]:
    """A function that does the matrix multiplications of layers (inputs, outputs, needs) for a batch.

    `needs` says which products the equations ask for: `y` = x W', `w` = the weight's gradient g' x, `x` = the input's
    gradient g W.
    """
    operands = []
    for inputs, outputs, needs in layers:
        x, weight = torch.randn(batch_size, inputs), torch.randn(outputs, inputs)
        operands.append((x, weight, torch.randn(batch_size, outputs), needs))

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
    for _ in range(steps + WARM_UP):
        start = time.perf_counter()
        yield 2  # not 1, which initializes the codebook
        middle = time.perf_counter()
        multiply()
        times.append((middle - start, time.perf_counter() - middle))


def on_gpu(steps: int, figures: list[float]) -> Iterator[int]:
    """Yield step numbers; append to `figures` the caller's steps per second, kernels per step, share of busy time."""
    yield from [2] * WARM_UP
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


def make_phases(args: Args, device: torch.device) -> dict[str, Callable[[Iterator[int]], None]]:
    """The training of each phase on random data, as in the algorithm files: functions of step numbers."""
    observations = torch.randn(ROWS, args.observation_dim)
    actions = torch.rand(ROWS, args.action_dim) * 2 - 1
    codes = torch.randn(ROWS, args.codebook_size).softmax(1)
    returns = torch.randn(ROWS)
    discounts = torch.full((ROWS,), GAMMA)
    next_observations = observations.roll(-1, 0)
    log_pi_b = torch.randn(ROWS, args.codebook_size).log_softmax(1)
    next_log_pi_b = log_pi_b.roll(-1, 0)
    vqvae = VQVAE(
        args.observation_dim,
        args.action_dim,
        args.codebook_size,
        hidden_dim=args.hidden_dim,
        layer_norm=args.layer_norm,
    )

    def train(networks: list[torch.nn.Module], update: Callable) -> Callable[[Iterator[int]], None]:
        """Steps of update(idx, optimizer, target, *networks). The first network has the target and an average."""
        trained = [copy.deepcopy(network) for network in networks]
        average = copy.deepcopy(trained[0])
        parameters = [parameter for network in trained for parameter in network.parameters()]
        optimizer = torch.optim.AdamW(parameters, fused=True)
        generator = torch.Generator(device).manual_seed(0)
        target = copy.deepcopy(trained[0])

        @accelerate(optimizer, args.compile)
        def step_fn(idx, rate):
            metrics = update(idx, optimizer, target, *trained)
            soft_update(average, trained[0], rate)
            return metrics

        def run(steps: Iterator[int]) -> None:
            for _ in steps:
                step_fn(torch.randint(ROWS, (args.batch_size,), generator=generator, device=device), 0.0005)

        return run

    def behavior_step(idx, optimizer, target, behavior):
        loss = F.cross_entropy(behavior(observations[idx]), codes[idx])
        minimize(loss, optimizer)
        return {"loss": loss}

    def iql_step(idx, optimizer, q_target, q, v):
        obs, next_obs, p = observations[idx], next_observations[idx], codes[idx]
        with torch.no_grad():
            td_target = returns[idx] + discounts[idx] * v(next_obs).squeeze(1)
            target_values = q_target(obs)
        values = q(obs)
        v_loss, q_loss = iql_loss(values, v(obs).squeeze(1), target_values, td_target, p, EXPECTILE)
        minimize(v_loss + q_loss, optimizer)
        soft_update(q_target, q, TAU)
        return {"v_loss": v_loss, "q_loss": q_loss, "q_values": (p * values).sum(1).mean()}

    def cql_step(idx, optimizer, q_target, q):
        obs, next_obs, p = observations[idx], next_observations[idx], codes[idx]
        with torch.no_grad():
            next_q = q_target(next_obs)
            next_pi = (next_q + next_log_pi_b[idx]).softmax(1)
            td_target = returns[idx] + discounts[idx] * (next_pi * next_q).sum(1)
        values = q(obs)
        td_loss, penalty = cql_loss(values, td_target, log_pi_b[idx], p)
        minimize(td_loss + CQL_ALPHA * penalty, optimizer)
        return {"td_loss": td_loss, "penalty": penalty, "q_values": (p * values).sum(1).mean()}

    def brac_step(idx, optimizer, q_target, q):
        obs, next_obs, p = observations[idx], next_observations[idx], codes[idx]
        with torch.no_grad():
            next_logits = brac_logits(q_target(next_obs), next_log_pi_b[idx], BRAC_ALPHA)
            td_target = returns[idx] + discounts[idx] * BRAC_ALPHA * next_logits.logsumexp(1)
        values = q(obs)
        loss = td_loss(values, td_target, p)
        minimize(loss, optimizer)
        soft_update(q_target, q, TAU)
        return {"loss": loss, "q_values": (p * values).sum(1).mean()}

    q = mlp(vqvae.standardize, args.codebook_size, args)
    v = mlp(vqvae.standardize, 1, args)
    return {
        "VQ-VAE": lambda steps: train_vqvae(
            vqvae, observations, actions, steps, args.batch_size, compile=args.compile
        ),
        "SAQ-BC, pi_b": train([q], behavior_step),
        "SAQ-CQL": train([q], cql_step),
        "SAQ-IQL": train([q, v], iql_step),
        "SAQ-BRAC": train([q], brac_step),
    }  # fmt: skip


def layers_of_phases(args: Args) -> dict[str, Layers]:
    """The layers that a step of each phase multiplies with, by the names of `make_phases`."""
    obs, act, hidden, codes, latent = args.observation_dim, args.action_dim, args.hidden_dim, args.codebook_size, 128
    encoder = [(obs + act, hidden, "yw"), (hidden, hidden, "ywx"), (hidden, latent, "ywx")]
    decoder = [(obs + latent, hidden, "ywx"), (hidden, hidden, "ywx"), (hidden, act, "ywx")]
    q = [(obs, hidden, "yw"), (hidden, hidden, "ywx"), (hidden, codes, "ywx")]
    v = [(obs, hidden, "yw"), (hidden, hidden, "ywx"), (hidden, 1, "ywx")]
    forward_q = [(inputs, outputs, "y") for inputs, outputs, _ in q]
    forward_v = [(inputs, outputs, "y") for inputs, outputs, _ in v]
    return {
        "VQ-VAE": [*encoder, (latent, codes, "y"), *decoder],
        "SAQ-BC, pi_b": q,
        "SAQ-CQL": q + forward_q,
        "SAQ-IQL": q + v + forward_q + forward_v,
        "SAQ-BRAC": q + forward_q,
    }


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")  # this and the next line as in the algorithm files
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    device_name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device_name)
    torch.set_default_device(device)
    layers = layers_of_phases(args)
    for name, run in make_phases(args, device).items():
        if device.type == "cuda":
            figures = []
            run(on_gpu(10 * args.steps, figures))
            rate, kernels, busy = figures
            print(f"{name:<16} {rate:7.0f} steps/s   {kernels:4.0f} kernels a step   busy {busy:.2f}", flush=True)
        else:
            times = []
            run(in_turns(args.steps, multiplications(args.batch_size, layers[name]), times))
            step, bare = 1e3 * np.median(times[WARM_UP:], axis=0)
            print(
                f"{name:<16} step {step:7.2f} ms   multiplications {bare:7.2f} ms   ratio {step / bare:.2f}", flush=True
            )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
