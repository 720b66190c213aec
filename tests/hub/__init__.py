"""A double of the Hugging Face hub and of GitHub's releases: loopback, real files, faults on demand."""

from .faults import Fault
from .local import LocalHub
from .messages import Request

__all__ = ["Fault", "LocalHub", "Request"]
