"""`flow init`, and the completion of words."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import FLOW, Command, finish, interrupt

KEY = "key-that-nobody-sees"


def config(flow_home: Path) -> dict[str, Any]:
    path = flow_home / "config.yaml"
    assert path.stat().st_mode & 0o777 == 0o600
    return yaml.safe_load(path.read_text())


def test_flags(flow: Command, flow_home: Path) -> None:
    flags = ("--provider", "local", "--api-key", KEY, "--project", "my-project", "--region", "us-central1-b")
    done = flow("init", *flags, "--api-url", "https://x.test", "--ssh-key", "a", "--ssh-key", "b")
    assert config(flow_home) == {
        "provider": "local",
        "api_key": KEY,
        "project": "my-project",
        "region": "us-central1-b",
        "api_url": "https://x.test",
        "ssh_keys": ["a", "b"],
    }
    assert str(flow_home / "config.yaml") in done.out
    assert "Wrote provider, API key, project, region, API address, ssh keys to" in done.out
    assert KEY not in done.out + done.err


def test_the_key_from_standard_input(flow: Command, flow_home: Path) -> None:
    flow("init", "--api-key", "-", stdin=f"  {KEY}\n")
    assert config(flow_home) == {"api_key": KEY}


def test_what_is_not_given_stays(flow: Command, flow_home: Path) -> None:
    flow_home.mkdir()
    (flow_home / "config.yaml").write_text("api_key: old\nproject: p\nsomething_new: [1, 2]\n")
    flow("init", "--api-key", KEY)
    assert config(flow_home) == {"api_key": KEY, "project": "p", "something_new": [1, 2]}


def test_without_a_terminal_and_flags(flow: Command, flow_home: Path) -> None:
    done = flow("init", code=2)
    assert done.err.splitlines()[0] == "Error: There is no terminal to ask on."
    assert flow("init", "--json", code=2).json[0]["error"]["type"] == "UsageError"
    assert not (flow_home / "config.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--provider", "nix"], "There is no provider 'nix' here."),
        (["--api-key", "two words"], "The API key must be one word."),
        (["--api-key", "-"], "The API key must be one word."),
        (["--project", "a\tb"], "The project must be one word."),
        (["--completion", "tcsh"], "Invalid value for '--completion': 'tcsh' is not one of"),
    ],
)
def test_what_cannot_be_right_writes_nothing(flow: Command, flow_home: Path, flags: list[str], message: str) -> None:
    done = flow("init", *flags, code=2)
    assert done.err.startswith(f"Error: {message}")
    assert "two words" not in done.err
    assert not (flow_home / "config.yaml").exists()


def test_a_config_file_that_cannot_be_read_is_put_aside(flow: Command, flow_home: Path) -> None:
    flow_home.mkdir()
    (flow_home / "config.yaml").write_text("api_key: [unclosed\n")
    assert "is not valid YAML" in flow("run", "true", code=2).err
    done = flow("init", "--project", "p")
    assert config(flow_home) == {"project": "p"}
    (aside,) = flow_home.glob("config.yaml.old-*")
    assert aside.read_text() == "api_key: [unclosed\n"
    assert str(aside) in done.err


def test_a_variable_that_wins_over_the_file_is_named(flow: Command) -> None:
    done = flow("init", "--project", "p", MITHRIL_PROJECT="other")
    assert done.err == "While MITHRIL_PROJECT is set, it is taken instead of the project in the file.\n"


def test_json(flow: Command, flow_home: Path) -> None:
    assert flow("init", "--api-key", KEY, "--project", "p", "--json").json == [
        {"path": str(flow_home / "config.yaml"), "completion": None, "written": ["api_key", "project"]}
    ]


def test_it_asks_on_a_terminal(flow_home: Path, terminal: Any) -> None:
    child = terminal("init", SHELL="/bin/none")
    child.expect_exact("Provider (local) [local]: ")
    child.sendline("")
    child.expect("API key.*: ")
    child.sendline(KEY)
    child.expect_exact("Project: ")
    child.sendline("my-project")
    child.expect_exact("Region: ")
    child.sendline("")
    child.expect("SSH keys.*: ")
    child.sendline("laptop desk")
    rest = child.read()
    assert finish(child) == 0
    assert str(flow_home / "config.yaml") in rest
    assert KEY not in rest
    assert config(flow_home) == {
        "provider": "local",
        "api_key": KEY,
        "project": "my-project",
        "ssh_keys": ["laptop", "desk"],
    }


def test_the_key_is_not_echoed(flow_home: Path, terminal: Any) -> None:
    with open(flow_home.with_name("screen"), "w") as screen:
        child = terminal("init", SHELL="/bin/none")
        child.logfile_read = screen
        for question in ("Provider.*: ", "API key.*: ", "Project.*: ", "Region.*: ", "SSH.*: "):
            child.expect(question)
            child.sendline(KEY if question.startswith("API") else "")
        assert finish(child) == 0
    assert KEY not in flow_home.with_name("screen").read_text()
    assert config(flow_home)["api_key"] == KEY


def test_enter_keeps_what_is_there(flow_home: Path, terminal: Any) -> None:
    flow_home.mkdir()
    before = {"provider": "local", "api_key": KEY, "project": "p", "region": "r", "ssh_keys": ["k"]}
    (flow_home / "config.yaml").write_text(yaml.safe_dump(before))
    child = terminal("init", SHELL="/bin/none")
    for question in (r"Provider .*\[local\]: ", r"API key.*\[kept\]: ", r"\[p\]: ", r"\[r\]: ", r"\[k\]: "):
        child.expect(question)
        child.sendline("")
    assert finish(child) == 0
    assert config(flow_home) == before


def test_ctrl_c_writes_nothing(flow_home: Path, terminal: Any) -> None:
    child = terminal("init")
    child.expect("Provider.*: ")
    interrupt(child)
    assert finish(child) == 130
    assert not (flow_home / "config.yaml").exists()


# Completion


@pytest.mark.parametrize(
    ("shell", "path", "said"),
    [
        ("bash", ".local/share/bash-completion/completions/flow", "bash-completion"),
        ("zsh", ".local/share/zsh/site-functions/_flow", "~/.zshrc"),
        ("fish", ".config/fish/completions/flow.fish", "New shells take it."),
    ],
)
def test_completion_is_installed_in_the_users_own_folder(
    flow: Command, flow_home: Path, tmp_path: Path, shell: str, path: str, said: str
) -> None:
    done = flow("init", "--install-completion", HOME=str(tmp_path), SHELL=f"/usr/bin/{shell}")
    assert (tmp_path / path).read_text() + "\n" == flow("init", "--completion", shell).out
    assert str(tmp_path / path) in done.err
    assert said in done.err
    assert not (flow_home / "config.yaml").exists()


def test_completion_for_an_unknown_shell(flow: Command) -> None:
    assert "names none of bash, zsh and fish" in flow("init", "--install-completion", SHELL="/bin/tcsh", code=2).err


def test_init_offers_completion(flow_home: Path, terminal: Any, tmp_path: Path) -> None:
    child = terminal("init", SHELL="/bin/bash", HOME=str(tmp_path))
    for _ in range(5):
        child.expect(": ")
        child.sendline("")
    child.expect_exact("Complete words with Tab in bash? [Y/n]: ")
    child.sendline("y")
    assert finish(child) == 0
    assert (tmp_path / ".local/share/bash-completion/completions/flow").exists()


def completed(flow: Command, *words: str) -> list[str]:
    done = flow(COMP_WORDS=" ".join(["flow", *words]), COMP_CWORD=str(len(words)), _FLOW_COMPLETE="bash_complete")
    return [line.split(",", 1)[1] for line in done.out.splitlines() if line]


def test_words_are_completed(flow: Command) -> None:
    flow("run", "true", "--name", "train-7", "--wait")
    assert completed(flow, "ca") == ["cancel"]
    assert completed(flow, "logs", "--fol") == ["--follow"]
    assert completed(flow, "logs", "tr") == ["train-7"]
    (task_id,) = completed(flow, "info", "task-")
    assert task_id.startswith("task-")
    assert completed(flow, "cancel", "nix") == []
    assert completed(flow, "volume", "de") == ["delete"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_itself_completes(flow: Command, flow_home: Path) -> None:
    script = f"""
PATH={os.path.dirname(FLOW)}:$PATH
eval "$(flow init --completion bash)"
COMP_WORDS=(flow stat) COMP_CWORD=1
_flow_completion flow stat flow
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("status\n", "")
