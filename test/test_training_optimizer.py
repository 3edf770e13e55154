"""Muon for the matrices and AdamW for the rest: one optimiser, one state, exact when a run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from training_doubles import SMALL, dataset, options  # noqa: E402

from instructvla_ros.errors import ConfigError, DataError  # noqa: E402
from instructvla_ros.model.checkpoint import load  # noqa: E402
from instructvla_ros.training import optimizer as optimizers  # noqa: E402
from instructvla_ros.training.loop import train  # noqa: E402
from instructvla_ros.training.objective import Objective  # noqa: E402
from instructvla_ros.training.optimizer import check_optimizer, inner_matrices, make_optimizer  # noqa: E402
from instructvla_ros.training.plan import plan  # noqa: E402
from instructvla_ros.training.settings import Training  # noqa: E402
from instructvla_ros.training.setup import prepare  # noqa: E402

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='torch.optim.Muon came with torch 2.9')
EVERYTHING = {'recipe': 'scratch', 'optimizer': 'muon', 'general_batch': 2, 'lr': 0.01}


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp('optimizer')
    (folder / 'small.yaml').write_text(SMALL)
    return dataset(folder / 'data'), str(folder / 'small.yaml')


@needs_muon
@pytest.mark.parametrize('recipe', ['scratch', 'stage1', 'stage0'])
def test_every_weight_that_is_trained_has_one_place(made, tmp_path, monkeypatch, recipe):
    run = prepare(options(made, recipe=recipe, optimizer='muon'), tmp_path, progress=False)
    objective = Objective(run.bundle.model, run.options)
    optimizer = make_optimizer(objective, run.options)
    placed = [id(p) for g in optimizer.param_groups for p in g['params']]
    assert sorted(placed) == sorted(id(p) for p in objective.parameters() if p.requires_grad)
    names = {id(p): n for n, p in objective.named_parameters()}
    inner = {names[id(p)] for p in inner_matrices(objective.model)}
    assert inner and not any('embed_tokens' in n or 'embedding' in n or n.startswith('grounding') for n in inner)
    assert all(min(dict(objective.named_parameters())[n].shape) >= optimizers.THIN for n in inner)
    monkeypatch.setattr(optimizers, 'THIN', 2)  # as thin as the adapters of the small model
    assert any('lora' in names[id(p)] for p in inner_matrices(objective.model)) == (recipe != 'stage0')


@needs_muon
def test_a_matrix_moves_as_far_in_every_direction(made, tmp_path):
    run = prepare(options(made, **EVERYTHING), tmp_path, progress=False)
    objective = Objective(run.bundle.model, run.options).train()
    optimizer = make_optimizer(objective, run.options)
    batch, labels = run.train[0].draw(np.random.default_rng(1), 4)
    objective(batch, labels)[0].backward()
    matrix = run.bundle.model.vlm.decoder.layers[0].self_attn.q_proj.weight
    rank = int(torch.linalg.matrix_rank(matrix.grad))
    before, gradient = matrix.detach().clone(), torch.linalg.svdvals(matrix.grad)[:rank]
    optimizer.step()
    moved = torch.linalg.svdvals(matrix.detach() - before)
    assert moved[0] / moved[rank // 2] < 2.0 < gradient[0] / gradient[rank // 2]


@needs_muon
def test_a_run_goes_on_exactly(made, tmp_path):
    whole = train(options(made, steps=4, **EVERYTHING), tmp_path / 'whole', progress=False)
    train(options(made, steps=2, **EVERYTHING), tmp_path / 'half', progress=False)
    again = train(options(made, steps=4, **EVERYTHING), tmp_path / 'half', progress=False)
    first = train(options(made, steps=1, **EVERYTHING), tmp_path / 'first', progress=False)
    a, b, c = (load(r.checkpoint).model.state_dict() for r in (whole, again, first))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=name)
    assert not torch.equal(a['vlm.embed_tokens.weight'], c['vlm.embed_tokens.weight']), 'AdamW moves its part'
    with pytest.raises(DataError, match='set optimizer=muon to go on'):
        train(options(made, steps=5, **{**EVERYTHING, 'optimizer': 'adamw'}), tmp_path / 'half', progress=False)


def test_what_muon_needs_is_named_before_anything_is_loaded(tmp_path, monkeypatch):
    muon = Training(optimizer='muon', datasets=('missing',))
    with pytest.raises(ConfigError, match='whole matrices'):
        check_optimizer(muon, sharded=True)
    monkeypatch.delattr(torch.optim, 'Muon', raising=False)
    with pytest.raises(ConfigError, match=r'torch 2\.9 or later.*optimizer=adamw'):
        train(muon, tmp_path, progress=False)


def test_muon_keeps_one_number_of_a_matrix_where_adamw_keeps_two(made):
    both = [plan(options(made, recipe='scratch', optimizer=name)) for name in ('adamw', 'muon')]
    assert 0.5 * both[0].optimizer_gb < both[1].optimizer_gb < both[0].optimizer_gb


def test_a_second_adapter_and_the_gate_on_request(made, tmp_path):
    asked = {'recipe': 'scratch', 'two_adapters': True, 'steps': 1}
    new = load(train(options(made, **asked), tmp_path / 'new', progress=False).checkpoint)
    one = train(options(made, steps=1), tmp_path / 'one', progress=False)
    grown = load(train(options(made, init=str(one.checkpoint), **asked), tmp_path / 'grown', progress=False).checkpoint)
    assert new.config.stage == grown.config.stage == 2 and load(one.checkpoint).config.stage == 1
    assert plan(options(made, **asked)).trainable > plan(options(made, recipe='scratch')).trainable
