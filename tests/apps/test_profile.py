"""`edge profile`, `edge align`, `edge doctor` and `edge eval compare` as a person runs them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import typer

from edge.apps.profile.command import _share
from edge.apps.profile.options import PlanOptions
from edge.measure.profile import Profile
from edge.measure.profile.devices import DEVICES

SHORT = ("--prefill", "16", "--generate", "4", "--repeat", "2")


@pytest.fixture
def profiled(run_edge, smollm2, tmp_path):
    """The paths of a measured profile, and of the same one made a fifth slower."""
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    result = run_edge(
        "profile", smollm2, *SHORT, "--ops", "--out", str(before), "--csv", str(tmp_path / "a.csv")
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(before.read_text())
    for row in document["results"]:  # as on a machine without noise, so that the verdict is certain
        row["samples"] = [row["tokens_per_second"]["median"]] * len(row["samples"])
    before.write_text(json.dumps(document))
    for row in document["results"]:
        row["samples"] = [0.8 * value for value in row["samples"]]
        row["tokens_per_second"] = {name: 0.8 * value for name, value in row["tokens_per_second"].items()}
    after.write_text(json.dumps(document))
    return before, after, result.stdout, (tmp_path / "a.csv").read_text()


def test_a_measurement(profiled):
    before, _, output, csv = profiled
    found = Profile.load(before)
    assert [(row.test, row.tokens) for row in found.results] == [("prefill", 16), ("decode", 4)]
    assert found.results[0].model == "smollm2-135m" and len(found.results[0].samples) == 2
    assert (
        "prefill 16" in output
        and "decode 4" in output
        and re.search(r"gate_up +two int8 dots, int4 weights with minimums +\d", output)
    )
    assert {row.activations for row in found.results} == {"int16"}  # as a chat with this model
    assert f"read {found.machine.limits[0].read_bandwidth_gb_s:.1f} GB/s" in output
    assert len(csv.splitlines()) == 3


def test_json_is_the_last_line(run_edge, smollm2):
    result = run_edge("profile", smollm2, *SHORT, "--json", "--depth", "0,32", "--fill", "synthetic")
    found = Profile.from_json(json.loads(result.stdout.splitlines()[-1]))
    assert [row.depth for row in found.results] == [0, 0, 32, 32]
    assert {row.fill for row in found.results} == {"synthetic"}
    opening, *stages = result.stderr.splitlines()
    assert opening == f"Opening {smollm2}"
    tests = [f"{test} at depth {depth}" for depth in (0, 32) for test in ("prefill 16", "decode 4")]
    threads = found.results[0].threads
    assert stages == [f"[{n}/8] {test}, {threads} threads" for n, test in enumerate(2 * tests, 1)]


def test_streams_and_rows(run_edge, smollm2, tmp_path):
    path = tmp_path / "several.json"
    several = ("--streams", "1,2", "--rows", "3", "--prefill", "0", "--generate", "4", "--repeat", "1")
    result = run_edge("profile", smollm2, *several, "--out", str(path))
    assert result.returncode == 0, result.stderr
    found = Profile.load(path)
    assert [(row.test, row.streams, row.rows) for row in found.results] == [
        *(("decode", 1, None), ("decode", 2, None), ("verify", 1, 1), ("verify", 1, 3)),
    ]
    assert re.search(r"decode 4 in 2 streams +\d", result.stdout)
    *_, one, three = found.results
    assert re.search(rf"verify 3 .* {three.seconds / one.seconds:.2f} ", result.stdout)


def test_comparing(run_edge, profiled):
    before, after, _, _ = profiled
    result = run_edge("profile", "--compare", str(before), str(after), "--fail-above", "5%")
    assert result.returncode == 1 and "0.800" in result.stdout
    same = run_edge("profile", "--compare", str(before), str(before), "--fail-above", "5%", "--json")
    assert same.returncode == 0
    ratios = json.loads(same.stdout)["ratios"]
    assert [ratio["ratio"] for ratio in ratios] == [1, 1] and not any(ratio["slower"] for ratio in ratios)
    assert run_edge("profile", "--compare", str(before), str(after)).returncode == 0  # no limit was given


def test_a_share_may_be_written_in_two_ways():
    assert (_share("5%"), _share("0.05"), _share("0")) == (0.05, 0.05, 0)
    for wrong in ("1", "100%", "-1%", "five"):
        with pytest.raises(typer.BadParameter, match="not a share"):
            _share(wrong)


def test_a_described_device():
    """What is given counts more than what is known of the device."""
    known = DEVICES["jetson-orin-nano"]

    def planned(**options):
        device = PlanOptions(plan=True, **options).planned_device()
        return device and (device.title, device.bandwidth_gb_s, device.int8_tops, device.source)

    assert planned() is None
    assert planned(device="jetson-orin-nano") == (known.title, 68, 20, known.source)
    assert planned(device="jetson-orin-nano", bandwidth=50.0)[1:3] == (50, 20)
    assert planned(device="jetson-orin-nano", int8_tops=3.0)[1:3] == (68, 3)
    assert planned(bandwidth=50.0) == ("the device described", 50, None, "given")
    assert planned(bandwidth=50.0, int8_tops=3.0)[1:3] == (50, 3)
    with pytest.raises(typer.BadParameter, match="needs --bandwidth or --device"):
        planned(int8_tops=3.0)


def test_planning(run_edge):
    arguments = ("profile", "--plan", "random:minicpm4-8b", "--context", "131072", "--memory", "8G")
    result = run_edge(*arguments, "--device", "jetson-agx-orin", "--quantize", "int4,ternary", "--json")
    document = json.loads(result.stdout)
    assert document["device"]["bandwidth_gb_s"] == 204.8 and "NVIDIA" in document["device"]["source"]
    assert [(plan["quantize"], plan["fits"]) for plan in document["plans"]] == [
        ("int4-g32", False),
        ("ternary-g128", True),
    ]
    text = run_edge(*arguments, "--bandwidth", "50").stdout
    assert (
        "does not fit into 8.00 GB" in text and "nothing was run" in text and "int8 rate is not known" in text
    )


def test_planning_for_the_cores_of_a_device(run_edge):
    arguments = (
        "profile",
        "--plan",
        "random:minicpm4-0.5b",
        "--context",
        "4096",
        "--device",
        "raspberry-pi-5",
    )
    arguments += ("--depth", "0,2048", "--prefill", "512")
    document = json.loads(run_edge(*arguments, "--json").stdout)
    assert document["schema"] == 3 and document["device"]["cpu"]["read_share"] == 0.7
    (plan,) = document["plans"]
    speeds = {(each["test"], each["depth"]): each for each in plan["predicted"]}
    assert set(speeds) == {("prefill", 0), ("prefill", 2048), ("decode", 0), ("decode", 2048)}
    assert speeds["prefill", 0]["limit"] == "arithmetic" and speeds["decode", 0]["limit"] == "memory"
    # A board with 17 GB/s: more than the weights fit into that is not to be had.
    assert 10 < speeds["decode", 0]["tokens_per_second"] < 17.1e9 / plan["weights_bytes"]
    several = run_edge(*arguments, "--streams", "1,4", "--rows", "8", "--json").stdout
    speeds = {
        (each["test"], each["streams"], each["depth"])
        for each in json.loads(several)["plans"][0]["predicted"]
    }
    assert {("decode", 4, 2048), ("verify", 1, 0)} <= speeds
    text = run_edge(*arguments).stdout
    assert "Predicted" in text and "the cores read 70%" in text and "Arithmetic only: nothing was run" in text
    given = json.loads(run_edge(*arguments, "--bandwidth", "10", "--json").stdout)["device"]
    assert (given["bandwidth_gb_s"], given["cpu"]["read_share"]) == (10, 1)


class Links(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")
        ]


def test_the_page_needs_nothing_else(run_edge, smollm2, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib (the extra `profile`)")
    page = tmp_path / "page.html"
    result = run_edge("profile", smollm2, *SHORT, "--depth", "0,64", "--ops", "--html", str(page))
    assert result.returncode == 0, result.stderr
    text = page.read_text()
    links = Links()
    links.feed(text)
    assert links.tags.count("svg") == 4 and "script" not in links.tags and "link" not in links.tags
    assert all(link.startswith("#") for link in links.found)
    for word in ("Roofline", "Decode speed against context", "Latency of single tokens", "gate_up", smollm2):
        assert word in text
    assert "url(http" not in text and "@import" not in text
    assert len(text) < 400_000
    # On a phone nothing is wider than the screen, and in the dark no picture keeps the letters of the light.
    assert 'content="width=device-width,initial-scale=1"' in text and "prefers-color-scheme:dark" in text
    assert not re.search(r"[:\"']#[0-9a-f]{6}", text[text.index("<svg") :])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("m", "--executor", "metal"), "Unknown executor 'metal'; choose one of native"),
        (("m", "--depth", "1,x"), "'1,x' is not a list of whole numbers"),
        (("m", "--quantize", "int3"), "Unknown quantization 'int3'; choose one of int4, int8, ternary, f16"),
        (("m", "n"), "give one model"),
        (("m", "--fail-above", "5%"), "belongs to --compare"),
        (("--compare", "m"), "give two profiles"),
        (("--compare", "m", "n", "--fail-above", "x"), "'x' is not a share such as 5%"),
        (("--compare", "m", "n"), "Cannot read the profile 'm'"),
        (("m", "--out", "absent/x.json"), "There is no folder 'absent'"),
        (("--plan", "random:minicpm4-8b", "--device", "psp"), "Unknown device 'psp'; known are"),
        (("--plan", "random:minicpm4-8b", "--int8-tops", "5"), "needs --bandwidth or --device"),
        (("--plan", "random:minicpm4-8b", "--memory", "much"), "'much' is not a size"),
        (("--plan", "random:minicpm4-8b", "--device", "psp"), "raspberry-pi-5"),
        (
            ("--plan", "random:minicpm4-8b", "--device", "raspberry-pi-5", "--int8-tops", "5"),
            "Raspberry Pi 5 runs on its cores, whose speed is known: leave it out",
        ),
        (("--plan", "random:minicpm4-8b", "--depth", "5"), "needs --device or --bandwidth beside it"),
        (
            ("--plan", "random:minicpm4-8b", "--context", "64", "--device", "apple-m1", "--depth", "64"),
            "A decode of 1 at depth 64 does not fit into a context of 64 tokens",
        ),
        (("--plan", "--compare", "a", "b"), "either --compare or --plan"),
        (("m", "--json", "--md"), "either --json or --md"),
        (("m", "--streams", "0"), "streams must be a whole number of 1 or more, got 0"),
    ],
)
def test_bad_arguments(run_edge, arguments, sentence):
    result = run_edge("profile", *arguments)
    assert result.returncode in (1, 2) and result.stdout == ""
    assert result.stderr.startswith("Error: ") and sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_tracing_and_aligning(run_edge, smollm2, environment, tmp_path):
    paths = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for path, options in zip(paths, ((), ("--threads", "1"), ("--activations", "int8")), strict=True):
        chat = ("chat", smollm2, "--prompt", "Hi", "--max-tokens", "2", "--temperature", "0", *options)
        result = run_edge(*chat, env={**environment, "EDGE_TRACE": str(path)})
        assert result.returncode == 0, result.stderr
    same = run_edge("align", str(paths[0]), str(paths[1]))
    assert same.returncode == 0 and "stages agree" in same.stdout
    rounded = run_edge("align", str(paths[0]), str(paths[2]), "--tolerance", "1e-4", "--json")
    document = json.loads(rounded.stdout)
    assert rounded.returncode == 1
    assert (document["first"]["operation"], document["first"]["layer"]) == ("qkv", 0)
    assert 1e-4 < document["first"]["difference"] < 0.1


def test_aligning_traces_without_operators(run_inside, tmp_path):
    """As onnx and executorch write them: the command says that it saw the logits only."""
    sums = {"shape": [1, 2], "norm": 1.0, "largest": 1.0, "sketch": [1.0] * 32}
    event = {"name": "forward", "cat": "executor", "ph": "X", "ts": 1, "dur": 1, "pid": 1, "tid": 1}
    call = {**event, "args": {"call": 1, "tokens": 1, "past": 0, "checksum": sums}}
    trace = tmp_path / "whole.json"
    trace.write_text(json.dumps({"traceEvents": [call]}))
    run = run_inside("align", str(trace), str(trace))
    assert run.returncode == 0 and "1 stages agree" in run.stdout
    assert "A has no operators" in run.stdout and "B has no operators" in run.stdout
    document = json.loads(run_inside("align", str(trace), str(trace), "--json").stdout)
    assert document["whole"] == ["A", "B"]


def test_doctor(run_edge, environment):
    result = run_edge("doctor", "--json", env={**environment, "EDGE_CPU": "portable"})
    document = json.loads(result.stdout)
    assert result.returncode == 0 and document["healthy"]
    assert any("portable (EDGE_CPU says so)" in finding["detail"] for finding in document["findings"])
    bad = run_edge("doctor", "--executor", "native,metal")
    assert bad.returncode == 2 and "Unknown executor 'metal'; choose one of native" in bad.stderr


def test_comparing_two_forms_of_a_model(run_edge, smollm2, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The harbour froze in January, and the ships stayed until the ice let them go.")
    arguments = ("eval", "compare", smollm2, smollm2, "--text", str(text))
    found = json.loads(run_edge(*arguments, "--kv-b", "float32", "--json").stdout)
    assert 0 < found["kl_divergence"] < 0.1 and found["top1_agreement"] > 0.7
    assert (found["a"]["kv_type"], found["b"]["kv_type"]) == ("int16", "float32")
    same = run_edge(*arguments, "--limit", "9").stdout
    assert "Top-1 agreement 100.00%" in same and "8 positions" in same
