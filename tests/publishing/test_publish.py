"""Publishing with the real client: one commit or none, refused where it must be, under faults."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

import zoopress
from hub_server import Fault, UploadRules
from hub_server.fixtures import HubFixture
from small_zoo import write_zoo
from zoopress.cards import load_card
from zoopress.commands.cli import main
from zoopress.commands.hub import pull
from zoopress.errors import ArtifactError, GateError, HubError, InputError
from zoopress.hub import client
from zoopress.hub.client import Hub
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.publishing.publish import Published, PushOptions, plan_push, push
from zoopress.publishing.release import open_release
from zoopress.recipes import load_recipe
from zoopress.store import Store

TOKEN = "hf_alicealicealice"
REPO = "zoo/small"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> Path:
    """A finished run, and beside it one of another recipe."""
    folder = tmp_path_factory.mktemp("run")
    write_zoo(folder)
    with (folder / "card.yaml").open("a") as stream:
        stream.write("license: mit\n")
    card = load_card(str(folder / "card.yaml"), plugins)
    for name, stages in (
        ("one", "[{technique: weight_quantization, bits: 8}]"),
        ("two", "[{technique: weight_quantization, bits: 8}, {technique: entropy_coding}]"),
    ):
        recipe = folder / f"{name}.yaml"
        recipe.write_text(f"targets: {{min_cosine: 0.9}}\nstages: {stages}\n")
        compress(
            card,
            load_recipe(str(recipe), plugins),
            folder / name,
            Store(folder / "store"),
            plugins,
        )
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "one", tmp_path / "one")
    shutil.copytree(made / "two", tmp_path / "two")
    return tmp_path / "one"


@pytest.fixture(autouse=True)
def alice(hub: HubFixture, monkeypatch: pytest.MonkeyPatch) -> HubFixture:
    hub.add_user("alice", token=TOKEN, orgs=["zoo"])
    hub.rules = UploadRules(threshold=1000)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(client, "WAITS_S", (0.0, 0.0, 0.0, 0.0))
    return hub


def publish(folder: Path, plugins: Plugins, **options: Any) -> Published:
    return push(Hub(), open_release(folder, plugins), REPO, PushOptions(**options))


def local_files(folder: Path) -> dict[str, bytes]:
    artifact = folder / "artifact"
    return {
        path.relative_to(artifact).as_posix(): path.read_bytes()
        for path in artifact.rglob("*")
        if path.is_file() and path.name != "README.md"
    }


def remote_files(hub: HubFixture) -> dict[str, bytes]:
    return {n: c for n, c in hub.files(REPO).items() if n not in ("README.md", ".gitattributes")}


def test_a_model_is_published_and_loaded_back(
    alice: HubFixture, made: Path, run: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = publish(run, plugins, tag="v1")
    assert remote_files(alice) == local_files(run)
    assert alice.head(REPO) == done.commit == alice.tags(REPO)["v1"]
    assert done.url == f"{alice.endpoint}/{REPO}"
    assert done.changed
    assert len(alice.commits(REPO)) == 2, "one besides the one that makes the repository"
    monkeypatch.chdir(made)
    module = zoopress.load(REPO, "v1", factory="networks.py:build")
    local = zoopress.load(run / "artifact", factory="networks.py:build")
    for name, tensor in local.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name])


def test_the_page_is_one_that_the_hub_understands(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    publish(run, plugins)
    data = ModelCard(alice.files(REPO)["README.md"].decode()).data
    assert data.license == "mit"
    assert data.eval_results


def test_the_same_again_makes_no_commit(alice: HubFixture, run: Path, plugins: Plugins) -> None:
    first = publish(run, plugins)
    alice.requests.clear()
    second = publish(run, plugins)
    assert (second.commit, second.changed) == (first.commit, False)
    assert not [r for r in alice.requests if r.method in ("POST", "PUT")]


def test_another_version_replaces_the_first_and_leaves_nothing_of_it(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    publish(run, plugins, tag="v1")
    publish(run.parent / "two", plugins, tag="v2")
    assert remote_files(alice) == local_files(run.parent / "two")
    assert "compressed.safetensors" in alice.files(REPO, "v1")


def test_a_tag_is_never_moved(alice: HubFixture, run: Path, plugins: Plugins) -> None:
    publish(run, plugins, tag="v1")
    with pytest.raises(HubError, match="has a tag 'v1' already"):
        publish(run.parent / "two", plugins, tag="v1")
    assert remote_files(alice) == local_files(run)


def test_a_dry_run_sends_nothing(alice: HubFixture, run: Path, plugins: Plugins) -> None:
    plan = plan_push(Hub(), open_release(run, plugins), REPO, PushOptions())
    assert not plan.exists
    assert {"README.md", "zoopress.json", "compressed.safetensors"} <= set(plan.added)
    assert "# " in plan.readme
    assert not [r for r in alice.requests if r.method != "GET" and "validate-yaml" not in r.path]


@pytest.mark.parametrize(
    "fault",
    [
        Fault.status(500, path="/api/repos/create", times=2),
        Fault.status(500, path="/commit/", times=2),
        Fault.status(503, path="/api/models/", method="GET", times=2),
        Fault.rate_limit(0, path="/commit/", times=1),
        Fault.lose_answer(path="/commit/", times=1),
        Fault.lose_answer(reset=True, path="/commit/", times=1),
        Fault.break_upload(500, path="/upload/", times=1),
        Fault.status(500, path="/upload/", times=1),
        Fault.lose_answer(path="/tag/", times=1),
    ],
    ids=lambda fault: f"{fault.path}-{fault.kind}" if hasattr(fault, "kind") else None,
)
def test_a_fault_that_passes_ends_in_one_commit(
    alice: HubFixture, run: Path, plugins: Plugins, hub_waits: list[float], fault: Fault
) -> None:
    alice.faults.add(fault)
    done = publish(run, plugins, tag="v1")
    assert fault.hits
    assert remote_files(alice) == local_files(run)
    assert len(alice.commits(REPO)) == 2
    assert alice.tags(REPO) == {"v1": done.commit}


def test_a_push_that_broke_goes_on_where_it_broke(
    alice: HubFixture, run: Path, plugins: Plugins, hub_waits: list[float]
) -> None:
    alice.faults.add(Fault.status(500, path="/commit/", times=99))
    with pytest.raises(HubError, match=r"publishing zoo/small: the Hub fails \(500"):
        publish(run, plugins)
    assert remote_files(alice) == {}, "half of it is nothing of it"
    alice.faults.clear()
    alice.requests.clear()
    publish(run, plugins)
    assert remote_files(alice) == local_files(run)
    assert not [r for r in alice.requests if r.method == "PUT"], "what arrived is not sent again"


def test_another_commit_in_between_is_noticed(
    alice: HubFixture, run: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run, plugins)
    hub = Hub()
    real, meanwhile = hub.api.create_commit, ["notes.txt"]

    def create_commit(*arguments: Any, **options: Any) -> Any:
        if meanwhile:
            alice.commit(REPO, {meanwhile.pop(): b"a stranger's"})
        return real(*arguments, **options)

    monkeypatch.setattr(hub.api, "create_commit", create_commit)
    push(hub, open_release(run.parent / "two", plugins), REPO, PushOptions())
    assert remote_files(alice) == {**local_files(run.parent / "two"), "notes.txt": b"a stranger's"}


def test_another_model_is_never_overwritten(alice: HubFixture, run: Path, plugins: Plugins) -> None:
    alice.create_repo(REPO, {"model.safetensors": b"precious", "config.json": b"{}"})
    with pytest.raises(HubError, match="holds another model"):
        publish(run, plugins)
    assert alice.files(REPO)["model.safetensors"] == b"precious"


def test_what_is_no_model_of_ours_is_replaced_only_if_told(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    alice.create_repo(REPO, {"model.safetensors": b"precious", "config.json": b"{}"})
    with pytest.raises(HubError, match=r"zoopress did not publish.*--replace"):
        publish(run, plugins)
    before = alice.head(REPO)
    publish(run, plugins, replace=True)
    assert remote_files(alice) == local_files(run), "nothing of the other is left"
    assert alice.files(REPO, before)["model.safetensors"] == b"precious", "it is in the history"


def of_another_base(run: Path, **changed: str) -> None:
    """Make a run one of another original, as far as its records tell."""
    path = run / "artifact" / "zoopress.json"
    manifest = json.loads(path.read_text())
    manifest["base"].update(changed)
    path.write_text(json.dumps(manifest))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_report(run, lambda report: report.update(artifact_sha256=digest))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"base_model": "zoo/a"}, {"base_model": "zoo/b"}, "the original 'zoo/a', not 'zoo/b'"),
        ({"source": "hub:zoo/a@v1"}, {"source": "hub:zoo/b"}, "the original 'zoo/a', not 'zoo/b'"),
        ({"name": "minilm"}, {"name": "mpnet"}, "the card 'minilm', not 'mpnet'"),
        (
            {"name": "one", "base_model": "zoo/a"},
            {"name": "two", "base_model": "zoo/b"},
            "the original 'zoo/a', not 'zoo/b' and the card 'one', not 'two'",
        ),
    ],
)
@pytest.mark.parametrize("branch", ["main", "small"])
def test_a_mistyped_name_replaces_no_other_model_of_ours(
    alice: HubFixture,
    run: Path,
    plugins: Plugins,
    first: dict[str, str],
    second: dict[str, str],
    words: str,
    branch: str,
) -> None:
    of_another_base(run, **first)
    of_another_base(run.parent / "two", **second)
    publish(run, plugins)
    before = alice.head(REPO)
    with pytest.raises(HubError, match=f"{re.escape(words)}.*Check the repository's name"):
        publish(run.parent / "two", plugins, branch=branch)
    with pytest.raises(HubError, match="--replace"):
        plan_push(
            Hub(), open_release(run.parent / "two", plugins), REPO, PushOptions(branch=branch)
        )
    assert alice.head(REPO) == before
    publish(run.parent / "two", plugins, branch=branch, replace=True)
    assert "model.zpz" in alice.files(REPO, branch)


def test_another_revision_of_the_original_is_the_same_model(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    of_another_base(run, source="hub:zoo/a@v1", revision="1" * 40)
    publish(run, plugins)
    of_another_base(run.parent / "two", source="hub:zoo/a@v2", revision="2" * 40)
    assert publish(run.parent / "two", plugins).changed


def test_an_original_that_was_renamed_is_the_same_model(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    alice.create_repo("zoo/old", {})
    of_another_base(run, base_model="zoo/old")
    publish(run, plugins)
    HfApi(token=TOKEN).move_repo("zoo/old", "zoo/new")
    of_another_base(run.parent / "two", base_model="zoo/new")
    assert publish(run.parent / "two", plugins).changed


@pytest.mark.parametrize("license", [None, "mit", "cc-by-nd-4.0"])
def test_the_owner_of_a_private_model_publishes_it_privately(
    alice: HubFixture, run: Path, plugins: Plugins, license: str | None
) -> None:
    page = "---\n" + (f"license: {license}\n" if license else "") + "---\n# Ours\n"
    alice.create_repo("zoo/original", {"README.md": page}, private=True)
    of_base(run)
    edit_report(run, lambda r: r["card"].update(license=license) if license else None)
    edit_report(run, lambda r: r["card"].pop("license") if license is None else None)
    with pytest.raises(HubError, match=r"private|cc-by-nd|license"):
        publish(run, plugins)
    with pytest.raises(HubError, match=r"private|cc-by-nd|license"):
        push(Hub(), open_release(run, plugins), "alice/small", PushOptions(private=True))
    assert "alice/small" not in alice.repos
    publish(run, plugins, private=True)
    assert alice.repos[REPO].private
    assert not publish(run, plugins).changed, "it is private there already"


def test_a_model_of_ones_own_without_a_licence_is_published_privately(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    edit_report(run, lambda report: report["card"].pop("license"))
    with pytest.raises(HubError, match="--private"):
        publish(run, plugins)
    publish(run, plugins, private=True)
    assert alice.repos[REPO].private


def test_a_gated_model_of_others_is_not_published_privately_either(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    alice.add_user("owner", token="hf_ownerowner", orgs=["other"])
    page = "---\nlicense: mit\n---\n# Theirs\n"
    alice.create_repo("other/original", {"README.md": page}, gated=True)
    edit_report(run, lambda report: report["card"].update(base_model="other/original"))
    with pytest.raises(HubError, match=r"gated.*Its owner may publish it privately"):
        publish(run, plugins, private=True)


def test_a_copy_has_licence_and_page(
    alice: HubFixture, run: Path, plugins: Plugins, tmp_path: Path
) -> None:
    files = {"README.md": "---\nlicense: mit\n---\n", "LICENSE": b"The text.", "NOTICE": b"N."}
    alice.create_repo("zoo/original", files)
    of_base(run)
    publish(run, plugins)
    pull(REPO, None, tmp_path / "a copy")
    copied = {p.name: p.read_bytes() for p in (tmp_path / "a copy").iterdir()}
    published = alice.files(REPO)
    published.pop(".gitattributes")
    assert copied == published
    assert {"README.md", "LICENSE", "NOTICE"} <= copied.keys()
    with pytest.raises(InputError, match="exists already"):
        pull(REPO, None, tmp_path / "a copy")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written.*in the cache, whole"):
        pull(REPO, None, tmp_path / "file" / "copy")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_private_is_private_or_refused(alice: HubFixture, run: Path, plugins: Plugins) -> None:
    publish(run, plugins, private=True)
    assert Hub().model(REPO).private
    alice.create_repo("zoo/public", {})
    with pytest.raises(HubError, match="is public, and 'private' was asked for"):
        push(Hub(), open_release(run, plugins), "zoo/public", PushOptions(private=True))


def test_bytes_that_changed_on_the_way_are_noticed(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    real = Hub.model

    def model(self: Hub, repo_id: str, revision: str | None = None) -> Any:
        found = real(self, repo_id, revision)
        if "zoopress.json" in found.files:
            wrong = client.RemoteFile(found.files["zoopress.json"].size, "git:" + "0" * 40)
            found.files["zoopress.json"] = wrong
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hub, "model", model)
        with pytest.raises(HubError, match=r"holds other bytes than were sent of zoopress\.json"):
            publish(run, plugins)


def edit_report(run: Path, change: Any) -> None:
    path = run / "report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["stages"][0].update(finite=False), "'outputs_finite'"),
        (lambda r: r["stages"][0].update(reload_difference=0.5), "'reloads_identically'"),
        (lambda r: r["stages"][0]["fidelity"].update(cosine=0.5), "'fidelity_kept'"),
        (lambda r: r["recipe"]["targets"].update(min_compression_ratio=99.0), "'size_reached'"),
    ],
)
def test_what_failed_a_gate_is_refused(
    alice: HubFixture, run: Path, plugins: Plugins, change: Any, message: str
) -> None:
    edit_report(run, change)
    with pytest.raises(GateError, match=message):
        publish(run, plugins)
    assert alice.requests == []


def of_bad_quality(report: dict[str, Any]) -> None:
    report["stages"][0]["fidelity"].update(cosine=0.0912)
    report["recipe"]["targets"].clear()


def test_what_is_unlike_its_original_is_refused_unless_asked_for(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    edit_report(run, of_bad_quality)  # the report's own field still says that all is well
    with pytest.raises(GateError, match=r"not published: UNLIKE.*0\.0912.*--allow-low-quality"):
        publish(run, plugins)
    with pytest.raises(GateError, match="min_cosine"):
        plan_push(Hub(), open_release(run, plugins), REPO, PushOptions())
    assert "zoo/small" not in alice.repos
    edit_report(run, lambda report: report.pop("quality"))  # as versions without the guard wrote
    with pytest.raises(GateError, match="UNLIKE THE ORIGINAL"):
        publish(run, plugins)
    publish(run, plugins, allow_low_quality=True)
    page = alice.files(REPO)["README.md"].decode()
    assert "⚠ **UNLIKE THE ORIGINAL: cosine is 0.0912, the bound 0.9.**" in page
    assert "like_original: false" in page


def test_a_target_that_is_met_makes_low_quality_the_users_choice(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    edit_report(run, of_bad_quality)
    edit_report(run, lambda report: report["recipe"]["targets"].update(min_cosine=0.05))
    edit_report(run, lambda report: report.pop("quality"))
    publish(run, plugins)
    assert "UNLIKE" not in alice.files(REPO)["README.md"].decode()


def test_what_is_not_what_the_report_is_about_is_refused(
    run: Path, plugins: Plugins, tmp_path: Path
) -> None:
    shutil.copyfile(run.parent / "two" / "report.json", run / "report.json")
    with pytest.raises(ArtifactError, match="is about another model"):
        publish(run, plugins)
    (run / "report.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        publish(run, plugins)
    (run / "report.json").unlink()
    with pytest.raises(ArtifactError, match=r"no report\.json"):
        publish(run / "artifact", plugins)


def test_a_damaged_artifact_is_refused(run: Path, plugins: Plugins) -> None:
    path = run / "artifact" / "compressed.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        publish(run, plugins)


@pytest.mark.parametrize(
    ("license", "message"), [(None, "licen[cs]e"), ("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0")]
)
def test_what_the_licence_forbids_is_refused_unless_permitted(
    alice: HubFixture, run: Path, plugins: Plugins, license: str | None, message: str
) -> None:
    def change(report: dict[str, Any]) -> None:
        report["card"].pop("license", None)
        if license:
            report["card"]["license"] = license

    edit_report(run, change)
    with pytest.raises(HubError, match=message):
        publish(run, plugins)
    assert not [r for r in alice.requests if r.method != "GET"]
    publish(run, plugins, permission="Letter of the owner, 2026-05-01")
    assert "Letter of the owner, 2026-05-01" in alice.files(REPO)["README.md"].decode()


def of_base(run: Path) -> None:
    edit_report(run, lambda report: report["card"].update(base_model="zoo/original"))


def test_the_licence_text_of_the_original_goes_along(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    page = b"---\nlicense: mit\n---\n# Original\n"
    files = {"README.md": page, "LICENSE": b"The text.", "NOTICE.txt": b"Notice.", "x.bin": b"x"}
    alice.create_repo("zoo/original", files)
    of_base(run)
    publish(run, plugins)
    assert remote_files(alice) == {
        **local_files(run),
        "LICENSE": b"The text.",
        "NOTICE.txt": b"Notice.",
    }
    assert "`LICENSE`" in alice.files(REPO)["README.md"].decode()
    assert not publish(run, plugins).changed


def test_a_licence_other_than_the_originals_is_refused(
    alice: HubFixture, run: Path, plugins: Plugins
) -> None:
    page = b"---\nlicense: gpl-3.0\n---\n# Original\n"
    alice.create_repo("zoo/original", {"README.md": page})
    of_base(run)
    with pytest.raises(HubError, match=r"gpl-3\.0"):
        publish(run, plugins)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_wrongwrongwrong", "does not accept the token"),
        (None, "log in with `hf auth login`"),
        ("hf_readerreader", "write access"),
    ],
)
def test_who_may_not_publish_is_told_so(
    alice: HubFixture,
    run: Path,
    plugins: Plugins,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    token: str | None,
    message: str,
) -> None:
    alice.add_user("reader", token="hf_readerreader", role="read")
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message) as caught:
        publish(run, plugins)
    assert not token or token not in str(caught.value) + caplog.text


def test_the_command_line(
    alice: HubFixture,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def zoopress_command(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["zoopress", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        assert TOKEN not in out + err
        return out

    assert "Nothing was sent." in zoopress_command("push", str(run), REPO, "--dry-run")
    out = zoopress_command("push", str(run), REPO, "--tag", "v1")
    assert "published" in out
    assert alice.head(REPO) in out
    assert "nothing changed" in zoopress_command("push", str(run), REPO)
    copy = run.parent / "copy"
    assert zoopress_command("pull", f"{REPO}@v1", "--to", str(copy)).strip() == str(copy)
    names = {p.name for p in copy.iterdir()}
    assert {"zoopress.json", "compressed.safetensors"} <= names
    shown = zoopress_command("inspect", REPO, "--revision", "v1")
    assert "all checksums match" in " ".join(shown.split())
