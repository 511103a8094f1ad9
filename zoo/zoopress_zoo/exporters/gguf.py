"""GGUF: weights, config and tokenizer in one file, which llama.cpp and much besides opens.

    FOLDER/
        model.gguf

Packed weights keep their integers, in the kind of block of GGML that holds their grid; scales
become float16. What is not packed is written in its own float type.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoopress.artifacts.encoding import encode, narrowed
from zoopress.artifacts.opened import Opened
from zoopress.errors import DeploymentError
from zoopress.exporters import Exporter, Use
from zoopress.exporters.safetensors import Safetensors, plain_model
from zoopress.models.export_form import ExportForm
from zoopress.models.outputs import half_the_digits
from zoopress.models.packing import PackedWeight, packed_weights
from zoopress.optional import import_optional
from zoopress_zoo.exporters.ggml_blocks import (
    Blocks,
    exact_blocks,
    fits_super_blocks,
    super_blocks,
    unfit,
)
from zoopress_zoo.exporters.gguf_tokenizer import FILE as TOKENIZER, add_tokenizer
from zoopress_zoo.sentence_encoder import load_tokenizer
from zoopress_zoo.transformers_config import library
from zoopress_zoo.transformers_models import Transformers, check_complete

FILE = "model.gguf"
_ROTATED = "llama"  # whose queries and keys have their rows in another order
_FAMILIES = {"llama": _ROTATED, "mistral": _ROTATED, "qwen2": "qwen2", "qwen3": "qwen3"}
_MOST_MOVED = 0.5
_SIX_BITS = (2.0**-5) ** 0.5
# What computes nothing, or is told by the tokenizer.
_NO_MATTER = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "_name_or_path", "dtype"),
        *("torch_dtype", "initializer_range", "attention_dropout", "use_cache", "pretraining_tp"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "max_window_layers"),
        *("output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id"),
        *("quantization_config", "problem_type", "chunk_size_feed_forward", "is_encoder_decoder"),
    }
)
# None begins with a space: transformers reads a prefix of a space from GGUF as one of none there.
_TEXTS = (
    "Hello world, it isn't over.",
    "two  spaces\n\tand\r\n\nlines",
    "naïve café — 東京 🙂 x=foo(bar[i], 'baz')  # !?",
)


class Gguf(Exporter):
    """Writes decoders like Llama, their integers as they are."""

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse other architectures, changed structures, and grids that no block holds."""
        _gguf()
        if not isinstance(artifact.architecture, Transformers):
            return (
                "GGUF holds language models of transformers here, and this one is of the "
                f"architecture {artifact.architecture.name!r}. Use 'onnx' or 'torch_export'."
            )
        kind = getattr(getattr(artifact.module, "config", None), "model_type", None)
        generates = type(artifact.module).__name__.endswith("ForCausalLM")
        if kind not in _FAMILIES or not generates:
            return (
                f"it is a {type(artifact.module).__name__} of type {kind!r}, and known are the "
                f"…ForCausalLM of {', '.join(_FAMILIES)}. Use 'compressed_tensors'."
            )
        plain = Safetensors().refusal(artifact)
        if plain is not None:
            return plain
        for name, packed in packed_weights(artifact.module).items():
            with torch.no_grad():
                form = packed.export_form()
            if form is None or packed.output_axis != 0:
                return (
                    f"the weights of {name!r} are no integers times a scale for each row or group "
                    f"({type(packed).__name__}). Quantize them with weight_quantization instead, "
                    "or use 'safetensors'."
                )
            if (why := unfit(form)) is not None:
                return f"the weights of {name!r} {why}"
            moved = self.blocks(form).rounding
            if not moved <= _MOST_MOVED:
                return (
                    f"the scales of {name!r} are too small or too large for float16, which GGML "
                    f"keeps them in: weights would move by {moved:.2g} of a step. Use "
                    "'compressed_tensors'."
                )
        return None

    def blocks(self, form: ExportForm) -> Blocks:
        """Return a packed weight in blocks."""
        return exact_blocks(form)

    def notes(self, artifact: Opened) -> list[str]:
        """Say which kinds of blocks there are, and what float16 scales move."""
        kinds: Counter[str] = Counter()
        moved: dict[str, float] = {}
        for name, packed in packed_weights(artifact.module).items():
            made = self.blocks(_form(packed))
            kinds[made.kind] += 1
            if made.rounding:
                moved[name] = made.rounding
        said = [f"{', '.join(f'{n} weights in {kind}' for kind, n in sorted(kinds.items()))}."]
        if moved:
            worst = max(moved, key=lambda name: moved[name])
            said.append(
                f"Scales of {len(moved)} weights are rounded to those of GGML's blocks; a weight "
                f"moves by {moved[worst]:.2g} of its step at most (in {worst})."
            )
        if not (artifact.folder / TOKENIZER).is_file():
            said.append(f"The artifact has no {TOKENIZER}, so the file has no tokenizer.")
        return said if kinds else said[1:]

    def bound(self, artifact: Opened) -> float:
        """Allow what rounding scales to float16 moves, where any is rounded."""
        own = super().bound(artifact)
        rounded = any(
            self.blocks(_form(packed)).rounding
            for packed in packed_weights(artifact.module).values()
        )
        return max(own, half_the_digits(torch.float16)) if rounded else own

    def write(self, artifact: Opened, folder: Path) -> None:
        """Write the file, and compare the config that it tells with the model's."""
        gguf, config = _gguf(), _config(artifact)
        arch = _FAMILIES[config["model_type"]]
        writer = gguf.GGUFWriter(folder / FILE, arch)
        _add_metadata(writer, config, artifact)
        if (artifact.folder / TOKENIZER).is_file():
            add_tokenizer(writer, artifact.folder, config["vocab_size"])
        else:
            writer.add_tokenizer_model("no_vocab")
        kinds = self._add_tensors(writer, artifact, arch, config)
        files = gguf.LlamaFileType
        main = max(kinds, key=lambda kind: kinds[kind]) if kinds else "F32"
        name = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_S"}.get(main, f"MOSTLY_{main}")
        writer.add_file_type(int(files[name]))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _check_config(folder, config)

    def _add_tensors(
        self, writer: Any, artifact: Opened, arch: str, config: Mapping[str, Any]
    ) -> Counter[str]:
        """Add every tensor under its name in GGUF; returns the bytes of each kind."""
        gguf = _gguf()
        names = gguf.get_tensor_name_map(
            next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch),
            config["num_hidden_layers"],
        )
        model = plain_model(artifact)
        packed = packed_weights(artifact.module)
        made = model.non_persistent()
        tensors = {n: t for n, t in model.tensors().items() if n not in made}
        _, stored = encode(tensors, {}, {}, share=False)
        kinds: Counter[str] = Counter()
        for name, item in stored.items():
            path, _, attribute = name.rpartition(".")
            found = names.get_name(path)
            if found is None:
                raise DeploymentError(
                    f"GGUF has no name for the tensor {name!r} of {arch!r} models. Use "
                    "'compressed_tensors'."
                )
            if name in packed:
                blocks = self.blocks(_form(packed[name]))
                kind, data = blocks.kind, blocks.data
            else:
                kind, data = _plain(item.tensor)
            if arch == _ROTATED and found.endswith(("attn_q", "attn_k")):
                queries = found.endswith("attn_q")
                heads = config["num_attention_heads" if queries else "num_key_value_heads"]
                data = data[_rotated(len(data), heads)]
            numbers = data.contiguous().numpy()
            dtype = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(f"{found}.{attribute}", numbers, raw_dtype=dtype)
            kinds[kind] += numbers.nbytes
        return kinds

    def published_names(self, artifact: Opened, name: str) -> list[str]:
        """Publish it at the top, under a name that says its kind of blocks, as people look for."""
        return [self._published(artifact)]

    def uses(self, artifact: Opened, place: str) -> list[Use]:
        """Open it by llama.cpp and by transformers."""
        name = self._published(artifact)
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{place}", gguf_file="{name}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{place}", gguf_file="{name}")'
        )
        return [
            Use("llama.cpp", f'llama-cli --hf-repo "{place}" --hf-file "{name}"', "bash"),
            Use("transformers, gguf and accelerate", code),
        ]

    def _published(self, artifact: Opened) -> str:
        sizes: Counter[str] = Counter()
        for packed in packed_weights(artifact.module).values():
            made = self.blocks(_form(packed))
            sizes[made.kind] += made.data.nbytes
        kind = max(sizes, key=lambda each: sizes[each], default="F32")
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", artifact.manifest.base.name).strip("-.") or "model"
        return f"{name}-{kind}.gguf"

    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        """Open it by `from_pretrained`, and compare its tokenizer with the artifact's."""
        found = library()
        _check_tokenizer(artifact, folder)
        given = {}
        if hasattr(found, "GgufConfig"):  # else it would keep blocks packed where a kernel is
            given["quantization_config"] = found.GgufConfig(dequantize=True)
        dtype = next(p.dtype for p in artifact.dense.parameters() if p.is_floating_point())
        with redirect_stderr(StringIO()):  # bars of its progress
            model, told = found.AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=FILE,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **given,
            )
        check_complete(folder, model, told)
        return cast(nn.Module, model.eval())


class GgufQ4K(Gguf):
    """Writes weights of up to 4 bits in Q4_K, whose scales are rounded to 6 bits."""

    def blocks(self, form: ExportForm) -> Blocks:
        """Return a packed weight in blocks, of Q4_K where it fits."""
        return super_blocks(form) if fits_super_blocks(form) else exact_blocks(form)

    def bound(self, artifact: Opened) -> float:
        """Allow what rounding scales to 6 bits moves: half of their digits, as of other types."""
        return max(super().bound(artifact), _SIX_BITS)

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse what has nothing for Q4_K, too."""
        plain = super().refusal(artifact)
        if plain is not None:
            return plain
        forms = [_form(packed) for packed in packed_weights(artifact.module).values()]
        if not any(map(fits_super_blocks, forms)):
            return (
                "none of its weights has up to 4 bits and rows of a multiple of 256, as Q4_K "
                "needs. Use 'gguf', which takes the kind of block that fits."
            )
        return None


def _form(packed: PackedWeight) -> ExportForm:
    with torch.no_grad():
        form = packed.export_form()
    assert form is not None
    return form


def _plain(tensor: Tensor) -> tuple[str, Tensor]:
    """Return a dense tensor's kind, and its bytes [rows, bytes] or numbers.

    Vectors are float32, as every reader wants them; matrices are of the type that they came in, in
    16 bits where these hold them exactly.
    """
    if tensor.ndim < 2:
        return "F32", tensor.float()
    found = narrowed(tensor)
    tensor = tensor if found is None else found
    kinds = {torch.float16: "F16", torch.bfloat16: "BF16"}
    if tensor.dtype in kinds:
        return kinds[tensor.dtype], tensor.contiguous().view(torch.uint8)
    return "F32", tensor.float()


def _rotated(rows: int, heads: int) -> Tensor:
    """Return the order of the rows of queries or keys, of which GGUF pairs neighbours to rotate."""
    return torch.arange(rows).view(heads, 2, rows // heads // 2).transpose(1, 2).flatten()


def _config(artifact: Opened) -> dict[str, Any]:
    found: Any = artifact.module
    return cast(dict[str, Any], found.config.to_dict())


def _add_metadata(writer: Any, config: Mapping[str, Any], artifact: Opened) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_name(artifact.manifest.base.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config["vocab_size"])


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Compare what readers make of the metadata with the model's own config.

    Raises:
        DeploymentError: naming what GGUF does not tell of it.
    """
    read = library().AutoConfig.from_pretrained(
        folder, gguf_file=FILE, local_files_only=True, trust_remote_code=False
    )
    found = read.to_dict()
    for key, wanted in config.items():
        if key in _NO_MATTER or (key not in found and not wanted):
            continue
        if not _alike(wanted, found.get(key)):
            raise DeploymentError(
                f"The model's config has {key}: {json.dumps(wanted, default=str)[:200]}, and of a "
                f"GGUF file of {_FAMILIES[config['model_type']]!r} its readers take "
                f"{json.dumps(found.get(key), default=str)[:200]}. Use 'compressed_tensors'."
            )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_alike(one.get(key), other.get(key)) for key in {*one, *other})
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
        return numbers and abs(one - other) <= 1e-6 * abs(one)  # it keeps float32
    return bool(one == other)


def _check_tokenizer(artifact: Opened, folder: Path) -> None:
    """Compare the tokens of some texts.

    Raises:
        DeploymentError: if they differ.
    """
    if not (artifact.folder / TOKENIZER).is_file():
        return
    own = load_tokenizer(artifact.folder)
    read = library().AutoTokenizer.from_pretrained(
        folder, gguf_file=FILE, local_files_only=True, trust_remote_code=False
    )
    for text in _TEXTS:
        wanted, found = own.encode(text), read.encode(text)
        if wanted != found:
            raise DeploymentError(
                f"The tokenizer that is read from the GGUF file makes {found[:20]} of {text!r}, "
                f"and the artifact's {wanted[:20]}. Use 'compressed_tensors'."
            )


def _gguf() -> Any:
    return import_optional(
        "gguf",
        "The exporter 'gguf' needs gguf",
        "pip install 'zoopress[gguf]'",
        DeploymentError,
    )
