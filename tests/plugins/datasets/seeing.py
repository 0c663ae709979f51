"""Tiny processors of six families, with the templates of the real ones and a small tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import transformers
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from automodel_core.processors import VideoSettings, pixtral_processor
from tests.tiny import train_bpe

GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"  # noqa: E501
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
)
QWEN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% elif 'text' in item %}"
    "{{ item['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ item['text'] + ' ' }}{% endfor %}{% else %}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ item['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
)
IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' }}"
    "{% for chunk in message['content'] %}{% if chunk['type'] == 'text' %}{{ chunk['text'] }}"
    "{% elif chunk['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}{{ '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'][0]['text'] + eos_token }}"
    "{% endif %}{% endfor %}"
)


def tokenizer_of(
    *tokens: str, eos: str, template: str, bos: str | None = None, **named: str
) -> PreTrainedTokenizerFast:
    special = ["<pad>", *tokens, *named.values(), eos, *([bos] if bos else [])]
    return PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(list(dict.fromkeys(special))),
        eos_token=eos,
        bos_token=bos,
        pad_token="<pad>",
        chat_template=template,
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )


def reader(name: str) -> type:
    """The image processor that needs Pillow alone, whatever this transformers calls it."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def gemma3() -> ProcessorMixin:
    tokenizer = tokenizer_of(
        "<start_of_turn>",
        "<end_of_turn>",
        eos="<eos>",
        bos="<bos>",
        template=GEMMA,
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    images = reader("Gemma3ImageProcessor")(size={"height": 28, "width": 28})
    return transformers.Gemma3Processor(
        images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4
    )


def qwen() -> ProcessorMixin:
    tokenizer = tokenizer_of(
        "<|im_start|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|video_pad|>",
        eos="<|im_end|>",
        template=QWEN,
        image_token="<|image_pad|>",
    )
    images = reader("Qwen2VLImageProcessor")(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    # The video processor needs torchvision.
    make = transformers.Qwen2_5_VLProcessor
    processor = make.__new__(make)
    processor.image_processor, processor.tokenizer = images, tokenizer
    processor.video_processor = VideoSettings({"video_processor_type": "Qwen2VLVideoProcessor"})
    processor.chat_template = tokenizer.chat_template
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    processor.video_token_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    return processor


def llava() -> ProcessorMixin:
    tokenizer = tokenizer_of(eos="</s>", bos="<s>", template=LLAVA, image_token="<image>")
    images = reader("CLIPImageProcessor")(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    return transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def idefics3() -> ProcessorMixin:
    tokenizer = tokenizer_of(
        "<|im_start|>",
        "<fake_token_around_image>",
        "<image>",
        "<global-img>",
        eos="<end_of_utterance>",
        template=IDEFICS,
    )
    images = reader("Idefics3ImageProcessor")(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
    )
    return transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template
    )


def llava_next() -> ProcessorMixin:
    """With the template of Mistral's instructions, whose turns have no header but [/INST]."""
    tokenizer = tokenizer_of(
        "[INST]", "[/INST]", eos="</s>", bos="<s>", template=MISTRAL, image_token="<image>"
    )
    images = reader("LlavaNextImageProcessor")(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )
    return transformers.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def pixtral() -> ProcessorMixin:
    """Images of any shape in rows of tokens, each with a token at its end."""
    tokenizer = tokenizer_of(
        "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]",
        eos="</s>", bos="<s>", template=MISTRAL.replace("<image>\n", "[IMG]"),
    )  # fmt: skip
    images = reader("PixtralImageProcessor")(size={"longest_edge": 28}, patch_size=7)
    return pixtral_processor()(
        images, tokenizer, patch_size=7, chat_template=tokenizer.chat_template
    )


# What a processor is made by, what stands before answers, and what is learned behind the words.
FAMILIES: dict[str, tuple[Callable[[], ProcessorMixin], str, str]] = {
    "gemma3": (gemma3, "<start_of_turn>model\n", "<end_of_turn>"),
    "qwen": (qwen, "<|im_start|>assistant\n", "<|im_end|>"),
    "llava": (llava, "ASSISTANT: ", " "),
    "idefics3": (idefics3, "Assistant: ", "<end_of_utterance>"),
    "llava_next": (llava_next, "[/INST]", "</s>"),
    "pixtral": (pixtral, "[/INST]", "</s>"),
}
