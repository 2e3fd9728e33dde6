"""The registry: a folder, local or on S3, with immutable versions of models and movable aliases.

REGISTRY/NAME/versions/VERSION.json   sha256 of every file; written last, and only if absent: it creates the version
REGISTRY/NAME/bundles/DIGEST/         the files, under a digest of all of them
REGISTRY/NAME/aliases/ALIAS           the version that the alias points to
"""

import hashlib
import logging
import os
import re
from dataclasses import dataclass

from fer_pipeline.base import storage
from fer_pipeline.base.config import ID, Config, Id, read_record
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import now

log = logging.getLogger(__name__)

ENVIRONMENT = "FER_PIPELINE_REGISTRY"
"""Environment variable with the registry of a bare NAME@ALIAS."""
_REFERENCE = re.compile(rf"(?:(?P<registry>.+)/)?(?P<name>{ID})@(?P<version>{ID})")
_NAME = re.compile(ID)
_VERSION = re.compile(rf"(?=\d){ID}")


class Version(Config):
    """The content of `versions/VERSION.json`."""

    name: Id
    version: Id
    files: dict[Id, Id]
    """sha256 of each file of the bundle."""
    created_at: str
    digest: str | None = None
    """Digest of the bundle, as in the rows that it labels; None if older software pushed it."""

    @property
    def files_digest(self) -> str:
        """sha256 over the names and digests of the files."""
        return hashlib.sha256("".join(f"{name}\n{self.files[name]}\n" for name in sorted(self.files)).encode()).hexdigest()


class Registry:
    """The registry at `url`, which need not exist before the first push."""

    def __init__(self, url: str) -> None:
        self.url = storage.normalize(url)

    def names(self) -> list[str]:
        """Return the names of the models, ignoring anything else in the folder."""
        storage.require_access(self.url)
        return [name for name in storage.list_names(self.url) if self._version_names(name)]

    def versions(self, name: str) -> list[Version]:
        """Return the versions of a model, oldest first. Invalid ones are logged and skipped."""
        found = []
        for version in self._version_names(name):
            try:
                found.append(self._read(name, version))
            except UserError as error:
                log.warning("%s", error)
        return sorted(found, key=lambda one: (one.created_at, _order(one.version)))

    def aliases(self, name: str) -> dict[str, str]:
        """Return the version to which each alias of a model points."""
        names = storage.list_names(self._path(name, "aliases"))
        return {alias: storage.read_bytes(self._path(name, "aliases", alias)).decode(errors="replace") for alias in names}

    def push(self, name: str, bundle: dict[str, bytes], version: str | None = None, digest: str | None = None) -> Version:
        """Store a bundle's files as a version, by default the next whole number, and return it.

        If a version with these files exists, overwrite its files, which repairs changed ones, and return that version. Raise
        UserError if `version` exists with other files.
        """
        _require(_NAME, name, "a model's name", "letters, digits, dots, dashes")
        if version is not None:
            _require(_VERSION, version, "a version", "a digit first, then letters, digits, dots, dashes")
        files = {file: hashlib.sha256(data).hexdigest() for file, data in bundle.items()}
        while True:
            same = [one for one in self.versions(name) if one.files == files and version in (None, one.version)]
            number = version or self._next(name)
            new = same[-1] if same else Version(name=name, version=number, files=files, created_at=now(), digest=digest)
            if version and not same and storage.exists(self._version_path(name, version)):
                raise UserError(f"The version {name}@{version} already exists and is immutable: choose another --version.")
            for file, data in bundle.items():
                storage.write_bytes(self.path(new, file), data)  # an existing file stays equal or is repaired
            if same or storage.create(self._version_path(name, new.version), new.model_dump_json(indent=1).encode()):
                return new

    def point(self, name: str, alias: str, version: str) -> None:
        """Point an alias to a version; raise UserError if there is no such version."""
        require_alias(alias)
        self._read(name, version)
        storage.write_bytes(self._path(name, "aliases", alias), version.encode())

    def resolve(self, name: str, version: str) -> Version:
        """Return the version with that number or alias; raise UserError if there is none."""
        aliased = not _VERSION.fullmatch(version)
        aliases = self.aliases(name) if aliased else {}
        if aliased and version not in aliases:
            known = [*aliases, *(one.version for one in self.versions(name))]
            has = f"it has {', '.join(known)}" if known else f"there is no model '{name}'"
            raise UserError(f"The registry '{self.url}' has no {name}@{version}: {has}.")
        return self._read(name, aliases.get(version, version))

    def read(self, version: Version, file: str) -> bytes:
        """Return a file of a version; raise FileNotFoundError if it has no such file, UserError if the file was changed."""
        if file not in version.files:
            raise FileNotFoundError(file)
        data = read_file(self.path(version, file))
        if hashlib.sha256(data).hexdigest() != version.files[file]:
            raise UserError(
                f"The file '{self.path(version, file)}' is not the one that was pushed as {version.name}@{version.version}: "
                "its sha256 differs. Push the model again to repair it."
            )
        return data

    def path(self, version: Version, *file: str) -> str:
        """Return the path of a version's folder, or of a file in it."""
        return self._path(version.name, "bundles", version.files_digest, *file)

    def _path(self, *parts: str) -> str:
        return storage.join(self.url, *parts)

    def _version_path(self, name: str, version: str) -> str:
        return self._path(name, "versions", f"{version}.json")

    def _next(self, name: str) -> str:
        names = self._version_names(name)
        return str(1 + max((int(one) for one in names if one.isdecimal()), default=0))

    def _version_names(self, name: str) -> list[str]:
        try:
            files = storage.list_names(self._path(name, "versions"))
        except NotADirectoryError:
            return []
        return [file.removesuffix(".json") for file in files if file.endswith(".json")]

    def _read(self, name: str, version: str) -> Version:
        """Return a version. Its name and number may come from an alias's file, so they must not lead out of the registry."""
        _require(_NAME, name, "a model's name", "letters, digits, dots, dashes")
        _require(_VERSION, version, "a version", "a digit first, then letters, digits, dots, dashes")
        path = self._version_path(name, version)
        try:
            found = read_record(path, Version, "version of a model")
        except FileNotFoundError:
            known = self._version_names(name)
            has = f"it has {', '.join(known)}" if known else f"there is no model '{name}'"
            raise UserError(f"The registry '{self.url}' has no {name}@{version}: {has}.") from None
        if (found.name, found.version) != (name, version):
            raise UserError(f"'{path}' says that it is {found.name[:100]}@{found.version[:100]}, so it was not pushed here.")
        return found


def read_file(url: str) -> bytes:
    """Return one file of a bundle. JSON files must be short; weights and pictures may have any size."""
    return storage.read_small(url) if url.endswith(".json") else storage.read_bytes(url)


def _order(version: str) -> tuple[int, str]:
    return (int(version) if version.isdecimal() else 0, version)


def _require(pattern: re.Pattern[str], value: str, what: str, rule: str) -> None:
    if not pattern.fullmatch(value):
        raise UserError(f"'{value}' cannot be {what}: use {rule}.")


def require_alias(alias: str) -> None:
    """Raise UserError for an invalid alias, such as one that looks like a version."""
    _require(re.compile(rf"(?=[A-Za-z]){ID}"), alias, "an alias", "a letter first, then letters, digits, dots, dashes")


def open_registry(url: str | None) -> Registry:
    """Return the registry at `url`, by default the one in $FER_PIPELINE_REGISTRY; raise UserError if neither is given."""
    url = url or os.environ.get(ENVIRONMENT)
    if not url:
        raise UserError(f"No registry is given: name its folder or s3:// URL with --registry or in ${ENVIRONMENT}.")
    return Registry(url)


@dataclass(frozen=True)
class Pushed:
    """The files of a version in a registry, and the alias that was resolved to it."""

    registry: Registry
    version: Version
    alias: str | None = None

    def names(self) -> list[str]:
        return sorted(self.version.files)

    def read(self, name: str) -> bytes:
        return self.registry.read(self.version, name)


def is_reference(text: str) -> bool:
    """Return whether `text` has the form [REGISTRY/]NAME@VERSION-OR-ALIAS."""
    return _REFERENCE.fullmatch(text) is not None


def find(reference: str) -> Pushed:
    """Return the version that [REGISTRY/]NAME@VERSION-OR-ALIAS names; raise UserError if there is none."""
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise UserError(f"'{reference}' is not a registry reference: use [REGISTRY/]NAME@ALIAS.")
    registry = open_registry(match["registry"])
    storage.require_access(registry.url)
    version = match["version"]
    return Pushed(registry, registry.resolve(match["name"], version), None if _VERSION.fullmatch(version) else version)
