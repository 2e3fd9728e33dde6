"""The command line: the table of commands, their exit codes, and what they print. This file has no logic of its own."""

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, get_type_hints

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from pydantic import BaseModel, TypeAdapter, ValidationError

from fer_pipeline.base import storage
from fer_pipeline.base.config import explain
from fer_pipeline.base.errors import JobError, UserError, needs_package
from fer_pipeline.base.log import JsonLines, Lines
from fer_pipeline.base.memory import ReadTooLargeError
from fer_pipeline.base.outcome import Outcome, write_outcome
from fer_pipeline.base.stopping import exit_without_shutdown, handle_stop_signals, stop_message, stopped_code
from fer_pipeline.cli.options import function_of, misspelt, option_of, prepare, shown, sources, unknown_variables, variable_of
from fer_pipeline.cli.readable import readable

log = logging.getLogger(__name__)
COMMANDS = {
    "ingest": ("jobs.ingest:run", "source", "Convert a labelled dataset to Parquet, with counts, duplicates and leaks."),
    "train": ("jobs.train.job:run", "recipe", "Train a recipe on an ingested dataset; run it again to continue."),
    "evaluate": ("jobs.evaluate:run", "model", "Evaluate a model on a split: figures with intervals, calibration, a page."),
    "sweep": ("jobs.sweep:run", "recipe", "Train a recipe with many settings on many machines; run it again to continue."),
    "label": ("cli.label:run", "source", "Label the expression of every face in an archive; run it again to continue."),
    "publish": ("jobs.publish:run", "run", "Audit a finished run and publish it to a Delta Lake table, or hold it."),
    "nightly": ("jobs.nightly:run", "", "Label what is new or changed, audit and publish it; run it again to continue."),
    "table history": ("cli.table:history", "table", "List a table's versions and the nights that made them."),
    "table diff": ("cli.table:changes", "table", "Count what changed in a table from one night to another."),
    "table page": ("cli.table:page", "table", "Write the page of a table's last nights."),
    "table metrics": ("cli.table:metrics", "table", "Write the last night's metrics in Prometheus format."),
    "table restore": ("cli.table:restore", "table", "Restore a table to its state after a night, as a new version."),
    "table forget": ("cli.table:forget", "table", "Erase rows by uri or content, in all versions of a table."),
    "table compact": ("cli.table:compact", "table", "Merge a table's small files."),
    "table vacuum": ("cli.table:vacuum", "table", "Delete files that no recent version of a table needs."),
    "predict": ("cli.predict:run", "image", "Label a few images without Ray, and write copies with the faces marked."),
    "explain": ("cli.explain:run", "run", "Show all that a run knows about one picture: its source, its labels, the model."),
    "export": ("cli.faces:export", "labels", "Write the labelled faces of a run or a table as CSV, JSON or Parquet."),
    "copies": ("cli.faces:copies", "labels", "Find copies among the images of a run or a table: equal, resized, mirrored."),
    "find": ("cli.faces:find", "labels", "Find the rows of a picture, also if it was resized or mirrored. Nobody is recognised."),
    "crops": ("cli.faces:crops", "labels", "Write pictures of the most confident faces of a run or a table."),
    "review": ("cli.review:review", "labels", "Write a page on which people correct labels, without a server."),
    "correct": ("cli.review:correct", "labels file", "Add answers of people about faces to a run or a table."),
    "score": ("cli.review:score", "labels", "Say how right all labels are, from the answers to an audit, with intervals."),
    "redact": ("jobs.redact.job:run", "run", "Copy the images of a run with the faces that were found under a mosaic."),
    "expire": ("cli.faces:expire", "place", "Erase run folders, reviews, crops, exports and copies that are too old."),
    "report": ("cli.report:run", "run", "Write the page of a labelling run again."),
    "models list": ("cli.models:list_models", "", "List a registry's models, versions and aliases."),
    "models push": ("cli.models:push", "model name", "Add a model bundle to a registry as a new, immutable version."),
    "models alias": ("cli.models:alias", "name alias version", "Move an alias, such as production, to a version."),
    "models promote": ("jobs.promote:run", "name version", "Move an alias to a version that is significantly better."),
    "models pull": ("cli.models:pull", "model", "Copy a model out of a registry."),
    "models card": ("cli.models:card", "model", "Write a model's card as Markdown and as a page."),
    "models quantize": ("cli.quantize:run", "model", "Add an int8 form to a model, which labelling on CPUs uses."),
    "models export": ("cli.export:run", "model", "Export a model to ONNX, in fp32 or int8, as a bundle for labelling."),
    "sample-archive": ("cli.sample_archive:run", "dest", "Write a small photo archive to try the pipeline on."),
}
"""For each command: its function (imported when needed), its positional arguments and one line of help."""

EXIT_CODES = (
    "Exit codes: 0 done, or nothing to do; 1 a bug, or a store or cluster that failed (run it again); 2 invalid input or "
    "configuration; 3 too many failures; 4 not published, because the audit failed; 130 stopped by SIGINT; 143 by SIGTERM."
)
UNUSABLE_PATH = {errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
"""Error numbers of a local path that cannot be used; a retry does not help."""
app = App(
    name="fer-pipeline",
    help="Ingest, train and label apparent facial expressions on Ray.",
    help_epilogue=f"{EXIT_CODES} Flags override $FER_PIPELINE_COMMAND_OPTION, which overrides --config.",
    result_action="return_value",
)
_groups = {"models": "Registry, cards and export of models.", "table": "The published table: its history and upkeep."}
_apps = {"": app} | {_name: App(name=_name, help=_help) for _name, _help in _groups.items()}
for _name in _groups:
    app.command(_apps[_name])
for _app in (app.meta, *_apps.values()):
    _app.suppress_keyboard_interrupt = False  # `_outcome` reports the interrupt
for _name, (_function, _, _help) in COMMANDS.items():
    _group, _, _command = _name.rpartition(" ")
    _apps[_group].command(f"fer_pipeline.{_function}", name=_command, help=_help)


@app.meta.default
def _with_config(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[str | None, Parameter(help="TOML file of options, with a table for each command.")] = None,
    show_config: Annotated[bool, Parameter(negative=(), help="Print the options and where each comes from, then exit.")] = False,
    quiet: Annotated[bool, Parameter(negative=(), help="Log only warnings and errors; print the result.")] = False,
    json_log: Annotated[bool, Parameter(negative=(), help="Log JSON lines, with the run and its shards.")] = False,
    json_: Annotated[
        bool, Parameter(name="--json", negative=(), help="Print the result as JSON on a terminal, too, as into a pipe.")
    ] = False,
    parameters: Annotated[
        str | None, Parameter(help='All options as JSON, {"config": {...}, "cluster": {...}}, meant for programs.')
    ] = None,
) -> Any:
    if quiet:
        logging.getLogger("fer_pipeline").setLevel(logging.WARNING)
    if json_log:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    if parameters:
        return _call_with_json(" ".join(tokens), parameters)
    app.config = sources(config, COMMANDS)
    if show_config:
        command = _command_of(tokens)
        if not command:
            raise UserError("--show-config needs a command, as in 'fer-pipeline label --show-config'.")
        print(shown(app, command, tokens, config))
        return None
    return app(tokens, exit_on_error=False, print_error=False)


def _command_of(tokens: Sequence[str]) -> str | None:
    """Return the command of one or two words in the tokens; None if there is none."""
    following = zip(tokens, (*tokens[1:], ""), strict=False)
    return next((name for one, two in following for name in (f"{one} {two}", one) if name in COMMANDS), None)


def _call_with_json(command: str, text: str) -> Any:
    """Run the function of a command with its options from JSON."""
    if command not in COMMANDS:
        raise UserError(f"'{command}' is not a command. With --parameters, give only a command, one of {', '.join(COMMANDS)}.")
    function = function_of(COMMANDS[command][0])
    kinds, given = get_type_hints(function), _parameters_of(text)
    try:
        return function(**{key: TypeAdapter(kinds[key]).validate_python(value) for key, value in given.items()})
    except ValidationError as error:
        raise UserError(f"--parameters: {explain(error)}.") from error


def _parameters_of(text: str) -> dict[str, Any]:
    """Return the options in `--parameters`: `config` and perhaps `cluster`; raise UserError for anything else."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"--parameters is not valid JSON: {error}.") from error
    if not isinstance(found, dict) or set(found) - {"config", "cluster"}:
        raise UserError('--parameters must be an object with "config" and, optionally, "cluster".')
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run one command and print its result: as the last line, in JSON, or in readable lines on a terminal.

    Exit with 0, 1 (a bug, or a store or a cluster that failed), 2 (invalid input or configuration), 3 (too many records failed),
    4 (not published, because the audit failed), 130 (stopped by SIGINT) or 143 (stopped by SIGTERM).
    """
    handle_stop_signals()
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
        exit_without_shutdown(outcome.exit_code)
    if outcome.result is not None:
        try:
            print(_result_text(outcome.result, given), flush=True)
        except BrokenPipeError:  # the reader has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(outcome.exit_code)


def _result_text(result: dict[str, Any], given: Sequence[str]) -> str:
    """Return a result as JSON or, on a terminal, in readable lines."""
    command = _command_of(given)
    return readable(command, result) if command and sys.stdout.isatty() and "--json" not in given else json.dumps(result)


def _run(arguments: list[str]) -> Any:
    command = _command_of(arguments)
    if command:
        path, positional, _ = COMMANDS[command]
        try:
            function = function_of(path)
        except ImportError as error:
            raise needs_package(f"The command '{command}'", error) from error
        prepare(function, positional.split())
        for sentence in unknown_variables(app, command):
            log.warning("%s", sentence)
    return app.meta(arguments, exit_on_error=False, print_error=False)


def _outcome(run: Callable[[], Any], given: Sequence[str]) -> Outcome:
    """Run a command and return its outcome; any other exception is a bug and is not caught."""
    try:
        result = run()
    except KeyboardInterrupt as stopped:
        return Outcome(exit_code=stopped_code(), said=stop_message(stopped))
    except JobError as error:
        return Outcome(exit_code=error.exit_code, said=str(error))
    except UnusedCliTokensError as error:
        unused = " ".join(error.unused_tokens or ())
        labelling = "label" in (error.command_chain or ())
        remedy = "give `label` one folder, file or URL, or use `predict` for a few images." if labelling else "see --help."
        return _user_error(f"the command does not take '{unused}': {remedy}")
    except CycloptsError as error:
        cause = error.__cause__
        command = _command_of(given)
        if isinstance(cause, ValidationError) and command:
            option = partial(option_of, COMMANDS[command][1].split())
            said = f"{variable_of(cause, command, given)}{explain(cause, option)}"
            return _user_error(misspelt(app, command, given) or said)
        try:
            return _user_error(str(error))
        except ImportError:  # looking for a similar command, cyclopts imports all of them
            return _user_error(f"'{' '.join(given[:2])}' is not a command: see --help.")
    except PermissionError as error:
        return _user_error(f"permission denied: {storage.reason(error)}. Fix the permissions, or choose another path.")
    except ReadTooLargeError as error:
        return _user_error(f"{error}. fer-pipeline never writes such a large file, so another program wrote it.")
    except storage.STORAGE_ERRORS as error:
        if getattr(error, "errno", None) in UNUSABLE_PATH:
            return _user_error(f"a path cannot be used: {storage.reason(error)}. Choose another one.")
        return Outcome(exit_code=1, said=f"The storage failed: {storage.reason(error)}. Run the same command again to continue.")
    return Outcome(exit_code=0, result=result.model_dump(mode="json") if isinstance(result, BaseModel) else None)


def _user_error(message: str) -> Outcome:
    return Outcome(exit_code=UserError.exit_code, said=message)
