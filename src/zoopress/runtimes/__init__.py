"""What runs a compressed model: the contract, the files that runtimes keep, built-in ones."""

from zoopress.artifacts.opened import Call, Opened, open_artifact
from zoopress.runtimes.cache import cached
from zoopress.runtimes.runtime import Runtime, Started, start

__all__ = ["Call", "Opened", "Runtime", "Started", "cached", "open_artifact", "start"]
