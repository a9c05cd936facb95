"""The typed keywords of the Python API are those of the declarations, name by name and type by type."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

import edge
from edge.chat import Chat
from edge.engine.keywords import LoadOptions, Settings
from edge.engine.settings import SETTING_NAMES, GenerationSettings, SamplingParams
from edge.executors.options import RunOptions
from edge.hub.options import SourceOptions
from edge.runtime import Model

# Settings that stand for others, or that take more forms than their field has.
OTHERS = {"stop": str | list[str] | tuple[str, ...], "eos_token_id": int | list[int] | tuple[int, ...]}
OTHERS |= {"do_sample": bool, "eos": str | int | list[str | int] | tuple[str | int, ...]}


def members(hint: Any) -> set[Any]:
    """The types of a union, None left out."""
    found = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return set(found) - {NoneType}


def test_settings():
    declared = {**get_type_hints(SamplingParams), **get_type_hints(GenerationSettings), **OTHERS}
    found = get_type_hints(Settings)
    assert set(found) == set(SETTING_NAMES)
    for name, hint in found.items():
        assert NoneType in get_args(hint), f"{name} may be None: not given"
        assert members(hint) == members(declared[name]), name


def test_load_options():
    declared = {**get_type_hints(SourceOptions), **get_type_hints(RunOptions)}
    del declared["extra"]
    found = get_type_hints(LoadOptions)
    assert set(found) == set(declared)
    for name, hint in found.items():
        assert members(hint) == members(declared[name]), name
    names = {field.name for kind in (SourceOptions, RunOptions) for field in fields(kind)}
    assert set(found) == names - {"extra"}


def test_the_api_takes_them():
    for function in (Model.chat, Model.stream, Model.complete, Chat.send, Chat.stream):
        assert inspect.get_annotations(function)["settings"] == "Unpack[Settings]"
    assert inspect.get_annotations(edge.load)["options"] == "Unpack[LoadOptions]"
    assert Path(edge.__file__).with_name("py.typed").is_file()


USER = """
import edge

model = edge.load("m", threads=2, kv_type="int8")
chat = model.chat(temperature=0.2)
text: str = chat.send([{"role": "user", "content": "Hi"}], max_new_tokens=3, stop=["x"]).text
edge.load("m", treads=2)
edge.load("m", kv_type="int3")
chat.send("Hi", temprature=0.1)
chat.send("Hi", top_k="many")
async def talk() -> None:
    async for chunk in chat.stream("Hi"):
        reveal_type(chunk)
    reveal_type(await chat.stream("Hi"))
"""


@pytest.mark.slow
def test_a_type_checker_knows_them(tmp_path: Path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "user.py"], cwd=tmp_path, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [int(line.split(":")[1]) for line in lines] == [7, 8, 9, 10], done.stdout
    assert 'Revealed type is "edge.engine.completion.Chunk"' in done.stdout
    assert 'Revealed type is "edge.engine.completion.Completion"' in done.stdout
