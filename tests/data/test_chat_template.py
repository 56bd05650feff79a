import pytest
from byte_tokenizer import build_byte_tokenizer

from tagi_lightning.data.chat_template import ChatTurns, prepends_bos

LLAMA = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n\n"
    "{{ message.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{% endfor %}"
)
DROPPED_SYSTEM = "{% for message in messages if message.role != 'system' %}[{{ message.content }}]{% endfor %}"
FOLDED_SYSTEM = (
    "{% if messages[0].role == 'system' %}[{{ messages[0].content }}"
    "{% if messages | length > 1 %}, {% else %}]{% endif %}{% endif %}"
    "{% for message in messages if message.role != 'system' %}{{ message.content }}]{% endfor %}"
)
NO_END = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
THINKING = LLAMA.replace("assistant\n\n", "assistant\n\n{% if not enable_thinking %}<think></think>{% endif %}")


def test_turns_are_what_the_template_writes_around_the_texts():
    tokenizer = build_byte_tokenizer()
    turns = ChatTurns.from_tokenizer(tokenizer)
    conversation = [{"role": "system", "content": "do this"}, {"role": "user", "content": "with that"}]
    whole = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert f"{turns.start}do this{turns.ending}{turns.opening}with that{turns.cue}" == whole
    assert turns.opening == "<|im_start|>user\n"
    assert turns.stop == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id


@pytest.mark.parametrize("bos", [False, True])
def test_bos_is_left_to_the_tokenizer_that_prepends_it(bos):
    tokenizer = build_byte_tokenizer(LLAMA, bos=bos)
    assert prepends_bos(tokenizer) == bos
    start = ChatTurns.from_tokenizer(tokenizer).start
    assert start == ("" if bos else "<s>") + "<|im_start|>system\n\n"


def test_thinking_is_off():
    assert ChatTurns.from_tokenizer(build_byte_tokenizer(THINKING)).cue.endswith("assistant\n\n<think></think>")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template"),
        (NO_SYSTEM, r"takes no system turn \(System role not supported\)"),
        (DROPPED_SYSTEM, "moves a turn or leaves one out"),
        (FOLDED_SYSTEM, "system turn goes on into the user's"),
        (NO_END, "ends an answer without a special token"),
    ],
)
def test_a_template_that_does_not_serve_is_refused_with_what_to_do(template, reason):
    with pytest.raises(ValueError, match=rf"{reason}.*: take prompt=causal"):
        ChatTurns.from_tokenizer(build_byte_tokenizer(template))
