"""Training: labels land where the objects are, frozen stays frozen, a run goes on exactly where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from training_doubles import SMALL, dataset, options  # noqa: E402

from instructvla_ros.config import replace as change  # noqa: E402
from instructvla_ros.data.episodes import Dataset  # noqa: E402
from instructvla_ros.errors import CheckpointError, ConfigError, DataError  # noqa: E402
from instructvla_ros.model.checkpoint import load  # noqa: E402
from instructvla_ros.model.config import preset  # noqa: E402
from instructvla_ros.model.images import dino_square, join_views, siglip_square  # noqa: E402
from instructvla_ros.training import frames as fr  # noqa: E402
from instructvla_ros.training.augment import augment  # noqa: E402
from instructvla_ros.training.examples import CLASSES, class_of, is_held_out  # noqa: E402
from instructvla_ros.training.grounding import Grounding, patch_labels, pick, soft_cells  # noqa: E402
from instructvla_ros.training.loop import learning_rate, train  # noqa: E402
from instructvla_ros.training.plan import plan  # noqa: E402
from instructvla_ros.training.settings import GroundingWeights, Mixture, Training  # noqa: E402
from instructvla_ros.training.setup import prepare  # noqa: E402
from instructvla_ros.training.state import load_state  # noqa: E402


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp('training')
    (folder / 'small.yaml').write_text(SMALL)
    return dataset(folder / 'data'), str(folder / 'small.yaml')


def test_points_follow_the_pictures():
    """A dot in a picture is found where the point transforms say, in the joined square and in DINO's crop."""
    u, v = 0.42, 0.58
    picture = np.zeros((240, 320, 3), np.uint8)
    picture[round(v * 240) - 6 : round(v * 240) + 6, round(u * 320) - 6 : round(u * 320) + 6] = 255
    points = np.array([[[u, v]], [[u, v]]], np.float32)  # two views, one object
    joined = siglip_square(join_views([np.zeros_like(picture), picture]), 192)
    rows, columns = np.nonzero(joined[..., 0] > 120)
    expected = fr.in_joined(points, 2)[1, 0] * 192
    np.testing.assert_allclose((columns.mean() + 0.5, rows.mean() + 0.5), expected, atol=1.5)
    crop = dino_square(picture, 128)
    rows, columns = np.nonzero(crop[..., 0] > 120)
    expected = fr.in_crop(points[0], 320, 240, 128)[0] * 128
    np.testing.assert_allclose((columns.mean() + 0.5, rows.mean() + 0.5), expected, atol=1.5)
    assert np.isnan(fr.in_crop(np.array([[0.02, 0.5]], np.float32), 320, 240, 128)).all()


def test_windows_end_without_motion(made):
    episode = Dataset.open(made[0]).read(0)
    chunks, valid = fr.windows(episode, 4)
    np.testing.assert_array_equal(chunks[0], episode.actions[:4])
    assert valid[0].all() and not valid[-1].any() and valid[-2].tolist() == [True, False, False, False]
    assert (chunks[-1][:, :6] == 0).all() and (chunks[-1][:, 6] == episode.actions[-1, 6]).all()
    planned = replace(episode, extras={'chunks': np.ones((6, 8, 7))})
    assert fr.windows(planned, 4)[0].shape == (6, 4, 7) and fr.windows(planned, 4)[1].all()


def test_soft_cells_and_patches():
    weights, known = soft_cells(torch.tensor([[0.5, 0.25], [float('nan'), 0.0]]), 4)
    assert known.tolist() == [1.0, 0.0]
    grid = weights[0].reshape(4, 4)
    assert grid.sum() == pytest.approx(1.0) and grid[0, 1] == pytest.approx(0.25)  # between four cells: a quarter each
    labels = patch_labels(torch.tensor([[[0.9, 0.1]]]), torch.tensor([[3]]), torch.tensor([[1]]), 4)
    assert labels[0, 3, 3] == 1 and labels[0, 3, CLASSES + 1] == 1 and labels.sum() == 2
    points = torch.rand(2, 2, 3, 2)
    found = pick(points, torch.tensor([2, -1]))
    assert torch.equal(found[0], points[0, :, 2]) and found[1].isnan().all()
    assert class_of('red', 'cube') == 0 and class_of('', 'drawer') == CLASSES - 1 and class_of('pink', 'cube') == -1


def test_pointer_map_has_the_layout_of_the_features():
    """A patch feature moves the map at its own place, and only there."""
    config = preset('tiny')
    heads = Grounding(config)
    grid, views = config.dino.image_size // config.dino.patch_size, config.views
    features = torch.randn(1, grid * grid * views, config.dino.width)
    before = heads.maps(features)
    row, column, view = 2, 5, 1
    features[0, (row * grid + column) * views + view] += 3.0 * torch.randn(config.dino.width)
    changed = (heads.maps(features) - before).abs().sum(2)[0].nonzero()
    assert changed[:, 0].unique().tolist() == [view]
    assert (changed[:, 1] // 2).unique().tolist() == [row] and (changed[:, 2] // 2).unique().tolist() == [column]


def test_held_out_share_is_stable():
    sides = [is_held_out(f'pick-{k:06d}', 0.1) for k in range(2000)]
    assert 150 < sum(sides) < 250 and sides == [is_held_out(f'pick-{k:06d}', 0.1) for k in range(2000)]


def test_augmentation_keeps_views_together():
    rng = np.random.default_rng(1)
    joined, views = np.full((3, 8, 8, 3), 100, np.uint8), np.full((3, 2, 8, 8, 3), 100, np.uint8)
    a, b = augment(joined, views, 'color', rng)
    assert a.std(axis=(1, 2, 3)).max() < 1 and len(np.unique(a[:, 0, 0, 0])) > 1
    np.testing.assert_array_equal(a[:, 0, 0], b[:, 0, 0, 0])
    assert augment(joined, views, 'none', rng)[0] is joined


def test_rate():
    o = Training(steps=100, lr=1.0, warmup=10, decay=0.5)
    assert learning_rate(o, 0) == pytest.approx(0.1) and learning_rate(o, 30) == 1.0
    assert learning_rate(o, 75) == pytest.approx(0.5, abs=0.02) and learning_rate(o, 99) < 0.01


def test_run_resumes_exactly_and_leaves_frozen_weights_alone(made, tmp_path):
    whole = train(options(made, steps=4), tmp_path / 'whole', progress=False)
    half = tmp_path / 'half'
    train(options(made, steps=2), half, progress=False)
    again = train(options(made, steps=4), half, progress=False)
    assert not again.interrupted and again.steps == 4
    a, b = load(whole.checkpoint).model.state_dict(), load(again.checkpoint).model.state_dict()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=name)
    first = train(options(made, steps=1), tmp_path / 'first', progress=False)
    c = load(first.checkpoint).model.state_dict()
    moved = {n for n in a if not torch.equal(a[n], c[n])}
    assert moved and all('lora' in n or n.startswith(('expert.', 'vlm.query')) for n in moved)
    lines = [json.loads(x) for x in (half / 'log.jsonl').read_text().splitlines()]
    assert lines[-1]['step'] == 4 and {'flow', 'end_mm', 'mean_mm'} <= set(lines[-1])


def test_several_dialogues_share_a_picture_and_lose_nothing(made, tmp_path):
    talk = {'recipe': 'stage0', 'retell': True, 'acts': False, 'general_batch': 6, 'augment': 'none'}
    run = prepare(options(made, tellings=3, **talk), tmp_path, progress=False)
    model = run.bundle.model.eval()
    batch, labels = run.train[0].draw(np.random.default_rng(5), 7)
    assert len(batch.ids) == 7 and len(batch.pixels) <= 3 and batch.picture.shape == (7,)
    assert len(labels.target) == 7
    spoken = run.talk(run.train[0], np.random.default_rng(5))
    assert len(spoken.ids) == 6 and spoken.picture is not None and len(spoken.pixels) < len(spoken.picture)
    for shared in (batch, spoken):
        each = replace(shared, pixels=shared.pixels[shared.picture], picture=None)
        one, other = model(shared), model(each)
        torch.testing.assert_close(one.ce, other.ce)
        torch.testing.assert_close(one.image_features, other.image_features)
    model(batch).ce.backward()
    weight = model.vlm.tower.get_submodule('encoder').layers[0].self_attn.q_proj.weight
    gradient = weight.grad.clone()
    model.zero_grad()
    model(replace(batch, pixels=batch.pixels[batch.picture], picture=None)).ce.backward()
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-7)
    done = train(options(made, tellings=3, steps=2, **talk), tmp_path / 'run', progress=False)
    assert not done.interrupted and done.steps == 2


def test_stage2_from_nothing_is_refused(made, tmp_path):
    asked = options(made, recipe='stage2')
    assert plan(asked).trainable > 0, 'its memory can be worked out all the same'
    with pytest.raises(ConfigError, match='stage-1 checkpoint with --init'):
        prepare(asked, tmp_path, progress=False)


def test_stage2_keeps_the_expert(made, tmp_path):
    one = train(options(made, steps=1), tmp_path / 'one', progress=False)
    two = train(
        options(made, recipe='stage2', init=str(one.checkpoint), steps=2, general_batch=2, max_new_tokens=11),
        tmp_path / 'two',
        progress=False,
    )
    before, after = load(one.checkpoint).model, load(two.checkpoint).model
    assert after.config.stage == 2
    assert after.config.max_new_tokens == 11 != before.config.max_new_tokens
    for name, value in before.expert.state_dict().items():
        assert torch.equal(value, after.expert.state_dict()[name]), name


def test_draws_and_path_loss_train(made, tmp_path):
    result = train(options(made, draws=3, path_weight=0.5, steps=2), tmp_path / 'r', progress=False)
    log = [json.loads(x) for x in (tmp_path / 'r' / 'log.jsonl').read_text().splitlines()]
    assert result.steps == 2 and log[-1]['path'] > 0


def test_another_run_in_the_folder_is_refused(made, tmp_path):
    train(options(made, steps=1), tmp_path / 'r', progress=False)
    with pytest.raises(DataError, match='holds a run of stage1'):
        train(options(made, recipe='stage0', steps=2), tmp_path / 'r', progress=False)


def test_damaged_state_is_named(made, tmp_path):
    train(options(made, steps=1), tmp_path / 'r', progress=False)
    file = tmp_path / 'r' / 'state.pt'
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match='damaged'):
        load_state(tmp_path / 'r')


def test_bad_requests_are_named(made, tmp_path):
    with pytest.raises(ConfigError, match='no datasets'):
        train(options(made, datasets=()), tmp_path / 'a', progress=False)
    with pytest.raises(ConfigError, match='one positive number for each'):
        train(options(made, shares=(0.5, 0.5)), tmp_path / 'b', progress=False)
    with pytest.raises(ConfigError, match='recipe'):
        change(Training(), recipe='stage9')
    with pytest.raises(DataError, match='not a dataset'):
        train(options(made, datasets=(str(tmp_path / 'nowhere'),)), tmp_path / 'c', progress=False)


def test_mixture_and_weights_have_defaults_of_the_paper():
    assert Mixture() == Mixture(0.4, 0.2, 0.2, 0.2, 0.2) and GroundingWeights().pointing == 0.0
