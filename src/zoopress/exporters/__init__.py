"""What writes a compressed model for other programs: the contract and the built-in exporters."""

from zoopress.artifacts.opened import Call, Opened, open_artifact
from zoopress.exporters.exporter import Exported, Exporter, export

__all__ = ["Call", "Exported", "Exporter", "Opened", "export", "open_artifact"]
