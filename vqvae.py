"""State-conditioned action VQ-VAE: turns continuous actions into codes 0..K-1 that depend on the observation.

    z   = e(s, a)                                      encoder
    c   = argmin_k |z - codebook_k|^2                  code, an integer
    z_q = codebook_c,  straight-through gradient       quantized vector
    a'  = d(s, z_q)                                    decoder
    loss = |a - a'|^2 + mean (sg[z_q] - z)^2 + mean (z_q - sg[z])^2,  sg: stop gradient

Luo et al., *Action-Quantized Offline Reinforcement Learning for Robotic Skill Learning*, CoRL 2023, section 4.1
van den Oord et al., *Neural Discrete Representation Learning*, NeurIPS 2017, equation 3

    vqvae = VQVAE.for_data(observations, actions)      # (N, observation_dim), (N, action_dim) float32
    train_vqvae(vqvae, observations, actions, steps=20_000)
    codes = vqvae.encode(observations, actions)        # (N,) int64, once, to learn on; soft_codes: (N, K)
    actions = vqvae.decode(observations, codes)        # to act
"""

import copy
import io
import itertools
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.optim.adam import adam

Scalars = dict[str, torch.Tensor]  # by name
CHUNK = 16384  # rows per chunk in encode and decode, which bounds memory


class Standardize(nn.Module):
    """(x - mean) / std, with mean and std (D,) kept as buffers, so that a checkpoint carries them."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    @classmethod
    def for_data(cls, x: torch.Tensor, wanted: bool = True) -> "Standardize":
        """By mean and deviation + 1e-3 of x (N, D); constant dimensions map to 0. Without `wanted`, the identity."""
        low, high = x.aminmax(dim=0)
        still = high - low <= 1e-5 * torch.maximum(high, -low)
        std = torch.where(still, torch.inf, x.std(0, unbiased=False) + 1e-3)
        return cls(x.mean(0), std) if wanted else cls(torch.zeros_like(low), torch.ones_like(std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


class VQVAE(nn.Module):
    """Encoder, decoder and a codebook of K = codebook_size vectors of embedding_dim, with the observation normalizer.

    Args:
        hidden_dim, layer_norm: width of the hidden layers; whether to normalize them (the paper: no).
    """

    def __init__(
        self, observation_dim, action_dim, codebook_size=64, embedding_dim=128, hidden_dim=256, layer_norm=True
    ):
        super().__init__()
        self.config = {"observation_dim": observation_dim, "action_dim": action_dim, "codebook_size": codebook_size}
        self.config |= {"embedding_dim": embedding_dim, "hidden_dim": hidden_dim, "layer_norm": layer_norm}
        self.standardize = Standardize(torch.zeros(observation_dim), torch.ones(observation_dim))
        self.encoder = self._mlp(observation_dim + action_dim, hidden_dim, embedding_dim)
        self.decoder = self._mlp(observation_dim + embedding_dim, hidden_dim, action_dim)
        bound = (3.0 / codebook_size) ** 0.5
        self.codebook = nn.Parameter(torch.empty(codebook_size, embedding_dim).uniform_(-bound, bound))

    def _mlp(self, input_dim: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
        layers = [nn.Linear(*pair) for pair in itertools.pairwise((input_dim, hidden_dim, hidden_dim, output_dim))]
        for layer in layers[:-1]:  # lecun-normal: a normal of variance 1/fan_in, cut at two deviations
            std = layer.in_features**-0.5 / 0.87962566103423978  # the deviation of a unit normal that is cut there
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        bound = (3.0 * 1e-2 / hidden_dim) ** 0.5
        nn.init.uniform_(layers[-1].weight, -bound, bound)
        [nn.init.zeros_(layer.bias) for layer in layers]
        hidden = [[nn.LayerNorm(hidden_dim)] * self.config["layer_norm"] + [nn.ReLU(inplace=True)] for _ in range(2)]
        return nn.Sequential(layers[0], *hidden[0], layers[1], *hidden[1], layers[2])

    @classmethod
    def for_data(cls, observations, actions, codebook_size=64, hidden_dim=256, layer_norm=True, standardize=True):
        """A VQ-VAE for (N, .) observations and actions, on their device, with a normalizer or (the paper) without."""
        sizes = {"codebook_size": codebook_size, "hidden_dim": hidden_dim, "layer_norm": layer_norm}
        model = cls(observations.shape[1], actions.shape[1], **sizes)
        model.standardize = Standardize.for_data(observations, standardize)
        return model.to(actions.device)

    @torch.no_grad()
    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """Codes (B,) int64 whose vectors are nearest in squared L2 to encoder outputs z (B, embedding_dim)."""
        # |z - codebook_k|^2 without |z|^2, which is the same for every code.
        return torch.addmm(self.codebook.square().sum(1), z, self.codebook.T, alpha=-2).argmin(1)

    def loss(self, observations: torch.Tensor, actions: torch.Tensor) -> Scalars:
        """The VQ-VAE loss of a batch (B, .), (B, .) float32 (van den Oord et al., equation 3, commitment weight 1).

        Returns:
            Scalars: `loss` to minimize; `reconstruction`, the squared error summed over action dimensions and averaged
            over the batch; `commitment`, mean (sg[z_q] - z)^2, which has the codebook loss's value and other gradient.
        """
        observations = self.standardize(observations)
        z = self.encoder(torch.cat([observations, actions], 1))
        z_q = F.embedding(self.nearest(z), self.codebook)
        commitment = F.mse_loss(z, z_q.detach())
        decoded = self.decoder(torch.cat([observations, z + (z_q - z).detach()], 1))  # straight-through
        reconstruction = (decoded - actions).square().sum(1).mean()
        loss = reconstruction + commitment + F.mse_loss(z_q, z.detach())
        return {"loss": loss, "reconstruction": reconstruction.detach(), "commitment": commitment.detach()}

    @torch.no_grad()
    def embed(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Encoder outputs z (N, embedding_dim) before quantization, of (N, .) observations and actions."""
        return self.encoder(torch.cat([self.standardize(observations), actions], 1))

    def encode(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Codes (N,) int64 in 0..K-1 of observations (N, observation_dim) and actions (N, action_dim)."""
        chunks = zip(observations.split(CHUNK), actions.split(CHUNK))
        return torch.cat([self.nearest(self.embed(o, a)) for o, a in chunks])

    @torch.no_grad()
    def soft_codes(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Probabilities (N, K), softmax_k(-|z - codebook_k|^2 / m) (Roy et al., arXiv 1805.11063), of a whole dataset.

        m is the mean of the smallest squared distance over these rows, or of the step to the second if that is less.
        """
        chunks = zip(observations.split(CHUNK), actions.split(CHUNK))
        squared = torch.cat([torch.cdist(self.embed(o, a), self.codebook).square() for o, a in chunks])
        near = squared.topk(min(2, len(self.codebook)), largest=False).values.mean(0)
        return squared.div_(-torch.minimum(near[0], near[-1] - near[0]).clamp_min(1e-12)).softmax(1)

    @torch.no_grad()
    def decode(self, observations: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Actions (N, action_dim) that codes (N,) stand for at observations (N, observation_dim); not clipped."""
        chunks = zip(observations.split(CHUNK), codes.split(CHUNK))
        return torch.cat([self.decoder(torch.cat([self.standardize(o), self.codebook[c]], 1)) for o, c in chunks])

    def act(self, observations, logits, acting: str, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions (B, action_dim) of the policy softmax(logits) over codes, from observations and logits (B, K).

        Args:
            acting: `mean`, sum_k pi(k|s) decode(s, k); `greedy`, what the most probable code decodes to; `sampled`,
                what a code drawn by `generator` decodes to. Another word is a ValueError.
        """
        if acting not in ("mean", "greedy", "sampled"):
            raise ValueError(f"acting must be mean, greedy or sampled, it is {acting}")
        probabilities = logits.softmax(1)
        if acting == "mean":
            codes = torch.arange(logits.shape[1], device=logits.device).repeat(len(logits))  # every code in every state
            decoded = self.decode(observations.repeat_interleave(logits.shape[1], 0), codes).view(*logits.shape, -1)
            return torch.einsum("bk,bka->ba", probabilities, decoded)
        if acting == "greedy":
            return self.decode(observations, logits.argmax(1))
        return self.decode(observations, torch.multinomial(probabilities, 1, generator=generator).squeeze(1))

    def evaluate(self, observations, actions, logits: torch.Tensor | None = None) -> dict[str, float]:
        """How well nearest codes stand for the actions, and logits (N, K), if given, for these codes; of (N, .) rows.

        Returns:
            `reconstruction_error`, squared error summed over action dimensions, mean over N; `action_variance`, the
            error of the best constant action, in the same unit; `codes_used`, how many of the K codes occur;
            `perplexity`, exp of the entropy of the codes' frequencies (1 to K); with logits `cross_entropy`, in nats.
        """
        codes = self.encode(observations, actions)
        frequency = torch.bincount(codes, minlength=len(self.codebook)) / len(codes)
        return ({} if logits is None else {"cross_entropy": F.cross_entropy(logits, codes).item()}) | {
            "reconstruction_error": (self.decode(observations, codes) - actions).square().sum(1).mean().item(),
            "action_variance": actions.var(0, unbiased=False).sum().item(),
            "codes_used": int((frequency > 0).sum()),
            "perplexity": torch.special.entr(frequency).sum().exp().item(),
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write architecture, weights and normalizer to `path`."""
        write_file(path, lambda file: torch.save({"config": self.config, "weights": self.state_dict()}, file))

    @classmethod
    def load(cls, path: str | os.PathLike, device: torch.device | str = "cpu") -> "VQVAE":
        """Read what `save` wrote. Raises OSError if the file is missing or holds no VQ-VAE."""
        try:
            checkpoint = read_file(path)
            model = cls(**checkpoint["config"])
            model.load_state_dict(checkpoint["weights"])
        except Exception as error:  # a damaged file fails in many ways
            raise OSError(f"{path} is not a VQ-VAE saved by this project ({error!r:.200})") from error
        return model.to(device)

    def load_weights(self, path: str | os.PathLike) -> None:
        """Take the weights that `save` wrote. Raises OSError as `load` does, or if sizes or the normalizer differ."""
        saved = self.load(path, self.codebook.device)
        if saved.config != self.config:
            raise OSError(f"{path} has {saved.config}, this run needs {self.config}")
        for known, own in zip(saved.standardize.buffers(), self.standardize.buffers()):
            if not torch.allclose(known, own, rtol=1e-3, atol=1e-3):
                raise OSError(f"{path} is of another dataset, or differs in --standardize")
        self.load_state_dict(saved.state_dict())


def write_file(path: str | os.PathLike, save: Callable[[io.BytesIO], object]) -> None:
    """Write to `path`, atomically, what `save(file)` writes to a file in memory. Raises OSError."""
    content, temporary = io.BytesIO(), Path(path).with_name(f"part-{Path(path).name}")
    save(content)
    try:
        temporary.write_bytes(content.getbuffer())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error


def read_file(path: str | os.PathLike) -> dict:
    """What `torch.save` wrote to `path`, on the CPU. Raises zipfile.BadZipFile where a byte of it has changed."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():  # torch.load does not look at checksums
            raise zipfile.BadZipFile(f"{damaged} in it is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


def ema_weight(decay: float, step: int) -> float:
    """Weight of step 1, 2, ... in a moving average of this decay, with a warm-up that drops the first weights.

    Before step 10 / (1 - decay), 20,000 at 0.9995, the average is over about the last tenth of the steps.
    """
    return max(1.0 - decay, 10 / (9 + step))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, weight: float | torch.Tensor) -> None:
    """Move the weights of `average`, a copy of `model`, by `weight` (0 to 1) of the way to those of `model`."""
    averages, models = list(average.parameters()), list(model.parameters())
    if torch.compiler.is_compiling():  # to one kernel; lerp of lists would be one per parameter
        torch._foreach_mul_(averages, 1 - weight)
        torch._foreach_add_(averages, torch._foreach_mul(models, weight))
    else:
        torch._foreach_lerp_(averages, models, [weight] * len(models))


def minimize(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of `optimizer`, an Adam or AdamW (without amsgrad or maximize), down the gradient of `loss`."""
    if not torch.compiler.is_compiling():
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return
    # torch.compile breaks its graph at each of the three, but it traces the function that an Adam's step calls.
    gradients = iter(torch.autograd.grad(loss, [p for group in optimizer.param_groups for p in group["params"]]))
    with torch.no_grad():
        for group in optimizer.param_groups:
            parameters, (beta1, beta2) = group["params"], group["betas"]
            state = [[optimizer.state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq", "step")]
            flags = {name: group[name] for name in ("lr", "weight_decay", "eps", "decoupled_weight_decay")}
            flags |= dict(beta1=beta1, beta2=beta2, amsgrad=False, maximize=False, foreach=True, capturable=True)
            adam(parameters, [next(gradients) for _ in parameters], *state[:2], [], state[2], **flags)


def gradient_step(
    optimizer: torch.optim.Optimizer, generator: torch.Generator, count: int, batch_size: int, compile=False, *draws
) -> Callable[[Callable[..., Scalars]], Callable[..., Scalars]]:
    """Decorator of a whole gradient step: of `step(rows, *drawn, *weights)` it makes `step(*weights)`, which draws.

    Weights are numbers such as `ema_weight`, and scalar tensors inside. On a GPU, where kernels would wait for Python,
    call 3 records them as a CUDA graph, and calls replay it: between calls only tensors may change, and only in place,
    and a call overwrites what the last returned. There and with `compile`, numbers such as the learning rate are fixed.

    Args:
        optimizer, generator: what the step gives to `minimize`; what draws, on the device of all tensors.
        count, batch_size: the step's rows are (batch_size,) int64, uniform from 0 to count - 1.
        compile: compile the whole step with torch.compile.
        draws: functions that draw from `generator` what else is random in the step, such as noise.
    """

    def decorate(step: Callable[..., Scalars]) -> Callable[..., Scalars]:
        device, weights, calls, outputs = generator.device, [], itertools.count(1), {}
        graph, stream = (torch.cuda.CUDAGraph(), torch.cuda.Stream(device)) if device.type == "cuda" else (None, None)
        for group in optimizer.param_groups if graph else ():
            group["capturable"] = True

        def detached(*inputs: torch.Tensor) -> Scalars:
            return {name: value.detach() for name, value in step(*inputs).items()}

        whole = detached
        if compile:
            torch._dynamo.config.trace_autograd_ops = True  # for torch.autograd.grad in minimize
            torch._dynamo.config.recompile_limit = 256  # of all steps together: to torch.compile each is `detached`
            options = {"combo_kernels": True} if graph else None  # independent small kernels become one
            whole = torch.compile(detached, fullgraph=True, options=options)

        def once() -> Scalars:
            drawn = torch.randint(count, (batch_size,), generator=generator, device=device), *(draw() for draw in draws)
            return (whole if optimizer.state else detached)(*drawn, *weights)  # the first step allocates the state

        def call(*values: float) -> Scalars:
            weights[:] = weights or [torch.empty((), device=device) for _ in values]
            for weight, value in zip(weights, values, strict=True):
                weight.fill_(value)
            if not graph:
                return once()
            if next(calls) <= 2:  # warm-up: libraries initialize, torch.compile compiles
                stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(stream):
                    metrics = once()
                torch.cuda.current_stream(device).wait_stream(stream)
                return metrics
            if not outputs:
                graph.register_generator_state(generator)
                with torch.cuda.graph(graph, stream=stream):
                    outputs.update(once())
            graph.replay()
            return outputs

        return call

    return decorate


@torch.no_grad()
def initialize_codebook(model: VQVAE, z: torch.Tensor) -> None:
    """Put the codebook on the k-means centers (Lloyd's algorithm) of encoder outputs z (rows, embedding_dim)."""
    model.codebook.copy_(z[: len(model.codebook)])
    for _ in range(10):
        codes = model.nearest(z)
        counts = torch.bincount(codes, minlength=len(model.codebook))[:, None]
        sums = torch.zeros_like(model.codebook).index_add_(0, codes, z)
        model.codebook.copy_(torch.where(counts > 0, sums / counts, model.codebook))


@torch.no_grad()
def restart_unused_codes(model: VQVAE, z: torch.Tensor) -> None:
    """Move each code that none of z (rows, embedding_dim) has next to the code of a row, a tenth of the way to its z.

    Moved all the way to z, where the decoder has seen nothing, it would multiply the reconstruction error for a while.
    """
    codes, first = model.nearest(z), slice(len(model.codebook))
    unused = torch.bincount(codes, minlength=len(model.codebook)) == 0
    beside = torch.lerp(model.codebook[codes[first]], z[first], 0.1)
    model.codebook.copy_(torch.where(unused[:, None], beside, model.codebook))


def train_vqvae(
    model: VQVAE,
    observations: torch.Tensor,
    actions: torch.Tensor,
    steps: int | Iterable[int],
    batch_size: int = 256,
    learner: tuple[VQVAE, torch.optim.Optimizer] | None = None,
    generator: torch.Generator | None = None,
    restart_every: int = 500,
    ema_decay: float = 0.9995,
    compile: bool = False,
    on_step: Callable[[Scalars], None] = lambda metrics: None,
) -> None:
    """Train `model` on the rows of a dataset: a copy takes the gradient steps, `model` is the average of its weights.

    Args:
        observations, actions: (N, observation_dim) and (N, action_dim) float32 on the model's device.
        steps: number of gradient steps, or an iterable of step numbers (1, 2, ... or, to resume, from a later one on).
        batch_size, compile: rows per gradient step; whether to compile it with torch.compile.
        learner: the copy that takes the steps, and the Adam of its parameters; left out, a copy with Adam at 3e-3.
        generator: draws the rows, on the model's device; left out, one of seed 0.
        restart_every: with n > 0 the codebook starts on k-means centers of encoder outputs, and every n steps codes
            that are in no use move beside codes that are; 0 is the plain VQ-VAE of the paper.
        ema_decay: decay of the average, at most (see `ema_weight`); 0: the last weights (the paper).
        on_step: called after every step with its metrics, as `VQVAE.loss` returns them, every 500 steps also those of
            `VQVAE.evaluate` on some rows; on a GPU the next step overwrites them.
    """
    learner, optimizer = learner or (copy.deepcopy(model), None)
    optimizer = optimizer or torch.optim.Adam(learner.parameters(), lr=3e-3, fused=True)
    generator = generator or torch.Generator(actions.device).manual_seed(0)
    every = max(1, len(actions) // 4096)  # metrics of the whole dataset are estimated on every so many rows

    @gradient_step(optimizer, generator, len(actions), batch_size, compile)
    def vqvae_step(rows: torch.Tensor, ema: torch.Tensor) -> Scalars:
        metrics = learner.loss(observations[rows], actions[rows])
        minimize(metrics["loss"], optimizer)
        follow(model, learner, ema)
        return metrics

    for step in range(1, steps + 1) if isinstance(steps, int) else steps:
        if restart_every and (step == 1 or step % restart_every == 0):
            rows = torch.randint(len(actions), (8192,), generator=generator, device=actions.device)
            z = learner.embed(observations[rows], actions[rows])
            initialize_codebook(learner, z) if step == 1 else restart_unused_codes(learner, z)
        metrics = vqvae_step(ema_weight(ema_decay, step))
        if step % 500 == 0:
            metrics = metrics | model.evaluate(observations[::every], actions[::every])
        on_step(metrics)
