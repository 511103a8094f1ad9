"""Every error that zoopress raises for a reason a user can act on.

    ZoopressError
    ├── InputError (ValueError)      what the user wrote is wrong
    │   ├── CardError                a card
    │   ├── RecipeError              a recipe
    │   └── PlanError                a card and a recipe that do not fit together
    ├── PluginError                  a plugin is broken, clashes or is missing
    ├── SourceError                  a model's files cannot be found or read
    ├── HubError                     the Hub cannot be reached, or does not let us
    ├── RepositoryError              git or DVC cannot do what is needed in a repository
    ├── StageError                   a technique could not do its work on this model
    ├── GateError                    a stage did its work, and the result is not good enough
    ├── ArtifactError (ValueError)   a saved model is damaged, hostile or of an unknown version
    ├── DeploymentError              a runtime or an exporter cannot take this model
    ├── ComputedWeightError (RuntimeError)   a weight that is computed was written into
    ├── MissingTensorError (AttributeError)  a layer lacks a tensor of the one it stands in for
    └── StoreError                   the store cannot be read or written

A message says what was wrong, the value that was given, what would have been right and what to do.
The command line prints these without a traceback; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterable

_PICKLE = re.compile(r"weights_only|allow_pickle|unpickl|pickled|\bpickle", re.IGNORECASE)


class ZoopressError(Exception):
    """An error whose message tells the user what to do."""


class InputError(ZoopressError, ValueError):
    """What the user wrote is wrong."""


class CardError(InputError):
    """A card is malformed."""


class RecipeError(InputError):
    """A recipe is malformed."""


class PlanError(InputError):
    """A card and a recipe do not fit together, or stages stand in an impossible order."""


class PluginError(ZoopressError):
    """A plugin is broken, claims a taken name, or is missing."""


class SourceError(ZoopressError):
    """A model's files cannot be found or read."""


class HubError(ZoopressError):
    """The Hub cannot be reached, does not have what was asked for, or does not allow it."""


class RepositoryError(ZoopressError):
    """Git or DVC cannot do what is needed in a repository."""


class StageError(ZoopressError):
    """A technique could not do its work on this model."""


class GateError(ZoopressError):
    """A stage's result does not pass a gate."""


class ArtifactError(ZoopressError, ValueError):
    """A saved model is damaged, hostile or of an unknown version."""


class DeploymentError(ZoopressError):
    """A runtime or an exporter cannot take this model, or what it made computes something else."""


class ComputedWeightError(ZoopressError, RuntimeError):
    """A weight that a layer computes whenever it is read was written into."""


class MissingTensorError(ZoopressError, AttributeError):
    """A layer has no tensor of a name that the layer in whose place it stands had."""


class StoreError(ZoopressError):
    """The store cannot be read or written."""


def cautious(reason: str) -> str:
    """Return what another library said of a stranger's file, without advice to open it unsafely.

    torch, numpy and transformers tell how to switch their safeguard off; nobody should follow that
    who was just told that the file is not safe.
    """
    if "trust_remote_code" in reason:
        return "it needs Python code of its repository, which is never run"
    if "TorchScript" in reason:
        return (
            "it is a TorchScript program, not a file of tensors, and opening it would run it. Save "
            "its tensors: `safetensors.torch.save_file(model.state_dict(), …)` where it is trusted"
        )
    if _PICKLE.search(reason):
        return (
            "it holds more than tensors, or is damaged, and opening it could run code. Get it as "
            "safetensors: `safetensors.torch.save_file(model.state_dict(), …)` where it is trusted"
        )
    return reason


def os_words(error: OSError) -> str:
    """Say what the file system refused; of many refusals at once, as copying a folder has, one."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        reasons = dict.fromkeys(str(item[-1]) for item in error.args[0])
        first = re.sub(r"^\[Errno -?\d+\] ", "", next(iter(reasons), "nothing was copied"))
        return first.partition(": ")[0]
    return error.strerror or str(error)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the valid name closest to `name`, else the valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    if not names:
        return " There are none."
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f" Valid: {shown}."
