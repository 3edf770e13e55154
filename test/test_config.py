"""Configuration: files of the package load, and every mistake is answered with the way out."""

import dataclasses

import pytest
import yaml

from instructvla_ros import config, settings
from instructvla_ros.errors import ConfigError, suggest
from instructvla_ros.resources import config_file

FILES = {
    'franka.yaml': settings.Embodiment,
    'panda.yaml': settings.Embodiment,
    'controller.yaml': settings.Control,
    'policy.yaml': settings.PolicySettings,
    'sim.yaml': settings.Sim,
}


@pytest.mark.parametrize('name', FILES)
def test_shipped_files_load_and_round_trip(name):
    loaded = config.load(FILES[name], config_file(name))
    assert config.from_dict(FILES[name], yaml.safe_load(yaml.safe_dump(config.to_dict(loaded)))) == loaded


def test_every_option_has_a_description():
    def walk(cls):
        for field in dataclasses.fields(cls):
            assert field.metadata.get('doc'), f'{cls.__name__}.{field.name}'
            hint = config.hints(cls)[field.name]
            if dataclasses.is_dataclass(hint):
                walk(hint)

    for cls in set(FILES.values()):
        walk(cls)


def write(tmp_path, text):
    file = tmp_path / 'c.yaml'
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    'text, words',
    [
        ('rat: 50.0', ['rat', "'rate'", 'unknown key']),
        ('safety: {max_futur: 1}', ['safety.max_futur', "'max_future'"]),
        ('rate: fast', ['rate', 'number']),
        ('rate: 1.0', ['rate', '10.0 Hz']),
        ('rate: .nan', ['rate', 'NaN']),
        ('backend: moveit2', ['backend', "'moveit'"]),
        ('dry_run: 1', ['dry_run', 'true or false']),
        ('ensemble_size: 2.5', ['ensemble_size', 'whole number']),
        ('safety: 3', ['safety', 'keys and values']),
        ('safety: {workspace_lower: [0, 0]}', ['workspace_lower', '3 values']),
        ('safety: {workspace_lower: [2.0, 0, 0]}', ['workspace x']),
        ('- a', ['keys and values']),
        ('a: [', ['not valid YAML']),
    ],
)
def test_mistakes_are_named(tmp_path, text, words):
    with pytest.raises(ConfigError) as err:
        config.load(settings.Control, write(tmp_path, text))
    for word in words:
        assert word in str(err.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match='nothing.yaml'):
        config.load(settings.Control, tmp_path / 'nothing.yaml')


def test_overrides_are_validated_like_the_file(tmp_path):
    file = write(tmp_path, 'rate: 50.0')
    loaded = config.load(settings.Control, file, {'safety.max_future': 0.2, 'rate': 80})
    assert (loaded.rate, loaded.safety.max_future) == (80.0, 0.2)
    with pytest.raises(ConfigError, match='max_future'):
        config.load(settings.Control, file, {'safety.max_future': -1.0})


def test_replace_checks_bounds_and_names():
    control = settings.Control()
    assert config.replace(control, rate=50.0).rate == 50.0
    with pytest.raises(ConfigError, match='rate'):
        config.replace(control, rate=1e6)
    with pytest.raises(ConfigError, match="'rate'"):
        config.replace(control, rte=50.0)


def test_embodiment_checks_that_home_is_inside_the_limits():
    data = config.to_dict(config.load(settings.Embodiment, config_file('franka.yaml')))
    data['home'][3] = 0.5
    with pytest.raises(ConfigError, match='fr3_joint4'):
        config.from_dict(settings.Embodiment, data)
    data['home'] = data['home'][:5]
    with pytest.raises(ConfigError, match='5 home values'):
        config.from_dict(settings.Embodiment, data)


def test_limits_must_have_one_value_per_joint():
    with pytest.raises(ConfigError, match='velocity'):
        settings.JointLimits(lower=(0.0,), upper=(1.0,), velocity=(), acceleration=(1.0,), jerk=(1.0,))


def test_suggest_names_the_nearest():
    assert "'green'" in suggest('gren', ['red', 'green', 'blue'])
    assert 'Allowed: blue, green, red.' in suggest('x', ['red', 'green', 'blue'])
