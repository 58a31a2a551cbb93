"""The VQ-VAE against brute force: codes, loss, each of its gradients, training, dead codes, saving."""

import copy
import resource
import shutil
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.nn as nn

import vqvae
from vqvae import (
    VQVAE,
    GraphedStep,
    Standardize,
    accelerate,
    initialize_codebook,
    minimize,
    replace_file,
    reset_dead_codes,
    soft_update,
    train_vqvae,
)


def make(mean=0.0, std=1.0, **settings):
    model = VQVAE(5, 3, codebook_size=16, embedding_dim=8, hidden_dim=32, **settings)
    model.standardize = Standardize(torch.full((5,), mean), torch.full((5,), std))
    with torch.no_grad():  # spread the encoder's outputs, so that many codes are in use
        model.encoder[-1].weight.mul_(30.0)
    return model


def batch(rows=64):
    return torch.randn(rows, 5), torch.rand(rows, 3) * 2 - 1


def all_equal(a, b):
    """Whether two state dicts are the same to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def brute_force_distances(model, observations, actions):
    """|z - codebook_k|^2 (N, K) in double precision."""
    z = model.encoder(torch.cat([model.standardize(observations), actions], 1)).detach().double().numpy()
    codebook = model.codebook.detach().double().numpy()
    return np.array([[((row - vector) ** 2).sum() for vector in codebook] for row in z])


def brute_force_codes(model, observations, actions):
    return torch.from_numpy(brute_force_distances(model, observations, actions).argmin(1))


# ---- The model -------------------------------------------------------------------------------------------------------


def test_codes_are_the_nearest_codebook_vectors():
    model, (observations, actions) = make(), batch(200)
    codes = model.encode(observations, actions)
    assert codes.dtype == torch.int64
    assert len(codes.unique()) > 4
    assert torch.equal(codes, brute_force_codes(model, observations, actions))


@pytest.mark.parametrize("smaller", ["distance", "step"])
def test_soft_codes_are_a_softmax_of_distances(smaller):
    """Their scale is the mean distance to the nearest code, or from there to the second-nearest, if that is smaller."""
    model, (observations, actions) = make(), batch(200)
    if smaller == "distance":  # 16 clusters of actions, with a code beside each
        observations, actions = observations[:16].repeat(12, 1), actions[:16].repeat(12, 1)
        model.codebook.data = model.embed(observations[:16], actions[:16]) + 0.01
    distances = brute_force_distances(model, observations, actions)
    nearest, second = np.sort(distances)[:, :2].T
    means = {"distance": nearest.mean(), "step": (second - nearest).mean()}
    assert min(means, key=means.get) == smaller

    model.fit_soft_codes(observations, actions)
    soft = model.soft_codes(observations, actions)
    weights = np.exp(-distances / means[smaller])
    np.testing.assert_allclose(soft, weights / weights.sum(1, keepdims=True), atol=1e-4)
    assert torch.equal(soft.argmax(1), model.encode(observations, actions))


def test_one_code_has_all_probability():
    model, (observations, actions) = VQVAE(5, 3, codebook_size=1, hidden_dim=16), batch(20)
    model.fit_soft_codes(observations, actions)
    assert torch.equal(model.soft_codes(observations, actions), torch.ones(20, 1))


def test_codes_of_a_dataset_are_those_of_its_batches():
    model, (observations, actions) = make(), batch(40_000)
    model.fit_soft_codes(observations, actions)
    idx = torch.randint(len(actions), (256,))
    rows = observations[idx], actions[idx]
    assert torch.equal(model.encode(observations, actions)[idx], model.encode(*rows))
    torch.testing.assert_close(model.soft_codes(observations, actions)[idx], model.soft_codes(*rows))


def test_loss_is_the_equation():
    model, (observations, actions) = make(), batch()
    metrics = model.loss(observations, actions)
    z = model.encoder(torch.cat([observations, actions], 1))
    z_q = model.codebook[brute_force_codes(model, observations, actions)]
    decoded = model.decoder(torch.cat([observations, z_q], 1))
    reconstruction = sum(((a - b) ** 2).sum() for a, b in zip(decoded, actions)) / len(actions)
    distance = ((z_q - z) ** 2).sum() / z.numel()
    torch.testing.assert_close(metrics["reconstruction"], reconstruction)
    torch.testing.assert_close(metrics["commitment"], distance)
    torch.testing.assert_close(metrics["loss"], reconstruction + 2 * distance)


def test_straight_through_gradient_and_the_two_halves_of_the_quantization_loss():
    """Encoder: the decoder's gradient at z_q, passed on unchanged, plus 2 (z - z_q) / n. Codebook: 2 (z_q - z) / n."""
    model, (observations, actions) = make(), batch()
    model.loss(observations, actions)["loss"].backward()
    encoder_gradient = [p.grad.clone() for p in model.encoder.parameters()]
    codebook_gradient = model.codebook.grad.clone()
    model.zero_grad()

    z = model.encoder(torch.cat([observations, actions], 1))
    codes = brute_force_codes(model, observations, actions)
    z_q = model.codebook[codes].detach().requires_grad_()
    decoded = model.decoder(torch.cat([observations, z_q], 1))
    ((decoded - actions) ** 2).sum(1).mean().backward()
    model.zero_grad()
    z.backward(z_q.grad + 2 * (z - z_q).detach() / z.numel())
    for expected, parameter in zip(encoder_gradient, model.encoder.parameters()):
        torch.testing.assert_close(parameter.grad, expected)
    expected = torch.zeros_like(model.codebook).index_add_(0, codes, 2 * (z_q - z).detach() / z.numel())
    torch.testing.assert_close(codebook_gradient, expected)


def test_observations_are_standardized_inside():
    raw = make()
    standardized = make(mean=3.0, std=0.5)
    for name in ("encoder", "decoder"):
        getattr(standardized, name).load_state_dict(getattr(raw, name).state_dict())
    standardized.codebook.data = raw.codebook.data
    observations, actions = batch()
    shifted, codes = observations * 0.5 + 3.0, raw.encode(observations, actions)
    torch.testing.assert_close(standardized.encode(shifted, actions), codes)
    torch.testing.assert_close(standardized.decode(shifted, codes), raw.decode(observations, codes))
    torch.testing.assert_close(standardized.loss(shifted, actions), raw.loss(observations, actions))


def test_without_state_conditioning_codes_ignore_the_observation():
    model, (observations, actions) = make(state_conditioned=False), batch()
    others = torch.randn(64, 5)
    codes = model.encode(observations, actions)
    assert torch.equal(model.encode(others, actions), codes)
    assert torch.equal(model.decode(others, codes), model.decode(observations, codes))
    torch.testing.assert_close(model.loss(others, actions), model.loss(observations, actions))
    conditioned = make()
    assert not torch.equal(conditioned.decode(others, codes), conditioned.decode(observations, codes))


def test_a_model_for_data_standardizes_by_mean_and_deviation_or_not_at_all():
    observations, actions = batch(500)
    model = VQVAE.for_data(observations, actions, codebook_size=9, hidden_dim=16)
    assert model.codebook.shape == (9, 128)
    assert model.encoder[0].weight.shape == (16, 8)
    expected = (observations - observations.mean(0)) / (observations.std(0, unbiased=False) + 1e-3)
    torch.testing.assert_close(model.standardize(observations), expected, rtol=1e-4, atol=1e-4)
    raw = VQVAE.for_data(observations, actions, standardize=False)
    assert torch.equal(raw.standardize(observations), observations)


def test_constant_columns_are_invisible_to_the_networks():
    data = torch.randn(1000, 4)
    data[:, 1], data[:, 2] = 0.42, 0.0
    data[:, 3] *= 1e-4  # moves little, because of its unit perhaps
    standardize = Standardize.for_data(data)
    assert (standardize(data + 0.005)[:, 1:3] == 0).all()
    assert standardize(data)[:, 0].std() == pytest.approx(1, rel=0.01)
    assert standardize(data)[:, 3].std() == pytest.approx(1e-4 / (1e-4 + 1e-3), rel=0.1)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_initialization_has_the_stated_variances(layer_norm):
    model = VQVAE(200, 100, hidden_dim=512, layer_norm=layer_norm)
    first, second, last = [layer for layer in model.encoder if isinstance(layer, nn.Linear)]
    assert first.weight.std().item() == pytest.approx((1 / 300) ** 0.5, rel=0.02)
    assert second.weight.std().item() == pytest.approx((1 / 512) ** 0.5, rel=0.02)
    assert last.weight.abs().max().item() == pytest.approx((3e-2 / 512) ** 0.5, rel=0.01)
    assert model.codebook.abs().max().item() == pytest.approx((3 / 64) ** 0.5, rel=0.01)
    assert sum(isinstance(layer, nn.LayerNorm) for layer in model.encoder) == 2 * layer_norm


# ---- Acting ----------------------------------------------------------------------------------------------------------


def test_mean_action_is_the_expectation_over_decoded_codes():
    model, observations, logits = VQVAE(4, 2, codebook_size=6, hidden_dim=8), torch.randn(5, 4), 3 * torch.randn(5, 6)
    expected = np.zeros((5, 2))
    for row in range(5):
        weights = np.exp(logits[row].double().numpy())
        for k in range(6):
            decoded = model.decode(observations[row : row + 1], torch.tensor([k]))[0].numpy()
            expected[row] += weights[k] / weights.sum() * decoded
    np.testing.assert_allclose(model.act(observations, logits, "mean"), expected, atol=1e-6)


def test_greedy_and_sampled_actions_are_decoded_codes():
    model, logits = VQVAE(4, 2, codebook_size=4, hidden_dim=8), torch.tensor([[0.0, 1.0, 3.0, -1.0]])
    observation, generator = torch.randn(1, 4), torch.Generator().manual_seed(0)
    decoded = model.decode(observation.expand(4, 4), torch.arange(4))
    torch.testing.assert_close(model.act(observation, logits, "greedy"), decoded[2:3])
    rows = 50_000
    actions = model.act(observation.expand(rows, 4), logits.expand(rows, 4), "sampled", generator)
    codes = torch.cdist(actions, decoded).argmin(1)
    torch.testing.assert_close(actions, decoded[codes])
    frequencies = torch.bincount(codes, minlength=4) / rows
    torch.testing.assert_close(frequencies, logits[0].softmax(0), atol=0.01, rtol=0.0)
    with pytest.raises(ValueError, match="action_mode must be"):
        model.act(observation, logits, "most probable")


# ---- Training --------------------------------------------------------------------------------------------------------


def multimodal_data(rows=4000):
    """Actions in two modes that depend on the observation; no single action can stand for both."""
    observations = torch.randn(rows, 5)
    sign = torch.randint(2, (rows, 1)) * 2.0 - 1.0
    return observations, 0.5 * sign + 0.3 * torch.tanh(observations[:, :3])


def small_model():
    return VQVAE(5, 3, codebook_size=8, embedding_dim=16, hidden_dim=16)


def test_kmeans_initialization_lowers_the_quantization_error():
    model, (observations, actions) = make(), batch(2000)
    before = model.loss(observations, actions)["commitment"]
    initialize_codebook(model, model.embed(observations, actions))
    assert model.loss(observations, actions)["commitment"] < 0.5 * before
    assert model.evaluate(observations, actions)["codes_used"] == 16


def test_reset_moves_dead_codes_and_no_others():
    model, (observations, actions) = make(), batch(4000)
    with torch.no_grad():
        model.codebook[8:] += 100.0
    before = model.codebook.detach().clone()
    z, codes = model.embed(observations, actions), model.encode(observations, actions)
    is_live = torch.bincount(codes, minlength=16) > 0
    assert not is_live[8:].any()
    reset_dead_codes(model, z)
    beside = before[codes[:16]] + 0.1 * (z[:16] - before[codes[:16]])
    torch.testing.assert_close(model.codebook.detach(), torch.where(is_live[:, None], before, beside))
    assert model.evaluate(observations, actions)["codes_used"] > is_live.sum()


@pytest.mark.parametrize("every", [0, 2])
def test_dead_codes_are_reset_while_training_or_never(monkeypatch, every):
    initialize, reset = MagicMock(), MagicMock()
    monkeypatch.setattr(vqvae, "initialize_codebook", initialize)
    monkeypatch.setattr(vqvae, "reset_dead_codes", reset)
    train_vqvae(small_model(), *batch(200), 5, dead_code_reset_every=every)
    expected = (1, 2) if every else (0, 0)
    assert (initialize.call_count, reset.call_count) == expected


def test_training_separates_the_modes():
    observations, actions = multimodal_data()
    model = VQVAE(5, 3, codebook_size=8, embedding_dim=16, hidden_dim=64)
    train_vqvae(model, observations, actions, 1000)
    quality = model.evaluate(observations, actions)
    assert quality["action_variance"] == pytest.approx(actions.var(0, unbiased=False).sum().item(), rel=1e-4)
    assert quality["reconstruction_error"] < 0.05 * quality["action_variance"]


def test_training_sets_the_scale_of_soft_codes_and_files_keep_it(tmp_path):
    observations, actions = multimodal_data()
    model = small_model()
    train_vqvae(model, observations, actions, 20)
    fitted = copy.deepcopy(model)
    fitted.fit_soft_codes(observations, actions)
    soft = model.soft_codes(observations[:50], actions[:50])
    assert torch.equal(soft, fitted.soft_codes(observations[:50], actions[:50]))
    model.save(tmp_path / "vqvae.pt")
    assert torch.equal(soft, VQVAE.load(tmp_path / "vqvae.pt").soft_codes(observations[:50], actions[:50]))
    untrained = small_model()
    untrained.load_weights(tmp_path / "vqvae.pt")
    assert torch.equal(soft, untrained.soft_codes(observations[:50], actions[:50]))


def test_training_in_two_parts_gives_the_same_bits():
    observations, actions = multimodal_data()
    start, results = small_model(), []
    for parts in ([range(1, 201)], [range(1, 91), range(91, 201)]):
        model, trained = copy.deepcopy(start), copy.deepcopy(start)
        optimizer = torch.optim.Adam(trained.parameters(), lr=3e-4, fused=True)
        generator = torch.Generator().manual_seed(0)
        for steps in parts:
            train_vqvae(
                model, observations, actions, steps, learner=trained, optimizer=optimizer, generator=generator,
                dead_code_reset_every=50,
            )  # fmt: skip
        results.append((model.state_dict(), trained.state_dict()))
    assert all(all_equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9995])
def test_trained_model_is_the_average_of_the_learners_weights(decay):
    observations, actions = multimodal_data()
    model, trained, average, step = small_model(), small_model(), torch.zeros(16, 21), 0
    optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)

    def track(metrics):
        nonlocal step
        step += 1
        rate = max(1 - decay, 10 / (9 + step))
        average.mul_(1 - rate).add_(rate * trained.decoder[0].weight.detach())

    train_vqvae(model, observations, actions, 60, learner=trained, optimizer=optimizer, ema_decay=decay, on_step=track)
    torch.testing.assert_close(model.decoder[0].weight.detach(), average)
    assert torch.equal(model.decoder[0].weight, trained.decoder[0].weight) == (decay == 0)


def test_perplexity_counts_codes_in_even_use():
    model = make()
    model.encode = lambda observations, actions: torch.arange(len(actions)) % 4
    quality = model.evaluate(*batch(400))
    assert quality["codes_used"] == 4
    assert quality["perplexity"] == pytest.approx(4.0, rel=1e-4)


# ---- Gradient steps --------------------------------------------------------------------------------------------------

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
COMPILE = pytest.param(True, marks=pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("compile", [False, COMPILE])
def test_accelerate_equals_the_sum_of_its_parts(device, compile):
    """AdamW with two weight decays and a moving average: plain, compiled, as a CUDA graph, and by hand."""
    data = torch.randn(50, 3, device=device)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).to(device)
    net_by_hand, average, average_by_hand = copy.deepcopy(net), copy.deepcopy(net), copy.deepcopy(net)

    def make_optimizer(net):
        groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5, fused=True)

    optimizer, optimizer_by_hand = make_optimizer(net), make_optimizer(net_by_hand)

    @accelerate(optimizer, compile)
    def step(idx, noise, rate):
        loss = (net(data[idx]) - noise).square().mean()
        minimize(loss, optimizer)
        soft_update(average, net, rate)
        return {"loss": loss, "noise": noise.mean()}

    for i in range(1, 9):
        idx, noise = torch.randint(50, (16,), device=device), torch.randn(16, 1, device=device)
        metrics = step(idx, noise, 1 / i)
        assert not metrics["loss"].requires_grad
        loss = (net_by_hand(data[idx]) - noise).square().mean()
        optimizer_by_hand.zero_grad()
        loss.backward()
        optimizer_by_hand.step()
        for old, new in zip(average_by_hand.parameters(), net_by_hand.parameters()):
            old.data += (new.data - old.data) / i
        expected = {"loss": loss.detach(), "noise": noise.mean()}
        torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.state_dict(), net_by_hand.state_dict(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(average.state_dict(), average_by_hand.state_dict(), rtol=1e-4, atol=1e-5)


def test_cuda_graph_is_recorded_at_the_third_call_and_replayed_with_later_inputs(monkeypatch):
    """On a stand-in for torch.cuda. Recording computes nothing; a replay computes with the recorded tensors."""
    calls, output = [], torch.zeros(())

    def step(idx, rate):
        calls.append((idx, rate))
        return {"product": output if len(calls) == 3 else idx.sum() * rate}

    class Graph:
        def replay(self):
            idx, rate = calls[2]
            output.copy_(idx.sum() * rate)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    for name in ("Stream", "stream", "current_stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())

    recorded_step = GraphedStep(step, torch.device("cpu"))
    batches = [torch.arange(i, i + 4) for i in range(6)]
    for i, idx in enumerate(batches):
        metrics = recorded_step(idx, 1 / (1 + i))
        torch.testing.assert_close(metrics["product"], (6 + 4 * i) * torch.tensor(1 / (1 + i)))
    assert len(calls) == 3
    assert torch.equal(batches[2], torch.arange(2, 6)), "the caller's tensor was overwritten"


# ---- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"layer_norm": False, "state_conditioned": False}])
def test_save_and_load(tmp_path, settings):
    model = make(mean=1.0, std=2.0, **settings)
    model.save(tmp_path / "vqvae.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["vqvae.pt"]
    loaded = VQVAE.load(tmp_path / "vqvae.pt")
    assert all_equal(loaded.state_dict(), model.state_dict())
    observations, actions = batch()
    codes = loaded.encode(observations, actions)
    assert torch.equal(codes, model.encode(observations, actions))
    assert torch.equal(loaded.decode(observations, codes), model.decode(observations, codes))


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", {"weights": {}}, {"config": [], "weights": {}}])
def test_loading_something_else_is_an_os_error(tmp_path, content):
    path = tmp_path / "vqvae.pt"
    if isinstance(content, dict):
        torch.save(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(OSError, match=r"is not a readable vqvae\.pt"):
        VQVAE.load(path)


def test_weights_of_other_sizes_or_other_data_are_refused(tmp_path):
    model = make(mean=1.0)
    model.save(tmp_path / "vqvae.pt")
    same = make(mean=1.0)
    same.load_weights(tmp_path / "vqvae.pt")
    assert all_equal(model.state_dict(), same.state_dict())
    with pytest.raises(ValueError, match=r"'codebook_size': 16.*this run needs.*'codebook_size': 64"):
        VQVAE(5, 3, embedding_dim=8, hidden_dim=32).load_weights(tmp_path / "vqvae.pt")
    with pytest.raises(ValueError, match="another dataset"):
        make(mean=2.0).load_weights(tmp_path / "vqvae.pt")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    replace_file(path, lambda file: file.write(b"old"))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            replace_file(path, lambda file: file.write(bytes(2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert path.read_bytes() == b"old"
    replace_file(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
