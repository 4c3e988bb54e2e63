"""The line of a magic."""

from __future__ import annotations

from typing import Any

import pytest

import flow_sdk as flow
from flow_nb import arguments

NAMES: dict[str, Any] = {"kind": "a100", "n": 4, "where": {"SIZE": "big"}, "folder": "my data", "packages": ["a", "b"]}


def fields(line: str) -> dict[str, Any]:
    return arguments.read(line, NAMES).fields


@pytest.mark.parametrize("line", ["gpu=a100:4", "--gpu a100:4", "--gpu=a100:4", "gpu='a100:4'", "gpu=$kind:{n}"])
def test_every_spelling_of_an_option(line: str) -> None:
    assert fields(line) == {"gpu": "a100:4"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("num_instances=2 --max-price-per-hour 2.5", {"num_instances": 2, "max_price_per_hour": 2.5}),
        ("num_instances=$n", {"num_instances": 4}),
        ("-N 3 -n train -e A=1,B=2", {"num_instances": 3, "name": "train", "env": ["A=1", "B=2"]}),
        ("env={'A': '1'} ", {"env": {"A": "1"}}),
        ("env={where}", {"env": {"SIZE": "big"}}),
        ('env="A=$kind and {where["SIZE"]}"', {"env": ["A=a100 and big"]}),
        ("env='A=$kind {n}'", {"env": ["A=$kind {n}"]}),
        ("--pip 'torch einops' --pip numpy", {"pip": ["torch", "einops", "numpy"]}),
        ("pip={packages}", {"pip": ["a", "b"]}),
        ("mount=/data=s3://b/p,/x=volume://v", {"mounts": ["/data=s3://b/p", "/x=volume://v"]}),
        ('mounts="/data=$folder"', {"mounts": ["/data=my data"]}),
        ("upload_code=false", {"upload_code": False}),
        (r"name=a\ b", {"name": "a b"}),
    ],
)
def test_fields(line: str, expected: dict[str, Any]) -> None:
    assert fields(line) == expected


def test_own_options_and_words() -> None:
    line = arguments.read("train.py -i a,b -i c -o model --submit --bg session=x idle=2h", NAMES)
    assert line.words == ["train.py"] and line.fields == {}
    assert line.own == {
        "inputs": ["a", "b", "c"],
        "outputs": ["model"],
        "submit": True,
        "bg": True,
        "session": "x",
        "idle": "2h",
    }
    defaults = arguments.read("gpu=a100 env=A=1 --bg", NAMES)
    assert arguments.read("gpu=h100 bg=no", NAMES).over(defaults) == (
        [],
        {"gpu": "h100", "env": ["A=1"]},
        {"bg": False},
    )


@pytest.mark.parametrize(
    ("line", "message", "suggestion"),
    [
        ("--gpuu a100", "no option 'gpuu'", "gpu"),
        ("--sesion=x", "no option 'sesion'", "session"),
        ("--command ls", "no option 'command'", "%%flow?"),
        ("--gpu", "'gpu' needs a value", "gpu="),
        ("name='open", "is not closed", "quote"),
        ("name={open", "is not closed", "brace"),
        ("name={nobody}", "NameError", "defined"),
        ("name={1 +}", "SyntaxError", "defined"),
        ("retries=many", "must be a number", "retries=2"),
    ],
)
def test_mistakes(line: str, message: str, suggestion: str) -> None:
    with pytest.raises(flow.ValidationError) as raised:
        arguments.read(line, NAMES)
    assert message in raised.value.message
    assert any(suggestion in one for one in raised.value.suggestions)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("5 min", 300), ("2h", 7200), ("1d", 86400), (15, 900), ("1.5h", 5400)],
)
def test_durations(text: object, seconds: float) -> None:
    assert arguments.duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0m", "-5m", "5 weeks"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(flow.ValidationError):
        arguments.duration_s(text)
