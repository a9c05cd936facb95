"""Tokenizers and shards of real text: against SentencePiece and transformers, killed, gone on, held out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.text.chat_template import ChatTemplate
from edge.train.data.errors import DataError
from edge.train.data.shards import ShardFolder, read_tokenizer_files, tokenizer_digest
from edge.train.data.texts import ReadingOptions, read_documents
from edge.train.data.tokenize import DocumentTokenizer, Tokenizing, heldout_folder, tokenize
from edge.train.data.tokenizer_training import ADDED_TOKENS, CHAT_TEMPLATE, train_tokenizer

VOCABULARY = 800
REPOSITORY = Path(__file__).parents[3]
HARD = [
    "",
    " two  spaces\n\n\n\tand\ta tab \n",
    "1234567 + 0.5 = Äöü 漢字 🙂 \u200d",
    "spelled <|im_end|> and <s> and </s> and <0x0A>",
]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Sections of the documentation in this repository, and what is hard."""
    path = tmp_path_factory.mktemp("texts") / "docs.txt"
    path.write_text(
        # SentencePiece writes spaces as this character, so it comes back as a space.
        "\n".join(page.read_text("utf-8") for page in sorted((REPOSITORY / "docs").glob("*.md"))).replace(
            "\u2581", "_"
        ),
        "utf-8",
    )
    return [*read_documents([path], ReadingOptions(split="heading")), *HARD[1:]]


@pytest.fixture(scope="module")
def files(documents: list[str]) -> dict[str, bytes]:
    return train_tokenizer(documents, VOCABULARY)


def test_ids_are_those_of_sentencepiece_and_text_comes_back(documents, files):
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=files["tokenizer.model"])
    opened = DocumentTokenizer.open(files)
    for text in documents:
        ids = opened.encode(text)
        assert ids == [1, *processor.encode(text), 2]
        assert opened.tokenizer.decode(ids) == text


def test_transformers_reads_the_folder_the_same_way(tmp_path: Path, documents, files):
    from transformers import AutoTokenizer

    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), DocumentTokenizer.open(files)
    assert len(theirs) == VOCABULARY == ours.facts.vocab_size
    for text in documents[::5]:
        assert theirs.encode(text) == ours.tokenizer.encode(text, parse_special=True)
    messages = [{"role": "user", "content": "Hi  there\n"}, {"role": "assistant", "content": "1 + 1 = 2"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    mine = ChatTemplate(CHAT_TEMPLATE, {}).render(messages, add_generation_prompt=True)
    assert mine == rendered
    assert ours.tokenizer.encode(mine, parse_special=True) == theirs.encode(rendered)


def test_special_tokens_are_minicpms(files):
    opened = DocumentTokenizer.open(files)
    special = opened.tokenizer.special_tokens
    assert {text: special[text] for text in ("<unk>", "<s>", "</s>")} == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert [special[text] for text in ADDED_TOKENS] == list(range(VOCABULARY - 8, VOCABULARY))
    assert (opened.facts.bos_token_id, opened.facts.eos_token_ids) == (1, (2, VOCABULARY - 8))
    assert opened.tokenizer.token_bytes(3 + 10) == b"\n"


def test_the_special_tokens_are_in_minicpm4s_order(shared_data: Path):
    theirs = json.loads((shared_data / "minicpm4-8b/added_tokens.json").read_text())
    assert sorted(theirs, key=theirs.__getitem__) == list(ADDED_TOKENS)
    assert (
        json.loads((shared_data / "minicpm4-8b/tokenizer_config.json").read_text())["chat_template"]
        == CHAT_TEMPLATE
    )


def test_minicpm4s_own_tokenizer_can_be_used(tmp_path: Path, shared_data: Path):
    opened = read_tokenizer_files(shared_data / "minicpm4-8b")
    (folder,) = tokenize(["Hello", "world"], Tokenizing(tmp_path / "c", opened))
    assert (folder.vocab_size, folder.eos_token_ids, folder.facts.dtype.name) == (
        73_448,
        (2, 73_440),
        "uint32",
    )
    assert [folder.document(number)[[0, -1]].tolist() for number in (0, 1)] == [[1, 2], [1, 2]]


def test_too_little_text_and_too_small_a_vocabulary_are_refused():
    with pytest.raises(DataError, match="cannot make 5000 tokens"):
        train_tokenizer(["a few words"], 5000)
    with pytest.raises(DataError, match="268 tokens or more, not 200"):
        train_tokenizer(["a few words"], 200)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_more_processes_make_the_same_folder(tmp_path: Path, documents, files):
    plans = [Tokenizing(tmp_path / f"w{n}", files, 0.2, 20_000, workers=n) for n in (1, 2)]
    counts: list[tuple[int, int]] = []
    for plan in plans:
        folders = tokenize(documents, plan, lambda *done: counts.append(done))
        assert sum(folder.documents for folder in folders) == len(documents) == counts[-1][0]
        assert sum(folder.tokens for folder in folders) == counts[-1][1]
        assert len(folders[0].shards) > 3
    for one, other in zip(*(plan.folders for plan in plans), strict=True):
        assert contents(one) == contents(other)
    opened = DocumentTokenizer.open(files)
    back = sorted(
        opened.tokenizer.decode(folder.document(number).tolist())
        for folder in map(ShardFolder.open, plans[0].folders)
        for number in range(folder.documents)
    )
    assert back == sorted(documents)


def test_held_out_documents_are_the_same_whatever_comes_with_them(tmp_path: Path, files):
    texts = [f"document {number}" for number in range(1000)]

    def heldout(name: str, texts: list[str]) -> set[str]:
        opened = DocumentTokenizer.open(files)
        kept, held = tokenize(texts, Tokenizing(tmp_path / name, files, 0.1))
        assert held.path == heldout_folder(tmp_path / name)
        found = [
            {opened.tokenizer.decode(f.document(n).tolist()) for n in range(f.documents)}
            for f in (kept, held)
        ]
        assert found[0] | found[1] == set(texts) and not found[0] & found[1]
        return found[1]

    everything, half = heldout("all", texts), heldout("half", texts[500:] + texts[700:])
    assert half == everything & set(texts[500:])
    assert 70 < len(everything) < 130  # 100 +- 3 sigma


SCRIPT = """
import sys
from pathlib import Path
from edge.train.data.shards import read_tokenizer_files
from edge.train.data.texts import ReadingOptions, read_documents
from edge.train.data.tokenize import Tokenizing, tokenize

if __name__ == "__main__":
    text, tokenizer, out, workers = sys.argv[1:]
    files = read_tokenizer_files(Path(tokenizer))
    documents = read_documents([Path(text)], ReadingOptions())
    tokenize(documents, Tokenizing(Path(out), files, 0.1, 5_000, int(workers)))
"""


def test_a_killed_run_keeps_what_was_finished(tmp_path: Path, documents, files):
    text, tokenizer, script = tmp_path / "t.jsonl", tmp_path / "tokenizer", tmp_path / "run.py"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents), "utf-8")
    tokenizer.mkdir()
    for name, data in files.items():
        (tokenizer / name).write_bytes(data)
    script.write_text(SCRIPT)
    out = tmp_path / "out"
    command = [sys.executable, script, text, tokenizer, out, "2"]
    wanted = tokenize(documents, Tokenizing(tmp_path / "whole", files, 0.1, 5_000))
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while len(list(out.glob("shard-*"))) < 3 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    with pytest.raises(DataError, match="no finished folder"):
        ShardFolder.open(out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*/tokens.bin")}
    assert 3 <= len(kept) < len(wanted[0].shards)
    subprocess.run(command, check=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for folder in wanted:
        again = out.with_name(folder.path.name.replace("whole", "out"))
        assert contents(again) == contents(folder.path)


def test_a_folder_of_something_else_is_not_gone_on_with(tmp_path: Path, files):
    out = tmp_path / "c"
    tokenize(["one text", "another", "a third"], Tokenizing(out, files, 0.0, 1))
    before = contents(out)
    for texts in (["one text", "something else"], ["one text"]):
        with pytest.raises(DataError, match="has shards of other texts, another tokenizer or other options"):
            tokenize(texts, Tokenizing(out, files, 0.0, 1))
    other = {**files, "tokenizer_config.json": files["tokenizer_config.json"] + b" "}
    assert tokenizer_digest(other) != tokenizer_digest(files)
    with pytest.raises(DataError, match="another tokenizer"):
        tokenize(["one text", "another", "a third"], Tokenizing(out, other, 0.0, 1))
    assert contents(out) == before
