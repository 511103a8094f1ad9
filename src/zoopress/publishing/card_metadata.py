"""What a published model tells the Hub: the front matter of its page.

Source: https://huggingface.co/docs/hub/model-cards and the specification it names, modelcard.md of
huggingface/hub-docs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoopress.errors import InputError
from zoopress.hub.address import parse_address
from zoopress.provenance import shared_address
from zoopress.reports.markdown import one_line
from zoopress.reports.run_words import evaluation_data
from zoopress.results.figures import task_metrics

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from zoopress.results import Report, StageResult

LIBRARIES = {
    "transformers": "transformers",
    "sentence_encoder": "sentence-transformers",
    "timm": "timm",
}
"""What the Hub calls the libraries that architectures are of."""

_ORDER = [
    *("license", "license_name", "license_link", "language", "library_name", "pipeline_tag"),
    *("base_model", "base_model_relation", "tags", "datasets", "metrics"),
    *("model_name", "eval_results", "zoopress"),
]
_AUTO = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "ForMultipleChoice": ("AutoModelForMultipleChoice", "multiple-choice"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "GPT2LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "ForObjectDetection": ("AutoModelForObjectDetection", "object-detection"),
    "ForSemanticSegmentation": ("AutoModelForSemanticSegmentation", "image-segmentation"),
    "ForDepthEstimation": ("AutoModelForDepthEstimation", "depth-estimation"),
    "ForCTC": ("AutoModelForCTC", "automatic-speech-recognition"),
}
# Families of models whose ForSequenceClassification and the like are about sound.
_AUDIO = re.compile(r"(Wav2Vec2|Hubert|WavLM|UniSpeech|SEW|Data2VecAudio|Whisper)")
# Where AutoModel may build another class, by config.json alone.
_NOT_AUTO_MODEL = re.compile(r"Head|MTModel|(Encoder|Decoder|Text|Vision|Audio)Model")

_OF_THE_ORIGINAL = re.compile(
    # what its files were
    "safetensors|pytorch|tf|tensorflow|jax|flax|onnx|gguf|ggml|rust|coreml|openvino|tflite|litert|"
    "keras|mlx|paddle|paddlepaddle|tensorrt|executorch|exl2|exl3|gptq|awq|hqq|bitsandbytes|"
    "compressed-tensors|[2-8]-bit|fp8|fp4|nvfp4|mxfp4|"
    # which library it was for
    "transformers|sentence-transformers|timm|diffusers|peft|"
    # what the Hub's services did with it, and what other fields say
    "endpoints_compatible|autotrain_compatible|text-generation-inference|has_space|custom_code|"
    r"text-embeddings-inference|model-index|eval-results|transformers\.js|"
    "(region|license|base_model|dataset|deploy|doi|diffusers):.*",
    re.IGNORECASE,
)
_FAMILY_TAGS = {"low_rank": "low-rank", "coding": "entropy-coding"}
_TRAINED = frozenset({"distillation", "transfer"})


def metadata(report: Report, repo_id: str | None, families: Sequence[str | None]) -> ModelCardData:
    """Return the front matter of a page.

    Args:
        report: what was measured.
        repo_id: where it is published, if it is.
        families: the family of each stage's technique, None of one that is not known.
    """
    from huggingface_hub import ModelCardData

    card, library, tag = report.card, library_name(report), pipeline_tag(report)
    results = _results(report, tag)
    of_size = ("compression_ratio", "size_bytes")
    measured = [result.metric_type for result in results if result.metric_type not in of_size]
    data = ModelCardData(
        base_model=base_model(report),
        base_model_relation=_relation(report, families),
        library_name=library,
        pipeline_tag=tag,
        license=_word(card.get("license")),
        license_name=_word(card.get("license_name")),
        license_link=_word(card.get("license_link")),
        language=_words(card, "language"),
        datasets=_words(card, "datasets"),
        metrics=list(dict.fromkeys([*_words(card, "metrics", []), *measured])),
        tags=_tags(report, library, tag, families),
        model_name=one_line(repo_id or report.name).rpartition("/")[2],
        eval_results=results,
        zoopress=lineage_data(report) if repo_id else None,
    )
    data.to_yaml(original_order=_ORDER)  # the only way to order them
    return data


def lineage_data(report: Report) -> dict[str, Any]:
    """Return where a published model comes from and what was measured, for machines to read.

    It is what the artifact's manifest does not say; `zoopress lineage` reads both.
    """
    made = report.made_with
    commit = {
        "git_commit": one_line(made["commit"]) if made.get("commit") else None,
        "git_repository": shared_address(made.get("repository")),
        "uncommitted_changes": True if made.get("changed") else None,
    }
    return {
        "artifact_sha256": report.artifact_sha256,
        "card": one_line(report.card["name"]),
        "recipe": one_line(report.recipe["name"]),
        "source_revision": one_line(report.revision),
        **{key: value for key, value in commit.items() if value is not None},
        "metrics": report.metrics(),
        "stages": [stage_figures(stage) for stage in report.stages],
    }


def stage_figures(stage: StageResult) -> dict[str, Any]:
    """Return what was measured after a stage."""
    figures: dict[str, Any] = {
        "technique": one_line(stage.technique),
        "weight_bytes": stage.weight_bytes,
        "size_bytes": stage.size_bytes,
        "cosine": round(stage.fidelity.cosine, 6),
    }
    for name in ("label_loyalty", "probability_loyalty"):
        value = getattr(stage.fidelity, name)
        if value is not None:
            figures[name] = round(value, 6)
    return figures


def base_model(report: Report) -> str | None:
    """Return the original's repository on the Hub, if the card names one that can be."""
    name = str(report.card.get("base_model") or "")
    try:
        return name if parse_address(name).repo_id == name else None
    except InputError:
        return None


def library_name(report: Report) -> str:
    """Return the library that loads the model by this repository's name."""
    if not report.loads_as.get("by_library"):
        return "zoopress"
    return LIBRARIES.get(str(report.loads_as.get("architecture")), "zoopress")


def auto_class(report: Report) -> str | None:
    """Return the class of transformers to load it with: an Auto class where one surely fits."""
    name = report.loads_as.get("class")
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier()):
        return None
    suffix = _suffix(name)
    if suffix is not None:
        return _AUTO[suffix][0]
    if name.startswith("Auto") or not name.endswith("Model") or _NOT_AUTO_MODEL.search(name):
        return name
    return "AutoModel"


def pipeline_tag(report: Report) -> str | None:
    """Return what the model does, in the Hub's words: the card's, else what its class implies."""
    if report.card.get("pipeline_tag"):
        return _word(report.card["pipeline_tag"])
    architecture, name = report.loads_as.get("architecture"), str(report.loads_as.get("class"))
    if architecture == "sentence_encoder":
        return "sentence-similarity"
    if architecture == "timm":
        return "image-classification"
    if architecture == "transformers":
        if _AUDIO.match(name) and name.endswith("ForSequenceClassification"):
            return "audio-classification"
        suffix = _suffix(name)
        return _AUTO[suffix][1] if suffix is not None else None
    return None


def _suffix(name: str) -> str | None:
    if _AUDIO.match(name) and not name.endswith("ForCTC"):
        return None
    return next((suffix for suffix in _AUTO if name.endswith(suffix)), None)


def _relation(report: Report, families: Sequence[str | None]) -> str | None:
    """Return how the model relates to its base, in one of the Hub's four words.

    None of them is for pruning or low rank. "finetune" says that a model was trained to do
    something else or better, "adapter" that it needs its base, "merge" that it has several. What
    was computed from the base's weights alone, to stand in for it in fewer bytes, is listed where
    people look for that: "quantized". With a stage that trains, it is a "finetune". Of a technique
    that nobody here knows, nothing is said.
    """
    if base_model(report) is None or None in families:
        return None
    return "finetune" if _TRAINED & set(families) else "quantized"


def _tags(
    report: Report, library: str, task: str | None, families: Sequence[str | None]
) -> list[str]:
    card = report.card
    known = {library, task, *_words(card, "language", ()), "zoopress", "compressed"}
    kept = [
        tag
        for tag in _words(card, "tags", ())
        if tag not in known and not _OF_THE_ORIGINAL.fullmatch(tag)
    ]
    used = [_FAMILY_TAGS.get(family, family) for family in families if family]
    return list(dict.fromkeys([*kept, "zoopress", "compressed", *used]))


def _results(report: Report, task: str | None) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    kind, name = evaluation_data(report)
    figures = report.metrics()
    shown = {
        "cosine": ("cosine_similarity", "Cosine similarity to the original's outputs"),
        "label_loyalty": ("label_loyalty", "Share of samples with the original's label"),
        "probability_loyalty": (
            "probability_loyalty",
            "1 − √(Jensen–Shannon divergence) to the original's distribution",
        ),
        "compression_ratio": ("compression_ratio", "Original bytes ÷ compressed bytes, all files"),
        "size_bytes": ("size_bytes", "Bytes of all files"),
    }
    found = [
        (metric, label, figures[key]) for key, (metric, label) in shown.items() if key in figures
    ]
    measured = [
        (one_line(metric.name), one_line(metric.title).capitalize(), round(metric.compressed, 6))
        for metric in task_metrics(report.evaluation, report.last)
        if metric.compressed is not None
    ]
    return [
        EvalResult(
            task_type=task or "other",
            dataset_type=kind,
            dataset_name=name,
            dataset_args={"samples": report.last.fidelity.samples},
            metric_type=metric,
            metric_name=label,
            metric_value=value,
            verified=False,
        )
        for metric, label, value in [*measured, *found]
    ]


def _word(value: Any) -> str | None:
    return one_line(value) or None if value else None


def _words(card: dict[str, Any], key: str, empty: Any = None) -> Any:
    words = [one_line(value) for value in card.get(key) or ()]
    return list(dict.fromkeys(word for word in words if word)) or empty
