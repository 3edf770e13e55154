"""Reads a sentence about a scene and finds the objects that it may mean: with pixels of the real camera, words of its
own and no margins. A judge for the sentences that the package writes."""

from __future__ import annotations

import re

import numpy as np

from instructvla_ros import config, resources
from instructvla_ros import settings as s
from instructvla_ros.sim.camera import CameraModel, find_camera, intrinsics, optical_pose
from instructvla_ros.sim.relations import scene_objects

SIM = config.load(s.Sim, resources.config_file('sim.yaml'))
LENS = find_camera(SIM.cameras, 'third_person')
CAMERA = CameraModel('third_person', LENS.width, LENS.height, intrinsics(LENS), optical_pose(LENS))
FREE = ('cube', 'ball', 'cylinder')
WIDTH = {'small': 1, 'medium': 2, 'large': 3}
NOUN = {
    **dict.fromkeys(('block', 'box', 'brick'), 'cube'),
    **dict.fromkeys(('sphere', 'orb'), 'ball'),
    **dict.fromkeys(('can', 'tin'), 'cylinder'),
}
COLOR = {'crimson': 'red', 'scarlet': 'red', 'violet': 'purple', 'navy': 'blue'}
LOOKS = {
    'red': 'tomato strawberry engine cherry blood ladybird rose ketchup sign',
    'green': 'grass frog cucumber leaf spinach lime cactus pine lettuce',
    'blue': 'sky sea whale jeans sapphire blueberry lake police',
    'yellow': 'banana lemon sun yolk canary mustard sunflower corn chick',
    'orange': 'carrot fox tangerine pumpkin basketball apricot tiger goldfish',
    'purple': 'plum lavender juice eggplant amethyst orchid fig beetroot',
    'white': 'snow milk cloud swan chalk flour bear bride paper',
    'black': 'coal night raven tar ink panther hat tyre liquorice',
}
USES = {
    ('ball',): 'catch bounce dog kick child tennis juggler football pins marble',
    ('cube',): 'sugar dice six ice board eight parcel stone',
    ('cylinder',): 'candle drum jar pillar barrel trunk pipe column keg battery chimney',
    ('ball', 'cylinder'): 'roll rolls',
    ('cube', 'cylinder'): 'tower stack',
}
PLACES = {
    'bowl': 'soup cereal water salad eggs porridge dough',
    'plate': 'slice pizza flat sandwich party steak toast cheese biscuits',
    'drawer': 'sight slides socks pulled knives handle pull stamps',
}


PLACE = (
    r'(?:in|on|on top of|upon|atop|near|next to|close to|beside|to where) '
    r'the (?:\w+ )?(?:\w+ )?(?:cube|ball|cylinder|bowl|plate|drawer)(?: is)?|where (?!.* where ).+|(?:in|on) what .+'
)


class Scene:
    """The evaluator: no margins, pixels of the real camera, own tables of words."""

    def __init__(self, episode):
        self.objects = list(scene_objects(episode.scene).values())
        self.goal = episode.destination
        self.things = [o for o in self.objects if o.category != 'drawer']
        goal = [o for o in self.objects if o.name == self.goal and o.category not in FREE]
        self.choice = [o for o in self.things if o not in goal]

    def pixel(self, o):
        return CAMERA.project(o.pose[:3, 3])[0][0, 0]

    def away(self, o):
        return float(np.hypot(*o.pose[:2, 3]))

    def gap(self, a, b):
        return float(np.hypot(*(a.pose[:2, 3] - b.pose[:2, 3]))) - max(a.extent[:2]) / 2 - max(b.extent[:2]) / 2

    def by_name(self, words):
        """Objects that a plain description such as 'small red cube' fits, without size when it has none."""
        said = [COLOR.get(w, NOUN.get(w, w)) for w in words.split()]
        found = [o for o in self.objects if all(w in (o.size, o.color, o.category) for w in said)]
        assert said[-1] in (*FREE, 'bowl', 'plate', 'drawer'), words
        return found

    def mark(self, words):
        found = self.by_name(words)
        assert len(found) == 1, f'{words!r} names {len(found)} objects'
        return found[0]

    def group(self, noun):
        return self.objects if noun == 'thing' else [o for o in self.objects if o.category == noun]

    def extreme(self, noun, key):
        """The one at the end, by every measure of ``key`` alike; nothing when two measures disagree."""
        group = self.group(noun)
        best = {min(group, key=k).name for k in key}
        return [o for o in group if {o.name} == best] if len(best) == 1 and len(group) > 1 else []

    def colored(self, text):
        found = [c for c, words in LOOKS.items() if any(re.search(rf'\b{w}\b', text) for w in words.split())]
        assert len(found) == 1, text
        return [o for o in self.choice if o.color == found[0]]

    def odd(self):
        out = []
        for o in self.choice:
            rest = [p for p in self.choice if p is not o]
            for f in ('color', 'category'):
                shared = {getattr(p, f) for p in rest}
                if len(rest) > 1 and len(shared) == 1 and getattr(o, f) not in shared:
                    out.append(o)
        return list({o.name: o for o in out}.values())

    def meant(self, text):  # noqa: C901 - one branch per way of speaking
        left, right = self.pixel, lambda o: -self.pixel(o)
        y, minus_y = (lambda o: o.pose[1, 3]), (lambda o: -o.pose[1, 3])
        noun = re.search(r'\b(cube|ball|cylinder|thing)s?\b', text)
        noun = noun[1] if noun else ''
        known = '|'.join([*LOOKS, *COLOR])
        if any(re.search(rf'\b{w}\b', text) for words in LOOKS.values() for w in words.split()):
            found = self.colored(text)
            if noun in FREE:
                found = [o for o in found if o.category == noun]
            for word, sign in (('bigger|larger', -1), ('smaller', 1)):
                if re.search(word, text):
                    assert len(found) > 1
                    best = min(sign * WIDTH.get(o.size, 9) for o in found)
                    found = [o for o in found if sign * WIDTH.get(o.size, 9) == best]
            return found
        for kinds, words in USES.items():
            if any(re.search(rf'\b{w}\b', text) for w in words.split()):
                return [o for o in self.choice if o.category in kinds]
        if re.search(
            r'not like the others|odd one|differs? from|different from|same as all|no other like|not belong|'
            r'fit in with|unlike|twin|exception',
            text,
        ):
            return self.odd()
        if re.search(r'largest|biggest|most room|greatest|(?:bigger|larger) than (?:all|the rest|every)', text):
            top = max(WIDTH.get(o.size, 9) for o in self.choice)
            return [o for o in self.choice if WIDTH.get(o.size, 9) == top]
        if re.search(r'smallest|tiniest|least room|least size|smaller than (?:all|the rest|every)', text):
            low = min(WIDTH.get(o.size, 9) for o in self.choice)
            return [o for o in self.choice if WIDTH.get(o.size, 9) == low]
        m = re.search(
            r'neither the (.*) nor the (.*)$|not the (.*) and not the (.*?),?$|'
            r'(?:without|other than|besides|except|but|when) the (.*) and the (.*?)(?: are gone)?$',
            text,
        )
        if m:
            a, b = (self.mark(w) for w in m.groups() if w)
            return [o for o in self.choice if o not in (a, b)]
        m = re.search(
            r'between the (.*) and the (.*)$|with the (.*) on one side and the (.*) on the other$|'
            r'(?:with|has) the (.*) and the (.*) at its sides$|'
            r'with the (.*) on the one hand and the (.*) on the other hand$',
            text,
        )
        if m:
            a, b = (self.mark(w) for w in m.groups() if w)
            return [o for o in self.group(noun) if o not in (a, b) and self.between(o, a, b)]
        m = re.search(r'(left|right) (?:side )?of the (.+)$', text)
        if m:
            mark, sign = self.mark(m[2]), -1 if m[1] == 'left' else 1
            return [o for o in self.group(noun) if o is not mark and sign * (self.pixel(o) - self.pixel(mark)) > 0]
        m = re.search(r'(?:next to|close to|beside|stands by|near|neighbourhood of|side of) the (.+)$', text)
        m = m or re.search(r'has the (.+) as its neighbour$', text)
        if m:
            mark = self.mark(m[1])
            return [o for o in self.group(noun) if o is not mark and self.gap(o, mark) < 0.10]
        if re.search(r'middle|central|second|one on (?:each|both) sides?|one on the left and', text):
            group = sorted(self.group(noun), key=left)
            assert len(group) == 3
            return [group[1]]
        if re.search(r'left', text):
            return self.extreme(noun, (left, y))
        if re.search(r'right', text):
            return self.extreme(noun, (right, minus_y))
        if re.search(r'closest|nearest|shortest', text):
            return self.extreme(noun, (self.away,))
        if re.search(r'farthest|most distant|longest', text):
            return self.extreme(noun, (lambda o: -self.away(o),))
        m = re.search(
            rf'is not ({known})$|not the ({known}) one|(?:but|except|other than) the ({known}) one|'
            rf'(?:but|than) ({known})$',
            text,
        )
        if m:
            color = next(w for w in m.groups() if w)
            assert any(o.color == color for o in self.group(noun)), 'what is excluded has to be there'
            return [o for o in self.group(noun) if o.color != color]
        m = re.search(rf'\b({known})\b.* (?:not|but|except|other than) (?:a|the) (\w+)', text)
        if m:
            return [o for o in self.choice if o.color == m[1] and o.category != m[2]]
        if re.search(r'bigger|larger', text):
            return [max(self.group(noun), key=lambda o: WIDTH[o.size])]
        if re.search(r'smaller', text):
            return [min(self.group(noun), key=lambda o: WIDTH[o.size])]
        if re.search(r'only|there is$|single', text):
            return self.group(noun)
        color = re.search(rf'\b({known})\b', text)
        assert color, f'the evaluator does not understand {text!r}'
        found = [o for o in self.choice if o.color == COLOR.get(color[1], color[1])]
        if re.search(r'(?:like|of|be) a can$', text):
            return [o for o in found if o.category == 'cylinder']
        if re.search(r'round|without corners', text):
            return [o for o in found if o.category != 'cube']
        if re.search(r'square|corners', text):
            return [o for o in found if o.category == 'cube']
        if re.search(r'\b(one|thing|object|toy|something|whatever)\b|^what is', text):
            return found
        return self.by_name(text.removeprefix('the '))

    def between(self, o, a, b):
        line, way = b.pose[:2, 3] - a.pose[:2, 3], o.pose[:2, 3] - a.pose[:2, 3]
        t = float(way @ line / (line @ line))
        return 0.1 < t < 0.9 and float(np.hypot(*(way - t * line))) < 0.10
