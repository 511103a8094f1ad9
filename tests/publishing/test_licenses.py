"""Publication is refused where the original's licence does not allow it, with a way out."""

from __future__ import annotations

from typing import Any

import pytest

from zoopress.errors import HubError
from zoopress.publishing.licenses import (
    LICENSES,
    BaseInfo,
    check_license,
    forbids_commercial_use,
    license_link,
    obligations,
)

PERMISSION = "https://example.org/permission, section 2"


def card(license: str | None = "apache-2.0", **other: Any) -> dict[str, Any]:
    return {"name": "tiny", **({} if license is None else {"license": license}), **other}


def refusal(*arguments: Any, **named: Any) -> str:
    with pytest.raises(HubError) as caught:
        check_license(*arguments, **named)
    return str(caught.value)


@pytest.mark.parametrize(
    "license", ["apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-sa-4.0", "gpl-3.0"]
)
def test_licences_that_allow_changed_versions_pass(license: str) -> None:
    check_license(card(license), [])
    check_license(card(license), [], BaseInfo(license))


@pytest.mark.parametrize("license", [None, "", "unknown"])
def test_without_a_licence_nobody_may_pass_a_model_on(license: str | None) -> None:
    message = refusal(card(license), [])
    assert "'tiny' has no license" in message
    assert "Add `license`" in message
    assert "'mit'" in refusal(card(license), [], BaseInfo("mit"))
    check_license(card(license), [], permission=PERMISSION)


def test_every_licence_of_the_hubs_that_forbids_derivatives_is_refused() -> None:
    forbidding = {name for name in LICENSES if "-nd-" in name}
    assert forbidding == {"cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"}
    for license in forbidding:
        assert "forbids passing on changed versions" in refusal(card(license), [])
        check_license(card(license), [], permission=PERMISSION)


@pytest.mark.parametrize("license", ["cc", "h-research", "intel-research", "grok2-community"])
def test_what_may_forbid_derivatives_has_to_be_read_first(license: str) -> None:
    assert license in refusal(card(license), [])
    check_license(card(license), [], permission=PERMISSION)


@pytest.mark.parametrize(
    ("other", "carried"),
    [
        ({}, []),
        ({"license_name": "own"}, ["config.json"]),
        ({"license_name": "own"}, ["NOTICE"]),
        ({"license_link": "https://example.org"}, ["LICENSE"]),
    ],
)
def test_another_licence_needs_a_name_and_a_place_to_read_it(
    other: dict[str, str], carried: list[str]
) -> None:
    assert "`license_name` and `license_link`" in refusal(card("other", **other), carried)
    check_license(card("other", **other), carried, permission=PERMISSION)


def test_a_licence_file_stands_in_for_a_link() -> None:
    check_license(card("other", license_name="own", license_link="https://example.org"), [])
    check_license(card("other", license_name="own"), ["sub/LICENCE.md"])


@pytest.mark.parametrize("license", ["apache-2.0", "llama3.1", "gemma", "openrail++", "mit"])
def test_a_licence_whose_text_must_go_along_needs_the_originals_files(license: str) -> None:
    base = BaseInfo(license, files=("LICENSE", "NOTICE.txt", "USE_POLICY.md", "model.safetensors"))
    message = refusal(card(license), ["LICENSE", "config.json"], base)
    assert "NOTICE.txt, USE_POLICY.md of the original" in message
    # No permission frees from what is as easily done.
    assert "NOTICE.txt" in refusal(card(license), [], base, permission=PERMISSION)
    check_license(card(license), ["LICENSE", "NOTICE.txt", "USE_POLICY.md"], base)
    check_license(card(license), [], BaseInfo(license, files=("model.safetensors",)))


def test_creative_commons_is_content_with_a_link() -> None:
    check_license(card("cc-by-4.0"), [], BaseInfo("cc-by-4.0", files=("LICENSE",)))


@pytest.mark.parametrize(
    ("mine", "base", "named"),
    [
        (card("mit"), BaseInfo("cc-by-nc-4.0"), ["'mit'", "'cc-by-nc-4.0'"]),
        (card("mit"), BaseInfo(None), ["'mit'", "none"]),
        (
            card("other", license_name="a", license_link="https://example.org"),
            BaseInfo("other", "b"),
            ["'other' (a)", "'other' (b)"],
        ),
    ],
)
def test_the_card_must_say_what_the_original_says(
    mine: dict[str, Any], base: BaseInfo, named: list[str]
) -> None:
    message = refusal(mine, [], base)
    assert all(name in message for name in named)
    check_license(mine, [], base, permission=PERMISSION)


def test_names_of_one_licence_may_be_spelled_differently() -> None:
    mine = card("other", license_name="Qwen Research", license_link="https://example.org")
    check_license(mine, [], BaseInfo("other", "qwen-research"))


@pytest.mark.parametrize("how", ["gated", "private"])
def test_nobody_is_led_around_a_gate(how: str) -> None:
    base = BaseInfo("mit", gated=how == "gated", private=how == "private")
    assert f"the original is {how}" in refusal(card("mit"), [], base)
    assert how in refusal(card("mit"), [], base, permission="  ")
    check_license(card("mit"), [], base, permission=PERMISSION)


@pytest.mark.parametrize("license", ["Apache-2.0", "apache2", "llama-3"])
def test_an_identifier_that_the_hub_does_not_know_is_refused_with_the_nearest(license: str) -> None:
    message = refusal(card(license), [])
    assert repr(license) in message
    assert "Did you mean" in message
    # The Hub would refuse the page, whatever the permission.
    assert message == refusal(card(license), [], permission=PERMISSION)


@pytest.mark.parametrize(
    ("license", "good", "bad"),
    [
        ("llama3", "me/Llama-3-8B-small", "me/llama-8b"),
        ("llama3.1", "me/llama-3.1-small", "me/small-llama"),
        ("llama4", "me/Llama-4-small", "me/scout"),
    ],
)
def test_a_name_that_a_licence_asks_for_is_asked_for(license: str, good: str, bad: str) -> None:
    check_license(card(license), [], repo_id=good)
    assert "begin with" in refusal(card(license), [], repo_id=bad)
    check_license(card("mit"), [], repo_id=bad)


def test_pages_say_what_a_licence_asks_for() -> None:
    assert obligations(None) == obligations("unlicense") == []
    assert any("Built with Llama" in s for s in obligations("llama3.2"))
    assert any("Gemma Terms of Use" in s for s in obligations("gemma"))
    assert any("same licence" in s for s in obligations("cc-by-sa-4.0"))
    assert any("authors" in s for s in obligations("cc-by-4.0"))
    assert any("restrictions of use" in s for s in obligations("creativeml-openrail-m"))
    assert any("text" in s for s in obligations("apache-2.0"))
    assert not any("text" in s for s in obligations("cc-by-4.0"))


def test_licences_for_research_alone_are_not_for_commerce() -> None:
    assert forbids_commercial_use("cc-by-nc-sa-4.0")
    assert forbids_commercial_use("apple-amlr")
    assert not forbids_commercial_use("cc-by-sa-4.0")
    assert not forbids_commercial_use(None)
    for license in LICENSES:
        said = any("commercial" in s for s in obligations(license))
        assert said == forbids_commercial_use(license)


def test_links_are_those_of_the_licences() -> None:
    assert license_link("cc-by-nc-sa-4.0") == "https://creativecommons.org/licenses/by-nc-sa/4.0/"
    assert license_link("mit") == "https://opensource.org/license/mit"
    assert license_link("other") is None
    assert license_link(None) is None
