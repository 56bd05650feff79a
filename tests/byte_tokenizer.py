"""A byte-level tokenizer with a chat template, as small as can be."""

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TEXT = "Definition: Positive Example Now complete the following example -\nInput: Output: say the first word 1 2\n\n"
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\nBe helpful<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_byte_tokenizer(template=CHATML, bos=False, **options):
    """Returns a byte-level tokenizer whose vocabulary is of a few English words; `bos` has it prepend BOS."""
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    backend.train_from_iterator(
        [TEXT] * 3, BpeTrainer(special_tokens=special, initial_alphabet=alphabet, vocab_size=400, show_progress=False)
    )
    if bos:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    extra = {"additional_special_tokens": special[3:], "chat_template": template}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens, **extra, **options)
