"""Which class of transformers a model is.

The card's `model_class`; else the one that config.json names; else the one of the Auto class for
the card's `pipeline_tag`; else AutoModel's.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from zoopress.errors import ArtifactError, SourceError, nearest
from zoopress_zoo.transformers_config import library, reason

# The Hub's tasks that transformers has models, but no pipeline for.
_MORE_TASKS = {
    "translation": "AutoModelForSeq2SeqLM",
    "summarization": "AutoModelForSeq2SeqLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "image-to-text": "AutoModelForImageTextToText",
    "visual-question-answering": "AutoModelForVisualQuestionAnswering",
    "question-answering": "AutoModelForQuestionAnswering",
}


def named_class(config: dict[str, Any]) -> str:
    """Return the class that a config.json names, "" if it names none."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else ""
    return first if isinstance(first, str) else ""


def find_class(
    config: dict[str, Any], path: Path, name: Any, tag: Any = None, chooses: bool = False
) -> Any:
    """Return a concrete model class of transformers.

    Args:
        config: the content of config.json, not trusted.
        path: where it is from.
        name: a class, concrete or Auto, not trusted either; "" for none.
        tag: the Hub's name of the model's task, for a model without a known class.
        chooses: whether the task may decide if `name` is not known.

    Raises:
        ArtifactError: if there is no such class.
        SourceError: if the config does not go with it, or asks for code of its own.
    """
    transformers = library()
    found = _attribute(name) if name else None
    if _is_model(found):
        return found
    if found is not None and name.startswith("AutoModel") and hasattr(found, "_model_mapping"):
        return _concrete(found, config, path)
    if config.get("auto_map") and (chooses or not name):
        raise SourceError(
            f"{path}: this model needs Python code from its repository ('auto_map'"
            f"{f' for {name}' if name else ''}), which zoopress never runs. If transformers has a "
            "class that fits, name it as 'model_class' in the card; else use a 'factory'."
        )
    if name and not chooses:
        raise ArtifactError(
            f"'class': {name!r} is not a model class of transformers {transformers.__version__}. "
            f"Update transformers if it is a newer one.{_similar(name)}"
        )
    for auto in _auto_classes(tag):
        with suppress(KeyError):
            return _concrete(auto, config, path, KeyError)
    return _concrete(transformers.AutoModel, config, path)


def _attribute(name: Any) -> Any:
    if not isinstance(name, str) or not name.isidentifier():
        return None
    # Transformers imports a class when it is asked for, and says so if that needs more.
    try:
        return getattr(library(), name, None)
    except (ImportError, RuntimeError) as error:
        if name not in dir(library()):
            return None
        raise SourceError(
            f"transformers {library().__version__} has {name}, but cannot import it: "
            f"{reason(error)}. Install what it needs."
        ) from error


def _is_model(found: Any) -> bool:
    return (
        isinstance(found, type)
        and issubclass(found, library().PreTrainedModel)
        and getattr(found, "config_class", None) is not None
    )


def _auto_classes(tag: Any) -> list[Any]:
    """Return the Auto classes that serve a task of the Hub."""
    if not isinstance(tag, str):
        return []
    from transformers.pipelines import SUPPORTED_TASKS, TASK_ALIASES

    if tag in _MORE_TASKS:
        return [found for found in [_attribute(_MORE_TASKS[tag])] if found is not None]
    task = SUPPORTED_TASKS.get(TASK_ALIASES.get(tag, tag))
    return list(task["pt"]) if task else []


def _concrete(auto: Any, config: dict[str, Any], path: Path, missing: Any = SourceError) -> Any:
    """Return the class that an Auto class has for a config's model type."""
    transformers, kind = library(), config.get("model_type")
    if not kind:
        raise SourceError(
            f"{path}: has no 'model_type', and 'architectures' names no class of transformers "
            f"{transformers.__version__}. Name the class as 'model_class' in the card."
        )
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise SourceError(
            f"{path}: transformers {transformers.__version__} has no models of type {kind!r}. "
            "Update transformers if it is a newer one; else give the card a 'factory'."
            f"{nearest(str(kind), transformers.CONFIG_MAPPING.keys())}"
        )
    config_class = transformers.CONFIG_MAPPING[kind]
    if config_class not in auto._model_mapping:
        raise missing(
            f"{path}: transformers {transformers.__version__} has no {auto.__name__} for models of "
            f"type {kind!r}. Name another 'model_class' in the card, or a concrete class."
        )
    found = auto._model_mapping[config_class]
    choices = found if isinstance(found, (list, tuple)) else [found]
    return next((c for c in choices if c.__name__ == named_class(config)), choices[0])


def _similar(name: Any) -> str:
    names = [n for n in dir(library()) if re.search("Model$|For[A-Z][A-Za-z]*$", n)]
    return nearest(name, names) if isinstance(name, str) and len(name) < 100 else ""
