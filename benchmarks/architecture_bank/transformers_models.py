"""Models of transformers with tiny configs: one of a kind for each task."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Generator, nn

from .entry import Architecture
from .tiny_configs import VOCABULARY, tiny_config

__all__ = ["TRANSFORMERS"]

LENGTH, DECODED, SAMPLES, FRAMES = 9, 7, 200, 18
FIELDS = (
    "logits",
    "logits_per_image",
    "predicted_depth",
    "reconstruction",
    "last_hidden_state",
)
# Auto class -> kinds of models.
KINDS = {
    "AutoModelForCausalLM": (
        "llama mistral gemma gemma2 gemma3_text qwen2 qwen3 phi phi3 gpt2 gpt_neo gpt_neox gptj gpt_bigcode "
        "opt bloom falcon mpt codegen starcoder2 stablelm olmo olmo2 cohere cohere2 granite glm glm4 helium "
        "nemotron persimmon smollm3 ernie4_5 exaone4 biogpt xglm ctrl openai-gpt rwkv mamba mamba2 "
        "recurrent_gemma bamba jamba mixtral qwen2_moe qwen3_moe olmoe granitemoe deepseek_v3 gpt_oss phimoe "
        "diffllama lfm2 xlnet reformer"
    ),
    "AutoModelForSequenceClassification": (
        "bert roberta albert electra deberta deberta-v2 distilbert convbert roformer rembert xlm-roberta "
        "funnel fnet mobilebert mpnet squeezebert nystromformer big_bird longformer canine esm ibert "
        "layoutlm flaubert xlm modernbert yoso"
    ),
    "AutoModelForImageClassification": (
        "beit bit convnext convnextv2 cvt deit dinov2 efficientnet focalnet hiera ijepa levit mobilenet_v1 "
        "mobilenet_v2 mobilevit mobilevitv2 poolformer pvt pvt_v2 regnet resnet segformer siglip swiftformer "
        "swin swinv2 vit vit_msn"
    ),
    "AutoModelForSeq2SeqLM": (
        "bart blenderbot pegasus mbart marian t5 mt5 longt5 switch_transformers led m2m_100 prophetnet "
        "plbart fsmt"
    ),
    "AutoModelForCTC": "wav2vec2 hubert wavlm unispeech sew data2vec-audio",
    "AutoModelForSpeechSeq2Seq": "whisper speech_to_text",
    "AutoModelForAudioClassification": "audio-spectrogram-transformer",
    "AutoModelForZeroShotImageClassification": "clip blip",
    "AutoModelForObjectDetection": "detr table-transformer yolos",
    "AutoModelForDepthEstimation": "dpt glpn depth_anything",
    "AutoModelForPreTraining": "vit_mae",
    "AutoModelForVideoClassification": "timesformer videomae vivit",
}
# Models that pad their inputs or look for the end of a text, unless a mask says where that is.
MASKED = ("longt5", "switch_transformers", "nystromformer", "fsmt", "prophetnet")
VIDEO = ("timesformer", "videomae", "vivit")


def make_transformers(auto: str, kind: str) -> nn.Module:
    """Build a model of transformers with random weights."""
    import transformers

    model: nn.Module = getattr(transformers, auto).from_config(tiny_config(kind))
    return model


def inputs_of(auto: str, kind: str, batch: int, g: Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make the keyword inputs that a kind of model takes."""
    import transformers

    config = tiny_config(kind)
    model_class = getattr(transformers, auto)._model_mapping[type(config)]
    model_class = model_class[0] if isinstance(model_class, (list, tuple)) else model_class
    takes = inspect.signature(model_class.forward).parameters

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(3, VOCABULARY - 1, (batch, length), generator=g)

    def floats(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=g, dtype=torch.float64)

    inputs: dict[str, Any] = {}
    if "input_ids" in takes and "input_features" not in takes:
        inputs["input_ids"] = tokens(16 if kind == "reformer" else LENGTH)
    if kind in MASKED or (
        model_class.__name__.endswith("SequenceClassification") and "attention_mask" in takes
    ):
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "pixel_values" in takes:
        side = getattr(getattr(config, "vision_config", config), "image_size", 32)
        side = max(side[0] if isinstance(side, (list, tuple)) else side or 32, 32)
        frames = (getattr(config, "num_frames", 8),) if kind in VIDEO else ()
        inputs["pixel_values"] = floats(*frames, 3, side, side)
    if "input_values" in takes:
        sounds = (
            (config.max_length, config.num_mel_bins)
            if kind == "audio-spectrogram-transformer"
            else (SAMPLES,)
        )
        inputs["input_values"] = floats(*sounds)
    if "input_features" in takes:
        inputs["input_features"] = floats(FRAMES, 10) if kind == "speech_to_text" else floats(10, FRAMES)
    if config.is_encoder_decoder and "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = tokens(DECODED)
    return (), inputs


TRANSFORMERS: tuple[Architecture, ...] = tuple(
    Architecture(
        f"transformers/{kind}",
        partial(make_transformers, auto, kind),
        partial(inputs_of, auto, kind),
        FIELDS,
    )
    for auto, kinds in KINDS.items()
    for kind in kinds.split()
)
