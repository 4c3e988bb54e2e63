"""Spaces, quotes, newlines, unicode, leading dashes: in paths, names, commands and values they are just text."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import taskdir
from flow_sdk.watch import Watch
from tests.faults.processes import FAR_S, command_pid, run_client, wait_for_file
from tests.services import require

AWKWARD = {
    "spaces": "two  words ",
    "single quote": "it's",
    "double quote": 'so "called"',
    "newline": "one\ntwo",
    "tab and return": "a\tb\rc",
    "unicode": "größe-模型-🚀",
    "combining": "e\u0301",
    "leading dash": "-rf",
    "two dashes": "--help",
    "dollar": "$HOME",
    "backtick": "`id`",
    "substitution": "$(touch pwned)",
    "semicolon": "a;b&c|d",
    "star": "*?[a-z]",
    "backslash": "a\\nb\\",
    "percent": "100%s%d",
    "colon": "a:b",
    "hash": "a#b",
    "tilde": "~root",
    "braces": "{a,b}",
}
awkward = pytest.mark.parametrize("name", list(AWKWARD.values()), ids=list(AWKWARD))


def said(task: flow.Task) -> str:
    assert task.wait(FAR_S).status == taskdir.COMPLETED, f"{task!r}: {task.logs()}"
    return str(task.logs())


@awkward
def test_in_the_paths_of_flow_home_and_project(
    name: str, flow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, project = flow_home / name / "home", tmp_path / name / "project"
    project.mkdir(parents=True)
    monkeypatch.setenv("FLOW_HOME", str(home))
    monkeypatch.chdir(project)
    (project / name).write_text("content")
    (project / "sub").mkdir()
    (project / "sub" / f"{name}.py").write_text("print('ran')")
    task = flow.run([sys.executable, f"sub/{name}.py"])
    assert said(task) == "ran\n"
    copy = home / "tasks" / task.task_id / "node-0" / "workspace"
    assert (copy / name).read_text() == "content"
    assert task.download(f"sub/{name}.py", tmp_path / "downloaded.py").read_text() == "print('ran')"
    # A process of its own finds all of it.
    assert run_client("import flow_sdk as f; (t,) = f.list_tasks(); print(t.status, t.logs())") == "completed ran\n\n"
    running = flow.run(f"{wait_for_file(tmp_path / 'go')}; pwd")
    command_pid(running)
    assert running.shell("pwd > where") == 0
    workspace = home / "tasks" / running.task_id / "node-0" / "workspace"
    assert (workspace / "where").read_bytes() == os.fsencode(workspace) + b"\n"
    running.cancel().wait(FAR_S)
    assert running.status == taskdir.CANCELLED
    assert not list(tmp_path.rglob("pwned"))


@awkward
def test_in_a_command_given_as_words(name: str, flow_home: Path, project: Path) -> None:
    """No shell sees an argv list: each word arrives as it is."""
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    task = flow.run([sys.executable, "-c", show, name, "", name])
    assert json.loads(said(task)) == [name, "", name]


@awkward
def test_in_a_command_given_as_a_shell_line(name: str, flow_home: Path, project: Path) -> None:
    import shlex

    assert said(flow.run(f"printf %s {shlex.quote(name)}")) == name


@awkward
def test_in_the_values_of_the_environment(name: str, flow_home: Path, project: Path) -> None:
    show = "import json, os; print(json.dumps(os.environ['VALUE']))"
    task = flow.run([sys.executable, "-c", show], env={"VALUE": name})
    assert json.loads(said(task)) == name
    assert name not in taskdir.TaskDir(task.task_id).task_json.read_text()
    assert flow.get_task(task.task_id).config.env == {"VALUE": name}


def test_a_script_of_several_lines_with_everything(flow_home: Path, project: Path) -> None:
    script = """
set -e
name="größe"
cat <<'END'
it's "quoted" $HOME `id`
END
printf '%s\\n' "$name"
for i in 1 2
do
  echo "line $i" # a comment
done
"""
    assert said(flow.run(script)) == 'it\'s "quoted" $HOME `id`\ngröße\nline 1\nline 2\n'


def test_every_file_name_that_a_disk_can_hold(flow_home: Path, project: Path) -> None:
    names = [os.fsencode(name) for name in AWKWARD.values()]
    names += [
        b"\xff\xfe not utf-8",
        b"-",
        b"--",
        b"-C",
        b"--checkpoint-action=exec=touch pwned",
        b" ",
        b"@file",
        b"x" * 255,
    ]
    root = os.fsencode(project)
    for name in names:
        with open(root + b"/" + name, "wb") as file:
            file.write(name)
    deep = b"/".join([b"d" * 60] * 5)
    os.makedirs(root + b"/" + deep)
    with open(root + b"/" + deep + b"/" + b"f" * 200, "wb") as file:
        file.write(b"deep")
    listed = (
        "import json, os; files = [name for name in os.listdir(b'.') if os.path.isfile(name)];"
        "print(json.dumps(sorted([name.hex(), open(name, 'rb').read().hex()] for name in files)))"
    )
    task = flow.run([sys.executable, "-c", listed])
    assert json.loads(said(task)) == sorted([name.hex(), name.hex()] for name in names)
    copy = os.fsencode(taskdir.TaskDir(task.task_id).workspace(0))
    with open(copy + b"/" + deep + b"/" + b"f" * 200, "rb") as file:
        assert file.read() == b"deep"


@pytest.mark.parametrize("name", ["exp-lr-0.001", "a", "x" * 64])
def test_names_a_task_can_have(name: str, flow_home: Path, project: Path) -> None:
    task = flow.run("echo $FLOW_TASK_NAME", name=name)
    assert said(task) == f"{name}\n"
    assert flow.get_task(name) == task


@pytest.mark.parametrize(
    "name",
    ["", "x" * 65, "a/b", "../up", "a\nb", "-rf", "$(id)", "a;b", "größe", "\0"],
    ids=lambda name: repr(name[:9]),
)
def test_names_a_task_cannot_have_are_one_sentence(name: str, flow_home: Path, project: Path) -> None:
    with pytest.raises(flow.errors.ValidationError) as caught:
        flow.run("true", name=name)
    assert "\n" not in caught.value.message
    assert not (flow_home / "tasks").exists() or not list((flow_home / "tasks").iterdir())


@pytest.mark.parametrize(
    "fields",
    [{"command": "echo \0"}, {"command": ["echo", "a\0b"]}, {"env": {"A": "\0"}}, {"command": "echo \ud800"}],
    ids=["command", "word", "value", "lone surrogate"],
)
def test_what_no_process_can_be_given_is_refused(fields: dict[str, object], flow_home: Path, project: Path) -> None:
    with pytest.raises(flow.errors.ValidationError) as caught:
        flow.run(**{"command": "true", **fields})  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    assert flow.list_tasks() == []


@pytest.mark.parametrize(
    ("command", "reason", "code"),
    [
        (["no-such-program"], "no-such-program: No such file", 127),
        (["./plain.txt"], "plain.txt: Permission denied", 126),
        (["-rf"], "-rf: No such file", 127),
        (["x" * 5000], "File name too long", 126),
        (["true", "y" * 200_000], "Argument list too long", 126),
    ],
    ids=["missing", "not executable", "a dash", "a long name", "a long word"],
)
def test_a_command_that_cannot_be_started_says_why(
    command: list[str], reason: str, code: int, flow_home: Path, project: Path
) -> None:
    (project / "plain.txt").write_text("")
    task = flow.run(command).wait(FAR_S)
    assert (task.status, task.exit_code) == (taskdir.FAILED, code)
    assert task.reason and reason in task.reason, task.reason


def test_a_mount_with_a_strange_name_does_not_keep_followers_from_watching(tmp_path: Path) -> None:
    """/proc/self/mounts writes a space as \\040; and a carriage return, which ends no line there, as itself."""
    require("root", "mounts")
    import subprocess

    folder = tmp_path / "disk\r with spaces\nand lines"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    try:
        with Watch([folder]) as watch:
            assert watch._fd >= 0
    finally:
        subprocess.run(["umount", str(folder)], check=True)
