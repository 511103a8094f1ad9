"""Model cards: front matter, what the Hub refuses in it, and the tags that it makes of it."""

import re
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"^\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
NO_METADATA = "empty or missing yaml metadata in repo card"

_LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl
    apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1
    ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license
    llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
"""
LICENSES = frozenset(_LICENSES.split())

_TASKS = """
    text-classification token-classification table-question-answering question-answering
    zero-shot-classification translation summarization feature-extraction text-generation
    fill-mask sentence-similarity text-to-speech text-to-audio automatic-speech-recognition
    audio-to-audio audio-classification audio-text-to-text voice-activity-detection
    depth-estimation image-classification object-detection image-segmentation text-to-image
    image-to-text image-to-image image-to-video unconditional-image-generation
    video-classification reinforcement-learning robotics tabular-classification
    tabular-regression tabular-to-text table-to-text multiple-choice text-ranking text-retrieval
    time-series-forecasting text-to-video image-text-to-text image-text-to-image
    visual-question-answering document-question-answering zero-shot-image-classification
    graph-ml mask-generation zero-shot-object-detection text-to-3d image-to-3d
    image-feature-extraction video-text-to-text keypoint-detection visual-document-retrieval
    any-to-any video-to-video other
"""
TASKS = frozenset(_TASKS.split())


def front_matter(readme: str) -> dict[str, Any] | None:
    """Return a card's metadata; `None` where it has none that can be read."""
    match = FRONT_MATTER.match(readme)
    if not match:
        return None
    try:
        data = yaml.safe_load(match[1] or "")
    except yaml.YAMLError:
        return None
    return data if isinstance(data, dict) else None


def validate(readme: str) -> tuple[list[str], list[str]]:
    """Return what the Hub would refuse and what it would warn about."""
    match = FRONT_MATTER.match(readme)
    if not match or not (match[1] or "").strip():
        return [], [NO_METADATA]
    try:
        data = yaml.safe_load(match[1] or "")
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"], []
    if data is None:
        return [], [NO_METADATA]
    if not isinstance(data, dict):
        return ["YAML Metadata Error: metadata must be a mapping"], []
    return _problems(data), _warnings(data)


def _problems(data: dict[str, Any]) -> list[str]:
    problems = []
    for key in ("pipeline_tag", "library_name", "license_name", "license_link"):
        if key in data and not isinstance(data[key], str):
            problems.append(f'"{key}" must be a string')
    for key in ("tags", "language", "datasets", "metrics", "base_model"):
        value = data.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if key == "tags" and value is not None and not isinstance(value, list):
            problems.append('"tags" must be an array')
        problems += [
            f'"{key}[{index}]" must be a string'
            for index, entry in enumerate(values)
            if not isinstance(entry, str)
        ]
    licenses = data.get("license")
    for entry in licenses if isinstance(licenses, list) else [licenses] if licenses else []:
        if entry not in LICENSES:
            problems.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    return problems + _index_problems(data.get("model-index"))


def _index_problems(index: Any) -> list[str]:
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    problems = []
    for number, model in enumerate(index):
        where = f"model-index[{number}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            problems.append(f'"{where}.name" is required')
            continue
        if not isinstance(model.get("results"), list):
            problems.append(f'"{where}.results" must be an array')
            continue
        for position, result in enumerate(model["results"]):
            place = f"{where}.results[{position}]"
            if not isinstance(result, dict):
                problems.append(f'"{place}" must be of type object')
                continue
            for part, key in (("task", "type"), ("dataset", "name"), ("dataset", "type")):
                if not isinstance(result.get(part), dict) or key not in result[part]:
                    problems.append(f'"{place}.{part}.{key}" is required')
            metrics = result.get("metrics")
            for spot, metric in enumerate(metrics if isinstance(metrics, list) else [None]):
                for key in ("type", "value"):
                    if not isinstance(metric, dict) or key not in metric:
                        problems.append(f'"{place}.metrics[{spot}].{key}" is required')
    return problems


def _warnings(data: dict[str, Any]) -> list[str]:
    task = data.get("pipeline_tag")
    if isinstance(task, str) and task not in TASKS:
        return [f'The pipeline tag "{task}" is not in the official list']
    return []


def tags_of(data: dict[str, Any]) -> list[str]:
    """Return the tags by which a model with this card is found."""

    def listed(key: str) -> list[str]:
        value = data.get(key)
        return [str(entry) for entry in (value if isinstance(value, list) else [value]) if entry]

    tags = [*listed("library_name"), *listed("pipeline_tag"), *listed("tags"), *listed("language")]
    tags += [f"dataset:{name}" for name in listed("datasets")]
    for name in listed("base_model"):
        tags.append(f"base_model:{name}")
        if relation := data.get("base_model_relation"):
            tags.append(f"base_model:{relation}:{name}")
    tags += [f"license:{name}" for name in listed("license")]
    return list(dict.fromkeys([*tags, "region:us"]))
