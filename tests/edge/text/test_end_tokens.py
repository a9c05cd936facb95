"""Which tokens end an answer: every source by itself, all of them united, and what must not count."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from edge.config.gguf import config_from_gguf
from edge.config.huggingface import config_from_hf
from edge.errors import TokenizerError
from edge.system.notices import EdgeWarning
from edge.text.end_tokens import named_token
from edge.text.tokenizer import load_tokenizer, tokenizer_files_from_gguf
from edge.text.tokenizer.segments import SegmentTokenizer
from tests.configs import LLAMA, one_layer

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
LETTERS = [chr(code) for code in range(33, 127)]

# Each as its publisher has it, but for system prompts and tools, and the token that ends an answer there.
TEMPLATES = {
    "ChatML": (
        "{% for m in messages %}{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n'}}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "Llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}{% elif m.role == 'assistant' %}"
        "{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "Llama 3": (
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' "
        "+ m.content | trim + '<|eot_id|>' }}{% endfor %}",
        "<|eot_id|>",
    ),
    "an invented token": (
        "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<turn_over>\n{% endfor %}",
        "<turn_over>",
    ),
    "the longest of two": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<over><over>x{% endfor %}",
        "<over><over>x",
    ),
    "typed parts": (
        "{% for m in messages %}<turn>{% for part in m.content if part.type == 'text' %}{{ part.text }}"
        "{% endfor %}<turn_over>{% endfor %}",
        "<turn_over>",
    ),
    "an answer that is written twice": (
        "{% for m in messages %}<turn>{{ m.content }}<over>{{ m.content }} \n<turn_over>{% endfor %}",
        "<turn_over>",
    ),
    "the next turn's opening": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endfor %}<|assistant|>",
        None,
    ),
    "plain text": ("{% for m in messages %}{{ m.role }}: {{ m.content }}###\n{% endfor %}", None),
    "another end in the middle": (
        "{% for m in messages %}<turn>{{ m.content }}{{ '<turn_over>' if loop.last else '<over>' }}"
        "{% endfor %}",
        None,
    ),
    "one that refuses answers": (
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}<turn_over>{% endfor %}",
        None,
    ),
    "not a template": ("{% for", None),
}
SPECIAL = (
    *("<turn>", "<turn_over>", "<over>", "<over><over>x", "<|user|>", "<|assistant|>", "<|im_start|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]"),
)


def tokenizer_json(special: tuple[str, ...], ordinary: tuple[str, ...] = ()) -> dict[str, Any]:
    """One token per visible ASCII character, then control tokens, then ordinary added ones."""
    words = [*LETTERS, "Ġ", "Ċ"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": len(words) + i, "content": text, "special": text in special, **flags}
            for i, text in enumerate((*special, *ordinary))
        ],
        "normalizer": None,
        "pre_tokenizer": LEVEL,
        "post_processor": None,
        "decoder": LEVEL,
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": []},
    }


FIRST = len(LETTERS) + 2
"""The id of the first control token."""


@pytest.fixture
def open_it() -> Callable[..., SegmentTokenizer]:
    """`open_it(special, size=..., eos=(), template=None, generation={}, ordinary=(), **files)`."""

    def make(
        special: tuple[str, ...],
        *,
        size: int = 200,
        eos: tuple[int, ...] = (),
        template: str | None = None,
        generation: dict[str, Any] | None = None,
        ordinary: tuple[str, ...] = (),
        **files: Any,
    ) -> Any:
        contents = {"tokenizer": tokenizer_json(special, ordinary), **files}
        return load_tokenizer(
            {f"{name}.json": json.dumps(data).encode() for name, data in contents.items()},
            one_layer(size, eos_token_ids=eos),
            chat_template=template,
            generation_config=generation,
        )

    return make


def test_all_sources_count_and_the_configs_own_comes_first(open_it: Callable[..., Any]) -> None:
    special = ("<c>", "<g>", "<eos>", "<mapped>", "<eot>", "<eom>", "<turn_over>", "<|im_end|>", "<none>")
    tokenizer = open_it(
        special,
        eos=(FIRST,),
        generation={"eos_token_id": [FIRST + 1, FIRST]},
        template=TEMPLATES["an invented token"][0],
        tokenizer_config={
            "eos_token": "<eos>",
            "eot_token": {"content": "<eot>"},
            "eom_token": "<eom>",
        },
        special_tokens_map={"eos_token": {"content": "<mapped>"}},
    )
    assert tokenizer.end_tokens[:2] == (FIRST, FIRST + 1)
    assert tokenizer.eos_ids == {FIRST + i for i in range(8)}
    assert len(tokenizer.end_tokens) == 8


def test_a_null_does_not_hide_what_another_file_says(open_it: Callable[..., Any]) -> None:
    files = {"tokenizer_config": {"eos_token": None}, "special_tokens_map": {"eos_token": "<end>"}}
    assert open_it(("<x>", "<end>"), **files).eos_ids == {FIRST + 1}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_token_that_a_template_writes_behind_an_answer(name: str, open_it: Callable[..., Any]) -> None:
    template, wanted = TEMPLATES[name]
    special = (*SPECIAL, *({wanted} - {None, *SPECIAL}))
    tokenizer = open_it(
        special,
        template=template,
        tokenizer_config={"bos_token": "<turn>", "eos_token": "</s>"},
        special_tokens_map={},
    )
    assert tokenizer.eos_ids == (set() if wanted is None else {tokenizer.special_tokens[wanted]})


@pytest.mark.parametrize("text", ["<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|endoftext|>", "<|eom_id|>"])
@pytest.mark.parametrize("kind", ["special", "ordinary"])
def test_well_known_ends_are_found_by_their_text(text: str, kind: str, open_it: Callable[..., Any]) -> None:
    """As in llama.cpp, whatever the converter marked them as; nobody's text becomes one."""
    tokenizer = open_it(("<x>", text)) if kind == "special" else open_it(("<x>",), ordinary=(text,))
    assert tokenizer.eos_ids == {FIRST + 1}
    assert FIRST + 1 not in tokenizer.encode(f"a{text}")
    assert tokenizer.encode(f"a{text}", parse_special=True)[-1] == FIRST + 1
    assert tokenizer.decode([0, FIRST + 1]) == LETTERS[0]


def test_what_only_parts_an_answer_does_not_end_it(open_it: Callable[..., Any]) -> None:
    """gpt-oss writes <|end|> behind its reasoning; where it is alone, as in Phi-3, it ends the answer."""
    special = ("<|end|>", "<|return|>", "<|call|>")
    assert open_it(special).eos_ids == {FIRST + 1, FIRST + 2}
    assert open_it(("<|end|>", "<|calls|>", "<|flush|>")).eos_ids == {FIRST + 1, FIRST + 2}
    assert open_it(("<|end|>", "<|return|>", "<|flush|>")).eos_ids == {FIRST, FIRST + 1, FIRST + 2}
    assert open_it(("<|end|>",)).eos_ids == {FIRST}


def test_a_closing_tag_that_is_no_control_token_does_not_count(open_it: Callable[..., Any]) -> None:
    assert open_it(("</s>",)).eos_ids == {FIRST}
    assert open_it(("<x>",), ordinary=("</s>",)).eos_ids == set()


def test_ids_that_can_not_come_up_are_ignored_with_a_note(open_it: Callable[..., Any]) -> None:
    with pytest.warns(EdgeWarning, match=r"generation_config\.json names the end token 200.*only 200"):
        assert open_it(("<x>",), eos=(5,), generation={"eos_token_id": [-1, 200, 199]}).eos_ids == {5, 199}
    config = config_from_hf({**LLAMA, "eos_token_id": [-1, 3], "pad_token_id": 1000})
    assert (config.eos_token_ids, config.pad_token_id) == ((3,), None)
    assert config_from_hf({**LLAMA, "eos_token_id": -1}).eos_token_ids == ()


def gguf_metadata(types: list[int], **ids: int) -> dict[str, Any]:
    tokens = ["a", "b", "ab", "<end>", "<turn>", "<call>", "<|im_end|>"]
    return {
        "general.architecture": "llama",
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.block_count": 1,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["a b"],
        **{f"tokenizer.ggml.{role}_token_id": token for role, token in ids.items()},
    }


def gguf_tokenizer(metadata: dict[str, Any]) -> Any:
    return load_tokenizer(tokenizer_files_from_gguf(metadata), config_from_gguf(metadata))


def test_gguf_names_three_and_llama_cpp_knows_more() -> None:
    control = [1, 1, 1, 3, 3, 3, 3]
    assert gguf_tokenizer(gguf_metadata(control, eos=3, eot=4, eom=5)).end_tokens == (3, 4, 5, 6)
    metadata = gguf_metadata(control, eom=5)
    assert config_from_gguf(metadata).eos_token_ids == (5,)
    files = tokenizer_files_from_gguf(metadata)
    assert json.loads(files["tokenizer_config.json"])["eom_token"] == "<call>"
    for none in (-1, 2**32 - 1):  # llama.cpp's "none", also as an unsigned number
        metadata = gguf_metadata(control, eos=none, eot=4, bos=none, padding=none)
        assert gguf_tokenizer(metadata).end_tokens == (4, 6)


def test_an_end_of_turn_marked_as_text_is_a_control_token() -> None:
    """llama.cpp overrides the type of such a token, so that nobody's text becomes one."""
    tokenizer = gguf_tokenizer(gguf_metadata([1] * 7, eos=3))
    assert tokenizer.end_tokens == (3, 6)
    assert tokenizer.special_tokens == {"<|im_end|>": 6}


def test_tokens_are_named_by_text_or_id(open_it: Callable[..., Any]) -> None:
    tokenizer = open_it(("<x>",), ordinary=("<word>",))
    assert [named_token(tokenizer, name) for name in ("<x>", "<word>", "a", "7", "199")] == [
        *(FIRST, FIRST + 1, LETTERS.index("a"), 7, 199),
    ]
    for wrong in ("<y>", "ab", "200", "-1", "9" * 30, "9" * 5000, "²", ""):
        with pytest.raises(TokenizerError, match="has no token"):
            named_token(tokenizer, wrong)


@pytest.mark.parametrize("order", [("<a>", "<a>b"), ("<a>b", "<a>")])
@pytest.mark.parametrize("kind", ["special", "ordinary"])
def test_the_longest_added_token_wins(order: tuple[str, ...], kind: str, open_it: Callable[..., Any]) -> None:
    tokenizer = open_it(order) if kind == "special" else open_it((), ordinary=order)
    at = {text: FIRST + i for i, text in enumerate(order)}
    ids = tokenizer.encode("<a>b<a>c", parse_special=True)
    assert ids == [at["<a>b"], at["<a>"], LETTERS.index("c")]


@pytest.mark.parametrize("where", ["tokenizer.json", "added_tokens.json", "tokenizer_config.json"])
@pytest.mark.parametrize("special", [True, False])
def test_a_token_beyond_the_embedding_stays_text(
    where: str, special: bool, open_it: Callable[..., Any]
) -> None:
    """Fine-tunes of Llama 2 add a padding token and leave the embedding with as many rows as before."""
    size = FIRST + 1
    files: dict[str, Any] = {"tokenizer_config": {"pad_token": "<pad>"} if special else {}}
    if where == "tokenizer_config.json":
        files["tokenizer_config"]["added_tokens_decoder"] = {
            str(size): {"content": "<pad>", "special": special}
        }
    elif where == "added_tokens.json":
        files["added_tokens"] = {"<pad>": size}
    inside = where == "tokenizer.json"
    tokens = ("<x>", "<pad>") if inside and special else ("<x>",)
    with pytest.warns(EdgeWarning, match="'<pad>' beyond the 97 tokens"):
        tokenizer = open_it(tokens, ordinary=("<pad>",) if inside and not special else (), size=size, **files)
    letters = [LETTERS.index(letter) for letter in "a<pad>b"]
    for parse_special in (True, False):
        assert tokenizer.encode("a<pad>b", parse_special=parse_special) == letters
    assert tokenizer.token_id("<pad>") is None and "<pad>" not in tokenizer.special_tokens
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        tokenizer.decode([size])


def test_a_token_beyond_the_embedding_that_is_needed_is_refused(open_it: Callable[..., Any]) -> None:
    size, sentence = FIRST + 1, "ids up to 97, but the model's vocabulary only 97"
    with pytest.raises(TokenizerError, match=sentence):
        open_it(("<x>", "<end>"), size=size, tokenizer_config={"eos_token": "<end>", "pad_token": "<end>"})
    with pytest.raises(TokenizerError, match=sentence):
        open_it(("<x>", "<turn>"), size=size, template="<turn>{{ messages[0].content }}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said where nothing is odd
        open_it(("<x>", "<end>"), size=size + 1, tokenizer_config={"eos_token": "<end>"})
