"""The VQ-VAE against brute force: codes, loss, each of its gradients, remedies for unused codes, saving."""

import copy
import itertools
import resource
import shutil
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn as nn

from vqvae import (
    VQVAE,
    Standardize,
    follow,
    gradient_step,
    initialize_codebook,
    minimize,
    read_file,
    restart_unused_codes,
    train_vqvae,
    write_file,
)


def make(observation_dim=5, action_dim=3, mean=0.0, std=1.0):
    model = VQVAE(observation_dim, action_dim, codebook_size=16, embedding_dim=8, hidden_dim=32)
    model.standardize = Standardize(torch.full((observation_dim,), mean), torch.full((observation_dim,), std))
    with torch.no_grad():  # spread the encoder's outputs, so that many codes are in use
        model.encoder[-1].weight.mul_(30.0)
    return model


def batch(rows=64, observation_dim=5, action_dim=3):
    return torch.randn(rows, observation_dim), torch.rand(rows, action_dim) * 2 - 1


def brute_force_codes(model, observations, actions):
    z = model.encoder(torch.cat([model.standardize(observations), actions], 1)).detach().double().numpy()
    book = model.codebook.detach().double().numpy()
    return np.array([min(range(len(book)), key=lambda k: ((row - book[k]) ** 2).sum()) for row in z])


def test_codes_are_the_nearest_codebook_vectors():
    model, (observations, actions) = make(), batch(200)
    codes = model.encode(observations, actions)
    assert codes.dtype == torch.int64
    assert len(set(codes.tolist())) > 4
    np.testing.assert_array_equal(codes, brute_force_codes(model, observations, actions))


@pytest.mark.parametrize("smaller", ["distance", "step"])
def test_soft_codes_are_the_softmax_of_distances_in_units_of_the_smaller_of_distance_and_step(smaller):
    model, (observations, actions) = make(), batch(200)
    if smaller == "distance":  # 16 clusters of actions, a code beside each
        observations, actions = observations[:16].repeat(12, 1), actions[:16].repeat(12, 1)
        model.codebook.data = model.embed(observations[:16], actions[:16]) + 0.01
    z = model.encoder(torch.cat([observations, actions], 1)).detach().double().numpy()
    distances = np.sort([[((row - vector) ** 2).sum() for vector in model.codebook.detach().numpy()] for row in z])
    units = {"distance": distances[:, 0].mean(), "step": (distances[:, 1] - distances[:, 0]).mean()}
    assert min(units, key=units.get) == smaller
    shares = np.exp(-distances / units[smaller])
    soft = model.soft_codes(observations, actions)
    np.testing.assert_allclose(soft.sort(1, descending=True).values, shares / shares.sum(1, keepdims=True), atol=1e-4)
    assert torch.equal(soft.argmax(1), model.encode(observations, actions))


def test_one_code_has_all_probability():
    model, (observations, actions) = VQVAE(5, 3, codebook_size=1, hidden_dim=16), batch(20)
    assert torch.equal(model.soft_codes(observations, actions), torch.ones(20, 1))


@pytest.mark.parametrize("layer_norm", [True, False])
def test_hidden_layers_are_normalized_or_not(tmp_path, layer_norm):
    observations, actions = batch(100)
    model = VQVAE.for_data(observations, actions, hidden_dim=16, layer_norm=layer_norm)
    layers = [type(layer).__name__ for layer in model.decoder]
    norm = ["LayerNorm"] * layer_norm
    assert layers == ["Linear", *norm, "ReLU", "Linear", *norm, "ReLU", "Linear"]
    model.save(tmp_path / "vqvae.pt")
    other = VQVAE.for_data(observations, actions, hidden_dim=16, layer_norm=not layer_norm)
    with pytest.raises(OSError, match="'layer_norm': "):
        other.load_weights(tmp_path / "vqvae.pt")
    loaded = VQVAE.load(tmp_path / "vqvae.pt")
    assert torch.equal(loaded.embed(observations, actions), model.embed(observations, actions))


def test_encoding_a_dataset_equals_encoding_its_batches():
    model, (observations, actions) = make(), batch(40_000)
    table = model.encode(observations, actions)
    rows = torch.randint(len(actions), (256,))
    torch.testing.assert_close(table[rows], model.encode(observations[rows], actions[rows]))


def test_loss_is_the_equation():
    model, (observations, actions) = make(), batch()
    metrics = model.loss(observations, actions)
    z = model.encoder(torch.cat([observations, actions], 1))
    z_q = torch.stack([model.codebook[k] for k in brute_force_codes(model, observations, actions)])
    decoded = model.decoder(torch.cat([observations, z_q], 1))
    reconstruction = sum(((a - b) ** 2).sum() for a, b in zip(decoded, actions)) / len(actions)
    distance = ((z_q - z) ** 2).sum() / z.numel()
    torch.testing.assert_close(metrics["reconstruction"], reconstruction.detach())
    torch.testing.assert_close(metrics["commitment"], distance.detach())
    torch.testing.assert_close(metrics["loss"], reconstruction + 2 * distance)


def test_straight_through_gradient_and_the_two_halves_of_the_quantization_loss():
    """Encoder: the decoder's gradient at z_q, passed on unchanged, plus 2 (z - z_q) / n. Codebook: 2 (z_q - z) / n."""
    model, (observations, actions) = make(), batch()
    model.loss(observations, actions)["loss"].backward()
    encoder_gradient = [p.grad.clone() for p in model.encoder.parameters()]
    codebook_gradient = model.codebook.grad.clone()
    model.zero_grad()

    z = model.encoder(torch.cat([observations, actions], 1))
    codes = torch.from_numpy(brute_force_codes(model, observations, actions))
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
    torch.manual_seed(1)
    raw = make()
    torch.manual_seed(1)
    standardized = make(mean=3.0, std=0.5)
    observations, actions = batch()
    seen, codes = observations * 0.5 + 3.0, raw.encode(observations, actions)
    torch.testing.assert_close(standardized.encode(seen, actions), codes)
    torch.testing.assert_close(standardized.decode(seen, codes), raw.decode(observations, codes))
    torch.testing.assert_close(standardized.loss(seen, actions), raw.loss(observations, actions))


def test_a_model_for_data_standardizes_by_their_mean_and_deviation_or_not_at_all():
    observations, actions = batch(500)
    observations[:, 2] = 7.0  # a dimension that never changes
    model = VQVAE.for_data(observations, actions, codebook_size=9, hidden_dim=16)
    assert model.config["codebook_size"] == 9 and model.config["hidden_dim"] == 16
    expected = (observations - observations.mean(0)) / (observations.std(0, unbiased=False) + 1e-3)
    torch.testing.assert_close(model.standardize(observations), expected, rtol=1e-4, atol=1e-4)
    raw = VQVAE.for_data(observations, actions, standardize=False)
    assert torch.equal(raw.standardize(observations), observations)


def test_the_mean_action_is_the_expectation_over_decoded_codes():
    model, observations, logits = VQVAE(4, 2, codebook_size=6, hidden_dim=8), torch.randn(5, 4), 3 * torch.randn(5, 6)
    expected = np.zeros((5, 2))
    for row in range(5):
        weights = np.exp(logits[row].double().numpy())
        for k in range(6):
            decoded = model.decode(observations[row : row + 1], torch.tensor([k]))[0].numpy()
            expected[row] += weights[k] / weights.sum() * decoded
    actions = model.act(observations, logits, "mean")
    np.testing.assert_allclose(actions, expected, atol=1e-6)


def test_codes_are_the_most_probable_or_sampled_from_the_softmax():
    model, logits = VQVAE(4, 2, codebook_size=4, hidden_dim=8), torch.tensor([[0.0, 1.0, 3.0, -1.0]])
    observation, generator = torch.randn(1, 4), torch.Generator().manual_seed(0)
    decoded = model.decode(observation.expand(4, 4), torch.arange(4))
    torch.testing.assert_close(model.act(observation, logits, "greedy"), decoded[2:3])
    rows = 50_000
    actions = model.act(observation.expand(rows, 4), logits.expand(rows, 4), "sampled", generator)
    codes = torch.cdist(actions, decoded).argmin(1)
    torch.testing.assert_close(actions, decoded[codes])
    frequencies = torch.bincount(codes, minlength=4) / rows
    torch.testing.assert_close(frequencies, torch.softmax(logits[0], 0), atol=0.01, rtol=0.0)
    with pytest.raises(ValueError, match="acting must be"):
        model.act(observation, logits, "most probable")


def test_initialization_has_the_stated_variances():
    model = VQVAE(200, 100, hidden_dim=512)
    assert model.encoder[0].weight.std().item() == pytest.approx((1 / 300) ** 0.5, rel=0.02)
    assert model.encoder[3].weight.std().item() == pytest.approx((1 / 512) ** 0.5, rel=0.02)
    assert model.encoder[6].weight.abs().max().item() == pytest.approx((3e-2 / 512) ** 0.5, rel=0.01)
    assert model.codebook.abs().max().item() == pytest.approx((3 / 64) ** 0.5, rel=0.01)
    assert all((layer.bias == 0).all() for layer in model.decoder if hasattr(layer, "bias"))


def test_kmeans_initialization_lowers_the_quantization_error():
    model, (observations, actions) = make(), batch(2000)
    before = model.loss(observations, actions)["commitment"]
    initialize_codebook(model, model.embed(observations, actions))
    assert model.loss(observations, actions)["commitment"] < 0.5 * before
    assert model.evaluate(observations, actions)["codes_used"] == 16


def test_restart_moves_the_unused_codes_and_no_other():
    model, (observations, actions) = make(), batch(4000)
    with torch.no_grad():
        model.codebook[8:] += 100.0
    before = model.codebook.detach().clone()
    used = torch.bincount(model.encode(observations, actions), minlength=16) > 0
    assert not used[8:].any()
    z, codes = model.embed(observations, actions), model.encode(observations, actions)
    restart_unused_codes(model, z)
    beside = before[codes[:16]] + 0.1 * (z[:16] - before[codes[:16]])
    torch.testing.assert_close(model.codebook.detach(), torch.where(used[:, None], before, beside))
    moved = (model.codebook != before).any(1)
    torch.testing.assert_close(moved, ~used)
    assert model.evaluate(observations, actions)["codes_used"] > used.sum()


@pytest.mark.parametrize("restart_every", [0, 2])
def test_unused_codes_are_restarted_while_training_or_never(monkeypatch, restart_every):
    calls, (observations, actions) = [], batch(200)
    for name in ("initialize_codebook", "restart_unused_codes"):
        monkeypatch.setattr(f"vqvae.{name}", lambda model, z, name=name: calls.append(name))
    train_vqvae(make(), observations, actions, 5, restart_every=restart_every)
    assert calls == (["initialize_codebook", *["restart_unused_codes"] * 2] if restart_every else [])


def multimodal_data(rows=4000):
    """Actions in two modes that depend on the observation, which no single action can stand for."""
    observations = torch.randn(rows, 5)
    sign = torch.randint(2, (rows, 1)) * 2.0 - 1.0
    return observations, 0.5 * sign + 0.3 * torch.tanh(observations[:, :3])


def test_training_separates_the_modes_and_is_deterministic():
    observations, actions = multimodal_data()
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        model = VQVAE(5, 3, codebook_size=8, embedding_dim=16, hidden_dim=64)
        train_vqvae(model, observations, actions, 1500)
        weights.append(model.state_dict())
    quality = model.evaluate(observations, actions)
    assert quality["action_variance"] == pytest.approx(actions.var(0, unbiased=False).sum().item(), rel=1e-4)
    assert quality["reconstruction_error"] < 0.05 * quality["action_variance"]
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values()))


def test_training_in_two_parts_gives_the_same_bits():
    observations, actions = multimodal_data()
    results = []
    for parts in ([range(1, 201)], [range(1, 91), range(91, 201)]):
        torch.manual_seed(3)
        model = VQVAE(5, 3, codebook_size=8, embedding_dim=16, hidden_dim=16)
        learner = copy.deepcopy(model)
        optimizer = torch.optim.Adam(learner.parameters(), lr=3e-4, fused=True)
        both = {"learner": (learner, optimizer), "generator": torch.Generator().manual_seed(0)}
        for steps in parts:
            train_vqvae(model, observations, actions, steps, restart_every=50, **both)
        results.append(model.state_dict() | {f"learner.{key}": value for key, value in learner.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values()))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9995])
def test_what_is_trained_is_the_average_of_the_learners_weights(decay):
    observations, actions = multimodal_data()
    model = VQVAE(5, 3, codebook_size=8, embedding_dim=16, hidden_dim=16)
    learner, average = copy.deepcopy(model), torch.zeros(16, 21)
    optimizer, steps = torch.optim.Adam(learner.parameters(), lr=3e-3), itertools.count(1)

    def track(metrics):
        weight = max(1 - decay, 10 / (9 + next(steps)))
        average.mul_(1 - weight).add_(weight * learner.decoder[0].weight.detach())

    train_vqvae(model, observations, actions, 60, learner=(learner, optimizer), ema_decay=decay, on_step=track)
    torch.testing.assert_close(model.decoder[0].weight.detach(), average)
    assert torch.equal(model.decoder[0].weight, learner.decoder[0].weight) == (decay == 0)


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
COMPILE = pytest.param(True, marks=pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("compile", [False, COMPILE])
def test_a_gradient_step_is_the_sum_of_its_parts(device, compile):
    """Rows and noise drawn, AdamW with a weight decay a group, a moving average: as a graph, compiled, and by hand."""
    data, start = (
        torch.randn(50, 3, device=device),
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).to(device),
    )

    def prepare():
        net, generator = copy.deepcopy(start), torch.Generator(device).manual_seed(1)
        groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5, fused=compile)
        noise = partial(torch.randn, 16, 1, generator=generator, device=device)
        return net, copy.deepcopy(net), optimizer, generator, noise

    net, average, optimizer, generator, noise = prepare()

    @gradient_step(optimizer, generator, len(data), 16, compile, noise)
    def step(rows, noise, weight):
        loss = (net(data[rows]) - noise).square().mean()
        minimize(loss, optimizer)
        follow(average, net, weight)
        return {"loss": loss, "noise": noise.mean()}

    by_hand, known, reference, generator, draw = prepare()
    for i in range(1, 9):
        metrics = {name: value.item() for name, value in step(1 / i).items()}
        rows = torch.randint(50, (16,), generator=generator, device=device)
        noise = draw()
        loss = (by_hand(data[rows]) - noise).square().mean()
        reference.zero_grad()
        loss.backward()
        reference.step()
        for old, new in zip(known.parameters(), by_hand.parameters()):
            old.data += (new.data - old.data) / i
        assert metrics == pytest.approx({"loss": loss.item(), "noise": noise.mean().item()}, rel=1e-4, abs=1e-5)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(net.state_dict(), by_hand.state_dict())
    close(average.state_dict(), known.state_dict())


def test_perplexity_counts_codes_in_even_use():
    model = make()
    model.encode = lambda observations, actions: torch.arange(len(actions)) % 4
    quality = model.evaluate(*batch(400))
    assert quality["codes_used"] == 4
    assert quality["perplexity"] == pytest.approx(4.0, rel=1e-4)


def test_save_and_load(tmp_path):
    model = make(mean=1.0, std=2.0)
    model.save(tmp_path / "vqvae.pt")
    loaded = VQVAE.load(tmp_path / "vqvae.pt")
    observations, actions = batch()
    codes = loaded.encode(observations, actions)
    assert torch.equal(codes, model.encode(observations, actions))
    assert torch.equal(loaded.decode(observations, codes), model.decode(observations, codes))
    assert [path.name for path in tmp_path.iterdir()] == ["vqvae.pt"]


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", {"weights": {}}, {"config": [], "weights": {}}])
def test_loading_something_else_is_an_os_error(tmp_path, content):
    path = tmp_path / "vqvae.pt"
    if isinstance(content, dict):
        torch.save(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(OSError, match="not a VQ-VAE"):
        VQVAE.load(path)


def test_a_flipped_byte_of_the_weights_is_found(tmp_path):
    model, path = make(), tmp_path / "vqvae.pt"
    model.save(path)
    content = bytearray(path.read_bytes())
    place = content.index(model.encoder[3].weight.detach().numpy().tobytes()) + 100
    content[place] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # which does not look
    with pytest.raises(zipfile.BadZipFile, match="damaged"):
        read_file(path)
    with pytest.raises(OSError, match="damaged"):
        VQVAE.load(path)


def test_what_never_moves_in_the_data_is_nothing_to_the_networks():
    rng = torch.Generator().manual_seed(0)
    data = torch.randn(1000, 4, generator=rng)
    data[:, 1], data[:, 2] = 0.42, 0.0
    data[:, 3] = 1e-4 * data[:, 3]  # moves little, and may be in other units
    standardize = Standardize.for_data(data)
    seen = standardize(data)
    assert (standardize(data + 0.005)[:, 1:3] == 0).all() and (seen[:, 1:3] == 0).all()
    torch.testing.assert_close(seen[:, 0], (data[:, 0] - data[:, 0].mean()) / (data[:, 0].std(unbiased=False) + 1e-3))
    assert seen[:, 3].std() == pytest.approx(1e-4 / (1e-4 + 1e-3), rel=0.1)
    assert torch.equal(Standardize.for_data(data, wanted=False)(data), data)


def test_weights_of_another_architecture_or_other_data_are_refused(tmp_path):
    model = make(mean=1.0)
    model.save(tmp_path / "vqvae.pt")
    same = make(mean=1.0)
    same.load_weights(tmp_path / "vqvae.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))
    with pytest.raises(OSError, match=r"'codebook_size': 16.*this run needs.*'codebook_size': 64"):
        VQVAE(5, 3, embedding_dim=8, hidden_dim=32).load_weights(tmp_path / "vqvae.pt")
    with pytest.raises(OSError, match="of another dataset"):
        make(mean=2.0).load_weights(tmp_path / "vqvae.pt")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    write_file(tmp_path / "a.txt", lambda file: file.write(b"old"))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*a.txt: .*File too large"):
            write_file(tmp_path / "a.txt", lambda file: file.write(bytes(2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]
