"""A run's TOML file: what it may say, and the sentence for everything else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from edge.errors import ConfigError
from edge.system.options import options_of
from edge.train import config as module
from edge.train.config import CONFIGS, RunConfig, read, run_from

LEAST: dict[str, Any] = {"data": {"sources": {"t": "texts"}}, "schedule": {"steps": 10}}


def sections(kind: type[Any] = RunConfig) -> list[type[Any]]:
    """A section and all sections inside it."""
    found = [kind]
    for hint in get_type_hints(kind).values():
        inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            found += sections(inner)
    return found


def test_every_option_of_every_section_says_what_it_is():
    assert len(sections()) == 15
    for kind in sections():
        declared, hints = options_of(kind), get_type_hints(kind)
        for each in dataclasses.fields(kind):
            if isinstance(hints[each.name], type) and dataclasses.is_dataclass(hints[each.name]):
                continue
            assert each.name in declared, f"{kind.__name__}.{each.name} has no help"
            text = declared[each.name].help
            assert text[0].isupper() and text.endswith("."), text
        assert kind.__doc__


def test_defaults_are_allowed_values_and_survive_json():
    found = run_from(LEAST)
    assert run_from(LEAST) == found and found.to_json()["schedule"]["steps"] == 10
    back = found.to_json()
    changes = back["model"].pop("changes")
    assert run_from({**back, "model": {**back["model"], **changes}} | {"start": {}, "quantization": {}} | {
        "runtime": {name: value for name, value in back["runtime"].items() if value is not None}
    }) == found  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_presets_are_runs(path: Path):
    assert read(path.stem) == read(path)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"schedule": {"steps": 1, "warmup": 2}}, "There is no option 'schedule.warmup'; is it"),
    "unknown section": ({"modle": {}}, "There is no option 'modle'; is it 'model'?"),
    "far off": ({"log": {"zzz": 1}}, "There is no option 'log.zzz'; there are every, tensorboard."),
    "from": ({"start": {"from": "x"}}, "There is no option 'start.from'; there are path, what."),
    "in a phase": (
        {"data": {"phases": [{"begin": 0.5}]}},
        "There is no option 'data.phases.begin'; is it 'data.phases.begins'?",
    ),
    "missing": ({"schedule": {"kind": "wsd"}}, "The option 'schedule.steps' is missing."),
    "missing in a phase": ({"data": {"phases": [{}]}}, "The option 'data.phases.begins' is missing."),
    "no section": ({"schedule": 3}, "'schedule' must be a section, not 3."),
    "a list": ({"data": []}, "'data' must be a section, not []."),
    "text for a number": (
        {"schedule": {"steps": "many"}},
        "schedule: steps must be a whole number of 1 or more, got 'many'.",
    ),
    "a float for a whole number": (
        {"schedule": {"steps": 1.5}},
        "schedule: steps must be a whole number of 1 or more, got 1.5.",
    ),
    "a switch for a number": (
        {"data": {"rows": True}},
        "data: rows must be a whole number of 1 or more, got True.",
    ),
    "a number for a switch": (
        {"runtime": {"compile": 1}},
        "runtime: compile must be true or false, got 1.",
    ),
    "out of range": (
        {"schedule": {"steps": 1, "floor": 2}},
        "schedule: floor must be a number from 0 to 1, got 2.",
    ),
    "no choice": (
        {"schedule": {"steps": 1, "kind": "wds"}},
        "schedule: Unknown kind 'wds'; choose one of wsd, cosine, constant.",
    ),
    "no preset": ({"model": {"preset": "gpt"}}, "model: Unknown preset 'gpt'; choose one of"),
    "no list": ({"data": {"buckets": 16}}, "'data.buckets' must be a list, not 16."),
    "a list of texts": ({"data": {"buckets": ["a"]}}, "data: buckets must be a whole number, got 'a'."),
    "one beta": ({"optimizer": {"betas": [0.9]}}, "optimizer: betas must be two numbers, got [0.9]."),
    "a path that is a number": ({"data": {"sources": {"t": 1}}}, "'data.sources.t' must be a path, not 1."),
    "sources in a list": ({"data": {"sources": ["t"]}}, "'data.sources' must be a section, not ['t']."),
    "a negative weight": (
        {"data": {"weights": {"t": -1}}},
        "'data.weights.t' must be a number of 0 or more, not -1.",
    ),
    "an infinite weight": (
        {"data": {"weights": {"t": float("inf")}}},
        "'data.weights.t' must be a number of 0 or more, not inf.",
    ),
    "infinity": (
        {"optimizer": {"learning_rate": float("inf")}},
        "'optimizer.learning_rate' must be a finite number, not inf.",
    ),
    "no number": (
        {"optimizer": {"learning_rate": float("nan")}},
        "'optimizer.learning_rate' must be a finite number, not nan.",
    ),
    "in the model": (
        {"model": {"rms_norm_eps": float("nan")}},
        "A value of 'model' is none that a model has",
    ),
    "a scheme": ({"quantization": {"scheme": "ternary-g"}}, "quantization: "),
    "a float scheme": ({"quantization": {"scheme": "f16"}}, "quantization: 'f16' rounds to no codes; choose"),
    "a seed": ({"seed": -1}, "seed must be a whole number of 0 or more, got -1."),
    "a text for a seed": ({"seed": "x"}, "seed must be a whole number of 0 or more, got 'x'."),
}


@pytest.mark.parametrize(("changes", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named(changes: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError) as caught:
        run_from({**LEAST, **changes}, "run.toml")
    assert str(caught.value).startswith(f"run.toml: {sentence}")
    assert "\n" not in str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('[data]\nsources = { t = "texts" }\n[schedule]\nsteps = 10\n')
    return path


def test_changes_take_the_place_of_the_file(file: Path):
    found = read(
        file,
        [
            "schedule.steps=20",
            "schedule.kind=cosine",
            "data.sources.more=a/b c",
            "data.phases=[{begins = 0.5, weights = {t = 1}}]",
            "optimizer.betas=[0.8, 0.9]",
            "runtime.compile=true",
            "model.rope.type=longrope",
            "seed=4",
            "start.path = x=y",
        ],
    )
    assert (found.schedule.steps, found.schedule.kind, found.seed) == (20, "cosine", 4)
    assert found.data.sources == {"t": "texts", "more": "a/b c"}
    assert found.data.phases == (module.DataPhase(0.5, {"t": 1}),)
    assert found.optimizer.betas == (0.8, 0.9) and found.runtime.compile
    assert found.model.changes == {"rope": {"type": "longrope"}} and found.start.path == "x=y"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("schedule.steps", "'schedule.steps' changes nothing; write section.key=value"),
        ("=3", "'=3' changes nothing"),
        ("schedule.=3", "'schedule.=3' changes nothing"),
        ("schedule.steps.more=3", "'schedule.steps.more=3': 'steps' is no section."),
        ("schedule=3", ".*run.toml: 'schedule' must be a section, not 3."),
        ("schedule.stesp=3", ".*run.toml: There is no option 'schedule.stesp'; is it 'schedule.steps'?"),
        ("schedule.steps=", ".*run.toml: schedule: steps must be a whole number of 1 or more, got ''."),
    ],
)
def test_changes_that_say_nothing_are_refused(file: Path, change: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        read(file, [change])


def test_files_that_cant_be_read_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^There is no run 'nothing'; give a TOML file, or one of .*smoke"):
        read("nothing")
    with pytest.raises(ConfigError, match=r"^There is no run '.*/no.toml'"):
        read(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match=r"can't be read \(.*Is a directory"):
        read(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="can't be read"):
        read(tmp_path / "binary.toml")
    (tmp_path / "half.toml").write_text("[data\n")
    with pytest.raises(ConfigError, match=r"half.toml' is not TOML: "):
        read(tmp_path / "half.toml")
