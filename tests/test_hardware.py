"""The hardware grammar: every spelling that is right, and what a wrong one is told."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_sdk import hardware
from flow_sdk.errors import ValidationError
from flow_sdk.hardware import GPUS, MAX_GPUS, SIZES, Hardware, parse, request
from tests.services import ROOT


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a100", "a100"),
        ("A100", "a100"),
        ("  a100\n", "a100"),
        ("1xa100", "1xa100"),
        ("a100:1", "1xa100"),
        ("8xa100", "8xa100"),
        ("8XA100", "8xa100"),
        ("a100:8", "8xa100"),
        ("a100x8", "8xa100"),
        ("h100x8", "8xh100"),
        ("64xh100", "64xh100"),
        ("a100-40gb", "a100-40gb"),
        ("a100-80gb", "a100"),
        ("4xa100-40gb", "4xa100-40gb"),
        ("a100-40gb:4", "4xa100-40gb"),
        ("a100-40GBx4", "4xa100-40gb"),
        ("h100-94gb", "h100-94gb"),
        ("mi300x", "mi300x"),
        ("mi300xx8", "8xmi300x"),
        ("mi300x:8", "8xmi300x"),
        ("8xmi300x", "8xmi300x"),
        ("rtx4090", "rtx4090"),
        ("RTX4090x2", "2xrtx4090"),
        ("l40sx4", "4xl40s"),
        ("cpu", "cpu"),
        ("CPU", "cpu"),
        ("cpu-optimized", "cpu-optimized"),
        ("gpu.small", "gpu.small"),
        ("GPU.Medium", "gpu.medium"),
        ("gpu.large", "gpu.large"),
        ("gpu.xlarge", "gpu.xlarge"),
        ("it_AbC123", "it_AbC123"),
    ],
)
def test_every_spelling_has_one_canonical_form(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)


def test_fields_of_gpus() -> None:
    eight = parse("a100:8")
    assert (eight.gpu, eight.count, eight.memory_gb, eight.size, eight.bare) == ("a100", 8, 80, None, False)
    small = parse("4xa100-40gb")
    assert (small.gpu, small.count, small.memory_gb, small.model) == ("a100", 4, 40, "a100-40gb")
    assert (eight.model, parse("cpu").model) == ("a100", None)


@pytest.mark.parametrize("text", ["cpu", "gpu.medium", "it_abc123"])
def test_fields_of_sizes(text: str) -> None:
    size = parse(text)
    assert (size.gpu, size.count, size.memory_gb, size.size, size.bare) == (None, 0, None, text, False)


def test_a_bare_name_differs_from_exactly_one() -> None:
    assert parse("h100").bare
    assert not parse("1xh100").bare
    assert parse("h100") != parse("1xh100")
    assert parse("h100").count == parse("1xh100").count == 1


@pytest.mark.parametrize("gpu", GPUS)
def test_every_known_gpu_parses_in_every_form(gpu: str) -> None:
    assert str(parse(gpu)) == gpu
    for text in (f"4x{gpu}", f"{gpu}:4", f"{gpu}x4"):
        assert parse(text) == Hardware(gpu, 4, parse(gpu).memory_gb)


def test_the_names_asked_for_are_known() -> None:
    asked = "a10 a10g a40 a100 a6000 b100 b200 b300 gb200 gh200 h100 h200 l4 l40 l40s mi210 mi250 mi300x p4 p100"
    assert set(f"{asked} rtx3090 rtx4090 rtx5090 rtx6000 t4 v100".split()) <= set(GPUS)


@given(
    st.sampled_from(GPUS), st.integers(1, MAX_GPUS), st.booleans(), st.sampled_from(["{n}x{m}", "{m}:{n}", "{m}x{n}"])
)
def test_parse_and_str_round_trip(gpu: str, count: int, upper: bool, form: str) -> None:
    for memory_gb in hardware._MEMORY_GB[gpu]:
        text = form.format(n=count, m=f"{gpu}-{memory_gb}gb")
        value = parse(text.upper() if upper else text)
        assert (value.gpu, value.count, value.memory_gb, value.bare) == (gpu, count, memory_gb, False)
        assert parse(str(value)) == value
        assert str(parse(str(value))) == str(value)


_pieces = st.sampled_from(
    [*GPUS, *SIZES, "x", ":", "-", "8", "0", "40gb", " ", "gb", "*", "é", "it_", "eight", "\n", "."]
)


@given(st.one_of(st.text(max_size=30), st.lists(_pieces, max_size=6).map("".join)))
def test_any_text_is_hardware_or_one_clear_error(text: str) -> None:
    try:
        value = parse(text)
    except ValidationError as error:
        assert "\n" not in error.message
        assert error.message.endswith((".", "?"))
        for right in re.findall(r"^Use (\S+)\.$", "\n".join(error.suggestions), re.M):
            parse(right)
    else:
        assert parse(str(value)) == value


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a1000", "a100"),
        ("8*a100", "8xa100"),
        ("a100*8", "8xa100"),
        ("8 x a100", "8xa100"),
        ("4×h100", "4xh100"),
        ("a100-8", "8xa100"),
        ("a100 8", "8xa100"),
        ("a100,8", "8xa100"),
        ("a100_8", "8xa100"),
        ("a100 : 8", "8xa100"),
        ("a100:", "a100"),
        ("A100:eight", "8xa100"),
        ("08xa100", "8xa100"),
        ("0xa100", "1xa100"),
        ("a100:0", "1xa100"),
        ("100xa100", "8xa100"),
        ("8xa100x8", "8xa100"),
        ("8xh10", "8xh100"),
        ("mi300x8", "8xmi300x"),
        ("a100-48gb", "a100-40gb"),
        ("8xa100-64gb", "8xa100"),
        ("a100 40gb", "a100-40gb"),
        ("2 x h100 80gb", "2xh100"),
        ("NVIDIA-A100-SXM4-80GB", "a100"),
        ("h100-sxm5:8", "8xh100"),
        ("RTX 4090", "rtx4090"),
        ("2xrtx-4090", "2xrtx4090"),
        ("gpu.mdium", "gpu.medium"),
        ("cpu-optimised", "cpu-optimized"),
        ("cpus", "cpu"),
        ("8", "8xa100"),
    ],
)
def test_a_misspelling_is_told_the_right_spelling(text: str, right: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(text)
    assert f"did you mean {right}" in caught.value.message
    assert text in caught.value.message
    assert caught.value.suggestions[0].startswith(f"Use {right}")
    parse(right)


def test_a_bare_number_is_near_to_the_hundreds() -> None:
    with pytest.raises(ValidationError, match="did you mean") as caught:
        parse("100")
    assert {"Use a100.", "Use h100."} & set(caught.value.suggestions)


@pytest.mark.parametrize("text", ["", "   ", "\t"])
def test_empty_text(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(text)
    assert caught.value.message == "The instance type is empty; name hardware such as a100, 8xa100 or cpu."
    assert "h100" in caught.value.suggestions[0]


@pytest.mark.parametrize("text", ["foo", "tpu-v4", "it_", "it_a b", "x" * 5000, "9" * 5000 + "xa100", "a100\0"])
def test_text_that_is_near_to_nothing_lists_what_there_is(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(text)
    assert caught.value.message.startswith("Invalid instance type")
    assert len(caught.value.message) < 200
    assert caught.value.suggestions


@pytest.mark.parametrize("value", [8, None, True, 1.5, b"a100", ["a100"]])
def test_a_value_that_is_no_text(value: object) -> None:
    with pytest.raises(ValidationError, match="must be text such as a100 or 8xa100"):
        parse(value)  # type: ignore[arg-type]


def test_a_number_of_gpus_alone_is_told_how_to_write_it() -> None:
    with pytest.raises(ValidationError) as caught:
        parse(4, "gpu")  # type: ignore[arg-type]
    assert caught.value.message.startswith("Invalid gpu 4")
    assert caught.value.suggestions == ["Write 4xa100 for that many A100s."]


def test_too_many_gpus_is_told_of_num_instances() -> None:
    with pytest.raises(ValidationError) as caught:
        parse("100xa100")
    assert "no machine has 100 GPUs" in caught.value.message
    assert caught.value.suggestions == ["Use 8xa100 with num_instances=13 to get 104 GPUs on several machines."]


@pytest.mark.parametrize(
    ("instance_type", "gpu", "wanted"),
    [
        (None, None, None),
        ("a100", None, Hardware("a100", 1, 80, bare=True)),
        ("8xa100", None, Hardware("a100", 8, 80)),
        ("cpu", None, Hardware(size="cpu")),
        (None, "a100", Hardware("a100", 1, 80)),
        (None, "h100:8", Hardware("h100", 8, 80)),
        ("8xa100", "a100:8", Hardware("a100", 8, 80)),
        ("1xa100", "a100", Hardware("a100", 1, 80)),
        ("h100", "h100:8", Hardware("h100", 8, 80)),
        ("h100", "h100", Hardware("h100", 1, 80)),
    ],
)
def test_request_merges_the_two_fields(instance_type: str | None, gpu: str | None, wanted: Hardware | None) -> None:
    assert request(instance_type, gpu) == wanted


@pytest.mark.parametrize(
    ("instance_type", "gpu"),
    [("8xa100", "a100"), ("8xa100", "h100:8"), ("cpu", "a100"), ("a100-40gb", "a100"), ("gpu.medium", "a100")],
)
def test_request_refuses_two_that_differ(instance_type: str, gpu: str) -> None:
    with pytest.raises(ValidationError, match="ask for different hardware") as caught:
        request(instance_type, gpu)
    assert [s.split()[0] for s in caught.value.suggestions] == ["Leave", "Leave"]


@pytest.mark.parametrize("gpu", ["cpu", "gpu.medium", "it_abc"])
def test_gpu_must_name_a_gpu(gpu: str) -> None:
    with pytest.raises(ValidationError, match="names no GPU") as caught:
        request(None, gpu)
    assert f"instance_type='{gpu}'" in caught.value.suggestions[0]


def test_request_says_which_field_is_wrong() -> None:
    with pytest.raises(ValidationError, match="Invalid gpu 'a1000'"):
        request(None, "a1000")
    with pytest.raises(ValidationError, match="Invalid instance type 'a1000'"):
        request("a1000", None)


def test_hardware_is_frozen() -> None:
    value = parse("8xa100")
    with pytest.raises(AttributeError, match="frozen"):
        value.count = 4
    with pytest.raises(AttributeError, match="frozen"):
        del value.gpu
    assert value == parse("a100:8")


def test_hardware_is_a_value() -> None:
    value = parse("4xa100-40gb")
    assert {value: 1}[parse("a100-40gb:4")] == 1
    assert value != "4xa100-40gb"
    assert repr(value) == "Hardware('4xa100-40gb')"
    for other in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert other == value


def test_importing_loads_nothing_heavy() -> None:
    code = """
import sys
import flow_sdk
before = set(sys.modules)
import flow_sdk.hardware
flow_sdk.hardware.parse("8xa100")
print(*sorted(m for m in set(sys.modules) - before if not m.startswith("flow_sdk")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"typing", "dataclasses", "difflib", "inspect", "pydantic", "yaml", "pathlib"}, loaded
