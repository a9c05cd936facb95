"""Profiles on an Android device: pushes edge_bench and a bundle with adb, runs it there, and reads its
document.

docs/profile.md says how the program is built with the NDK.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from edge.formats.bundle.manifest import MANIFEST, WEIGHTS
from edge.formats.bundle.reader import Bundle
from edge.formats.guarded_json import parse_json
from edge.hub.resolve import open_bundle
from edge.measure.profile.options import ProfileOptions
from edge.measure.profile.schema import Profile, ProfileError

_FOLDER = "/data/local/tmp/minicpm-edge"


def profile_on_android(
    model: str, options: ProfileOptions, binary: Path, serial: str | None = None
) -> Profile:
    """Measure `model` on the device that adb is connected to.

    binary: edge_bench for the device. serial: which device, if there are several. Raises ProfileError if adb
    or the program is missing, or fails, and for options that edge_bench does not have.
    """
    program = shutil.which("adb")
    if program is None:
        raise ProfileError(
            "adb is not installed: install Android's platform tools (the Debian package `adb`), and connect "
            "a device with USB debugging."
        )
    if not binary.is_file():
        raise ProfileError(f"There is no program '{binary}': build edge_bench for Android (docs/profile.md).")
    adb = [program, *(("-s", serial) if serial else ())]
    bundles = [open_bundle(model, quantize=name, head=options.head) for name in options.quantize]
    check_options(options)
    _run([*adb, "shell", f"mkdir -p {_FOLDER}"])
    _run([*adb, "push", str(binary), f"{_FOLDER}/edge_bench"])
    _run([*adb, "shell", f"chmod 755 {_FOLDER}/edge_bench"])
    profiles = [_measure(adb, model, bundle, options) for bundle in bundles]
    rows = tuple(row for each in profiles for row in each.results)
    return replace(profiles[-1], results=rows)


def check_options(options: ProfileOptions) -> None:
    """Raise ProfileError for what edge_bench can't do."""
    if options.operators:
        raise ProfileError("edge_bench does not report operators: leave --ops out.")
    if options.activations not in ("auto", "int8"):
        raise ProfileError("edge_bench measures with int8 activations only: leave --activations out.")
    if options.rope_regime != "auto":
        raise ProfileError("edge_bench measures the same time in both regimes: leave --rope-regime out.")
    if options.executor != (None,) or options.attention != ("auto",):
        raise ProfileError("edge_bench has one executor and attention: leave --executor and --attention out.")
    if options.streams != (1,) or options.rows:
        raise ProfileError(
            "edge_bench decodes one sequence, and verifies none: leave --streams and --rows out."
        )
    if len(options.kv_type) > 1:
        raise ProfileError("edge_bench measures one type of KV cache at a time: give one --kv.")


def bench_arguments(folder: str, model: str, options: ProfileOptions) -> list[str]:
    """The arguments of edge_bench for the bundle in `folder`."""
    threads = [str(count) for count in options.threads if count is not None]
    kv_type = options.kv_type[0]
    return [
        folder,
        *(
            "--model",
            model,
            "--fill",
            options.fill,
            "--kv",
            "float16" if kv_type == "auto" else kv_type,
        ),
        *(("--threads", ",".join(threads)) if threads else ()),
        *("--prefill", ",".join(map(str, options.prefill)), "--depth", ",".join(map(str, options.depth))),
        *("--generate", str(options.generate), "--repeat", str(options.repeat)),
    ]


def read_document(output: str) -> Profile:
    """The document on the last line of edge_bench's output."""
    line = output.strip().rpartition("\n")[2]
    return Profile.from_json(parse_json(line, "The last line of edge_bench", ProfileError, "run it again"))


def _measure(adb: list[str], model: str, bundle: Bundle, options: ProfileOptions) -> Profile:
    folder = f"{_FOLDER}/{bundle.content_hash[:16]}"
    _run([*adb, "shell", f"mkdir -p {folder}"])
    for name in (WEIGHTS, MANIFEST):
        _run([*adb, "push", str(bundle.path / name), f"{folder}/{name}"])
    command = shlex.join([f"{_FOLDER}/edge_bench", *bench_arguments(folder, model, options)])
    found = read_document(_run([*adb, "shell", command]))
    _run([*adb, "shell", f"rm -r {folder}"])
    return found


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
        raise ProfileError(f"`{shlex.join(command)[:100]}` failed: {reason.rstrip('.')}.")
    return result.stdout
