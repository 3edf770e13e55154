"""A stand-in for arm and objects without physics: the tcp goes where the steps say, closing fingers hold what is
between them, an opened hand drops things onto what is below. Written apart from the expert's own imagination."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from instructvla_ros.datatypes import SceneObject, SceneState
from instructvla_ros.geometry import apply_delta, pose_from_xyz_rpy
from instructvla_ros.sim.relations import scene_objects
from instructvla_ros.sim.scene import HANDLE_RADIUS, handle_position

HOME = pose_from_xyz_rpy([0.307, 0.0, 0.487, np.pi, 0.0, 0.0])


class KinematicWorld:
    def __init__(self, episode, tcp=HOME):
        self.objects = {n: o for n, o in scene_objects(episode.scene).items()}
        self.tcp, self.gripper, self.held, self.time = tcp.copy(), 1.0, '', 0.0
        self.episode = episode
        self.largest_step = 0.0

    def state(self) -> SceneState:
        return SceneState(int(round(self.time * 1e9)), dict(self.objects), self.tcp.copy(), self.gripper, self.held)

    def step(self, action, dt):
        self.largest_step = max(self.largest_step, float(np.linalg.norm(action[:3])))
        for _ in range(4):
            self._part(action, dt / 4, 4)
        self.time += dt

    def _part(self, action, dt, parts):
        before = self.tcp
        self.tcp = apply_delta(self.tcp, np.asarray(action[:6]) / parts)
        motion = self.tcp @ np.linalg.inv(before)
        if self.held:
            obj = self.objects[self.held]
            if obj.category == 'drawer':
                along = float(-obj.pose[:3, 0] @ (self.tcp[:3, 3] - before[:3, 3]))
                self.objects[obj.name] = replace(obj, opening=float(np.clip(obj.opening + along, 0.0, 0.14)))
            else:
                self.objects[obj.name] = replace(obj, pose=motion @ obj.pose)
        opening = action[6] > 0.5
        if opening:
            self.gripper = min(1.0, self.gripper + 2.5 * dt)
            if self.held and self.gripper > self._width(self.objects[self.held]) / 0.08 + 0.03:
                self._drop()
            return
        stop, name = 0.0, ''
        for obj in self.objects.values():
            if self._between(obj):
                stop, name = self._width(obj) / 0.08, obj.name
        if self.gripper >= stop - 1e-9:
            self.gripper = max(stop, self.gripper - 2.5 * dt)
            if name and self.gripper <= stop + 1e-6:
                self.held = name

    def _width(self, obj: SceneObject) -> float:
        return 2 * HANDLE_RADIUS if obj.category == 'drawer' else float(obj.extent[1])

    def _between(self, obj: SceneObject) -> bool:
        if obj.category in ('bowl', 'plate'):
            return False
        point = handle_position(obj) if obj.category == 'drawer' else obj.pose[:3, 3]
        local = self.tcp[:3, :3].T @ (point - self.tcp[:3, 3])
        return bool(abs(local[0]) < 0.012 and abs(local[1]) < 0.02 and abs(local[2]) < 0.015)

    def _drop(self):
        obj, self.held = self.objects[self.held], ''
        if obj.category == 'drawer':
            return
        floor = 0.0
        for other in self.objects.values():
            if other.name != obj.name and np.hypot(*(other.pose[:2, 3] - obj.pose[:2, 3])) < other.extent[0] / 2:
                thin = {'bowl': 0.006, 'plate': 0.008}
                floor = max(floor, thin.get(other.category, other.pose[2, 3] + other.extent[2] / 2))
        tray = next(
            (o for o in self.objects.values() if o.category == 'drawer' and o.name == self.episode.destination), None
        )
        if tray is not None:
            floor = 0.01
        matrix = obj.pose.copy()
        matrix[2, 3] = floor + obj.extent[2] / 2
        self.objects[obj.name] = replace(obj, pose=matrix)
