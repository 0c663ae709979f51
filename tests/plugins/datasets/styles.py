"""Chat templates of our own in the styles of well-known families, each with a fitting tokenizer."""

from __future__ import annotations

import attrs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHATML, SENTENCES, train_bpe

SYSTEM_BY_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}" + CHATML
)

BOS_AND_HEADERS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)

ROLE_MODEL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
)

INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)

EMPTY_THINK = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
)

THOUGHTS_AND_CALLS = (
    "{% set last = namespace(user=0) %}{% for message in messages %}"
    "{% if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.index0 > last.user %}"
    "{{ '<think>\n' + message.reasoning_content | default('') + '\n</think>\n\n' }}{% endif %}"
    "{{ message.content or '' }}{% for call in message.tool_calls or [] %}"
    "{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)

NO_END_OF_TURN = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] + '\n' }}{% endfor %}"
)

SHOUTING = (
    "{% for message in messages %}{{ message['content'] | upper + '<|im_end|>' }}{% endfor %}"
)


@attrs.frozen
class Style:
    """A kind of tokenizer.

    Attributes:
        template: Its chat template, if it has one.
        end: What is supervised after the assistant's words.
        bos: Put in front of any text by the tokenizer itself, as Llama's and Gemma's do.
        special: Special tokens beside BOS and EOS.
        spaces_in_tokens: As SentencePiece's, a word's token holds the space before it.
    """

    template: str | None
    end: str
    bos: str | None = None
    eos: str = "<|im_end|>"
    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    spaces_in_tokens: bool = False

    def tokenizer(self, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
        """Trained anew; `trim_offsets` leaves spaces out of its offsets, as some real ones do."""
        special = sorted({*self.special, self.eos, *([self.bos] if self.bos else [])})
        backend = train_metaspace(special) if self.spaces_in_tokens else train_bpe(special)
        steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
        if self.bos:
            bos = (self.bos, backend.token_to_id(self.bos))
            steps.append(
                processors.TemplateProcessing(single=f"{self.bos} $A", special_tokens=[bos])
            )
        if not self.spaces_in_tokens:
            backend.post_processor = processors.Sequence(steps)
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=self.bos,
            eos_token=self.eos,
            chat_template=self.template,
            clean_up_tokenization_spaces=False,
        )


def train_metaspace(special_tokens: list[str]) -> Tokenizer:
    """A BPE over words that carry the space before them."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<unk>", *special_tokens], show_progress=False
    )
    bpe.train_from_iterator(
        [*SENTENCES, "[INST] [/INST] " + " ".join(map(str, range(99)))], trainer
    )
    return bpe


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")
TURNS = ("<start_of_turn>", "<end_of_turn>")

STYLES = {
    "chatml": Style(CHATML, "<|im_end|>"),
    "system by default": Style(SYSTEM_BY_DEFAULT, "<|im_end|>"),
    "bos and headers": Style(
        BOS_AND_HEADERS, "<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", HEADERS
    ),
    "role model": Style(ROLE_MODEL, "<end_of_turn>", "<bos>", "<eos>", TURNS),
    "inst": Style(INST, " </s>", "<s>", "</s>", (), spaces_in_tokens=True),
    "empty think": Style(EMPTY_THINK, "<|im_end|>"),
    "marked": Style(MARKED, "<|im_end|>"),
    "no end of turn": Style(NO_END_OF_TURN, "\n<|endoftext|>", eos="<|endoftext|>", special=()),
}
