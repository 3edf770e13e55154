"""Stands in for moveit_py: the part of its interface that we use, with our own kinematics behind it.

It is as strict as the real one where that matters: a scene lives inside its ``with``, the message it makes is a copy, a
changed state has to be updated, and ``MoveItPy`` crashes when it is taken apart.
"""
