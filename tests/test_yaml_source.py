"""YAML files: what is refused, and where the messages point."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st
from pydantic import BaseModel, ConfigDict

from zoopress.errors import RecipeError
from zoopress.yaml_source import MAX_BYTES, parse_yaml, read_yaml, validate

PATH = Path("file.yaml")
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def parse(text: str) -> Any:
    return parse_yaml(text, PATH, RecipeError).data


@given(PLAIN)
def test_what_a_safe_dumper_writes_is_read_back(data: Any) -> None:
    assert parse(yaml.safe_dump(data)) == data


@given(st.text(max_size=60) | st.text("!&*<>[]{}:?-|'\"#%@ \n0ab.", max_size=40))
def test_any_text_parses_or_is_refused_with_the_given_error(text: str) -> None:
    try:
        parse(text)
    except RecipeError as error:
        assert str(error).startswith("file.yaml")  # noqa: PT017


@pytest.mark.parametrize("tag", ["int", "float", "bool", "null", "timestamp", "binary", "str"])
@given(value=st.text("019a_:.-+ex", max_size=12))
def test_a_value_that_does_not_fit_its_tag_is_no_crash(tag: str, value: str) -> None:
    try:
        parse(f"key: !!{tag} '{value}'")
    except RecipeError as error:
        assert "file.yaml:1" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "key: !!python/object/apply:os.system ['touch canary']",
        "key: !!python/object:os.system {a: 1}",
        "key: !!python/name:os.system",
        "key: !!python/module:antigravity",
        "!!python/object/new:os.system {args: ['touch canary']}",
        "!!python/object/apply:os.system ['touch canary']: 1",
        "!custom {stages: []}",
    ],
)
def test_a_tag_that_names_code_is_refused_and_nothing_runs(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"file\.yaml:1"):
        parse(text)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_stands_twice_is_refused_with_its_second_line() -> None:
    with pytest.raises(RecipeError, match=r"file\.yaml:3: the key 'seed' stands here twice"):
        parse("seed: 1\nname: a\nseed: 2\n")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{a: " * 5_000,
        "- " * 20_000 + "a",
        BOMB,
        BOMB + "? *m\n: 1\n",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "? &a [*a]\n: 1",
        "key: 0x" + "f" * 100_000,
        "key: " + "9" * 100_000,
        "key: 0b" + "1" * 100_000,
    ],
    ids=[
        "flow-lists",
        "flow-mappings",
        "block-lists",
        "alias-bomb",
        "alias-bomb-as-key",
        "list-in-itself",
        "mapping-in-itself",
        "list-in-itself-as-key",
        "long-hexadecimal",
        "long-decimal",
        "long-binary",
    ],
)
def test_what_would_explode_is_refused_in_a_short_message(text: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse(text)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [("2:4", "2:4"), ("1:30:00", "1:30:00"), ("2024-01-01", "2024-01-01"), ("1:2.5", "1:2.5")],
)
def test_what_yaml_takes_for_base_sixty_or_a_date_stays_text(text: str, value: str) -> None:
    assert parse(f"pattern: {text}") == {"pattern": value}


@pytest.mark.parametrize("key", ["1", "null", "true", "[a]", "{a: b}", "2.5"])
def test_a_key_that_is_no_text_is_refused_with_its_line(key: str) -> None:
    with pytest.raises(RecipeError, match=r"file\.yaml:2: the key .* must be text"):
        parse(f"a: 1\n? {key}\n: 2\n")


def test_a_file_without_content_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert read_yaml(tmp_path / "empty.yaml", RecipeError).data is None


def test_unreadable_files_are_refused_with_their_path(tmp_path: Path) -> None:
    cases: dict[str, bytes | None] = {
        "missing.yaml": None,
        "latin.yaml": "name: caf\u00e9".encode("latin-1"),
        "huge.yaml": b"#" * (MAX_BYTES + 1),
        "zero.yaml": b"a: \0",
    }
    for name, content in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RecipeError, match=name):
            read_yaml(path, RecipeError)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_yaml(tmp_path, RecipeError)


def test_a_device_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(RecipeError, match="larger than"):
        read_yaml(Path("/dev/zero"), RecipeError)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    bits: int = 8


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    items: list[Inner] = []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner:\n  bitz: 4\n", r"file\.yaml:2: unknown key 'inner\.bitz'\. Did you mean 'bits'\?"),
        ("items:\n- bits: 1\n- bits: x\n", r"file\.yaml:3: items\.1\.bits: .* got 'x'"),
        ("iner: {}\n", r"file\.yaml:1: unknown key 'iner'\. Did you mean 'inner'\?"),
        ("inner: 4\n", r"file\.yaml:1: inner: .* got 4"),
        ("- a\n", r"file\.yaml:1: expected keys and values, got \['a'\]"),
        ("", r"file\.yaml:1: expected keys and values, got None"),
    ],
)
def test_a_mistake_is_named_with_file_line_key_and_nearest_name(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validate(Outer, parse_yaml(text, PATH, RecipeError), RecipeError)


@given(st.integers(1, 200))
def test_a_message_fits_on_a_screen_however_many_mistakes(count: int) -> None:
    text = "".join(f"wrong{i}: {i}\n" for i in range(count))
    with pytest.raises(RecipeError) as refused:
        validate(Outer, parse_yaml(text, PATH, RecipeError), RecipeError)
    assert len(str(refused.value).splitlines()) <= 9


def test_a_section_is_found_by_its_dotted_path_and_errors_keep_their_lines() -> None:
    source = parse_yaml("recipes:\n  small:\n    bitz: 4\n", PATH, RecipeError)
    with pytest.raises(RecipeError, match=r"file\.yaml:3: unknown key 'bitz'"):
        validate(Inner, source.section("recipes.small", RecipeError), RecipeError)
    with pytest.raises(RecipeError, match=r"file\.yaml:1: .*'smal'.*Did you mean 'small'\?"):
        source.section("recipes.smal", RecipeError)
