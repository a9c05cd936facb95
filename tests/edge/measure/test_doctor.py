"""The doctor on this machine, healthy and with things that are really broken."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.errors import EdgeError
from edge.executors.native.library import cpu_tiers
from edge.executors.registry import EXECUTORS
from edge.hub.convert import convert
from edge.hub.store import CacheKey, cached_bundle
from edge.measure.doctor import diagnose


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def findings(name, group=None, **options):
    """The findings called `name` of the checks in `group`."""
    found = diagnose(only=(group or name,), **options)
    return [finding for finding in found.findings if finding.check == name]


def test_this_machine_is_healthy(cache, monkeypatch):
    monkeypatch.delenv("EDGE_CPU", raising=False)
    found = diagnose()
    assert found.healthy, found.findings
    names = {finding.check for finding in found.findings}
    assert {"packages", "machine", "kernels", "self-test", "limits", "huge pages", "cache folder"} <= names
    tested = [finding.detail.partition(":")[0] for finding in found.findings if finding.check == "self-test"]
    assert tested == list(cpu_tiers())
    assert json.loads(json.dumps(found.to_json()))["healthy"] is True


def test_a_forced_tier_is_named(cache, monkeypatch):
    monkeypatch.setenv("EDGE_CPU", "portable")
    (kernels,) = findings("kernels", "native library")
    assert kernels.state == "ok" and kernels.detail.startswith("tier portable (EDGE_CPU says so)")


def test_a_tier_that_this_cpu_lacks(cache, monkeypatch):
    monkeypatch.setenv("EDGE_CPU", "altivec")
    found = diagnose(only=("native library",))
    assert not found.healthy
    bad, good = (finding for finding in found.findings if finding.check == "kernels")
    assert bad.state == "problem" and bad.mend == "unset EDGE_CPU" and "altivec" in bad.detail
    assert good.detail.startswith(f"tier {cpu_tiers()[0]} of")


def test_a_missing_library(cache, monkeypatch, tmp_path):
    from edge.executors.native import library as native
    from edge.executors.native import operators

    monkeypatch.setenv("EDGE_LIBRARY", str(tmp_path / "libedge.so"))
    native.library.cache_clear()
    operators._library.cache_clear()
    try:
        (found,) = findings("native library")
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
        operators._library.cache_clear()
    assert found.state == "problem" and "libedge.so" in found.detail and found.mend.startswith("pip install")


def test_an_executor_that_is_not_there(cache):
    good, found = findings("executor", "executors", executors=("native", "metal"))
    assert good.state == "ok" and "native is there" in good.detail
    assert found.state == "problem" and "'metal'" in found.detail and "native" in found.mend


def test_a_cache_that_can_not_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "file" / "cache"))
    (found,) = findings("cache folder")
    assert found.state == "problem" and found.mend.startswith("set EDGE_CACHE")


def test_damaged_and_unfinished_models(cache, tiny_config, array_checkpoint):
    def build(out):
        convert(array_checkpoint(tiny_config), out, quantize="int4")

    bundles = [cached_bundle(CacheKey(name, {}), build) for name in ("good", "bad")]
    with (bundles[1].path / "weights.safetensors").open("r+b") as file:
        file.truncate(1000)
    leftover = bundles[0].path.with_name(".good-0.1-2.partial")
    leftover.mkdir()
    found = {finding.mend: finding for finding in findings("cached model", "cache folder")}
    assert set(found) == {f"edge cache remove {path.name}" for path in (bundles[1].path, leftover)}
    assert "1000 bytes instead of" in found[f"edge cache remove {bundles[1].path.name}"].detail
    assert "unfinished" in found[f"edge cache remove {leftover.name}"].detail
    assert "1 sound models" in findings("cache folder")[0].detail
    assert diagnose(only=("cache folder",)).healthy  # a conversion mends them


@pytest.mark.parametrize("name", list(EXECUTORS))
def test_of_every_executor_it_says_what_chat_says(name):
    """Those of plugins too: what can be opened is there, and what can't has the same reason."""
    finding = diagnose((name,), only=("executors",)).findings[0]
    try:
        EXECUTORS.get(name).load()
    except EdgeError as error:
        assert (finding.state, finding.detail) == ("problem", str(error))
    else:
        assert finding.state == "ok" and finding.detail.startswith(f"{name} is there")


@pytest.mark.parametrize(("free", "warned"), [(2 << 30, False), ((2 << 30) - 1, True)])
def test_a_disk_that_is_nearly_full(cache, monkeypatch, free, warned):
    monkeypatch.setattr("edge.measure.doctor.shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    found = findings("disk", "cache folder")
    assert len(found) == warned
    assert all(each.state == "warning" and each.detail.startswith("2.15 GB are free") for each in found)
    assert diagnose(only=("cache folder",)).healthy


@pytest.mark.parametrize(
    ("mode", "state"), [(None, "note"), ("never", "warning"), ("madvise", "ok"), ("always", "ok")]
)
def test_huge_pages(monkeypatch, mode, state):
    monkeypatch.setattr("edge.measure.doctor.machine.huge_pages", lambda: mode)
    (found,) = findings("huge pages")
    assert (found.state, found.mend is not None) == (state, state == "warning")


def test_the_machine(monkeypatch):
    """What the system does not tell is left out; memory that is used up is not."""
    facts = {"cpu_name": "a CPU", "core_count": 4, "memory_bytes": 8 * 10**9, "load": 0.0}
    for name, value in facts.items():
        monkeypatch.setattr(f"edge.measure.doctor.machine.{name}", lambda value=value: value)
    for free, wanted in ((3 * 10**9, ", 3.00 GB of it free"), (0, ", 0 B of it free"), (None, "")):
        monkeypatch.setattr("edge.measure.doctor.available_memory", lambda free=free: free)
        (found,) = diagnose(only=("machine",)).findings
        assert found.detail == f"a CPU, 4 cores, 8.00 GB of memory{wanted}"
    monkeypatch.setattr("edge.measure.doctor.machine.load", lambda: 40.0)
    busy = diagnose(only=("machine",))
    assert [each.state for each in busy.findings] == ["ok", "warning"] and busy.healthy
    assert busy.findings[1].detail.startswith("40 processes are running on 4 cores")


def test_packages_that_are_missing(monkeypatch):
    versions = {"numpy": None, "onnxruntime": None}
    monkeypatch.setattr("edge.measure.doctor._version", lambda name: versions.get(name, "1.2"))
    found = diagnose(only=("packages",))
    assert not found.healthy and found.to_json()["healthy"] is False
    (problem,) = (each for each in found.findings if each.state == "problem")
    assert problem.detail.startswith("missing: numpy (") and problem.mend.startswith("pip install")
    (good,) = (each for each in found.findings if each.check == "packages" and each.state == "ok")
    assert "numpy" not in good.detail and " 1.2, " in good.detail


def test_checks_are_announced_in_their_order():
    seen = []
    diagnose(only=("executors", "packages"), progress=seen.append)
    assert seen == ["packages", "executors"]
