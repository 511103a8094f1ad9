"""Repositories as real ones on the Hub are: their settings and READMEs, with stand-in weights."""

import json
from typing import Any

from hub_server.fixtures import HubFixture

Files = dict[str, bytes | str]
WEIGHTS = b"stands in for weights, which nothing here reads"
BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 200,
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
    "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
    "transformers_version": "4.9.1",
}
TOKENIZER = {"tokenizer.json": "{}", "tokenizer_config.json": "{}", "vocab.txt": "[PAD]\n[UNK]\n"}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}


def readme(**metadata: Any) -> str:
    lines = [f"{key}: {json.dumps(value)}" for key, value in metadata.items()]
    return "\n".join(["---", *lines, "---", "", "# A model", "", "It does something."])


def model(config: Any, *more: Files, **metadata: Any) -> Files:
    """Return a repository with config.json, README.md and weights."""
    files: Files = {"config.json": json.dumps(config), "model.safetensors": WEIGHTS}
    if metadata:
        files["README.md"] = readme(**metadata)
    for others in more:
        files.update(others)
    return files


CLASSIFIER = model(
    BERT,
    TOKENIZER,
    {"pytorch_model.bin": WEIGHTS, "tf_model.h5": WEIGHTS, ".gitattributes": "", "LICENSE": "…"},
    license="apache-2.0",
    language="en",
    pipeline_tag="text-classification",
    library_name="transformers",
    tags=["text-classification", "region:us", "license:apache-2.0"],
    datasets=["sst2", "glue"],
    metrics=["accuracy"],
    base_model="distilbert/distilbert-base-uncased",
)
ENCODER = model(
    {**BERT, "architectures": ["BertModel"]},
    TOKENIZER,
    {
        "modules.json": json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": path,
                    "type": f"sentence_transformers.models.{t}",
                }
                for i, (path, t) in enumerate(
                    [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
                )
            ]
        ),
        "1_Pooling/config.json": json.dumps(
            {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
        ),
        "sentence_bert_config.json": '{"max_seq_length": 128, "do_lower_case": false}',
        "config_sentence_transformers.json": '{"__version__": {"sentence_transformers": "2.0.0"}}',
    },
    license="apache-2.0",
    pipeline_tag="sentence-similarity",
    library_name="sentence-transformers",
    language="en",
)
GPT2 = model(
    {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 32,
        "n_head": 2,
        "n_layer": 2,
        "vocab_size": 50257,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    },
    {"tokenizer.json": "{}", "vocab.json": "{}", "merges.txt": "", "64.tflite": WEIGHTS},
    language="en",
    license="mit",
    tags=["exbert"],
)
T5 = model(
    {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "d_model": 32,
        "d_ff": 64,
        "d_kv": 8,
        "num_heads": 4,
        "num_layers": 2,
        "vocab_size": 32128,
        "decoder_start_token_id": 0,
    },
    {"spiece.model": b"\0", "tokenizer.json": "{}"},
    license="apache-2.0",
    language=["en", "fr", "ro", "de", "multilingual"],
    pipeline_tag="translation",
)
VIT = model(
    {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "image_size": 96,
        "patch_size": 16,
        "num_channels": 3,
        "id2label": {"0": "tench", "1": "goldfish"},
    },
    {
        "preprocessor_config.json": json.dumps(
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 96}}
        )
    },
    license="apache-2.0",
    tags=["vision", "image-classification"],
)
RESNET = model(
    {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "embedding_size": 8,
        "layer_type": "basic",
        "num_channels": 3,
    },
    {
        "preprocessor_config.json": json.dumps(
            {"crop_pct": 0.875, "feature_extractor_type": "ConvNextFeatureExtractor", "size": 224}
        )
    },
    license="apache-2.0",
)
WAV2VEC2 = model(
    {
        "architectures": ["Wav2Vec2ForCTC"],
        "model_type": "wav2vec2",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "conv_dim": [16] * 7,
        "vocab_size": 32,
        "num_conv_pos_embedding_groups": 4,
    },
    {
        "preprocessor_config.json": '{"sampling_rate": 16000, "feature_size": 1}',
        "vocab.json": "{}",
        "tokenizer_config.json": "{}",
    },
    license="apache-2.0",
    datasets=["librispeech_asr"],
    pipeline_tag="automatic-speech-recognition",
)
WHISPER = model(
    {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_mel_bins": 80,
        "vocab_size": 500,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
    },
    {"preprocessor_config.json": '{"sampling_rate": 16000, "feature_size": 80}'},
    license="mit",
    pipeline_tag="automatic-speech-recognition",
)
CLIP = model(
    {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 16,
        "text_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 300,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        },
    },
    TOKENIZER,
    license="mit",
    pipeline_tag="zero-shot-image-classification",
)
TIMM = model(
    {
        "architecture": "resnet18",
        "num_classes": 1000,
        "num_features": 512,
        "pretrained_cfg": {
            "tag": "a1_in1k",
            "input_size": [3, 224, 224],
            "fixed_input_size": False,
        },
    },
    license="apache-2.0",
    library_name="timm",
    tags=["image-classification", "timm"],
)
ADAPTER: Files = {
    "adapter_config.json": json.dumps(
        {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-2-7b-hf", "r": 16}
    ),
    "adapter_model.safetensors": WEIGHTS,
    "README.md": readme(library_name="peft", base_model="meta-llama/Llama-2-7b-hf"),
}
GPTQ = model(
    {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
    license="llama2",
    base_model="meta-llama/Llama-2-7b-chat-hf",
)
GGUF: Files = {
    **{f"mistral-7b.Q{bits}_K_M.gguf": WEIGHTS for bits in (2, 3, 4, 5, 6)},
    "README.md": readme(license="apache-2.0", base_model="mistralai/Mistral-7B-v0.1"),
}
DIFFUSERS: Files = {
    "model_index.json": '{"_class_name": "StableDiffusionPipeline"}',
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
    "text_encoder/config.json": "{}",
    "text_encoder/model.safetensors": WEIGHTS,
    "scheduler/scheduler_config.json": "{}",
    "README.md": readme(license="creativeml-openrail-m", library_name="diffusers"),
}
CUSTOM = model(
    {
        "architectures": ["MyNetForCausalLM"],
        "model_type": "my_net",
        "auto_map": {"AutoModelForCausalLM": "modeling_my_net.MyNetForCausalLM"},
    },
    {"modeling_my_net.py": "raise SystemExit('this was run')"},
    license="mit",
    pipeline_tag="text-generation",
)
NO_CONFIG: Files = {"model.pth": WEIGHTS, "README.md": readme(license="mit")}


def fill(hub: HubFixture) -> None:
    """Put all of them onto a Hub, as zoo/NAME."""
    for name, files in {
        "classifier": CLASSIFIER,
        "encoder": ENCODER,
        "gpt2": GPT2,
        "t5": T5,
        "vit": VIT,
        "resnet": RESNET,
        "wav2vec2": WAV2VEC2,
        "whisper": WHISPER,
        "clip": CLIP,
        "timm": TIMM,
        "adapter": ADAPTER,
        "gptq": GPTQ,
        "gguf": GGUF,
        "diffusers": DIFFUSERS,
        "custom": CUSTOM,
        "no-config": NO_CONFIG,
    }.items():
        hub.create_repo(f"zoo/{name}", files)
    hub.create_repo("meta/Llama", model(LLAMA, TOKENIZER, license="llama3"), gated=True)
