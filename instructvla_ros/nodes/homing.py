"""Service ``home``: bring the arm to the home pose of its embodiment, slowly, planned where MoveIt is."""

from __future__ import annotations

import threading

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from std_srvs.srv import Trigger

from ..control.bounds import Bounds
from ..control.controller import Controller
from ..control.direct import DirectBackend
from ..control.route import Route, check_route, straight_route
from ..errors import InstructVLAError
from ..settings import Control, Embodiment
from .background import in_thread
from .moveit_asking import AskingBackend
from .runtime import BaseNode

GRACE = 5.0  # s without any progress until the answer comes in any case


class Homing:
    """Answers when the arm has arrived or has stopped on the way; chunks are refused meanwhile.

    Args:
        node: that offers the service. controller: that moves. moveit: plans the way; without it the straight way in
            joint space is taken if it is free. unable: why nothing may go home, '' when it may.
    """

    def __init__(
        self,
        node: BaseNode,
        controller: Controller,
        embodiment: Embodiment,
        control: Control,
        moveit: AskingBackend | None,
        unable: str = '',
    ) -> None:
        self._unable = unable
        self._node, self._controller, self._moveit = node, controller, moveit
        self._embodiment, self._control = embodiment, control
        self._bounds = Bounds.from_settings(embodiment, control)
        # The controller's own is not to be used from other threads; made now, because making one takes several periods.
        self._checker = DirectBackend(embodiment, self._bounds)
        self._busy = threading.Lock()
        # A group of its own: joint states have to arrive while this waits.
        node.create_service(Trigger, 'home', self._on_home, callback_group=ReentrantCallbackGroup())

    async def _on_home(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            response.message = await in_thread(self._node, self.go)
            response.success = True
        except InstructVLAError as err:
            response.success, response.message = False, str(err)
        except Exception as err:  # the caller gets the reason, the node lives
            self._node.drop('home', err)
            response.success, response.message = False, f'{type(err).__name__}: {err}'
        return response

    def go(self) -> str:
        """Move home; what was done, in words. Blocks.

        Raises:
            InstructVLAError: the arm did not get there, and why.
        """
        if self._unable:
            raise InstructVLAError(self._unable)
        if not self._busy.acquire(blocking=False):
            raise InstructVLAError('the arm is on its way home already')
        try:
            route = self._route()
            run = self._controller.follow(route, 'home')
            followed = -1.0
            while not run.done.wait(timeout=GRACE):
                if run.elapsed <= followed:
                    raise InstructVLAError(f'the motion has not gone on for {GRACE:.0f} s; is the clock running?')
                followed = run.elapsed
            if run.problem:
                raise InstructVLAError(run.problem)
            return f'at home after {route.duration:.1f} s'
        finally:
            self._busy.release()

    def _route(self) -> Route:
        start = self._controller.joints()
        if start is None:
            raise InstructVLAError('no joint state has arrived')
        if not self._controller.enabled:
            raise InstructVLAError('the controller is not enabled')
        goal = np.array(self._embodiment.home)
        if self._moveit is not None:
            route, source = self._moveit.plan(start, goal), 'the way MoveIt planned'
        else:
            route, source = straight_route(start, goal, self._bounds, self._control.home_speed), 'the straight way home'
        problem = check_route(route, self._bounds, self._checker)
        if problem and self._moveit is None:
            problem += '; backend moveit can plan a way around, or move the arm by hand'
        if problem:
            raise InstructVLAError(f'{source} is not free: {problem}')
        return route
