"""An ONNX model: `model.onnx`, weights that are integers behind DequantizeLinear.

    FOLDER/
        model.onnx
        model.onnx.data      weights, where they are more than 1 GB

ONNX Runtime, OpenVINO and whatever else reads ONNX open it. Names of inputs are those of the
model's arguments, names of outputs those of its outputs.

Source: https://onnx.ai/onnx/operators/, operator set 21.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.exporters import Exporter, Use
from zoopress.models.input_grid import InputGrid
from zoopress.models.packing import packed_weights
from zoopress_plugins.deployment.needs import missing

_FOLDER = "onnx"
_QUANTIZED = "model_qint8_avx512_vnni.onnx"
"""What sentence-transformers and Optimum call a model of 8-bit integers for such processors."""


class Onnx(Exporter):
    """Writes the program that `torch.export` captures as operators of ONNX."""

    needs_example = True
    fixes_batch = True
    of_core = True

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse where the libraries are not installed, and a call that counts no samples."""
        if reason := missing("onnx", "onnxscript", extra="onnx"):
            return reason
        if artifact.call("A program follows a call").samples == 0:
            return "its example inputs have no samples. Give a tensor whose first axis counts them."
        return None

    def write(self, artifact: Opened, folder: Path) -> None:
        """Capture the program, and write it."""
        from zoopress_plugins.deployment.onnx_program import write_onnx

        write_onnx(artifact, folder)

    def published_names(self, artifact: Opened, name: str) -> list[str]:
        """Publish it where sentence-transformers and Optimum look; 8 bits under both names."""
        from zoopress_plugins.deployment.onnx_program import MODEL

        names = [f"{_FOLDER}/{name}"]
        if name == MODEL and _has_bytes(artifact.module):
            names.append(f"{_FOLDER}/{_QUANTIZED}")
        return names

    def uses(self, artifact: Opened, place: str) -> list[Use]:
        """Open it by sentence-transformers where it encodes sentences, and by ONNX Runtime."""
        options = "options = onnxruntime.SessionOptions()\n"
        if not _rounds_inputs(artifact.module):
            options += 'options.add_session_config_entry("session.disable_quant_qdq", "1")\n'
        code = (
            f"import onnxruntime\nfrom huggingface_hub import hf_hub_download\n\n{options}"
            f'path = hf_hub_download("{place}", "onnx/model.onnx")\n'
            "session = onnxruntime.InferenceSession(path, options)\n"
            "inputs = [each.name for each in session.get_inputs()]"
        )
        found = [Use("ONNX Runtime", code)]
        if artifact.architecture.name == "sentence_encoder":
            sentences = (
                "import onnxruntime\nfrom sentence_transformers import SentenceTransformer\n\n"
                f"{options}model = SentenceTransformer(\n"
                f'    "{place}", backend="onnx", model_kwargs={{"session_options": options}}\n)'
            )
            found.insert(0, Use("sentence-transformers with its extra onnx", sentences))
        return found

    def notes(self, artifact: Opened) -> list[str]:
        """Say what ONNX Runtime does by itself."""
        if not packed_weights(artifact.module) or _rounds_inputs(artifact.module):
            return []
        return [
            "Unless session.disable_quant_qdq is 1, ONNX Runtime rounds what enters a layer of "
            "integers to 8 bits by itself; outputs then differ by more than was compared."
        ]

    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        """Open the file in ONNX Runtime, or what else there is."""
        from zoopress_plugins.deployment.onnx_program import MODEL
        from zoopress_plugins.deployment.onnx_readers import open_onnx
        from zoopress_plugins.deployment.program_module import module_of

        return module_of(artifact, open_onnx(folder / MODEL))


def _rounds_inputs(module: nn.Module) -> bool:
    return any(isinstance(each, InputGrid) for each in module.modules())


def _has_bytes(module: nn.Module) -> bool:
    """Tell whether a module has packed weights, all of them integers of 8 bits."""
    forms = [packed.export_form() for packed in packed_weights(module).values()]
    return bool(forms) and all(form is not None and form.bits == 8 for form in forms)
