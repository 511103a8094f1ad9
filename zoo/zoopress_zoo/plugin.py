"""Register what the zoo brings."""

from __future__ import annotations

from pathlib import Path

from zoopress.plugins import hookimpl


@hookimpl
def zoopress_sources() -> dict[str, str]:
    """Register where models come from."""
    return {
        "hub": "zoopress_zoo.hub_source:hub",
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
def zoopress_tasks() -> dict[str, str]:
    """Register how models are run and compared."""
    return {
        "fidelity": "zoopress_zoo.tasks.fidelity:FidelityTask",
        "sentence-similarity": "zoopress_zoo.tasks.sentence_similarity:SentenceSimilarity",
    }


@hookimpl
def zoopress_cards() -> list[Path]:
    """Register the folder of cards."""
    return [Path(__file__).parent / "cards"]
