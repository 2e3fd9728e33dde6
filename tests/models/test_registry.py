import hashlib
from pathlib import Path

import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.models.bundle import EMBEDDED, read_bundle, read_files
from fer_pipeline.models.registry import ENVIRONMENT, Registry, find, is_reference

FILES = {"model.json": b"card", "model.safetensors": b"weights"}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "registry"))


def test_versions_count_up_and_keep_the_sha256_of_every_file(registry: Registry) -> None:
    first, second = registry.push("face", FILES), registry.push("face", FILES | {"model.json": b"other"})
    assert (first.version, second.version) == ("1", "2")
    assert [one.version for one in registry.versions("face")] == ["1", "2"]
    assert first.files["model.json"] == hashlib.sha256(b"card").hexdigest()
    assert {name: registry.read(first, name) for name in first.files} == FILES
    assert first.files_digest != second.files_digest


def test_the_same_files_are_the_same_version(registry: Registry) -> None:
    first, other = registry.push("face", FILES), registry.push("face", FILES | {"model.json": b"other"})
    assert registry.push("face", FILES) == first and registry.push("face", FILES, "1") == first
    assert registry.versions("face") == [first, other]


def test_a_version_that_exists_is_refused_and_stays_as_it_is(registry: Registry) -> None:
    first = registry.push("face", FILES, "1.0")
    with pytest.raises(UserError, match=r"face@1.0 already exists"):
        registry.push("face", {"model.json": b"other"}, "1.0")
    assert registry.versions("face") == [first]
    assert registry.read(first, "model.json") == b"card"


def test_an_alias_moves(registry: Registry) -> None:
    for card in (b"one", b"two"):
        registry.push("face", FILES | {"model.json": card})
    registry.point("face", "production", "1")
    assert registry.resolve("face", "production").version == "1"
    registry.point("face", "production", "2")
    assert registry.resolve("face", "production").version == "2"
    assert registry.aliases("face") == {"production": "2"}


def test_what_is_not_there_is_said_with_what_is(registry: Registry) -> None:
    registry.push("face", FILES)
    registry.point("face", "production", "1")
    for reference, has in (("face@staging", "it has production, 1"), ("face@7", "it has 1"), ("other@1", "no model 'other'")):
        with pytest.raises(UserError, match=has):
            find(f"{registry.url}/{reference}")
    with pytest.raises(UserError, match="has no face@9"):
        registry.point("face", "production", "9")
    assert registry.aliases("face") == {"production": "1"}


@pytest.mark.parametrize("alias", ["1", "a/b", "", "../x"])
def test_an_alias_that_could_be_a_version_or_a_path_is_refused(registry: Registry, alias: str) -> None:
    registry.push("face", FILES)
    with pytest.raises(UserError, match="cannot be an alias"):
        registry.point("face", alias, "1")


@pytest.mark.parametrize("name", ["a/b", "..", ""])
def test_a_name_that_leaves_the_registry_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(UserError, match="name"):
        registry.push(name, FILES)


def test_a_file_that_was_changed_is_not_used(registry: Registry) -> None:
    version = registry.push("face", read_files(EMBEDDED))
    weights = Path(registry.path(version, "model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="its sha256 differs"):
        read_bundle(f"{registry.url}/face@1")
    registry.push("face", read_files(EMBEDDED))
    assert read_bundle(f"{registry.url}/face@1") == read_bundle(EMBEDDED), "pushing it again did not repair it"


def test_a_bundle_is_read_by_its_alias_from_the_registry_of_the_environment(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("face", read_files(EMBEDDED))
    registry.point("face", "production", "1")
    with pytest.raises(UserError, match=ENVIRONMENT):
        read_bundle("face@production")
    monkeypatch.setenv(ENVIRONMENT, registry.url)
    assert read_bundle("face@production") == read_bundle(EMBEDDED) == read_bundle("face@1")


@pytest.mark.parametrize("path", ["models/mine", "s3://user@bucket/model", "mine@", "@production"])
def test_a_path_is_no_reference(path: str) -> None:
    assert not is_reference(path)


def test_a_folder_with_an_at_in_its_name_is_a_folder(tmp_path: Path) -> None:
    for name, data in read_files(EMBEDDED).items():
        (tmp_path / "mine@home").mkdir(exist_ok=True)
        (tmp_path / "mine@home" / name).write_bytes(data)
    assert read_bundle(str(tmp_path / "mine@home")) == read_bundle(EMBEDDED)


def test_other_files_in_the_registry_are_passed_over(registry: Registry) -> None:
    registry.push("face", FILES)
    (Path(registry.url) / "README.txt").write_text("ours")
    (Path(registry.url) / "notes").mkdir()
    assert registry.names() == ["face"]
