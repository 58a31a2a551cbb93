"""State-conditioned action VQ-VAE: turns continuous actions into codes 0..K-1 that depend on the observation.

    z     = e(s, a)                                      encoder
    c     = argmin_k |z - codebook_k|^2                  code, an integer
    z_q   = codebook_c                                   quantized vector; its gradient goes straight through to z
    a'    = d(s, z_q)                                    decoder
    loss  = |a - a'|^2 + mean (sg[z_q] - z)^2 + mean (z_q - sg[z])^2          sg: stop gradient
    p_k   = softmax_k(-|z - codebook_k|^2 / m)           soft codes: probabilities of the codes near an action

Luo et al., *Action-Quantized Offline Reinforcement Learning for Robotic Skill Learning*, CoRL 2023, section 4.1
van den Oord et al., *Neural Discrete Representation Learning*, NeurIPS 2017, equation 3
Roy et al., *Theory and Experiments on Vector Quantized Autoencoders*, 2018 (soft codes)

    vqvae = VQVAE.for_data(observations, actions)        # (N, observation_dim), (N, action_dim) float32
    train_vqvae(vqvae, observations, actions, steps=20_000)
    codes = vqvae.encode(observations, actions)          # (N,) int64, to train on; soft_codes: probabilities (N, K)
    actions = vqvae.decode(observations, codes)          # to act

The model comes first, then its training, then the parts of a gradient step that all algorithms share.
"""

import copy
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.optim.adam import adam

Metrics = dict[str, torch.Tensor]  # scalars by name
CHUNK = 16384  # rows that encode and decode process at a time, to bound memory


class Standardize(nn.Module):
    """(x - mean) / std. Mean and std (D,) are buffers, so a checkpoint contains them."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    @classmethod
    def for_data(cls, x: torch.Tensor) -> "Standardize":
        """Standardize by the mean and the standard deviation (plus 1e-3) of x (N, D); constant columns become 0."""
        low, high = x.aminmax(dim=0)
        is_constant = high - low <= 4 * torch.finfo(x.dtype).eps * torch.maximum(high, -low)  # apart from rounding
        std = x.std(0, unbiased=False) + 1e-3
        return cls(x.mean(0), torch.where(is_constant, torch.inf, std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


# ---- The model -------------------------------------------------------------------------------------------------------


class VQVAE(nn.Module):
    """Encoder, decoder, and a codebook of K vectors, together with the standardization of the observations.

    Args:
        codebook_size: K, the number of codes.
        embedding_dim: dimension of z and of the codebook's vectors.
        hidden_dim: width of the two hidden layers of encoder and decoder.
        layer_norm: whether these layers are normalized (paper: no).
        state_conditioned: whether encoder and decoder see the observation. Otherwise all states share the same K
            actions, which is the ablation of the paper's idea.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        codebook_size: int = 64,
        embedding_dim: int = 128,
        hidden_dim: int = 256,
        layer_norm: bool = True,
        state_conditioned: bool = True,
    ):
        super().__init__()
        self.config = dict(
            observation_dim=observation_dim, action_dim=action_dim, codebook_size=codebook_size,
            embedding_dim=embedding_dim, hidden_dim=hidden_dim, layer_norm=layer_norm,
            state_conditioned=state_conditioned,
        )  # fmt: skip
        self.state_conditioned = state_conditioned
        self.standardize = Standardize(torch.zeros(observation_dim), torch.ones(observation_dim))
        state_dim = observation_dim if state_conditioned else 0
        self.encoder = coder(state_dim + action_dim, hidden_dim, embedding_dim, layer_norm)
        self.decoder = coder(state_dim + embedding_dim, hidden_dim, action_dim, layer_norm)
        bound = math.sqrt(3 / codebook_size)  # variance 1 / K, as in the authors' code
        self.codebook = nn.Parameter(torch.empty(codebook_size, embedding_dim).uniform_(-bound, bound))
        self.register_buffer("soft_code_scale", torch.ones(()))  # m; training sets it

    @classmethod
    def for_data(
        cls, observations: torch.Tensor, actions: torch.Tensor, standardize: bool = True, **settings
    ) -> "VQVAE":
        """A VQ-VAE for observations (N, observation_dim) and actions (N, action_dim), on their device.

        Args:
            standardize: whether to standardize observations (paper: no).
            settings: keyword arguments of the constructor, such as codebook_size.
        """
        model = cls(observations.shape[1], actions.shape[1], **settings)
        if standardize:
            model.standardize = Standardize.for_data(observations)
        return model.to(actions.device)

    def loss(self, observations: torch.Tensor, actions: torch.Tensor) -> Metrics:
        """The VQ-VAE loss of a batch (B, .), (B, .) float32 (van den Oord et al., equation 3, commitment weight 1).

        Returns:
            loss: to minimize.
            reconstruction: squared error of the actions, summed over their dimensions and averaged over the batch.
            commitment: mean (sg[z_q] - z)^2. The codebook loss has the same value and another gradient.
        """
        z = self.encoder(self._condition(observations, actions))
        z_q = F.embedding(self.nearest(z), self.codebook)
        commitment = F.mse_loss(z, z_q.detach())
        codebook_loss = F.mse_loss(z_q, z.detach())
        straight_through = z + (z_q - z).detach()
        decoded = self.decoder(self._condition(observations, straight_through))
        reconstruction = (decoded - actions).square().sum(1).mean()
        loss = reconstruction + commitment + codebook_loss
        return {"loss": loss, "reconstruction": reconstruction, "commitment": commitment}

    @torch.no_grad()
    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """Codes (B,) int64 whose vectors are nearest, in squared L2, to encoder outputs z (B, embedding_dim)."""
        # |codebook_k|^2 - 2 z codebook_k; |z|^2 is the same for every code and drops out of the argmin.
        return torch.addmm(self.codebook.square().sum(1), z, self.codebook.T, alpha=-2).argmin(1)

    @torch.no_grad()
    def encode(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Nearest codes (N,) int64 of observations (N, observation_dim) and actions (N, action_dim)."""
        return in_chunks(lambda o, a: self.nearest(self.embed(o, a)), observations, actions)

    @torch.no_grad()
    def soft_codes(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Probabilities (N, K) of the codes: softmax_k(-|z - codebook_k|^2 / m), with m from `fit_soft_codes`."""
        return in_chunks(
            lambda o, a: (-self.squared_distances(o, a) / self.soft_code_scale).softmax(1), observations, actions
        )

    @torch.no_grad()
    def fit_soft_codes(self, observations: torch.Tensor, actions: torch.Tensor) -> None:
        """Set m from a dataset: m = min(mean d1, mean (d2 - d1)).

        d1 and d2 are the squared distances to the nearest and to the second-nearest code. The first term keeps the
        probabilities no wider than the quantization error, the second keeps neighboring codes distinct.
        """
        count = min(2, len(self.codebook))  # a codebook of one code has no second
        nearest = in_chunks(
            lambda o, a: self.squared_distances(o, a).topk(count, largest=False).values, observations, actions
        )
        means = nearest.mean(0)
        m = torch.minimum(means[0], means[-1] - means[0])
        self.soft_code_scale.copy_(m.clamp_min(1e-12))

    @torch.no_grad()
    def decode(self, observations: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Actions (N, action_dim) that codes (N,) int64 stand for at observations (N, observation_dim); not clipped."""
        return in_chunks(lambda o, c: self.decoder(self._condition(o, self.codebook[c])), observations, codes)

    def act(
        self,
        observations: torch.Tensor,
        logits: torch.Tensor,
        action_mode: str,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Actions (B, action_dim) of the policy softmax(logits) over codes.

        Args:
            observations: (B, observation_dim).
            logits: (B, K).
            action_mode: mean, the average of the decoded actions under the policy; greedy, the most probable code,
                decoded; sampled, a code drawn with `generator`, decoded.

        Raises:
            ValueError: if action_mode is none of these.
        """
        probabilities = logits.softmax(1)
        if action_mode == "mean":
            batch_size, codebook_size = logits.shape
            # Decode all K codes at every observation.
            every_code = torch.arange(codebook_size, device=logits.device).repeat(batch_size)
            decoded = self.decode(observations.repeat_interleave(codebook_size, 0), every_code)
            return torch.einsum("bk,bka->ba", probabilities, decoded.view(batch_size, codebook_size, -1))
        if action_mode == "greedy":
            return self.decode(observations, logits.argmax(1))
        if action_mode == "sampled":
            codes = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
            return self.decode(observations, codes)
        raise ValueError(f"action_mode must be mean, greedy or sampled, got {action_mode!r}")

    @torch.no_grad()
    def evaluate(self, observations: torch.Tensor, actions: torch.Tensor) -> dict[str, float]:
        """How well the nearest codes reconstruct actions (N, action_dim) at observations (N, observation_dim).

        Returns:
            reconstruction_error: squared error of the decoded actions, summed over dimensions, averaged over N.
            action_variance: the error of always predicting the mean action.
            codes_used: how many of the K codes occur.
            perplexity: exp of the entropy of the codes' frequencies, from 1 to K.
        """
        codes = self.encode(observations, actions)
        error = (self.decode(observations, codes) - actions).square().sum(1).mean()
        frequency = torch.bincount(codes, minlength=len(self.codebook)) / len(codes)
        return {
            "reconstruction_error": error.item(),
            "action_variance": actions.var(0, unbiased=False).sum().item(),
            "codes_used": int((frequency > 0).sum()),
            "perplexity": torch.special.entr(frequency).sum().exp().item(),
        }

    @torch.no_grad()
    def embed(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Encoder outputs z (B, embedding_dim), before quantization."""
        return self.encoder(self._condition(observations, actions))

    @torch.no_grad()
    def squared_distances(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """|z - codebook_k|^2 (B, K)."""
        return torch.cdist(self.embed(observations, actions), self.codebook).square()

    def _condition(self, observations: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x (B, D), after the standardized observations if the codes depend on the state."""
        if not self.state_conditioned:
            return x
        return torch.cat([self.standardize(observations), x], 1)

    def save(self, path: str | os.PathLike) -> None:
        """Write the constructor's arguments, weights and standardization to a file."""
        replace_file(path, lambda file: torch.save({"config": self.config, "weights": self.state_dict()}, file))

    @classmethod
    def load(cls, path: str | os.PathLike, device: torch.device | str = "cpu") -> "VQVAE":
        """Read what `save` wrote. Raises OSError if the file is missing or does not contain a VQ-VAE."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            model = cls(**saved["config"])
            model.load_state_dict(saved["weights"])
        except Exception as error:  # a damaged file fails in many ways
            raise OSError(f"{path} is not a readable vqvae.pt ({error!r:.200})") from error
        return model.to(device)

    def load_weights(self, path: str | os.PathLike) -> None:
        """Load the weights from a file written by `save`.

        Raises:
            OSError: as `load` does.
            ValueError: if the file's configuration or the statistics of its observations differ.
        """
        saved = self.load(path, self.codebook.device)
        if saved.config != self.config:
            raise ValueError(f"{path} has {saved.config}, this run needs {self.config}")
        for theirs, ours in zip(saved.standardize.buffers(), self.standardize.buffers()):
            if not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-3):
                raise ValueError(f"{path} was trained on another dataset, or with another --standardize")
        self.load_state_dict(saved.state_dict())


def in_chunks(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """function(*tensors) for CHUNK rows at a time, concatenated."""
    if torch.compiler.is_exporting():  # an exported model takes any number of rows
        return function(*tensors)
    chunks = [tensor.split(CHUNK) for tensor in tensors]
    return torch.cat([function(*rows) for rows in zip(*chunks)])


def coder(input_dim: int, hidden_dim: int, output_dim: int, layer_norm: bool) -> nn.Sequential:
    """A network with two hidden layers, initialized as in the authors' code."""
    first = nn.Linear(input_dim, hidden_dim)
    second = nn.Linear(hidden_dim, hidden_dim)
    last = nn.Linear(hidden_dim, output_dim)
    for layer in (first, second):
        # lecun_normal: std 1 / sqrt(fan_in) after truncation at two standard deviations, which shrinks it by 0.8796.
        std = layer.in_features**-0.5 / 0.87962566103423978
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(layer.bias)
    bound = math.sqrt(3 * 1e-2 / hidden_dim)
    nn.init.uniform_(last.weight, -bound, bound)
    nn.init.zeros_(last.bias)

    if not layer_norm:
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), last)
    return nn.Sequential(
        first, nn.LayerNorm(hidden_dim), nn.ReLU(inplace=True),
        second, nn.LayerNorm(hidden_dim), nn.ReLU(inplace=True),
        last,
    )  # fmt: skip


# ---- Its training ----------------------------------------------------------------------------------------------------


def train_vqvae(
    model: VQVAE,
    observations: torch.Tensor,
    actions: torch.Tensor,
    steps: int | Iterable[int],
    batch_size: int = 256,
    learner: VQVAE | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
    dead_code_reset_every: int = 500,
    ema_decay: float = 0.9995,
    compile: bool = False,
    on_step: Callable[[Metrics], None] = lambda metrics: None,
) -> None:
    """Train on a dataset. A copy, the learner, takes the gradient steps; `model` is the average of its weights.

    Args:
        observations, actions: (N, observation_dim) and (N, action_dim) float32 on the model's device.
        steps: the number of gradient steps, or an iterable of step numbers 1, 2, ... (or, to continue, later ones).
        batch_size: transitions per gradient step.
        learner, optimizer: the copy and the Adam of its parameters; pass both to save them and to resume training. By
            default a new copy with learning rate 3e-3.
        generator: draws the batches, on the model's device; by default one with seed 0.
        dead_code_reset_every: start from k-means centers of encoder outputs, and reset unused codes this often. 0: do
            neither (paper).
        ema_decay: decay of the averaged weights. At step t they move by the larger of 1 - ema_decay and 10 / (9 + t):
            at first the average covers the last tenth of the steps. 0: the last weights (paper).
        compile: compile the gradient step with torch.compile.
        on_step: called after each step with the metrics of `VQVAE.loss`, which the next step overwrites on a GPU, and
            every 500 steps with those of `VQVAE.evaluate` on a sample of the dataset.
    """
    if learner is None:
        learner = copy.deepcopy(model)
        optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3, fused=True)
    device = actions.device
    if generator is None:
        generator = torch.Generator(device).manual_seed(0)
    stride = max(1, len(actions) // 4096)  # evaluate on 4096 to 8191 evenly spaced rows
    if isinstance(steps, int):
        steps = range(1, steps + 1)

    @accelerate(optimizer, compile)  # CUDA graph on a GPU, torch.compile on request; the same result
    def vqvae_step(idx, ema_rate):
        metrics = learner.loss(observations[idx], actions[idx])
        minimize(metrics["loss"], optimizer)  # zero_grad, backward, step
        soft_update(model, learner, ema_rate)
        return metrics

    for step in steps:
        if dead_code_reset_every and (step == 1 or step % dead_code_reset_every == 0):
            idx = torch.randint(len(actions), (max(8192, len(model.codebook)),), generator=generator, device=device)
            z = learner.embed(observations[idx], actions[idx])
            if step == 1:
                initialize_codebook(learner, z)
            else:
                reset_dead_codes(learner, z)
        idx = torch.randint(len(actions), (batch_size,), generator=generator, device=device)
        ema_rate = max(1 - ema_decay, 10 / (9 + step))  # falls from 1, about as 10 / step, to 1 - ema_decay
        metrics = vqvae_step(idx, ema_rate)
        if step % 500 == 0:
            metrics = metrics | model.evaluate(observations[::stride], actions[::stride])
        on_step(metrics)
    model.fit_soft_codes(observations, actions)  # also if a resumed run has no steps left


@torch.no_grad()
def initialize_codebook(model: VQVAE, z: torch.Tensor) -> None:
    """Put the codebook on the k-means centers (Lloyd's algorithm) of encoder outputs z (B, embedding_dim)."""
    model.codebook.copy_(z[: len(model.codebook)])
    for _ in range(10):
        codes = model.nearest(z)
        counts = torch.bincount(codes, minlength=len(model.codebook))[:, None]
        sums = torch.zeros_like(model.codebook).index_add_(0, codes, z)
        model.codebook.copy_(torch.where(counts > 0, sums / counts, model.codebook))


@torch.no_grad()
def reset_dead_codes(model: VQVAE, z: torch.Tensor) -> None:
    """Reset each code that none of z (B, embedding_dim) has close to a live one.

    The vector of dead code k becomes that of the code of z[k], moved a tenth of the way to z[k]. Moving it all the way
    would put it where the decoder is untrained, and the reconstruction error would spike.
    """
    codebook_size = len(model.codebook)
    codes = model.nearest(z)
    is_dead = torch.bincount(codes, minlength=codebook_size) == 0
    beside = torch.lerp(model.codebook[codes[:codebook_size]], z[:codebook_size], 0.1)
    model.codebook.copy_(torch.where(is_dead[:, None], beside, model.codebook))


# ---- The parts of a gradient step ------------------------------------------------------------------------------------
#
#     @accelerate(optimizer)                     # CUDA graph on a GPU, torch.compile if asked for
#     def step(idx, rate):
#         loss = ...
#         minimize(loss, optimizer)                 # zero_grad, backward, step
#         soft_update(average, model, rate)         # average += rate * (model - average)
#         return {"loss": loss}


@torch.no_grad()
def soft_update(target: nn.Module, model: nn.Module, rate: float | torch.Tensor) -> None:
    """target += rate * (model - target), for every parameter (Polyak averaging)."""
    targets, sources = list(target.parameters()), list(model.parameters())
    if torch.compiler.is_compiling():  # this compiles to one kernel, _foreach_lerp_ to one per parameter
        torch._foreach_mul_(targets, 1 - rate)
        torch._foreach_add_(targets, torch._foreach_mul(sources, rate))
    else:
        torch._foreach_lerp_(targets, sources, [rate] * len(sources))


def minimize(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of an Adam or AdamW (without amsgrad or maximize) down the gradient of a scalar loss."""
    if not torch.compiler.is_compiling():
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return

    # torch.compile cannot trace these three calls, but it can trace the function behind Adam.step.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = dict(zip(parameters, torch.autograd.grad(loss, parameters)))
    with torch.no_grad():
        for group in optimizer.param_groups:
            states = [optimizer.state[p] for p in group["params"]]
            beta1, beta2 = group["betas"]
            adam(
                group["params"],
                [gradients[p] for p in group["params"]],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                decoupled_weight_decay=group["decoupled_weight_decay"],
                amsgrad=False,
                maximize=False,
                foreach=True,
                capturable=True,
            )


def accelerate(optimizer: torch.optim.Optimizer, compile: bool = False) -> Callable:
    """Decorator that makes a gradient step fast. What it computes stays the same.

    The step is a function of tensors and numbers that updates tensors in place and returns scalars by name. On the CPU
    it runs as it is. On a GPU, where Python's overhead would dominate, the third call records a CUDA graph and later
    calls replay it: then Python code in the step no longer runs, shapes of arguments must stay the same, and a call
    overwrites what the last one returned. With `compile`, torch.compile compiles the whole step. In both cases numeric
    arguments become tensors; all other numbers, such as the learning rate, are frozen.

    Args:
        optimizer: the Adam that the step gives to `minimize`.
        compile: compile the step with torch.compile.
    """

    def decorate(step: Callable[..., Metrics]) -> Callable[..., Metrics]:
        device = optimizer.param_groups[0]["params"][0].device
        on_gpu = device.type == "cuda"

        def detached(*inputs):
            return {name: value.detach() for name, value in step(*inputs).items()}

        if not compile and not on_gpu:
            return detached

        fast = detached
        if compile:
            torch._dynamo.config.trace_autograd_ops = True  # for torch.autograd.grad in `minimize`
            torch._dynamo.config.recompile_limit = 256  # counts all gradient steps, which share the code of `detached`
            options = {"combo_kernels": True} if on_gpu else None  # independent small kernels become one
            fast = torch.compile(detached, fullgraph=True, options=options)

        def step_on_tensors(*inputs):
            tensors = [as_tensor(value, device) for value in inputs]
            if not optimizer.state:  # run once as it is, so that the optimizer's state exists
                return detached(*tensors)
            return fast(*tensors)

        if not on_gpu:
            return step_on_tensors
        for group in optimizer.param_groups:
            group["capturable"] = True
        return GraphedStep(step_on_tensors, device)

    return decorate


def as_tensor(value: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    """A tensor as it is, a number as a float32 scalar."""
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=torch.float32, device=device)


class GraphedStep:
    """Calls a function twice, records the third call as a CUDA graph, and replays it from then on."""

    def __init__(self, function: Callable[..., Metrics], device: torch.device):
        self.function, self.device = function, device
        self.graph = torch.cuda.CUDAGraph()
        self.stream = torch.cuda.Stream(device)
        self.calls = 0

    def __call__(self, *inputs: torch.Tensor | float) -> Metrics:
        self.calls += 1
        if self.calls <= 2:  # warm-up: a graph must not record initialization and compilation
            current = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                outputs = self.function(*inputs)
            current.wait_stream(self.stream)
            return outputs
        if self.calls == 3:
            self.inputs = [as_tensor(value, self.device).clone() for value in inputs]
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.outputs = self.function(*self.inputs)
        for recorded, value in zip(self.inputs, inputs, strict=True):
            if isinstance(value, torch.Tensor):
                recorded.copy_(value)
            else:
                recorded.fill_(value)
        self.graph.replay()
        return self.outputs


def replace_file(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Write a file through a temporary one, so that a kill leaves the old file or the new one, never half of one."""
    temporary = Path(f"{path}.part")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)
