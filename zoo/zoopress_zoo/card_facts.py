"""What a README's metadata say of a model, as far as a card can hold it. A stranger wrote them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from zoopress.cards.maker import clean
from zoopress.errors import InputError, nearest
from zoopress.publishing.licenses import LICENSES

_FRONT_MATTER = re.compile(
    r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE
)
_MOST_ITEMS = 50
_MOST_LANGUAGES = 300
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*|code|multilingual")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_REPO = re.compile(r"[A-Za-z0-9._-]{1,96}(/[A-Za-z0-9._-]{1,96})?")
# Tags that the Hub makes of other fields, or that are about files a card does not use.
_MADE_TAGS = re.compile(r"(region|license|dataset|base_model|doi|arxiv|model-index)(:.*)?")
_HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation",
    "ForDepthEstimation": "depth-estimation",
    "ForCTC": "automatic-speech-recognition",
    "ForAudioClassification": "audio-classification",
}


def read_front_matter(readme: str) -> tuple[dict[str, Any], str]:
    """Return the metadata at the top of a README, and what is wrong with them."""
    from pathlib import Path

    from zoopress.yaml_source import parse_yaml

    match = _FRONT_MATTER.match(readme[: 1 << 20])
    if match is None:
        return {}, ""
    try:
        data = parse_yaml(match[1], Path("README.md"), InputError).data
    except InputError as error:
        return {}, f"The metadata of README.md cannot be read ({clean(str(error))})."
    return (data, "") if isinstance(data, dict) else ({}, "The metadata of README.md are no keys.")


def describe(
    metadata: Mapping[str, Any], files: Collection[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what metadata say under a card's keys, and what they lack by key."""
    values: dict[str, Any] = {}
    missing: dict[str, str] = {}
    _license(metadata, files, values, missing)
    for key in ("pipeline_tag", "library_name"):
        text = metadata.get(key)
        if isinstance(text, str) and _LABEL.fullmatch(text):
            values[key] = text
    # YAML 1.1 takes Norwegian for a denial.
    languages = ["no" if item is False else item for item in _items(metadata.get("language"))]
    for key, found, pattern, most in (
        ("language", languages, _LANGUAGE, _MOST_LANGUAGES),
        ("tags", _items(metadata.get("tags")), None, _MOST_ITEMS),
        ("datasets", _items(metadata.get("datasets")), _REPO, _MOST_ITEMS),
        ("metrics", _items(metadata.get("metrics")), None, _MOST_ITEMS),
    ):
        kept = _texts(found, pattern)
        if key == "tags":
            kept = [tag for tag in kept if not _MADE_TAGS.fullmatch(tag)]
        if kept:
            values[key] = kept[:most]
    return values, missing


def pipeline_of(class_name: str) -> str | None:
    """Return the Hub's task of a class of transformers, by the end of its name."""
    return next((tag for end, tag in _HEADS.items() if class_name.endswith(end)), None)


def bases(metadata: Mapping[str, Any]) -> list[str]:
    """Return the repositories of the models that a model says it was made from."""
    return _texts(_items(metadata.get("base_model")), _REPO)[:5]


def _license(
    metadata: Mapping[str, Any],
    files: Collection[str],
    values: dict[str, Any],
    missing: dict[str, str],
) -> None:
    stated = [item for item in _items(metadata.get("license")) if isinstance(item, str)]
    legal = sorted(name for name in files if re.match(r"(?i)(licen[cs]e|copying)", name))
    hint = f" The model has a file {clean(legal[0])}." if legal else ""
    if not stated:
        missing["license"] = (
            f"license: the model states none, and without one nobody may publish it.{hint} Find "
            "out, and add `license: IDENTIFIER`."
        )
        return
    identifier = stated[0].strip().lower()
    if identifier not in LICENSES:
        missing["license"] = (
            f"license: the model states {clean(stated[0], 80)!r}, which is no identifier of the "
            f"Hub's.{nearest(identifier[:80], LICENSES)} For a licence of its own, write `license: "
            "other` with `license_name` and `license_link`."
        )
        return
    values["license"] = identifier
    if len(stated) > 1:
        more = ", ".join(clean(item, 40) for item in stated[1:4])
        missing["license"] = f"license: the model states others besides: {more}. Check them."
    name, link = metadata.get("license_name"), metadata.get("license_link")
    if isinstance(name, str) and clean(name):
        values["license_name"] = clean(name, 96)
    if isinstance(link, str) and (re.match(r"https?://\S+\Z", link) or link in files):
        values["license_link"] = clean(link, 400)
    if identifier == "other" and not {"license_name", "license_link"} <= values.keys():
        missing["license_name"] = (
            "license_name, license_link: the licence is `other`, and the model does not say both "
            f"its name and where to read it.{hint}"
        )


def _items(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value[:1000])
    return [] if value is None else [value]


def _texts(items: Iterable[Any], pattern: re.Pattern[str] | None) -> list[str]:
    """Return items that are text of the right form, each once."""
    found = [clean(item, 64 if pattern is None else 200) for item in items if isinstance(item, str)]
    return list(dict.fromkeys(t for t in found if t and (pattern is None or pattern.fullmatch(t))))
