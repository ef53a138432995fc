"""The entry of `athanor`: puts the commands together. Loads no torch, Ray or gRPC before a command needs it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from cluster.cli import audit, cluster, context, job, local, model, project, quickstart, serve, token

if TYPE_CHECKING:
    from cluster.errors import ClusterError
    from trainer.errors import TrainerError

app = typer.Typer(
    name="athanor",
    help="Knowledge transfer between language models on a Ray cluster: from a job file to a served student.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(local.version_option)
local.add_to(app)
quickstart.add_to(app)
app.add_typer(job.app, name="job")
app.add_typer(model.app, name="model")
app.add_typer(serve.app, name="serve")
app.add_typer(project.app, name="project")
app.add_typer(cluster.app, name="cluster")
app.command()(cluster.queue)
app.add_typer(token.app, name="token")
app.add_typer(audit.app, name="audit")
app.add_typer(context.app, name="context")


def main() -> None:
    """Run the command line; known errors end in one clean line and an exit code."""
    try:
        app()
    except _known_errors() as error:
        from cluster.cli.failures import report

        sys.exit(report(error))


def _known_errors() -> tuple[type[ClusterError], type[TrainerError]]:
    """Only looked up when something was raised, so that the good way loads nothing for it."""
    from cluster.cli.failures import KNOWN

    return KNOWN


if __name__ == "__main__":
    main()
