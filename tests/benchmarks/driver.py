"""The contenders, each run in its own environment as `python -I driver.py NAME`.

Reads requests from stdin, one a line, as [method, arguments]; answers each with one JSON line, {"value": …} or
{"error": …}. Imports nothing of this repository but, for Flow itself, the package as it is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

COMMAND = "echo hi"


def ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


class Flow:
    def __init__(self) -> None:
        import flow_sdk

        self.flow: Any = flow_sdk

    def first_line(self) -> float:
        started = time.perf_counter()
        task = self.flow.run(COMMAND)
        lines = task.logs(follow=True)
        line = next(lines)
        taken = ms_since(started)
        assert line == "hi", line
        task.wait()
        return taken

    def done(self) -> float:
        started = time.perf_counter()
        task = self.flow.run(COMMAND).wait()
        taken = ms_since(started)
        assert task.status == "completed", task
        return taken

    def many(self, count: int) -> dict[str, float]:
        started = time.perf_counter()
        tasks = [self.flow.run(COMMAND) for _ in range(count)]
        submitted = ms_since(started)
        for task in tasks:
            task.wait()
        taken = ms_since(started)
        ends = {task.status for task in tasks}
        assert ends == {"completed"}, ends
        return {"ms": taken, "submit_ms": submitted, "peak_mib": peak_mib()}

    def history(self, count: int) -> None:
        """Rows as `count` past tasks leave them, the newest a minute ago, and their folders; files only in the newest,
        because writing and deleting all of them would take longer than everything else that is measured."""
        from flow_sdk import store, taskdir
        from flow_sdk.settings import make_home

        make_home()
        rows = []
        newest = time.time() - 60
        for number in range(count):
            task_id = f"task-{number:010x}"
            at = newest - (count - number) * 60
            record = store.Record(
                task_id=task_id,
                name=f"train-{number % 97}-{task_id[-4:]}",
                provider="local",
                config={"command": f"python train.py --lr {number % 10 / 1000}", "gpu": "a100", "tags": ["sweep"]},
                created_at=at,
                lease={"provider": "local", "task_id": task_id, "nodes": 1, "mounts": [], "engine": None},
                bundle_sha256=f"{number:064x}",
                code_root="/home/ada/project",
                git_commit=f"{number:040x}",
                git_dirty=False,
                host="workstation",
                user="ada",
                price_per_hour_usd=0.0,
            )
            failed = number % 7 == 0
            end = taskdir.NodeStatus(
                rank=0,
                state=taskdir.FAILED if failed else taskdir.COMPLETED,
                exit_code=int(failed),
                started_at=at + 1,
                ended_at=at + 40,
                reason="The command ended with exit code 1: ValueError: shapes differ" if failed else None,
            )
            directory = taskdir.TaskDir(task_id)
            if number < count - 100:
                directory.path.mkdir(parents=True)
            else:
                os.close(directory.make(1))
                directory.task_json.write_text(json.dumps(record.__dict__))
                (directory.node(0) / "status.json").write_text(json.dumps(end._asdict()))
            rows.append(
                store.Row(record, end.state, end.started_at, end.ended_at, end.exit_code, end.reason, ("sweep",))
            )

        def insert(db: Any) -> None:
            for row in rows:
                store._insert(db, row)

        store._write(insert)
        assert store.count() == count

    def pack(self, root: str, into: str) -> dict[str, float]:
        from flow_sdk import bundle

        started = time.perf_counter()
        packed = bundle.pack(Path(root), Path(into))
        return {"ms": ms_since(started), "files": packed.file_count, "bytes": packed.size_bytes}

    def quiet_task(self) -> list[str]:
        """A task that has said one line and stays; its id and its log."""
        task = self.flow.run("echo ready; exec sleep 3600")
        assert next(task.logs(follow=True)) == "ready"
        return [task.task_id, str(task._directory.log(0, stderr=False))]

    def cancel(self, task_ids: list[str]) -> None:
        for task_id in task_ids:
            self.flow.cancel(task_id)
        for task_id in task_ids:
            self.flow.get_task(task_id).wait(30)


class FlowCompute:
    """Its tasks run in threads of this process and end with it; code upload and images are off, as here."""

    def __init__(self) -> None:
        # Not as import statements: type checkers and linters would take it for this repository's module of that name.
        flow = import_module("flow")
        self.config = flow.TaskConfig
        self.client = flow.Flow()
        self.count = 0

    def _run(self) -> Any:
        self.count += 1
        return self.client.run(
            self.config(name=f"bench-{self.count}", command=COMMAND, instance_type="cpu.small", upload_code=False)
        )

    def first_line(self) -> float:
        started = time.perf_counter()
        lines = self._run().log_stream()
        # Its own "Starting task …" is no line of the task.
        while next(lines) != "hi":
            continue
        return ms_since(started)

    def done(self) -> float:
        started = time.perf_counter()
        task = self._run()
        task.wait()
        taken = ms_since(started)
        assert task.status.value == "completed", task.status
        return taken

    def many(self, count: int) -> dict[str, float]:
        started = time.perf_counter()
        tasks = [self._run() for _ in range(count)]
        submitted = ms_since(started)
        for task in tasks:
            task.wait()
        return {"ms": ms_since(started), "submit_ms": submitted, "peak_mib": peak_mib()}


class Submitit:
    def __init__(self) -> None:
        submitit = import_module("submitit")
        self.command = submitit.helpers.CommandFunction(["sh", "-c", COMMAND], verbose=False)
        self.executor = submitit.AutoExecutor(tempfile.mkdtemp(dir="."), cluster="local")

    def done(self) -> float:
        started = time.perf_counter()
        job = self.executor.submit(self.command)
        job.wait()
        taken = ms_since(started)
        assert job.result().strip() == "hi"
        return taken

    def many(self, count: int) -> dict[str, float]:
        started = time.perf_counter()
        jobs = [self.executor.submit(self.command) for _ in range(count)]
        submitted = ms_since(started)
        for job in jobs:
            job.wait()
        return {"ms": ms_since(started), "submit_ms": submitted, "peak_mib": peak_mib()}


class Bare:
    """What the machine itself takes: a shell, and the one interpreter that a task which outlives its client needs."""

    shell = ("sh", "-c", COMMAND)
    interpreter = (sys.executable, "-I", "-S", "-c", "print('hi')")

    def first_line(self, interpreter: bool = False) -> float:
        started = time.perf_counter()
        with subprocess.Popen(self.interpreter if interpreter else self.shell, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            taken = ms_since(started)
        assert line == b"hi\n"
        return taken

    def done(self, interpreter: bool = False) -> float:
        started = time.perf_counter()
        subprocess.run(self.interpreter if interpreter else self.shell, stdout=subprocess.PIPE, check=True)
        return ms_since(started)

    def many(self, count: int) -> dict[str, float]:
        started = time.perf_counter()
        for _ in range(count):
            subprocess.run(self.shell, stdout=subprocess.PIPE, check=True)
        return {"ms": ms_since(started), "submit_ms": ms_since(started), "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The most memory this process has had resident."""
    words = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()
    return int(words[0]) / 1024


CONTENDERS = {"flow": Flow, "flow-compute": FlowCompute, "submitit": Submitit, "bare": Bare}


def main() -> None:
    # What a contender prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = CONTENDERS[sys.argv[1]]()
    for request in sys.stdin:
        method, arguments = json.loads(request)
        try:
            answer = {"value": getattr(contender, method)(**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


main()
