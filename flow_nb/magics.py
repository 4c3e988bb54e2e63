"""`%%flow` and `%flow`."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

import flow_sdk as flow
from flow_nb import arguments, variables
from flow_nb.arguments import Line, duration_s
from flow_nb.cells import follow_cell, follow_task, say_it_goes_on
from flow_nb.render import Screen, plain, remote_error

IDLE_S = 1800.0
HARDWARE = ("instance_type", "gpu", "provider", "region", "image")
NEWEST = 50
FIRST_LINE = "# %%flow\n"


@magics_class
class FlowMagics(Magics):
    """Cells on a GPU machine."""

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.defaults = Line([], {}, {})
        self.sessions: list[flow.Session] = []
        self.journals: dict[str, Any] = {}
        self.sent: dict[str, variables.Parts] = {}
        self.panels: dict[str, Any] = {}
        self.looked_for_sessions = False
        self.key = notebook_key()

    @no_var_expand
    @line_cell_magic("flow")  # type: ignore[arg-type]
    def on_flow(self, line: str, cell: str | None = None) -> Any:
        """Runs the cell on a GPU machine: `%%flow gpu=a100`.

        The first cell starts a session, a machine that stays warm; later cells with the same settings run in it at
        once, with their variables still there. What a cell shows appears here as if it had run here. The stop button
        interrupts the cell on the machine. Closing the notebook loses nothing: `%flow attach` shows it again.

        Options of a cell, as `key=value` or `--key value`:

            gpu=a100:4              GPUs of the machine; or instance_type=h100x8, cpu
            image=… env=NAME=VALUE mounts=/data=s3://bucket/x volumes=NAME:/path ports=8888
                                    and every other field of TaskConfig; several values with commas
            --pip "torch einops"    packages, made once and kept; --requirements FILE takes them from a file
            -i df,cfg               send variables of the notebook first
            -o model,losses         bring variables back when the cell has succeeded
            session=NAME            keep several sessions apart
            idle=30m                end the session when nothing ran in it for so long
            --submit                run the cell as a task of its own on a fresh machine, and return the Task;
                                    with --bg at once, without showing its output
            max_price_per_hour=2.5  take nothing dearer

        Values with blanks go in quotes; `$name` and `{expression}` are taken from the notebook.

        Lines:

            %flow run train.py gpu=a100:4      submit a file, a "command line" or a notebook.ipynb
            %flow attach [TASK]                show again what a task or session showed, and what comes
            %flow status [TASK]                tasks;  %flow info TASK  one of them
            %flow logs TASK                    its output so far
            %flow cancel TASK                  end it
            %flow sessions                     the sessions of this notebook
            %flow stop [NAME]                  end a session, or all of this notebook
            %flow interrupt [NAME]             interrupt its running cell
            %flow restart [NAME]               a fresh kernel on the same machine
            %flow keep 2h [NAME]               let it live so long when nothing runs
            %flow volumes                      storage that stays
            %flow gpus                         what can be had
            %flow defaults gpu=a100 …          settings for all cells of this notebook; alone: show them
        """
        try:
            if cell is None:
                return self.on_line(line)
            return self.on_cell(line, cell)
        except flow.FlowError as error:
            raise plain(error) from None

    @property
    def names(self) -> dict[str, Any]:
        """The notebook's variables."""
        found: dict[str, Any] = self.shell.user_ns
        return found

    # Cells

    def on_cell(self, text: str, cell: str) -> Any:
        line = arguments.read(text, self.names).over(self.defaults)
        if line.words:
            raise arguments.no_option(line.words[0])
        values = variables.pick(line.own.get("inputs", ()), self.names)
        if line.own.get("submit"):
            return self.submit(line, cell, values)
        session = self.session(line)
        self.run(session, cell, values, line.own.get("outputs", []))
        return None

    def run(self, session: flow.Session, cell: str, values: dict[str, Any], outputs: list[str]) -> None:
        """Runs a cell in a session; raises what it raised."""
        task_id = session.task.task_id
        session.send_code()
        parts = variables.send(session, values, self.sent.setdefault(task_id, {}))
        if task_id not in self.journals:
            self.journals[task_id] = session.journal()
        journal = self.journals[task_id]
        screen = Screen(self.shell)
        sent = session.execute(numbered(cell), inputs=parts, outputs=outputs, count=cell_number(self.shell))
        panel = self.panels.get(task_id)
        feed = session.feed(journal, sent)
        reply = follow_cell(session, feed, screen, panel.on_wake if panel else nothing)
        session.note_shown(sent)
        if panel:
            panel.on_end()
        if reply["status"] != "ok":
            raise remote_error(reply, hint_for(reply, self.names))
        if outputs:
            python = (journal.session or {}).get("python")
            self.names.update(variables.fetch(session, variables.saved_parts(reply), python))

    def session(self, line: Line) -> flow.Session:
        """The session that fits the line, started where there is none."""
        name = line.own.get("session")
        config = flow.TaskConfig(**flow.fields_from_text(line.fields))
        self.look_for_sessions()
        found = self.fitting(str(name) if name else None, config, set(line.fields))
        if found is not None:
            # The one used last is the first to be looked at.
            self.sessions.remove(found)
            self.sessions.insert(0, found)
            return found
        return self.start(config, str(name) if name else None, line)

    def fitting(self, name: str | None, config: flow.TaskConfig, given: set[str]) -> flow.Session | None:
        """The session to use: the one of that name; without a name the unnamed one, or else the only one there is."""
        for session in self.sessions:
            if not session.is_live:
                self.forget(session)
                sys.stderr.write(f"flow: the session {session.task.name} has ended: {session.end_reason}.\n")
        candidates = [session for session in self.sessions if is_named(session, name)]
        found = first_fitting(candidates, config, given, may_start=name is None)
        if found is not None or name is not None or candidates:
            return found
        found = first_fitting(self.sessions, config, given, may_start=True)
        if found is not None and len(self.sessions) > 1:
            names = [f"session={session.task.name}" for session in self.sessions]
            raise flow.ValidationError("This notebook has several sessions.", [f"Say which: {' or '.join(names)}."])
        return found

    def forget(self, session: flow.Session) -> None:
        """Lets go of a session that has ended."""
        task_id = session.task.task_id
        self.sessions = [one for one in self.sessions if one.task.task_id != task_id]
        for kept in (self.journals, self.sent, self.panels):
            kept.pop(task_id, None)

    def start(self, config: flow.TaskConfig, name: str | None, line: Line) -> flow.Session:
        idle_s = duration_s(line.own["idle"]) if "idle" in line.own else IDLE_S
        tags = [f"notebook:{self.key}", f"session:{name or ''}"]
        if name and not config.name:
            config = config.replace(name=name)
        session = flow.Session.start(config, idle_s=idle_s, tags=tags)
        self.sessions.insert(0, session)
        self.journals[session.task.task_id] = session.journal(from_start=True)
        self.show_panel(session)
        return session

    def show_panel(self, session: flow.Session) -> None:
        from flow_nb.panel import Panel

        panel = Panel(session, self.shell)
        self.panels[session.task.task_id] = panel
        panel.show()

    def look_for_sessions(self) -> None:
        """Those that this notebook started before its kernel was started again."""
        if not self.looked_for_sessions:
            self.looked_for_sessions = True
            known = {session.task.task_id for session in self.sessions}
            found = flow.Session.find(f"notebook:{self.key}")
            self.sessions += [session for session in found if session.task.task_id not in known]

    def greet(self) -> None:
        """After a restart of the kernel: which sessions are still there, and what they showed meanwhile."""
        if "JPY_SESSION_NAME" not in os.environ or not (flow_home() / "flow.db").exists():
            return
        self.look_for_sessions()
        for session in self.sessions:
            print(f"flow: the session {session.task.name} is still there, with its variables.")
            self.replay_missed(session)

    def submit(self, line: Line, cell: str, values: dict[str, Any]) -> flow.Task:
        """The cell as a task of its own."""
        objects: dict[str, bytes] = {}
        parts: variables.Parts = {}
        for name, value in values.items():
            pieces = [bytes(view) for view in variables.views(name, value)]
            hashes = [hashlib.sha256(piece).hexdigest() for piece in pieces]
            objects |= dict(zip(hashes, pieces, strict=True))
            parts[name] = hashes
        outputs = line.own.get("outputs", [])
        if outputs and line.own.get("bg"):
            raise flow.ValidationError("-o brings variables back at the end, and --bg does not wait for it.")
        config = flow.TaskConfig(**flow.fields_from_text(line.fields))
        if config.name is None:
            config = config.replace(name=f"cell-{os.urandom(2).hex()}")
        cells = [flow.Cell("cell", numbered(cell))]
        task = flow.submit_cells(config, cells, inputs=parts, objects=objects, outputs=outputs)
        if line.own.get("bg"):
            return task
        reply = self.show_cells(flow.Session(task), "cell")
        if reply is not None:
            task.wait()
        if reply is not None and reply["status"] != "ok":
            raise remote_error(reply, hint_for(reply, self.names))
        if outputs and reply is not None:
            self.names.update(variables.fetch(flow.Session(task), variables.saved_parts(reply), None))
        return task

    def show_cells(self, session: flow.Session, cell: str | None) -> dict[str, Any] | None:
        """Shows all that a journal has, and what comes; the stop button ends the showing only.

        Returns:
            The cell's reply, where it has come.
        """
        screen = Screen(self.shell)
        feed = session.feed(session.journal(from_start=True), cell)
        try:
            while not feed.done:
                for event in feed.available():
                    self.show_event(screen, event, of_one=cell is not None)
                if not feed.done:
                    feed.wait(0.2 if screen.waiting else None)
                    screen.write_what_fits()
        except KeyboardInterrupt:
            screen.end(session.task.task_id)
            say_it_goes_on(session.task)
            return None
        screen.end(session.task.task_id)
        reply: dict[str, Any] | None = feed.reply
        return reply

    def show_event(self, screen: Screen, event: dict[str, Any], of_one: bool) -> None:
        if of_one:
            screen.show(event)
        elif event["type"] == "execute_reply":
            if event["content"]["status"] == "error" and not event["content"].get("shown"):
                screen.error(event["content"])
        elif event["type"] == "execute_input":
            screen.show({"type": "stream", "content": {"name": "stdout", "text": heading(event["content"])}})
        elif event["type"] == "kernel_restarted":
            screen.show({"type": "stream", "content": {"name": "stderr", "text": f"{event['content']['reason']}\n"}})
        else:
            screen.show(event)

    # Lines

    def on_line(self, text: str) -> Any:
        verb, _, rest = text.strip().partition(" ")
        verbs = {name[3:]: getattr(self, name) for name in dir(self) if name.startswith("do_")}
        if not verb:
            return self.do_sessions(Line([], {}, {}))
        if verb not in verbs:
            from difflib import get_close_matches

            near = [f"Did you mean %flow {one}?" for one in get_close_matches(verb, verbs, n=2)]
            raise flow.ValidationError(
                f"There is no %flow {verb!r}.",
                near or [f"There is: {', '.join(sorted(verbs))}.", "%flow? explains them."],
            )
        return verbs[verb](arguments.read(rest, self.names))

    def do_defaults(self, line: Line) -> None:
        """Settings for all cells of the notebook."""
        if line.words:
            raise arguments.no_option(line.words[0])
        if line.fields or line.own:
            flow.TaskConfig(**flow.fields_from_text(line.fields))
            self.defaults = line
        found = {**self.defaults.fields, **self.defaults.own}
        print("  ".join(f"{name}={value}" for name, value in found.items()) or "There are no defaults.")

    def do_run(self, line: Line) -> flow.Task:
        """Submits a file, a command or a notebook."""
        line = line.over(self.defaults)
        if not line.words:
            raise flow.ValidationError(
                "%flow run needs a file or a command.", ['For example %flow run "python train.py".']
            )
        fields = flow.fields_from_text(line.fields)
        if len(line.words) == 1 and line.words[0].endswith(".ipynb"):
            return self.run_notebook(Path(line.words[0]), flow.TaskConfig(**fields), bool(line.own.get("bg")))
        command = flow.command_from_words(line.words)
        if isinstance(command, Path):
            task = flow.run(flow.TaskConfig.from_yaml(command).replace(**fields))
        else:
            task = flow.run(command, **fields)
        if not line.own.get("bg"):
            self.follow(task)
        return task

    def run_notebook(self, path: Path, config: flow.TaskConfig, in_background: bool) -> flow.Task:
        from flow_nb import notebooks

        task = notebooks.submit(path, config)
        if not in_background:
            self.show_cells(flow.Session(task), None)
            if task.is_done:
                notebooks.bring_back(task)
        return task

    def follow(self, task: flow.Task) -> None:
        if follow_task(task, Screen(self.shell)) and task.status != "completed":
            sys.stderr.write(f"flow: {task.name} {task.status.replace('_', ' ')}: {task.reason}\n")

    def do_attach(self, line: Line) -> None:
        """Shows again what a task or session showed, and what comes."""
        if not line.words:
            self.attach_notebook()
            return
        task = self.task(line)
        if not flow.Session.has_cells(task):
            self.follow(task)
            return
        session = flow.Session(task)
        if flow.Session.is_session(task):
            self.attach(session)
            return
        self.show_cells(session, None)
        if task.is_done:
            from flow_nb import notebooks

            notebooks.bring_back(task)

    def attach_notebook(self) -> None:
        self.look_for_sessions()
        if not self.sessions:
            raise flow.ValidationError(
                "This notebook has no session to attach to.",
                ["%flow status lists all tasks; %flow attach TASK takes one."],
            )
        for session in self.sessions:
            self.attach(session)

    def attach(self, session: flow.Session) -> None:
        """All that a session showed, and of its running cell what comes. Its later cells run from here, too."""
        if session.is_live and session.task.task_id not in {one.task.task_id for one in self.sessions}:
            self.sessions.insert(0, session)
        screen = Screen(self.shell)
        cells = [cell["id"] for cell in session.cells()]
        open_cells = set(cells)
        feed = session.feed(session.journal(from_start=True))
        try:
            while open_cells and not feed.done:
                for event in feed.available():
                    self.show_event(screen, event, of_one=False)
                    if event["type"] == "execute_reply":
                        open_cells.discard(event["cell"])
                        session.note_shown(event["cell"])
                if open_cells and not feed.done:
                    feed.wait(0.2 if screen.waiting else None)
                    screen.write_what_fits()
        except KeyboardInterrupt:
            name = session.task.name
            sys.stderr.write(f"\nThe cell goes on. %flow interrupt {name} interrupts it.\n")
        screen.end(session.task.task_id)

    def replay_missed(self, session: flow.Session) -> None:
        """What no notebook has shown to its end; a cell that still runs is left to %flow attach."""
        missed = set(session.unshown())
        screen = Screen(self.shell)
        running = set(missed)
        for event in session.journal(from_start=True).read():
            if event["cell"] in missed:
                self.show_event(screen, event, of_one=False)
                if event["type"] == "execute_reply":
                    running.discard(event["cell"])
                    session.note_shown(event["cell"])
        screen.end(session.task.task_id)
        if running:
            print(f"flow: a cell is still running in it; %flow attach {session.task.name} shows it to its end.")

    def do_status(self, line: Line) -> Any:
        from flow_nb.displays import task_table

        if line.words:
            return task_table([self.task(line)])
        return task_table(flow.list_tasks(limit=NEWEST))

    def do_logs(self, line: Line) -> None:
        """A task's output so far."""
        task = self.task(line)
        screen = Screen(self.shell)
        for number, data in task.log_chunks():
            text = data.decode(errors="replace")
            screen.show({"type": "stream", "content": {"name": "stderr" if number == 2 else "stdout", "text": text}})
        screen.end(task.task_id)

    def do_info(self, line: Line) -> Any:
        from flow_nb.displays import task_details

        return task_details(self.task(line))

    def do_cancel(self, line: Line) -> flow.Task:
        return self.task(line).cancel()

    def do_download(self, line: Line) -> Path:
        """%flow download TASK PATH"""
        if len(line.words) != 2:
            raise flow.ValidationError(
                "%flow download needs a task and a path.", ["%flow download TASK results/model.pt"]
            )
        return flow.get_task(line.words[0]).download(line.words[1])

    def do_sessions(self, line: Line) -> Any:
        from flow_nb.displays import session_table

        self.look_for_sessions()
        return session_table([session for session in self.sessions if session.is_live])

    def do_keep(self, line: Line) -> None:
        if not line.words:
            raise flow.ValidationError("%flow keep needs a time.", ["For example %flow keep 2h."])
        idle_s = duration_s(line.words[0])
        for session in self.chosen(line.words[1:]):
            session.keep(idle_s)
            print(f"{session.task.name} ends when nothing ran in it for {line.words[0]}.")

    def do_stop(self, line: Line) -> None:
        for session in self.chosen(line.words):
            session.stop()
            session.task.wait()
            self.forget(session)
            print(f"{session.task.name} has ended.")

    def do_interrupt(self, line: Line) -> None:
        for session in self.chosen(line.words):
            session.interrupt()

    def do_restart(self, line: Line) -> None:
        for session in self.chosen(line.words):
            session.restart()
            print(f"{session.task.name} gets a fresh kernel; its variables are gone.")

    def do_volumes(self, line: Line) -> Any:
        from flow_nb.displays import volume_table

        return volume_table(flow.list_volumes())

    def do_gpus(self, line: Line) -> Any:
        """What can be had now, and its price."""
        from flow_nb.displays import offer_table

        return offer_table(flow.Flow().offers(**flow.fields_from_text(line.fields)))

    def chosen(self, words: list[str]) -> list[flow.Session]:
        """The live sessions that a line names; all of this notebook where it names none."""
        self.look_for_sessions()
        live = [session for session in self.sessions if session.is_live]
        if not words:
            if not live:
                raise flow.ValidationError("This notebook has no session.", ["%%flow over a cell starts one."])
            return live
        found = []
        for word in words:
            mine = [s for s in live if word in (s.task.name, s.task.task_id) or is_named(s, word)]
            if not mine:
                task = flow.get_task(word)
                if not flow.Session.is_session(task):
                    raise flow.ValidationError(f"{word} is a task and no session.", [f"%flow cancel {word} ends it."])
                mine = [flow.Session(task)]
            found += mine
        return found

    def task(self, line: Line) -> flow.Task:
        if len(line.words) != 1:
            raise flow.ValidationError("This needs one task.", ["%flow status lists them."])
        return flow.get_task(line.words[0])


def nothing() -> None:
    """For a session without a panel."""


def flow_home() -> Path:
    given = os.environ.get("FLOW_HOME")
    return Path(given) if given else Path.home() / ".flow"


def notebook_key() -> str:
    """Names the notebook, where its server says which one it is; else this process."""
    name = os.environ.get("JPY_SESSION_NAME")
    return hashlib.sha256(f"{name}\0{Path.cwd()}".encode()).hexdigest()[:16] if name else uuid.uuid4().hex[:16]


def is_named(session: flow.Session, name: str | None) -> bool:
    return f"session:{name or ''}" in session.task.record.config.get("tags", ())


def first_fitting(
    sessions: list[flow.Session], config: flow.TaskConfig, given: set[str], may_start: bool
) -> flow.Session | None:
    """The first session that has what is asked for.

    Raises:
        ValidationError: one has the hardware, but not the rest, which only a new session could have.
    """
    for session in sessions:
        differs = differences(config, session.config, given)
        if not differs:
            return session
        if not (may_start and set(differs) & set(HARDWARE)):
            raise flow.ValidationError(
                f"The session {session.task.name} was started with other settings: {', '.join(differs)}.",
                ["session=OTHER starts another one.", f"%flow stop {session.task.name} ends it; run this again then."],
            )
    return None


def differences(wanted: flow.TaskConfig, there: flow.TaskConfig, given: set[str]) -> list[str]:
    """The given fields that a session does not fulfil."""
    found = []
    for field in sorted(given - {"name", "tags"}):
        want, have = getattr(wanted, field), getattr(there, field)
        if isinstance(want, dict):
            fits = want.items() <= have.items()
        elif isinstance(want, list):
            fits = all(one in have for one in want)
        else:
            fits = want == have or (field == "provider" and have is None)
        if not fits:
            found.append(field)
    return found


def cell_number(shell: InteractiveShell) -> int:
    """The running cell's; its shell's counter is one ahead in IPython 9 and not in 8."""
    history: Any = shell.history_manager
    return len(history.input_hist_raw) - 1


def numbered(cell: str) -> str:
    """The cell with a line for the magic's own, so that line numbers are those the user sees. A cell magic must come
    first, and counts for itself."""
    return cell if cell.lstrip().startswith("%%") else FIRST_LINE + cell


def heading(content: dict[str, Any]) -> str:
    code = content["code"].removeprefix(FIRST_LINE).strip().splitlines() or [""]
    return f"── In [{content['execution_count']}]: {code[0]}{' …' if len(code) > 1 else ''}\n"


def hint_for(reply: dict[str, Any], names: Mapping[str, Any]) -> str | None:
    """What to do about an error that comes of the notebook and the machine being two."""
    missing = re.search(r"name '(\w+)' is not defined", str(reply.get("evalue")))
    if reply.get("ename") == "NameError" and missing and missing[1] in names:
        return f"{missing[1]!r} exists in the notebook; -i {missing[1]} sends it to the machine."
    return None
