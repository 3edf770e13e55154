import copy
import os
import time
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
from moveit_msgs.msg import MoveItErrorCodes, RobotTrajectory
from standin_cell import Cell

from instructvla_ros import config, resources
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.settings import Embodiment

TROUBLE = os.environ.get('STANDIN_TROUBLE', '')


class MoveItPy:
    def __init__(self, node_name='moveit_py', config_dict=None, provide_planning_service=True):
        assert provide_planning_service is False, 'beside a move_group this would answer for it'
        if TROUBLE == 'start':
            raise RuntimeError('Unable to construct robot model')
        print('[INFO] [moveit_py]: loading', flush=True)  # MoveIt talks on standard output
        semantics = ElementTree.fromstring(config_dict['robot_description_semantic'])
        kind = 'panda' if semantics.get('name') == 'panda' else 'franka'
        embodiment = config.load(Embodiment, resources.config_file(f'{kind}.yaml'))
        self.groups = {g.get('name') for g in semantics.findall('group')}
        assert config_dict['planning_pipelines']['pipeline_names'] == ['ompl']
        assert config_dict['ompl']['planning_plugins'] == ['ompl_interface/OMPLPlanner']
        limits = config_dict['robot_description_planning']['joint_limits']
        assert all(limits[j]['has_acceleration_limits'] for j in embodiment.arm_joints)
        self.cell = Cell(embodiment, Kinematics(embodiment))
        self.parameters = config_dict['plan_request_params']
        self._monitor = PlanningSceneMonitor(self.cell)

    def get_planning_scene_monitor(self):
        return self._monitor

    def get_planning_component(self, planning_component_name):
        if planning_component_name not in self.groups:
            raise RuntimeError(f"Group '{planning_component_name}' not found")
        return PlanningComponent(self.cell)

    def __del__(self):
        os.write(2, b'Segmentation fault while taking MoveItPy apart\n')
        os._exit(139)


class PlanningSceneMonitor:
    def __init__(self, cell):
        self._cell, self.locked = cell, False

    def read_only(self):
        assert not self.locked, 'a second lock never comes back'
        self.locked = True
        return Locked(self, self._cell)

    def new_planning_scene_message(self, scene):
        assert not self.locked, 'needs the lock that somebody holds'
        self._cell.apply(scene)
        return True


class Locked:
    def __init__(self, monitor, cell):
        self._monitor, self._scene = monitor, PlanningScene(monitor, cell)

    def __enter__(self):
        return self._scene

    def __exit__(self, *_):
        self._monitor.locked = False


class PlanningScene:
    def __init__(self, monitor, cell):
        self._monitor, self._cell = monitor, cell

    def _held(self):
        assert self._monitor.locked, 'used outside of its with'

    @property
    def planning_scene_message(self):
        self._held()
        return copy.deepcopy(self._cell.scene)

    @property
    def current_state(self):
        self._held()
        return RobotState(dict(zip(self._cell.embodiment.arm_joints, self._cell.q, strict=True)))

    def _bodies(self, state):
        self._held()
        assert not state.dirty, 'update() is missing'
        if TROUBLE == 'crash':
            os.abort()
        if TROUBLE == 'slow':
            time.sleep(1.0)
        return self._cell.contacts(state.array(self._cell.embodiment))

    def check_collision(self, collision_request, collision_result, state):
        collision_result.collision = bool(self._bodies(state))

    def check_self_collision(self, collision_request, collision_result, state):
        collision_result.collision = bool(self._cell.own_contact(state.array(self._cell.embodiment)))

    def is_state_valid(self, robot_state, joint_model_group_name, verbose=False):
        return not self._bodies(robot_state)


class RobotState:
    def __init__(self, positions):
        self._positions, self.dirty = dict(positions), False

    def __deepcopy__(self, memo):
        return RobotState(self._positions)

    @property
    def joint_positions(self):
        return dict(self._positions)

    @joint_positions.setter
    def joint_positions(self, values):
        assert set(values) <= set(self._positions)
        self._positions.update({k: float(v) for k, v in values.items()})
        self.dirty = True

    def update(self, force=False, type='all'):
        self.dirty = False

    def array(self, embodiment):
        return np.array([self._positions[j] for j in embodiment.arm_joints])


class PlanRequestParameters:
    def __init__(self, moveit_py, ns):
        for name, value in moveit_py.parameters.items():
            setattr(self, name, value)


class PlanningComponent:
    def __init__(self, cell):
        self._cell = cell

    def set_start_state(self, configuration_name=None, robot_state=None):
        self._start = robot_state.array(self._cell.embodiment)

    def set_goal_state(self, configuration_name=None, robot_state=None):
        self._goal = robot_state.array(self._cell.embodiment)

    def plan(self, single_plan_parameters=None):
        assert single_plan_parameters.planning_pipeline == 'ompl'
        message = RobotTrajectory()
        speed = single_plan_parameters.max_velocity_scaling_factor
        code = self._cell.plan(self._start, self._goal, speed, message)
        return MotionPlanResponse(MoveItErrorCodes(val=code), message)


class MotionPlanResponse:
    def __init__(self, error_code, message):
        self.error_code = error_code
        self.trajectory = SimpleNamespace(get_robot_trajectory_msg=lambda: message)

    def __bool__(self):
        return self.error_code.val == MoveItErrorCodes.SUCCESS
