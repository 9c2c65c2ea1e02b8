"""The commands of the client, which `tunery` offers beside those of the service."""

from collections.abc import Sequence

import typer

from app.core.command_line.exit_codes import CommandGroup
from tunery.client.answers.chat import chat
from tunery.client.answers.report import report
from tunery.client.compare import compare
from tunery.client.downloads.command import download
from tunery.client.files import files
from tunery.client.jobs import cancel, list_jobs, pause, rerun, resume
from tunery.client.models import import_adapter
from tunery.client.submit import estimate, submit
from tunery.client.sweeps import sweeps
from tunery.client.watch import logs, watch

PANEL = "Use a service (over HTTP: --profile, TUNERY_BASE_URL and TUNERY_API_KEY)"

client = typer.Typer(cls=CommandGroup, pretty_exceptions_enable=False, no_args_is_help=True)

_COMMANDS = {
    "submit": submit,
    "estimate": estimate,
    "jobs": list_jobs,
    "watch": watch,
    "logs": logs,
    "pause": pause,
    "resume": resume,
    "cancel": cancel,
    "rerun": rerun,
    "download": download,
    "compare": compare,
    "report": report,
    "chat": chat,
    "import": import_adapter,
}
for _name, _command in _COMMANDS.items():
    client.command(_name, rich_help_panel=PANEL)(_command)
client.add_typer(files, name="files", rich_help_panel=PANEL)
client.add_typer(sweeps, name="sweeps", rich_help_panel=PANEL)


def is_for_client(arguments: Sequence[str]) -> bool:
    """Whether a command line needs only the client, which starts sooner than the whole command."""
    return bool(arguments) and arguments[0] in {*_COMMANDS, "files", "sweeps"}
