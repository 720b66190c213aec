"""A double of the Hugging Face hub: its protocol over loopback and real files, with faults on demand."""

from .faults import Fault
from .local import LocalHub
from .messages import Request

__all__ = ["Fault", "LocalHub", "Request"]
