"""The cache of converted models: found again, renewed, shared by processes, listed and removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.errors import EdgeError
from edge.hub.convert import convert
from edge.hub.store import (
    CacheKey,
    _key_name,
    _lock,
    cached_bundle,
    cached_models,
    remove_cached,
    source_key,
)
from edge.system.paths import cache_folder

ROOT = Path(__file__).resolve().parents[3]

WORKER = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from edge.formats.bundle.reader import Bundle
    from edge.formats.bundle.writer import BundleWriter
    from edge.hub.store import CacheKey, cached_bundle
    source = Bundle.open(sys.argv[2])
    def build(path):
        print("build", flush=True)
        with BundleWriter(path, source.config, "x", list(source.tensors.values())) as writer:
            for name in source.tensors:
                writer.write(name, source.data(name))
            time.sleep(float(sys.argv[3]))
    bundle = cached_bundle(CacheKey("shared", {"a": 1}), build)
    print(bundle.content_hash, flush=True)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGE_CACHE", str(folder))
    return folder


@pytest.fixture
def build(tiny_config: Any, array_checkpoint: Callable[..., Any]) -> Callable[[Path], None]:
    """A real conversion that counts how often it ran."""

    def run(path: Path) -> None:
        run.count += 1  # type: ignore[attr-defined]
        convert(array_checkpoint(tiny_config), path, quantize="int4")

    run.count = 0  # type: ignore[attr-defined]
    return run


def start_worker(source: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(ROOT), str(source), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_made_once(build: Any, cache: Path) -> None:
    key = CacheKey("A model (v1)!", {"size": 3})
    first = cached_bundle(key, build)
    second = cached_bundle(key, build)
    assert build.count == 1 and first.path == second.path == cache / "models" / key.name
    assert key.name.startswith("A-model-v1-")
    assert cached_bundle(CacheKey("A model (v1)!", {"size": 4}), build).path != first.path
    assert build.count == 2


def test_key_follows_path_size_time_options_and_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"abc")
    options = {"quantize": None, "head": None}
    names = [source_key(file, options).name]
    assert source_key(file, dict(reversed(options.items()))).name == names[0]
    assert names[0].startswith("model-")
    names.append(source_key(file, {"quantize": "int4", "head": None}).name)
    os.utime(file, ns=(0, 1234))
    names.append(source_key(file, options).name)
    file.write_bytes(b"abcd")
    os.utime(file, ns=(0, 1234))
    names.append(source_key(file, options).name)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"abcd")
    os.utime(other, ns=(0, 1234))
    names.append(source_key(other, options).name)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"1")
        names.append(source_key(folder, options).name)
    monkeypatch.setattr("edge.hub.store.READER_VERSION", 0)
    names.append(source_key(folder, options).name)
    assert len(set(names)) == len(names)
    with pytest.raises(EdgeError, match="absent"):
        source_key(tmp_path / "absent", options)


def test_a_damaged_bundle_is_made_again(build: Any) -> None:
    key = CacheKey("m", {})
    path = cached_bundle(key, build).path
    os.truncate(path / "weights.safetensors", 100)
    assert cached_bundle(key, build).path == path and build.count == 2
    (path / "manifest.json").unlink()
    cached_bundle(key, build)
    assert build.count == 3


def test_verify_renews_what_only_a_checksum_finds(build: Any) -> None:
    key = CacheKey("m", {})
    file = cached_bundle(key, build).path / "weights.safetensors"
    status = file.stat()
    with file.open("r+b") as weights:
        weights.seek(-70, os.SEEK_END)
        byte = weights.read(1)
        weights.seek(-70, os.SEEK_END)
        weights.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    cached_bundle(key, build)
    assert build.count == 1
    cached_bundle(key, build, verify=True)
    assert build.count == 2


def test_a_failed_build_leaves_nothing(build: Any, cache: Path) -> None:
    def fail(path: Path) -> None:
        raise EdgeError("no weights")

    with pytest.raises(EdgeError, match="no weights"):
        cached_bundle(CacheKey("m", {}), fail)
    assert not list((cache / "models").iterdir())
    cached_bundle(CacheKey("m", {}), build)


def test_list_and_remove(build: Any, cache: Path) -> None:
    assert cached_models() == [] and remove_cached() == []
    keys = [CacheKey(name, {}) for name in ("alpha", "alphabet", "beta")]
    paths = []
    for key in keys:
        paths.append(cached_bundle(key, build).path)
        time.sleep(0.02)
    entries = cached_models()
    assert [entry.name for entry in entries] == [key.name for key in reversed(keys)]
    for entry in entries:
        assert entry.source == "arrays" and abs(entry.created - time.time()) < 60
        assert entry.bytes == sum(file.stat().st_size for file in entry.path.iterdir())
    with pytest.raises(EdgeError, match="several"):
        remove_cached("alpha")
    with pytest.raises(EdgeError, match="not in the cache"):
        remove_cached("gamma")
    with pytest.raises(EdgeError, match="not in the cache"):
        remove_cached("lphabet")  # inside of a name, not its beginning
    assert len(list((cache / "stamps").iterdir())) == 3
    assert [entry.name for entry in remove_cached("alphabet")] == [keys[1].name]
    assert len(list((cache / "stamps").iterdir())) == 2 and not list((cache / "locks").iterdir())
    assert [entry.name for entry in remove_cached(keys[0].name)] == [keys[0].name]
    (cache / "models" / "strange").mkdir()
    assert {entry.source for entry in cached_models()} == {"arrays", "unfinished or damaged"}
    assert len(remove_cached()) == 2
    assert cached_models() == [] and not any(path.exists() for path in paths)


def test_the_quantization_of_most_weights_comes_first(tiny_config: Any, array_checkpoint: Any) -> None:
    """Two large matrices beside fourteen small ones."""
    checkpoint = array_checkpoint(replace(tiny_config, vocab_size=3001))
    cached_bundle(CacheKey("m", {}), lambda out: convert(checkpoint, out, quantize="int4", head="int8"))
    assert cached_models()[0].quantization == ("int8-g32", "int4-g32")


def test_processes_share_one_conversion(build: Any, tmp_path: Path) -> None:
    convert_target = tmp_path / "source"
    build(convert_target)
    workers = [start_worker(convert_target, 0.3) for _ in range(3)]
    outputs = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert sum(output.count("build") for output in outputs) == 1
    assert len({output[-1] for output in outputs}) == 1
    assert all(worker.returncode == 0 for worker in workers)


def test_a_running_quantizer_keeps_its_layers(build: Any, cache: Path) -> None:
    """Its finished layers lie in `.NAME.quantizing`: removed only where nobody holds the lock of NAME."""
    key = CacheKey("model-1.5", {})

    def quantize(out: Path) -> None:
        work = out.with_name(f".{out.name}.quantizing")
        work.mkdir()
        assert [entry.name for entry in cached_models()] == [work.name]
        assert remove_cached() == [] and work.is_dir()
        work.rename(out.with_name(f".{out.name}.killed.quantizing"))
        build(out)
        out.with_name(f"{out.name}.quantization.json").write_text("{}")

    cached_bundle(key, quantize)
    assert len(remove_cached()) == 2 and not list((cache / "models").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="lock files are removed where open files can be")
def test_a_removed_lock_still_excludes(cache: Path) -> None:
    """Threads that waited for a lock whose file its holder removed never hold it two at a time."""
    inside, most, turns = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, turns
        for _ in range(50):
            with _lock("key") as held:
                assert held
                inside += 1
                most = max(most, inside)
                time.sleep(0.0002)
                turns += 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 200) and not list((cache / "locks").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_process_blocks_nobody(build: Any, tmp_path: Path, cache: Path) -> None:
    build(tmp_path / "source")
    worker = start_worker(tmp_path / "source", 60)
    assert worker.stdout is not None
    try:
        assert worker.stdout.readline() == "build\n"
        deadline = time.monotonic() + 10
        while not list((cache / "models").glob(".shared-*.partial")) and time.monotonic() < deadline:
            time.sleep(0.01)
        (running,) = cached_models()
        assert running.source == "unfinished or damaged"
        assert remove_cached() == []  # somebody is writing it
        worker.send_signal(signal.SIGKILL)
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    assert len(cached_models()) == 1
    bundle = cached_bundle(CacheKey("shared", {"a": 1}), build)
    assert [path.name for path in (cache / "models").iterdir()] == [bundle.path.name]


def test_unusable_cache_folder(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(EdgeError, match="EDGE_CACHE"):
        cached_bundle(CacheKey("m", {}), build)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGE_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("EDGE_CACHE")
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_folder() == tmp_path / "minicpm-edge"
        monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().is_relative_to(Path.home())


@pytest.mark.parametrize(
    "manifest", [b"[" * 100_000, b"\xff", b'{"source": "\\ud800"}', b"[]", b"{}", b"9" * 5000]
)
def test_damaged_manifests_are_listed(build: Any, cache: Path, manifest: bytes) -> None:
    bundle = cached_bundle(CacheKey("m", {}), build)
    (bundle.path / "manifest.json").write_bytes(manifest)
    (found,) = cached_models()
    assert found.source == "unfinished or damaged"
    assert [entry.name for entry in remove_cached()] == [found.name] and cached_models() == []


def test_names_of_entries_fit_every_file_system() -> None:
    """80 characters of the label, without dots and dashes around it, and 16 hexadecimal digits."""
    long = CacheKey("x" * 81, {}).name
    assert long.startswith("x" * 80 + "-") and len(long) == 80 + 1 + 16
    assert CacheKey("..-a.b_c-..", {}).name.startswith("a.b_c-")
    assert CacheKey("../模型", {}).name.startswith("model-")
    assert CacheKey("a", {"x": 1}).name == CacheKey("a", {"x": 1}).name != CacheKey("a", {"x": 2}).name


def test_every_file_of_a_folder_counts_and_links_are_followed(tmp_path: Path) -> None:
    folder, blob = tmp_path / "folder", tmp_path / "blob"
    folder.mkdir()
    blob.write_bytes(b"1")
    (folder / "a.json").write_bytes(b"1")
    (folder / "z.bin").symlink_to(blob)
    (tmp_path / "link").symlink_to(folder)
    before = source_key(folder, {})
    assert source_key(tmp_path / "link", {}) == before
    os.utime(blob, ns=(0, 1_000_000_001))
    after = source_key(folder, {})
    os.utime(blob, ns=(0, 1_000_000_002))  # nanoseconds count
    assert len({before.name, after.name, source_key(folder, {}).name}) == 3


@pytest.mark.parametrize(
    "folder", ["model-1.5-ab", ".model-1.5-ab.77-0f.partial", ".model-1.5-ab.quantizing"]
)
def test_the_key_of_finished_and_unfinished_folders(folder: str) -> None:
    assert _key_name(Path("models") / folder) == "model-1.5-ab"
