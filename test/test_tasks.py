import numpy as np
import pytest

from instructvla_ros.errors import TaskError
from instructvla_ros.settings import Randomization
from instructvla_ros.sim import scene as sc
from instructvla_ros.sim.language import COLORS, NOUNS, SIZES, TASK_NAMES, Command, Description, parse, render
from instructvla_ros.sim.relations import REACH_X, REACH_Y, placed, released, scene_objects
from instructvla_ros.sim.tasks import TASKS, episode_from_instruction, make_episode

CUBE = Description('cube', 'red')


def test_the_words_are_those_of_the_scene():
    assert set(COLORS) == set(sc.COLORS)
    assert set(SIZES) == set(sc.SIZES)
    assert set(NOUNS) - {''} == set(sc.CATEGORIES)
    assert set(TASK_NAMES) == set(TASKS)


@pytest.mark.parametrize('task', TASKS)
def test_what_is_rendered_is_understood(task):
    rng = np.random.default_rng(1)
    said = set()
    for seed in range(150):
        episode = make_episode(task, seed)
        command = parse(episode.instruction)
        assert (command.task, command.relation) == (task, episode.relation)
        sentence = render(command, rng)
        assert parse(sentence) == command, sentence
        assert sentence == sentence.lower()
        said.add(sentence.split()[0])
    assert len(said) >= 3, 'a task needs several phrasings'


@pytest.mark.parametrize('task', TASKS)
def test_every_example_of_a_task_is_an_episode_of_it(task):
    assert episode_from_instruction(TASKS[task].example, 0).task == task


@pytest.mark.parametrize(
    ('sentence', 'command'),
    [
        ('Pick up the large blue ball!', Command('pick', Description('ball', 'blue', 'large'))),
        ('grab the little violet block', Command('pick', Description('cube', 'purple', 'small'))),
        ('could you please take the red one', Command('pick', Description('', 'red'))),
        ('lift the red cube off the table', Command('pick', CUBE)),
        ('pick the red box up', Command('pick', CUBE)),
        ('put the red cube in the bowl', Command('put', CUBE, Description('bowl'), 'in')),
        ('drop the red block onto the dish', Command('put', CUBE, Description('plate'), 'on')),
        ('take the red cube to the white bowl', Command('put', CUBE, Description('bowl', 'white'), 'in')),
        ('pick up the red cube and place it on the plate', Command('put', CUBE, Description('plate'), 'on')),
        ('put the red cube in the drawer, please', Command('put', CUBE, Description('drawer'), 'in')),
        ('move the red cube close to the plate', Command('move_near', CUBE, Description('plate'), 'near')),
        ('set the red cube down beside the ball', Command('move_near', CUBE, Description('ball'), 'near')),
        ('put the red cube on top of the green cube', Command('stack', CUBE, Description('cube', 'green'), 'on')),
        (
            'pile the red block onto the big green block',
            Command('stack', CUBE, Description('cube', 'green', 'large'), 'on'),
        ),
        ('open the drawer', Command('open_drawer', Description('drawer'))),
        ('pull the drawer out', Command('open_drawer', Description('drawer'))),
        ('Push the drawer shut.', Command('close_drawer', Description('drawer'))),
    ],
)
def test_free_sentences(sentence, command):
    assert parse(sentence) == command


@pytest.mark.parametrize(
    ('sentence', 'words'),
    [
        ('', 'empty'),
        ('juggle the red cube', "'juggle'"),
        ('picc up the red cube', "Did you mean 'pick"),
        ('pick up the banana', "unknown object 'banana'"),
        ('pick up the grene cube', "Did you mean 'green'"),
        ('pick up the cub', "Did you mean 'cube'"),
        ('pick up', 'which object'),
        ('pick up the bowl', 'cannot pick up a bowl'),
        ('put the red cube', 'where'),
        ('open the bowl', 'only the drawer'),
        ("don't pick up the red cube", 'not to do'),
        ('put the red cube in the bowl and open the drawer', 'one instruction at a time'),
        ('stack the red cube on the red cube', 'itself'),
        ('stack the ball on the green cube', 'cannot go on'),
        ('put the ball in the green cube', 'cannot go in'),
        ('pick up the red cube near the bowl', 'not by where they stand'),
        ('move the red cube near the drawer', 'near the drawer'),
    ],
)
def test_what_is_not_understood_is_named(sentence, words):
    with pytest.raises(TaskError, match=words.replace('(', r'\(')):
        parse(sentence)


@pytest.mark.parametrize('task', TASKS)
def test_episodes_of_200_seeds(task):
    """Deterministic, unique by their description, free of overlaps, within reach, and not done before they start."""
    for seed in range(200):
        episode = make_episode(task, seed)
        assert episode == make_episode(task, seed)
        command = parse(episode.instruction)
        objects = scene_objects(episode.scene)
        for said, name in ((command.target, episode.target), (command.destination, episode.destination)):
            if said is None:
                assert name == ''
                continue
            fitting = [o.name for o in objects.values() if said.matches(o.category, o.color, o.size)]
            assert fitting == [name], (seed, episode.instruction)
        specs = episode.scene.objects
        for k, a in enumerate(specs):
            assert not any(sc.overlaps(a, b) for b in specs[k + 1 :])
            if a.category != 'drawer':
                assert REACH_X[0] <= a.xyz[0] <= REACH_X[1]
                assert REACH_Y[0] <= a.xyz[1] <= REACH_Y[1]
        target = objects[episode.target]
        if episode.destination:
            assert not placed(target, objects[episode.destination], episode.relation)
        if task == 'open_drawer':
            assert target.opening == 0.0
        if task == 'close_drawer':
            assert target.opening > 0.05


def test_seeds_differ_and_look_varies():
    episodes = [make_episode('put', seed) for seed in range(20)]
    assert len({e.instruction for e in episodes}) > 15
    assert len({e.scene.look for e in episodes}) == 20


def test_an_instruction_decides_the_scene():
    episode = episode_from_instruction('put the small red cube in the blue bowl', 4)
    objects = scene_objects(episode.scene)
    target, bowl = objects[episode.target], objects[episode.destination]
    assert (target.category, target.color, target.size) == ('cube', 'red', 'small')
    assert (bowl.category, bowl.color, episode.relation) == ('bowl', 'blue', 'in')
    assert episode.instruction == 'put the small red cube in the blue bowl'
    drawer = episode_from_instruction('put the ball in the drawer', 0)
    assert scene_objects(drawer.scene)['drawer'].opening > 0.1


def test_impossible_requests_are_refused():
    with pytest.raises(TaskError, match="Did you mean 'pick'"):
        make_episode('pikc', 0)
    with pytest.raises(TaskError, match="asks for the task 'put'"):
        make_episode('pick', 0, 'put the red cube in the bowl')
    with pytest.raises(TaskError, match='same object'):
        episode_from_instruction('stack the red cube on the cube', 0)
    with pytest.raises(TaskError, match='smaller on the larger'):
        episode_from_instruction('stack the large red cube on the small green cube', 0)
    with pytest.raises(TaskError, match='one size'):
        episode_from_instruction('put the red cube in the large bowl', 0)
    with pytest.raises(TaskError, match='seed'):
        make_episode('pick', -1)


@pytest.mark.parametrize('count', [0, 3, 8])
def test_number_of_distractors(count):
    episode = make_episode('pick', 5, randomization=Randomization(distractors=count))
    assert len(episode.scene.objects) == 1 + count


def test_distractors_in_the_colour_of_the_target():
    def shared(alike):
        found = []
        for seed in range(40):
            episode = make_episode('put', seed, randomization=Randomization(distractors=3, alike=alike))
            target, _, *others = episode.scene.objects
            command = parse(episode.instruction)
            assert not any(command.target.matches(o.category, o.color, o.size) for o in others), 'still unique'
            found += [o.color == target.color for o in others if o.category in sc.GRASPABLE]
        return np.mean(found)

    assert shared(0.0) < 0.35 and 0.6 < shared(0.7) < 0.95


def _at(spec, xyz):
    moved = sc.place(spec, (xyz[0], xyz[1]))
    objects = scene_objects(sc.SceneSpec((moved,)))
    out = objects[spec.name]
    out.pose[2, 3] = xyz[2]
    return out


CUBE40, BOWL, PLATE = sc.make_object('cube', 'red'), sc.make_object('bowl', 'blue'), sc.make_object('plate', 'blue')
BASE = sc.make_object('cube', 'green')


@pytest.mark.parametrize(
    ('relation', 'target', 'destination', 'holds'),
    [
        ('in', (0.50, 0.0, 0.027), BOWL, True),
        ('in', (0.50, 0.0, 0.090), BOWL, False),  # held over it
        ('in', (0.57, 0.0, 0.075), BOWL, False),  # on the rim
        ('in', (0.62, 0.0, 0.020), BOWL, False),  # beside it
        ('on', (0.52, 0.02, 0.028), PLATE, True),
        ('on', (0.50, 0.0, 0.060), PLATE, False),
        ('on', (0.60, 0.0, 0.020), PLATE, False),
        ('on', (0.505, 0.0, 0.060), BASE, True),
        ('on', (0.53, 0.0, 0.060), BASE, False),  # its centre is not over the lower one
        ('on', (0.50, 0.0, 0.080), BASE, False),
        ('near', (0.60, 0.0, 0.020), BASE, True),
        ('near', (0.615, 0.0, 0.020), BASE, True),
        ('near', (0.63, 0.0, 0.020), BASE, False),
        ('near', (0.60, 0.0, 0.050), BASE, False),  # held
        ('near', (0.50, 0.0, 0.060), BASE, False),  # on top
    ],
)
def test_relations(relation, target, destination, holds):
    there = scene_objects(sc.SceneSpec((sc.place(destination, (0.5, 0.0)),)))[destination.name]
    assert placed(_at(CUBE40, target), there, relation) is holds


def test_in_the_drawer_means_in_the_tray():
    drawer = scene_objects(sc.SceneSpec((sc.make_object('drawer', xy=(0.7, 0.0), opening=0.14),)))['drawer']
    assert placed(_at(CUBE40, (0.55, 0.0, 0.03)), drawer, 'in')
    assert not placed(_at(CUBE40, (0.70, 0.0, 0.12)), drawer, 'in')
    assert not placed(_at(CUBE40, (0.40, 0.0, 0.02)), drawer, 'in')


def test_released_needs_open_or_distant_fingers():
    from instructvla_ros.datatypes import SceneState
    from instructvla_ros.geometry import pose

    cube = _at(CUBE40, (0.5, 0.0, 0.02))
    near, far = pose([0.5, 0.0, 0.02]), pose([0.5, 0.0, 0.2])
    objects = {cube.name: cube}
    assert not released(SceneState(0, objects, near, 1.0, held=cube.name), cube)
    assert not released(SceneState(0, objects, near, 0.5), cube)
    assert released(SceneState(0, objects, near, 0.7), cube)
    assert released(SceneState(0, objects, far, 0.0), cube)
