"""Register what the zoo brings."""

from __future__ import annotations

from pathlib import Path

from zoopress.plugins import hookimpl


@hookimpl
def zoopress_sources() -> dict[str, str]:
    """Register where models come from."""
    return {
        "hub": "zoopress_zoo.hub_source:hub",
        "initial": "zoopress_zoo.initial:initial",
        "package": "zoopress_zoo.sources:package",
        "path": "zoopress_zoo.sources:path",
    }


@hookimpl
def zoopress_card_makers() -> dict[str, str]:
    """Register what makes cards of the models of a source."""
    return {
        "hub": "zoopress_zoo.card_from_hub:HubCards",
        "package": "zoopress_zoo.card_from_folder:FolderCards",
        "path": "zoopress_zoo.card_from_folder:FolderCards",
    }


@hookimpl
def zoopress_architectures() -> dict[str, str]:
    """Register how modules are built; the first that fits a card's files is taken."""
    return {
        "factory": "zoopress_zoo.factory:Factory",
        "sentence_encoder": "zoopress_zoo.sentence_architecture:SentenceEncoderArchitecture",
        "timm": "zoopress_zoo.timm_models:Timm",
        "gguf": "zoopress_zoo.gguf:Gguf",
        "transformers": "zoopress_zoo.transformers_models:Transformers",
    }


@hookimpl
def zoopress_exporters() -> dict[str, str]:
    """Register what writes models in the forms that language models are shared in."""
    return {
        "compressed_tensors": "zoopress_zoo.exporters.compressed_tensors:CompressedTensors",
        "gguf": "zoopress_zoo.exporters.gguf:Gguf",
        "gguf_q4_k": "zoopress_zoo.exporters.gguf:GgufQ4K",
    }


@hookimpl
def zoopress_tasks() -> dict[str, str]:
    """Register how models are run and compared."""
    return {
        "audio-classification": "zoopress_zoo.tasks.audio:AudioClassification",
        "audio-regression": "zoopress_zoo.tasks.audio:AudioRegression",
        "fidelity": "zoopress_zoo.tasks.fidelity:FidelityTask",
        "forecasting": "zoopress_zoo.tasks.forecasting:Forecasting",
        "image-classification": "zoopress_zoo.tasks.image_classification:ImageClassification",
        "image-text-retrieval": "zoopress_zoo.tasks.image_text_retrieval:ImageTextRetrieval",
        "pitch-estimation": "zoopress_zoo.tasks.audio:PitchEstimation",
        "regression": "zoopress_zoo.tasks.regression:Regression",
        "tabular-classification": "zoopress_zoo.tasks.table:TabularClassification",
        "sentence-similarity": "zoopress_zoo.tasks.sentence_similarity:SentenceSimilarity",
        "text-classification": "zoopress_zoo.tasks.text_classification:TextClassification",
        "text-generation": "zoopress_zoo.tasks.text_generation:TextGeneration",
        "text-retrieval": "zoopress_zoo.tasks.text_retrieval:TextRetrieval",
        "text-to-text": "zoopress_zoo.tasks.text_to_text:TextToText",
        "token-classification": "zoopress_zoo.tasks.token_classification:TokenClassification",
    }


@hookimpl
def zoopress_datasets() -> dict[str, str]:
    """Register where labelled samples come from."""
    return {
        "file": "zoopress_zoo.datasets.file:file",
        "folder": "zoopress_zoo.datasets.folder:folder",
        "hub": "zoopress_zoo.datasets.hub:hub",
        "idx": "zoopress_zoo.datasets.idx:idx",
        "package": "zoopress_zoo.datasets.package:package",
    }


@hookimpl
def zoopress_cards() -> list[Path]:
    """Register the folder of cards."""
    return [Path(__file__).parent / "cards"]
