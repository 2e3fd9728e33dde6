"""The command line: the table of commands, how they end, and what they print. No logic."""

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from pydantic import BaseModel, TypeAdapter, ValidationError

from fer_pipeline.cli.options import function_of, prepare, shown, sources, variable_of
from fer_pipeline.core.config import explain
from fer_pipeline.core.errors import JobError, UserError
from fer_pipeline.core.log import JsonLines, Lines
from fer_pipeline.core.memory import ReadTooLargeError
from fer_pipeline.core.outcome import Outcome, write_outcome
from fer_pipeline.core.stopping import end_in_order, said_of, stopped_code
from fer_pipeline.core.storage import STORAGE_ERRORS, reason

COMMANDS = {
    "ingest": ("jobs.ingest:run", "source", "Bring a labelled dataset into Parquet, with counts, duplicates and leaks."),
    "train": ("jobs.train.job:run", "recipe", "Train a recipe on an ingested dataset; run it again to continue."),
    "evaluate": ("jobs.evaluate:run", "model", "Evaluate a model on a split: figures with intervals, calibration, a page."),
    "sweep": ("jobs.sweep:run", "recipe", "Try a recipe with other settings on many machines; run it again to continue."),
    "label": ("jobs.label.job:run", "source", "Label the expression of every face in an archive; run it again to continue."),
    "publish": ("jobs.publish:run", "run", "Audit a finished run and publish it in a Delta Lake table, or hold it."),
    "nightly": ("jobs.nightly:run", "", "Label what is new or changed, audit and publish it; run it again to continue."),
    "table history": ("local.table:history", "table", "List a table's versions and the nights that made them."),
    "table page": ("local.table:page", "table", "Write the page over a table's last nights."),
    "table metrics": ("local.table:metrics", "table", "Write the last night's figures as Prometheus reads them."),
    "table restore": ("local.table:restore", "table", "Let a table be as a night left it, as a new version."),
    "table forget": ("local.table:forget", "table", "Erase rows by uri or content, in all versions of a table."),
    "table compact": ("local.table:compact", "table", "Put a table's small files together."),
    "table vacuum": ("local.table:vacuum", "table", "Delete files that no recent version of a table needs."),
    "predict": ("local.predict:run", "image", "Label a few images here and now, and write copies with the faces marked."),
    "explain": (
        "local.explain:run",
        "run",
        "Tell all that a run knows about one picture: where from, by which model.",
    ),
    "report": ("local.report:run", "run", "Write the page of a labelling run again."),
    "models list": ("local.models:list_models", "", "List a registry's models, versions and aliases."),
    "models push": ("local.models:push", "model name", "Keep a model bundle as a new, immutable version of a registry."),
    "models alias": ("local.models:alias", "name alias version", "Move an alias, such as production, onto a version."),
    "models promote": ("jobs.promote:run", "name version", "Move an alias onto a version that is better beyond chance."),
    "models pull": ("local.models:pull", "model", "Copy a model out of a registry."),
    "models card": ("local.models:card", "model", "Write a model's card as Markdown and as a page."),
    "models quantize": ("local.quantize:run", "model", "Give a model its int8 form, which labelling on CPUs takes."),
    "models export": ("local.export:run", "model", "Export a model to ONNX, in fp32 or int8, as a bundle that labels."),
    "sample-archive": ("local.sample_archive:run", "dest", "Write a small photo archive to try the pipeline on."),
}
"""Name to the function that does it, which is imported when it is called for, what needs no flag, and one line of help."""

EXIT_CODES = (
    "Exit codes: 0 done, or nothing to do; 1 a bug, or a store or cluster that failed (run it again); 2 yours to mend; "
    "3 too many failures; 4 held; 130 and 143 stopped by SIGINT or SIGTERM."
)
NO_PLACE = {errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
"""What a local path that cannot be used raises, however often it is tried."""
app = App(
    name="fer-pipeline",
    help="Ingest, train and label apparent facial expressions on Ray.",
    help_epilogue=f"{EXIT_CODES} Flags go before $FER_PIPELINE_COMMAND_OPTION, that before --config.",
    result_action="return_value",
)
_groups = {"models": "Registry, cards and export of models.", "table": "The published table: its history and upkeep."}
_apps = {"": app} | {_name: App(name=_name, help=_help) for _name, _help in _groups.items()}
for _name in _groups:
    app.command(_apps[_name])
for _app in (app.meta, *_apps.values()):
    _app.suppress_keyboard_interrupt = False  # `_exit_code` says what happened
for _name, (_function, _, _help) in COMMANDS.items():
    _group, _, _command = _name.rpartition(" ")
    _apps[_group].command(f"fer_pipeline.{_function}", name=_command, help=_help)


@app.meta.default
def _with_config(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[str | None, Parameter(help="TOML file of options, a table for each command.")] = None,
    show_config: Annotated[bool, Parameter(negative=(), help="Print the options and where each comes from; do nothing.")] = False,
    quiet: Annotated[bool, Parameter(negative=(), help="Say nothing but what went wrong, and the result.")] = False,
    json_log: Annotated[bool, Parameter(negative=(), help="Log JSON lines, with the run and its shards.")] = False,
    json_: Annotated[
        str | None, Parameter(name="--json", help='All options as JSON, {"config": {...}, "cluster": {...}}: for programs.')
    ] = None,
) -> Any:
    if quiet:
        logging.getLogger("fer_pipeline").setLevel(logging.WARNING)
    if json_log:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    if json_:
        return _call_with_json(" ".join(tokens), json_)
    app.config = sources(config, COMMANDS)
    if show_config:
        command = _command_of(tokens)
        if not command:
            raise UserError("--show-config stands beside a command, as in 'fer-pipeline label --show-config'.")
        print(shown(app, command, tokens, config))
        return None
    return app(tokens, exit_on_error=False, print_error=False)


def _command_of(tokens: Sequence[str]) -> str | None:
    """Return the command that some tokens name, of one word or two."""
    following = zip(tokens, (*tokens[1:], ""), strict=False)
    return next((name for one, two in following for name in (f"{one} {two}", one) if name in COMMANDS), None)


def _call_with_json(command: str, text: str) -> Any:
    """Run the function of a command on the parameters that JSON describes."""
    if command not in COMMANDS:
        raise UserError(f"'{command}' with --json is no command: name one of {', '.join(COMMANDS)}, and nothing beside it.")
    function = function_of(COMMANDS[command][0])
    kinds, given = get_type_hints(function), _parameters_of(text)
    try:
        return function(**{key: TypeAdapter(kinds[key]).validate_python(value) for key, value in given.items()})
    except ValidationError as error:
        raise UserError(f"--json: {explain(error)}.") from error


def _parameters_of(text: str) -> dict[str, Any]:
    """Return what `--json` holds, `config` and perhaps `cluster`; raise UserError for anything else."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"--json is no valid JSON: {error}.") from error
    if not isinstance(found, dict) or set(found) - {"config", "cluster"}:
        raise UserError('--json must be an object of "config" and, if need be, "cluster".')
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run one command and print its result as one JSON line last.

    Exit with 0, 1 (a bug, a storage or a cluster that fails), 2 (the user's to mend), 3 (too many records failed), 4 (held), or
    143 and 130 (stopped by SIGTERM or SIGINT).
    """
    end_in_order()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Lines())
    logging.getLogger("fer_pipeline").setLevel(logging.INFO)
    given = sys.argv[1:] if arguments is None else arguments
    outcome = _outcome(lambda: _run(given), given)
    if outcome.said:
        print(f"fer-pipeline: {outcome.said}", file=sys.stderr, flush=True)
    write_outcome(outcome)
    if outcome.exit_code in (130, 143):
        os._exit(outcome.exit_code)  # threads of Ray may live on, and crash while Python ends
    if outcome.result is not None:
        try:
            print(json.dumps(outcome.result), flush=True)
        except BrokenPipeError:  # whoever reads has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(outcome.exit_code)


def _run(arguments: list[str]) -> Any:
    command = _command_of(arguments)
    if command:
        path, positional, _ = COMMANDS[command]
        prepare(function_of(path), positional.split())
    return app.meta(arguments, exit_on_error=False, print_error=False)


def _outcome(run: Callable[[], Any], given: Sequence[str]) -> Outcome:
    """Run a command and return how it ended; what is a bug is raised."""
    try:
        result = run()
    except KeyboardInterrupt as stopped:
        return Outcome(exit_code=stopped_code(), said=said_of(stopped))
    except JobError as error:
        return Outcome(exit_code=error.exit_code, said=str(error))
    except UnusedCliTokensError as error:
        more = " ".join(error.unused_tokens or ())
        labelling = "label" in (error.command_chain or ())
        remedy = "label one folder, file or s3:// URL, or predict a few images." if labelling else "--help names what it takes."
        return _to_mend(f"'{more}' is more than the command takes: {remedy}")
    except CycloptsError as error:
        cause = error.__cause__
        if isinstance(cause, ValidationError):
            return _to_mend(f"{variable_of(cause, _command_of(given), given)}{explain(cause)}")
        return _to_mend(str(error))
    except PermissionError as error:
        return _to_mend(f"permission denied: {reason(error)}. Mend the rights, or name another place.")
    except ReadTooLargeError as error:
        return _to_mend(f"{error}. Nothing that this project writes takes as much: somebody else wrote it.")
    except STORAGE_ERRORS as error:
        if getattr(error, "errno", None) in NO_PLACE:
            return _to_mend(f"a path cannot be used: {reason(error)}. Name another one.")
        return Outcome(exit_code=1, said=f"the storage failed, run the same command again to continue: {reason(error)}")
    return Outcome(exit_code=0, result=result.model_dump(mode="json") if isinstance(result, BaseModel) else None)


def _to_mend(said: str) -> Outcome:
    return Outcome(exit_code=UserError.exit_code, said=said)
