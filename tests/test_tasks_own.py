"""Data without an environment: what is held out, in which units, and how policies are judged on it."""

import h5py
import numpy as np
import pytest

import tasks


def write(path, trajectories, length=20):
    """Actions are 10 times the first observation and the second as it is; ends are marked by timeouts."""
    rng, count = np.random.default_rng(0), trajectories * length
    observations = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = observations, np.roll(observations, -1, 0)
        file["actions"] = observations[:, :2] * [10, 1]
        file["rewards"], file["terminals"] = np.ones(count), np.zeros(count, bool)
        file["timeouts"] = np.arange(count) % length == length - 1
    return path, observations


@pytest.mark.parametrize("trajectories, held_out", [(25, [9, 19]), (10, [9]), (3, [2])])
def test_each_tenth_trajectory_is_held_out_or_the_last(tmp_path, trajectories, held_out):
    path, observations = write(tmp_path / "data.hdf5", trajectories)
    task = tasks.make("none", path)
    data = task.dataset()
    rows = np.isin(np.arange(len(observations)) // 20, held_out)
    np.testing.assert_array_equal(task.held_out[0], observations[rows])
    np.testing.assert_array_equal(data["observations"], observations[~rows])
    assert data["ends"].sum() == trajectories - len(held_out) and data["ends"][19::20].all()
    assert task.max_episode_steps == 20 and task.env_id == "none"


def test_of_one_trajectory_the_last_tenth_is_held_out(tmp_path):
    path, observations = write(tmp_path / "data.hdf5", 1)
    task = tasks.make("none", path)
    data = task.dataset()
    np.testing.assert_array_equal(task.held_out[0], observations[18:])
    assert len(data["ends"]) == 18 and data["ends"].tolist() == [False] * 17 + [True]


def test_actions_are_scaled_by_the_files_bounds_which_are_reported(tmp_path):
    path, observations = write(tmp_path / "data.hdf5", 20)
    task = tasks.make("none", path)
    actions = np.concatenate([task.dataset()["actions"], task.held_out[1]])
    assert actions.min(0) == pytest.approx([-0.999] * 2) and actions.max(0) == pytest.approx([0.999] * 2)
    own = observations[:, :2] * [10, 1]
    np.testing.assert_allclose(
        [task.facts["action_low"], task.facts["action_high"]], [own.min(0), own.max(0)], rtol=1e-6
    )


def test_an_action_that_never_changes_is_no_obstacle(tmp_path):
    path, _ = write(tmp_path / "data.hdf5", 20)
    with h5py.File(path, "r+") as file:
        file["actions"][:, 1] = 7.0
    task = tasks.make("none", path)
    assert (task.dataset()["actions"][:, 1] == 0).all()


def test_policies_are_judged_by_the_squared_error_of_held_out_actions(tmp_path, capsys):
    path, _ = write(tmp_path / "data.hdf5", 20)
    task = tasks.make("none", path)
    task.dataset()
    _, actions = task.held_out
    seen = []

    def demonstrator(batch):
        seen.append(len(batch))
        return actions[sum(seen[:-1]) : sum(seen)]

    result = task.evaluate(demonstrator, 100)
    assert sum(seen) == 40 and result["lengths"].tolist() == [20, 20]
    np.testing.assert_array_equal(result["scores"], [100, 100])
    mean = task.evaluate(lambda batch: np.tile(actions.mean(0), (len(batch), 1)))
    assert mean["scores"].mean() == pytest.approx(0, abs=1e-5)
    half = task.evaluate(lambda batch: np.zeros((len(batch), 2)), episodes=1)
    np.testing.assert_allclose(half["returns"], [-np.square(actions[:20]).sum(1).mean()], rtol=1e-6)
    variance = actions.var(0).sum()
    np.testing.assert_allclose(half["scores"], 100 * (1 + half["returns"] / variance), rtol=1e-5)
    task.print_scores({"policy": [75.0]})
    assert f"{variance / 4:.4g}, 25.0% of their variance" in capsys.readouterr().out


def test_the_score_is_the_share_of_variance_however_long_trajectories_are(tmp_path):
    path, _ = write(tmp_path / "data.hdf5", 20)
    with h5py.File(path, "r+") as file:
        file["timeouts"][9 * 20 + 2] = True  # the tenth has 3 steps, the others 20
    task = tasks.make("none", path)
    task.dataset()
    _, actions = task.held_out
    mean = task.evaluate(lambda batch: np.tile(actions.mean(0), (len(batch), 1)))
    assert mean["lengths"].tolist() == [3, 20] and mean["scores"].mean() == pytest.approx(0, abs=1e-4)


def test_all_that_is_held_out_is_evaluated_by_default(tmp_path):
    task = tasks.make("none", write(tmp_path / "data.hdf5", 1010, length=2)[0])
    task.dataset()
    assert task.eval_episodes == 101 == len(task.evaluate(lambda batch: np.zeros((len(batch), 2)))["scores"])


def test_no_limit_cuts_a_long_trajectory(tmp_path):
    path, _ = write(tmp_path / "data.hdf5", 2, length=1500)
    with h5py.File(path, "r+") as file:
        file["terminals"][-1] = True
        del file["timeouts"], file["next_observations"]
    task = tasks.make("none", path)
    assert len(task.dataset()["ends"]) == 2699 and len(task.held_out[0]) == 300 and task.max_episode_steps == 2999


@pytest.mark.parametrize("count, following", [(0, True), (1, True), (1, False), (2, False)])
def test_less_than_two_transitions_are_one_line(tmp_path, capsys, count, following):
    path, _ = write(tmp_path / "data.hdf5", count, length=1)
    if not following:
        with h5py.File(path, "r+") as file:
            del file["next_observations"]
    with pytest.raises(SystemExit, match="2"):
        tasks.make("none", path).dataset()
    assert capsys.readouterr().err.count("\n") == 1
