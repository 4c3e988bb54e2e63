"""`%%flow` and `%flow`."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

import flow_sdk as flow
from flow_nb import arguments, variables
from flow_nb.arguments import Line, duration_s
from flow_nb.cells import follow_cell, follow_task
from flow_nb.render import Screen, cell_number, plain, remote_error
from flow_nb.replay import FIRST_LINE, show_cells, show_missed, show_session
from flow_nb.sessions import Held, Sessions

NEWEST = 50


@magics_class
class FlowMagics(Magics):
    """Cells on a GPU machine."""

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.defaults = Line([], {}, {})
        self.sessions = Sessions(shell)

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
            %flow defaults gpu=a100 …          settings for all cells of this notebook; alone: show them;
                                               %flow defaults clear: none
        """
        try:
            if cell is None:
                return self.on_line(line)
            return self.on_cell(line, cell)
        except flow.FlowError as error:
            raise plain(error) from None
        except KeyboardInterrupt:
            # With nothing to show of where Flow was.
            raise plain(KeyboardInterrupt("stopped")) from None

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
        if line.own.get("bg") and not line.own.get("submit"):
            raise flow.ValidationError(
                "--bg goes with --submit: a session's cell is waited for.", ["%%flow --submit --bg"]
            )
        if cell.lstrip().startswith("%%flow"):
            raise flow.ValidationError("There is a %%flow within the %%flow.", ["Remove one of them."])
        values = variables.pick(line.own.get("inputs", ()), self.names)
        if line.own.get("submit"):
            return self.submit(line, cell, values)
        self.run(self.sessions.for_line(line), cell, values, line.own.get("outputs", []))
        return None

    def run(self, held: Held, cell: str, values: dict[str, Any], outputs: list[str]) -> None:
        """Runs a cell in a session; raises what it raised."""
        session, panel, number = held.session, held.panel, cell_number(self.shell)
        session.send_code()
        parts = variables.send(session, values, held.sent)
        screen = Screen(self.shell)
        if panel and held.panel_cell == number:
            screen.on_clear = panel.show_again
        sent = session.execute(numbered(cell), inputs=parts, outputs=outputs, count=number)
        feed = session.feed(held.journal, sent)
        reply = follow_cell(session, feed, screen, panel.on_wake if panel else None)
        session.note_shown(sent)
        if panel:
            panel.on_end()
        if reply["status"] != "ok":
            raise remote_error(reply, hint_for(reply, self.names))
        if outputs:
            python = (held.journal.session or {}).get("python")
            self.names.update(variables.fetch(session, variables.saved_parts(reply), python))

    def greet(self) -> None:
        """After a restart of the kernel: which sessions are still there, and what they showed meanwhile."""
        if "JPY_SESSION_NAME" not in os.environ:
            return
        for held in self.sessions:
            print(f"flow: the session {held.name} is still there, with its variables.")
            if show_missed(held.session, Screen(self.shell)):
                print(f"flow: a cell is still running in it; %flow attach {held.name} shows it to its end.")

    def submit(self, line: Line, cell: str, values: dict[str, Any]) -> flow.Task:
        """The cell as a task of its own."""
        objects, parts = variables.pack(values)
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
        reply = show_cells(flow.Session(task), Screen(self.shell), "cell")
        if reply is not None:
            task.wait()
        if reply is not None and reply["status"] != "ok":
            raise remote_error(reply, hint_for(reply, self.names))
        if outputs and reply is not None:
            self.names.update(variables.fetch(flow.Session(task), variables.saved_parts(reply), None))
        return task

    # Lines

    def on_line(self, text: str) -> Any:
        verb, _, rest = text.strip().partition(" ")
        verbs = {name[3:]: getattr(self, name) for name in dir(self) if name.startswith("do_")}
        if not verb:
            return self.do_sessions(Line([], {}, {}))
        if verb in ("help", "-h", "--help"):
            print(inspect.getdoc(type(self).on_flow))
            return None
        if verb not in verbs:
            from difflib import get_close_matches

            near = [f"Did you mean %flow {one}?" for one in get_close_matches(verb, verbs, n=2)]
            raise flow.ValidationError(
                f"There is no %flow {verb!r}.",
                near or [f"There is: {', '.join(sorted(verbs))}.", "%flow? explains them."],
            )
        try:
            return verbs[verb](arguments.read(rest, self.names))
        except arguments.NoOption as error:
            quoted = [f'A command with options of its own goes in quotes: %flow run "{rest}".'] if verb == "run" else []
            raise flow.ValidationError(error.message, [*error.suggestions, *quoted]) from None

    def do_defaults(self, line: Line) -> None:
        """Settings for all cells of the notebook."""
        if line.words == ["clear"]:
            self.defaults = Line([], {}, {})
        elif line.words:
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
            show_cells(flow.Session(task), Screen(self.shell))
            if task.is_done:
                notebooks.bring_back(task)
                task.wait(check=True)
        return task

    def follow(self, task: flow.Task) -> None:
        if follow_task(task, Screen(self.shell)):
            task.wait(check=True)

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
            if session.is_live:
                # Its later cells run from here, too.
                self.sessions.hold(session)
            show_session(session, Screen(self.shell))
            return
        show_cells(session, Screen(self.shell))
        if task.is_done:
            from flow_nb import notebooks

            notebooks.bring_back(task)

    def attach_notebook(self) -> None:
        if not list(self.sessions):
            raise flow.ValidationError(
                "This notebook has no session to attach to.",
                ["%flow status lists all tasks; %flow attach TASK takes one."],
            )
        for held in self.sessions:
            show_session(held.session, Screen(self.shell))

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

        return session_table([held.session for held in self.sessions])

    def do_keep(self, line: Line) -> None:
        if not line.words:
            raise flow.ValidationError("%flow keep needs a time.", ["For example %flow keep 2h."])
        idle_s = duration_s(line.words[0])
        for session in self.sessions.chosen(line.words[1:]):
            session.keep(idle_s)
            print(f"{session.task.name} ends when nothing ran in it for {line.words[0]}.")

    def do_stop(self, line: Line) -> None:
        for session in self.sessions.chosen(line.words):
            session.stop()
            session.task.wait()
            self.sessions.forget(session)
            print(f"{session.task.name} has ended.")

    def do_interrupt(self, line: Line) -> None:
        for session in self.sessions.chosen(line.words):
            session.interrupt()
            print(f"{session.task.name} is interrupted, if a cell runs in it.")

    def do_restart(self, line: Line) -> None:
        for session in self.sessions.chosen(line.words):
            session.restart()
            print(f"{session.task.name} gets a fresh kernel; its variables are gone.")

    def do_volumes(self, line: Line) -> Any:
        from flow_nb.displays import volume_table

        return volume_table(flow.list_volumes())

    def do_gpus(self, line: Line) -> Any:
        """What can be had now, and its price."""
        from flow_nb.displays import offer_table

        return offer_table(flow.Flow().offers(**flow.fields_from_text(line.fields)))

    def task(self, line: Line) -> flow.Task:
        if len(line.words) != 1:
            raise flow.ValidationError("This needs one task.", ["%flow status lists them."])
        return flow.get_task(line.words[0])


def numbered(cell: str) -> str:
    """The cell with a line for the magic's own, so that line numbers are those the user sees. A cell magic must come
    first, and counts for itself."""
    return cell if cell.lstrip().startswith("%%") else FIRST_LINE + cell


def hint_for(reply: dict[str, Any], names: Mapping[str, Any]) -> str | None:
    """What to do about an error that comes of the notebook and the machine being two."""
    missing = re.search(r"name '(\w+)' is not defined", str(reply.get("evalue")))
    if reply.get("ename") == "NameError" and missing and missing[1] in names:
        return f"{missing[1]!r} exists in the notebook; -i {missing[1]} sends it to the machine."
    return None
