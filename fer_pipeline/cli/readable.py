"""A command's result as a few lines for people: on a terminal, where programs get JSON."""

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fer_pipeline.base.text import printable

WIDEST = 60
"""Longest cell of a table."""


def readable(command: str, result: Mapping[str, Any]) -> str:
    """Return the result of a command, as JSON has it, in readable lines; as JSON if somebody else's file made it odd."""
    try:
        return _FORMS.get(command, _facts)(result)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return json.dumps(result)


def _facts(result: Mapping[str, Any]) -> str:
    """Return a line for each fact that is known, and a table for each list of records."""
    lines, tables = list[tuple[str, str]](), list[str]()
    for name, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables.append(table(list(value[0]), [[_short(one) for one in row.values()] for row in value]))
        elif value not in (None, "", [], {}):
            lines.append((name.replace("_", " "), _short(value)))
    return "\n".join([*columns(lines), *tables])


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items() if one not in (None, "", [], {}))
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows of texts as lines with aligned columns; what cannot be printed is escaped."""
    found = [[*map(_cell, row[:-1]), printable(row[-1])] for row in rows]
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    return ["  ".join(one.ljust(width) for one, width in zip(row, widths, strict=True)).rstrip() for row in found]


def _cell(text: str) -> str:
    text = printable(text)
    return text if len(text) <= WIDEST else f"…{text[1 - WIDEST :]}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as text."""
    return "\n".join(columns([head, *rows]))


def _run(run: Mapping[str, Any]) -> str:
    if "result" not in run:
        return _estimate(run)
    result, increment = run["result"] or {}, run["increment"]
    lines = [("run", run["run_id"]), ("source", run["source"])]
    if increment:
        lines.append(("listed", f"{increment['listed']:,}, {increment['held']:,} of them held by {increment['table']}"))
    lines.append(("images", _short(result.get("counts", {})) or "none"))
    if run["skipped"]:
        lines.append(("skipped", _short(run["skipped"])))
    lines.append(("faces", _faces(result)))
    if result.get("tracks"):
        lines.append(("tracks", f"{result['tracks']:,} (faces that stay in view of videos)"))
    if result.get("expressions"):
        lines.append(("labels", _short(result["expressions"])))
    if result:
        rate = f", {result['images_per_s']:,.1f} images/s" if result["labelled_now"] else ""
        lines.append(("took", f"{result['seconds']:,.1f} s{rate}"))
    return "\n".join(columns(lines))


def _faces(counts: Mapping[str, Any]) -> str:
    faces = counts.get("faces", 0)
    return f"{faces:,}, {counts['uncertain'] / faces:.0%} of their labels uncertain" if faces else "none"


def _estimate(found: Mapping[str, Any]) -> str:
    hours = _with_interval(found, "core_hours")
    lines = [("records", f"{found['records']:,} to label, {found['held']:,} held by the table"), ("bytes", f"{found['bytes']:,}")]
    lines += [("core hours", f"{hours}, from {found['measured']} records"), ("hours here", f"{found['hours_here']:,.4g}")]
    if found["price"] is not None:
        lines.append(("price", _with_interval(found, "price")))
    return "\n".join(columns(lines))


def _with_interval(found: Mapping[str, Any], name: str) -> str:
    low, high = found[f"{name}_low"], found[f"{name}_high"]
    return f"{found[name]:,.4g}" + ("" if low is None or high is None else f" ({low:,.4g} to {high:,.4g})")


def _score(found: Mapping[str, Any]) -> str:
    said, left_out = found["estimates"], found["cannot_tell"] + found["in_conflict"]
    answers = f"{found['answered']:,} of {found['drawn']:,} faces drawn from {found['faces']:,}"
    lines = [("audit", found["audit_id"]), ("answers", answers + (f", {left_out} left out" if left_out else ""))]
    if found["agreement"] is not None:
        lines.append(("agreement", f"kappa {found['agreement']:.2f}, {found['answered_by_two']:,} faces answered by two"))
    lines += [("right labels", _share(said["accuracy"])), ("no face", _share(said["false_faces"]))]
    lines += [("confidence is above by", _share(said["overconfidence"])), ("calibration error (ECE)", _share(said["ece"]))]
    if found["missed"]:
        images = f"{found['images_answered']:,} of {found['images']:,} images without a face looked at"
        lines.append(("images with a missed face", f"{_share(found['missed'])}, {images}"))
    lines.append(("to halve the interval", f"{said['answers_to_halve']:,} more answers"))
    if found["relabelled"]:
        lines.append(("relabelled since", f"{found['relabelled']:,} of the drawn faces"))
    head = ["apparent expression", "precision", "recall", "true share", "share of labels"]
    rows = [
        [name, *(_share(said[kind].get(name)) for kind in ("precision", "recall", "shares")), f"{share:.1%}"]
        for name, share in said["predicted_shares"].items()
    ]
    return "\n".join([*columns(lines), "", table(head, rows), "", "Intervals are of 95 %."])


def _share(found: Mapping[str, float] | None) -> str:
    return f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})" if found else ""


def _night(night: Mapping[str, Any]) -> str:
    counted = [f"{night[name]:,} {name}" for name in ("records", "carried", "failed", "vanished") if night[name]]
    lines = [("night", night["run_id"]), ("state", night["state"]), ("rows", ", ".join(counted) or "no change")]
    lines.append(("faces", _faces(night)))
    lines += [(name, ", ".join(night[name])) for name in ("failing", "accepted") if night[name]]
    if night["table_rows"] is not None:
        lines.append(("table", f"{night['table_rows']:,} rows"))
    if night["folder"]:
        lines.append(("run", night["folder"]))
    return "\n".join(columns(lines))


def _changes(found: Mapping[str, Any]) -> str:
    facts = {name: value for name, value in found.items() if name != "expressions"}
    rows = [[name, f"{before:,}", f"{after:,}"] for name, (before, after) in found["expressions"].items()]
    return "\n".join([_facts(facts), *([table(["faces of changed rows", "before", "after"], rows)] if rows else [])])


def _predicted(result: Mapping[str, Any]) -> str:
    rows = []
    for one in result["images"]:
        name = one["member"] or posixpath.basename(one["uri"])
        moment = "" if one["time_ms"] is None else f" at {one['time_ms'] / 1000:g} s"
        rows.append([name + moment, one["error"] or labels_of(one["faces"]) or "no face", one["annotated"] or ""])
    return table(["image", "apparent expressions", "marked copy"], rows)


def labels_of(faces: Sequence[Mapping[str, Any]]) -> str:
    """Return the labels of faces, such as `happy 93%, neutral 41% (uncertain)`."""
    return ", ".join(f"{face['expression']} {face['confidence']:.0%}{' (uncertain)' * face['uncertain']}" for face in faces)


def _explained(result: Mapping[str, Any]) -> str:
    row, run = result["row"], result["run"]
    facts = {name: value for name, value in row.items() if name not in ("faces", "qualities", "outputs", "record_id", "shard")}
    qualities = row.get("qualities") or []
    qualities = qualities if len(qualities) == len(row["faces"]) else [None] * len(row["faces"])
    outputs, names = row.get("outputs") or [], (row.get("output_names") or "").split(",")
    outputs = outputs if len(outputs) == len(row["faces"]) else [None] * len(row["faces"])
    faces = [
        [
            str(face["face_id"]),
            labels_of([face]),
            f"{face['w']:.0f} x {face['h']:.0f} at {face['x']:.0f}, {face['y']:.0f}",
            f"{face['detection_score']:.2f}",
            ", ".join(filter(None, [_quality(quality), *_outputs(names, values)])),
        ]
        for face, quality, values in zip(row["faces"], qualities, outputs, strict=True)
    ]
    facts |= {"settings": run["settings"], "file": result["shard_file"], "picture": result["picture"]}
    head = ["face", "label", "box in px", "detection", "picture"]
    return "\n".join([_facts(facts), table(head, faces) if faces else "no face"])


def _outputs(names: Sequence[str], values: Sequence[float | None] | None) -> list[str]:
    return [f"{name} {value:.2f}" for name, value in zip(names, values or (), strict=False) if value is not None]


def _quality(quality: Mapping[str, Any] | None) -> str:
    """Return the quality of a face's picture with what is poor, and the turn of the head; nothing if it is not known."""
    if not quality or quality["quality"] is None:
        return ""
    turns = [f"{name} {quality[f'{name}_deg']:.0f}°" for name in ("roll", "yaw", "pitch") if quality[f"{name}_deg"] is not None]
    return ", ".join([f"quality {quality['quality']:.2f}", *turns, *filter(None, [quality["quality_reasons"]])])


def _history(result: Mapping[str, Any]) -> str:
    rows = []
    for one in result["versions"]:
        night, restored = one["night"] or {}, one["restored"]
        moment = datetime.fromtimestamp(one["timestamp"] / 1000, UTC)
        operation = one["operation"].lower() if restored is None else f"restore of version {restored}"
        counted = [
            f"{night[name]:,} {name}" for name in ("records", "faces", "failed", "vanished") if night.get(name) is not None
        ]
        forgot = [f"forgot {night['forgot']:,} rows"] if night.get("forgot") is not None else []
        said = [*forgot, *counted, *(f"accepted: {name}" for name in night.get("accepted", []))]
        rows.append([str(one["version"]), f"{moment:%Y-%m-%d %H:%M}", operation, night.get("run_id", ""), ", ".join(said)])
    return table(["version", "UTC", "operation", "night", "what it did"], rows)


def _registry(result: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{model['name']}@{version['version']}",
            version["created_at"][:16],
            (version["digest"] or "")[:12],
            _aliases(model, version),
        ]
        for model in result["models"]
        for version in model["versions"]
    ]
    return table(["model", "created", "digest", "aliases"], rows) if rows else printable(f"no models in {result['registry']}")


def _aliases(model: Mapping[str, Any], version: Mapping[str, Any]) -> str:
    return ", ".join(name for name, target in model["aliases"].items() if target == version["version"])


_FORMS = {
    "label": _run,
    "predict": _predicted,
    "explain": _explained,
    "nightly": _night,
    "publish": _night,
    "score": _score,
    "table diff": _changes,
    "table history": _history,
    "models list": _registry,
}
