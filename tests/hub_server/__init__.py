"""A Hugging Face Hub for tests: the real client talks to it over loopback."""

from hub_server.faults import Fault, Faults
from hub_server.messages import Request
from hub_server.server import HubServer
from hub_server.storage import GITATTRIBUTES, UploadRules

__all__ = ["GITATTRIBUTES", "Fault", "Faults", "HubServer", "Request", "UploadRules"]
