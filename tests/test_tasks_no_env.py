"""Data without an environment: what is held out, in which units, and how policies are scored."""

import h5py
import numpy as np
import pytest
import test_tasks_robomimic

import tasks


def write(path, trajectories, length=20):
    """Trajectories that time out. Actions are 10 times the first observation, and the second observation."""
    rng, count = np.random.default_rng(0), trajectories * length
    observations = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = observations, np.roll(observations, -1, 0)
        file["actions"] = observations[:, :2] * [10, 1]
        file["rewards"], file["terminals"] = np.ones(count), np.zeros(count, bool)
        file["timeouts"] = np.arange(count) % length == length - 1
    return path, observations


@pytest.mark.parametrize("trajectories, held_out", [(25, [9, 19]), (10, [9]), (3, [2])])
def test_every_tenth_trajectory_is_held_out_or_the_last(tmp_path, trajectories, held_out):
    path, observations = write(tmp_path / "data.hdf5", trajectories)
    task = tasks.make("none", path)
    data = task.dataset()
    rows = np.isin(np.arange(len(observations)) // 20, held_out)
    np.testing.assert_array_equal(task.held_out[0], observations[rows])
    np.testing.assert_array_equal(data["observations"], observations[~rows])
    assert data["ends"].sum() == trajectories - len(held_out) and data["ends"][19::20].all()
    assert task.max_episode_steps == 20 and task.env_id == "none"


def test_the_last_tenth_of_a_single_trajectory_is_held_out(tmp_path):
    path, observations = write(tmp_path / "data.hdf5", 1)
    task = tasks.make("none", path)
    data = task.dataset()
    np.testing.assert_array_equal(task.held_out[0], observations[18:])
    assert len(data["ends"]) == 18 and data["ends"].tolist() == [False] * 17 + [True]


def test_actions_are_scaled_by_the_bounds_of_the_file(tmp_path):
    path, observations = write(tmp_path / "data.hdf5", 20)
    task = tasks.make("none", path)
    actions = np.concatenate([task.dataset()["actions"], task.held_out[1]])
    assert actions.min(0) == pytest.approx([-0.999] * 2) and actions.max(0) == pytest.approx([0.999] * 2)
    own = observations[:, :2] * [10, 1]
    np.testing.assert_allclose([task.action_low, task.action_high], [own.min(0), own.max(0)], rtol=1e-6)


def test_wild_actions_are_no_bounds(tmp_path):
    clean = tasks.make("none", write(tmp_path / "clean.hdf5", 20)[0])
    path, _ = write(tmp_path / "wild.hdf5", 20)
    with h5py.File(path, "r+") as file:
        file["actions"][50, 1] = 300.0
    wild = tasks.make("none", path)
    expected, data = clean.dataset()["actions"], wild.dataset()["actions"]
    np.testing.assert_array_equal(np.delete(data, 50, 0), np.delete(expected, 50, 0))
    assert data[50, 1] == np.float32(0.999) and wild.action_high == clean.action_high
    note = wild.notes[0]
    assert note.startswith("actions: 1 of 400 transitions") and "300 in transition 50, in columns 1;" in note
    assert len(wild.notes) == len(clean.notes) + 1


def test_a_constant_action_is_scaled_to_0(tmp_path):
    path, _ = write(tmp_path / "data.hdf5", 20)
    with h5py.File(path, "r+") as file:
        file["actions"][:, 1] = 7.0
    task = tasks.make("none", path)
    assert (task.dataset()["actions"][:, 1] == 0).all()


def test_a_constant_action_of_any_size_keeps_its_value_on_the_robot(tmp_path):
    path, _ = write(tmp_path / "data.hdf5", 20)
    with h5py.File(path, "r+") as file:
        file["actions"][:, 1] = 4e7
    task = tasks.make("none", path)
    assert (task.dataset()["actions"][:, 1] == 0).all()
    assert task.action_low[1] == task.action_high[1] == 4e7


def test_scores_follow_from_the_squared_error_of_held_out_actions(tmp_path, capsys):
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


def test_errors_are_printed_for_each_action_dimension(tmp_path, capsys):
    path, _ = write(tmp_path / "data.hdf5", 20)
    with h5py.File(path, "r+") as file:
        actions = file["actions"][()]
        del file["actions"]
        file["actions"] = np.column_stack([actions, np.full(len(actions), 7.0)])
    task = tasks.make("none", path)
    task.dataset()
    _, actions = task.held_out
    deviation = actions.std(0)
    offsets = np.array([0.5, 1.0, 0.0]) * deviation  # squared errors of a quarter of the variance, and of all of it
    seen = []

    def policy(batch):
        seen.append(len(batch))
        return actions[sum(seen[:-1]) : sum(seen)] - np.sign(actions[sum(seen[:-1]) : sum(seen)]) * offsets

    task.print_scores({"policy": task.evaluate(policy)["scores"]})
    assert "by action dimension: 0: 25.0%, 1: 100.0%, 2: constant; mean 62.5%" in capsys.readouterr().out


@pytest.mark.parametrize("env_args", [test_tasks_robomimic.ENV_ARGS, {"type": 4, "env_name": "real"}, {}])
def test_robomimic_files_need_no_environment(tmp_path, env_args):
    path = tmp_path / "data.hdf5"
    made = test_tasks_robomimic.demonstrations()
    test_tasks_robomimic.write(path, made, env_args)
    task = tasks.make("none", path)
    data = task.dataset()
    observations = np.concatenate([data["observations"], task.held_out[0]])
    names = ("demo_0", "demo_2", "demo_10")
    expected = [[made[name]["obs"][key] for key in test_tasks_robomimic.PAPER_KEYS] for name in names]
    np.testing.assert_allclose(observations, np.concatenate([np.concatenate(o, 1) for o in expected]), rtol=1e-6)
    assert task.max_episode_steps == 6 and task.env_id == "none"


def test_the_default_observations_of_other_robots_are_all_vectors(tmp_path):
    path = tmp_path / "data.hdf5"
    made = test_tasks_robomimic.demonstrations(keys={"ee_pose": 7, "gripper": 1})
    for demonstration in made.values():
        for group in ("obs", "next_obs"):
            demonstration[group]["gripper"] = demonstration[group]["gripper"][:, 0]  # a number per step
            demonstration[group]["front_image"] = np.zeros((len(demonstration["actions"]), 2, 2, 3), np.uint8)
    test_tasks_robomimic.write(path, made, {})
    task = tasks.make("none", path)
    assert task.dataset()["observations"].shape[1] == 8
    assert "observations are ee_pose, gripper, without front_image; --observation-keys chooses" in task.notes
    assert tasks.make("none", path, observation_keys=["ee_pose"]).dataset()["observations"].shape[1] == 7
    with pytest.raises(tasks.TaskError, match=r"do not describe a robosuite environment .* --env-id none"):
        tasks.make(dataset_path=path)


def test_the_score_weighs_steps_equally_in_trajectories_of_any_length(tmp_path):
    path, _ = write(tmp_path / "data.hdf5", 20)
    with h5py.File(path, "r+") as file:
        file["timeouts"][9 * 20 + 2] = True  # the tenth trajectory has 3 steps, all others have 20
    task = tasks.make("none", path)
    task.dataset()
    _, actions = task.held_out
    mean = task.evaluate(lambda batch: np.tile(actions.mean(0), (len(batch), 1)))
    assert mean["lengths"].tolist() == [3, 20] and mean["scores"].mean() == pytest.approx(0, abs=1e-4)


def test_all_held_out_trajectories_are_evaluated_by_default(tmp_path):
    task = tasks.make("none", write(tmp_path / "data.hdf5", 1010, length=2)[0])
    task.dataset()
    assert task.eval_episodes == 101 == len(task.evaluate(lambda batch: np.zeros((len(batch), 2)))["scores"])


def test_long_trajectories_are_not_cut(tmp_path):
    path, _ = write(tmp_path / "data.hdf5", 2, length=1500)
    with h5py.File(path, "r+") as file:
        file["terminals"][-1] = True
        del file["timeouts"], file["next_observations"]
    task = tasks.make("none", path)
    assert len(task.dataset()["ends"]) == 2699 and len(task.held_out[0]) == 300 and task.max_episode_steps == 2999


@pytest.mark.parametrize("count, with_next", [(0, True), (1, True), (1, False), (2, False)])
def test_fewer_than_two_transitions_raise_an_error(tmp_path, count, with_next):
    path, _ = write(tmp_path / "data.hdf5", count, length=1)
    if not with_next:
        with h5py.File(path, "r+") as file:
            del file["next_observations"]
    with pytest.raises(tasks.TaskError, match=r"contains no transitions|too few transitions"):
        tasks.make("none", path).dataset()


def test_shuffled_rows_need_a_step_limit(tmp_path):
    path, observations = write(tmp_path / "data.hdf5", 20)
    order = np.random.default_rng(0).permutation(len(observations))
    with h5py.File(path, "r+") as file:
        for column in file.values():
            column[...] = column[()][order]
    with pytest.raises(tasks.TaskError, match="set it with --max-episode-steps"):
        tasks.make("none", path).dataset()
    task = tasks.make("none", path, max_episode_steps=20)
    assert task.dataset()["ends"].all() and len(task.held_out[0]) == 40


def test_there_is_no_environment(tmp_path):
    task = tasks.make("none", write(tmp_path / "data.hdf5", 2)[0])
    with pytest.raises(tasks.TaskError, match="no environment"):
        task.env()
    with pytest.raises(tasks.TaskError, match="no environment"):
        task.check_video()
