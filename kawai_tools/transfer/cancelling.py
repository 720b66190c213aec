"""What ends work that was cancelled: a leaf, so that work without a network needs none of its modules."""


class Cancelled(Exception):
    """The work was cancelled while it waited, for the network or for anything else."""
