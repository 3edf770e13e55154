class CollisionRequest:
    """Which links; '' for all."""

    joint_model_group_name = ''


class CollisionResult:
    """Filled by a check."""

    collision = False
