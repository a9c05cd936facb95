"""English texts for training runs, out of Debian packages: one JSON Lines file per source.

    python scripts/fetch_texts.py [--out build/texts] [SOURCE...]

Lines are {"text", "source"}. Packages are downloaded with `apt-get download` and unpacked with `dpkg-deb -x`:
nothing is installed and nobody has to be root. Finished sources and downloaded packages are kept, so a second
call goes on. Equal texts are taken once, over all sources in the order of the table below, and short ones are
dropped. The last line is one JSON document with the bytes and documents of each source. Cleaning:
`texts_cleaning.py`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from texts_cleaning import (
    austen_chapters,
    bible_chapters,
    described_packages,
    dictionary_entries,
    html_text,
    jargon_entries,
    paragraphs,
    wordnet_pages,
)

from edge.formats.atomic import Partial, replacing, write_file


@dataclass(frozen=True)
class Source:
    """Packages, what makes texts of their unpacked folders, and the least characters of a text."""

    packages: tuple[str, ...]
    read: Callable[..., Iterator[str]]
    least: int = 200


def _pages(pattern: str, leave_out: str = r"(?!)") -> Callable[[Path], Iterator[str]]:
    """Texts of the HTML pages in a package, less those whose path has `leave_out`."""

    def read(package: Path) -> Iterator[str]:
        for page in sorted(package.glob(pattern)):
            if not re.search(leave_out, page.as_posix()):
                yield html_text(page.read_text(encoding="utf-8", errors="replace"))

    return read


def _austen(package: Path) -> Iterator[str]:
    yield from austen_chapters((package / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes())


def _bible(program: Path, text: Path) -> Iterator[str]:
    """Chapters of the King James Bible; the package's own program unpacks them."""
    command = [str(program / "usr/bin/bible"), "-p", str(text / "usr/lib"), "-l1000", "gen1:1-rev22:21"]
    output = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True)
    yield from bible_chapters(output.stdout)


def _dictionary(name: str) -> Callable[[Path], Iterator[str]]:
    def read(package: Path) -> Iterator[str]:
        folder = package / "usr/share/dictd"
        with gzip.open(folder / f"{name}.dict.dz") as file:
            yield from dictionary_entries((folder / f"{name}.index").read_text("utf-8"), file.read())

    return read


def _wordnet(package: Path) -> Iterator[str]:
    for part in ("noun", "verb", "adj", "adv"):
        yield from wordnet_pages((package / f"usr/share/wordnet/data.{part}").read_text("utf-8"))


def _jargon(package: Path) -> Iterator[str]:
    with gzip.open(package / "usr/share/doc/jargon-text/jargon.txt.gz", "rt", encoding="utf-8") as file:
        yield from jargon_entries(file.read())


def _git(package: Path) -> Iterator[str]:
    for path in sorted((package / "usr/share/doc/git-doc").rglob("*.txt")):
        if "RelNotes" not in path.parts:
            yield paragraphs(path.read_text(encoding="utf-8", errors="replace"))


def _descriptions() -> Iterator[str]:
    """Debian's long descriptions; apt's lists go into a folder of their own."""
    with tempfile.TemporaryDirectory() as lists:
        Path(lists, "partial").mkdir()
        options = ["-o", f"Dir::State::lists={lists}", "-o", "Acquire::Languages=en"]
        subprocess.run(["apt-get", *options, "update"], check=True, stdout=subprocess.DEVNULL)
        for path in sorted(Path(lists).glob("*Translation-en*")):
            command = ["/usr/lib/apt/apt-helper", "cat-file", str(path)]
            found = subprocess.run(command, check=True, capture_output=True).stdout
            yield from described_packages(found.decode("utf-8", "replace"))


_PYTHON_NOISE = r"/(genindex|search|py-modindex|changelog|contents|download|copyright|license)"
SOURCES = {
    "austen": Source(("r-cran-janeaustenr",), _austen),
    "bible": Source(("bible-kjv", "bible-kjv-text"), _bible),
    "handbook": Source(
        ("debian-handbook",), _pages("usr/share/doc/debian-handbook/html/en-US/*.html", "/ix01")
    ),
    "reference": Source(("debian-reference-en",), _pages("usr/share/**/*.en.html")),
    "policy": Source(
        ("debian-policy",), _pages("usr/share/doc/debian-policy/policy.html/*.html", "genindex|search")
    ),
    "python": Source(("python3.11-doc",), _pages("usr/share/doc/python3.11/html/**/*.html", _PYTHON_NOISE)),
    "postgresql": Source(
        ("postgresql-doc-15",), _pages("usr/share/doc/**/html/*.html", "bookindex|/release-")
    ),
    "git": Source(("git-doc",), _git),
    "jargon": Source(("jargon-text",), _jargon, 80),
    "foldoc": Source(("dict-foldoc",), _dictionary("foldoc"), 80),
    "wordnet": Source(("wordnet-base",), _wordnet),
    "gcide": Source(("dict-gcide",), _dictionary("gcide"), 80),
    "descriptions": Source((), _descriptions),
    "linux": Source(
        ("linux-doc-6.1",), _pages("usr/share/doc/**/html/**/*.html", "genindex|search|translations")
    ),
}


def fetch_package(name: str, folder: Path) -> Path:
    """The folder that a package is unpacked in; downloads it if that was not done before."""
    target = folder / name
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=folder) as download:
        subprocess.run(["apt-get", "-qq", "download", name], cwd=download, check=True)
        (package,) = Path(download).glob("*.deb")
        with Partial(target, folder=True) as partial:
            subprocess.run(["dpkg-deb", "-x", package, partial.path], check=True)
            partial.keep()
    return target


def make_source(name: str, out: Path, seen: set[bytes]) -> None:
    """Write OUT/NAME.jsonl with the texts that are not in `seen`."""
    source = SOURCES[name]
    packages = out / ".packages"
    packages.mkdir(parents=True, exist_ok=True)
    folders = [fetch_package(package, packages) for package in source.packages]
    fresh = set(seen)
    with replacing(out / f"{name}.jsonl") as file:
        for text in source.read(*folders):
            digest = hashlib.sha256(text.encode()).digest()
            if len(text) >= source.least and digest not in fresh:
                fresh.add(digest)
                file.write(json.dumps({"text": text, "source": name}, ensure_ascii=False).encode() + b"\n")


def main() -> None:
    """Fetches what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=f"by default all: {', '.join(SOURCES)}")
    parser.add_argument("--out", type=Path, default=Path("build/texts"))
    arguments = parser.parse_args()
    if unknown := set(arguments.sources) - set(SOURCES):
        parser.error(f"there is no source {', '.join(sorted(unknown))}")
    chosen = [name for name in SOURCES if name in arguments.sources or not arguments.sources]
    arguments.out.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    table = {}
    print(f"{'source':<14}{'documents':>10}{'bytes':>12}", flush=True)
    for name in chosen:
        path = arguments.out / f"{name}.jsonl"
        if not path.exists():
            make_source(name, arguments.out, seen)
        texts = [json.loads(line)["text"].encode() for line in path.read_bytes().splitlines()]
        seen.update(hashlib.sha256(text).digest() for text in texts)
        table[name] = {"documents": len(texts), "bytes": sum(map(len, texts))}
        print(f"{name:<14}{table[name]['documents']:>10}{table[name]['bytes']:>12}", flush=True)
    write_file(arguments.out / "sources.json", json.dumps(table, indent=2).encode())
    print(json.dumps({"schema": 1, "out": str(arguments.out), "sources": table}))


if __name__ == "__main__":
    main()
