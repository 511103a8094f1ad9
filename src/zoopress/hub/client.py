"""Talk to the Hub through huggingface_hub: again after failures that pass, in plain words after
those that last, and never with a token in what is said."""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zoopress.errors import HubError, ZoopressError
from zoopress.hub.limits import limit_requests
from zoopress.hub.remote_file import RemoteFile as RemoteFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger("zoopress.hub")
T = TypeVar("T")
WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Pauses before another attempt; the client itself has repeated some requests by then."""
LONGEST_WAIT_S = 300.0
LONGEST_HANG_S = 60.0
"""After a request that timed out, and this long in all, there is no other attempt."""
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_TOKEN = re.compile(r"\b(?:hf|api)_[A-Za-z0-9_]{6,}|(?<=[Bb]earer )[^\s'\"]+")


@dataclass(frozen=True)
class RemoteModel:
    """What the Hub says of a model at a revision.

    Attributes:
        repo_id: its name; another than was asked for if it has been renamed.
        commit: the revision, resolved.
        files: every file by path.
        card: the metadata of its README.
        config: the Hub's excerpt of its config.json.
    """

    repo_id: str
    commit: str
    files: dict[str, RemoteFile]
    private: bool = False
    gated: bool = False
    card: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    library_name: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


class Hub:
    """The Hub, as the environment names it: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE.

    Args:
        token: another than the environment's; False for none.
        cache: where files are kept; the environment's by default.
        offline: whether no request is allowed, whatever the environment says.
    """

    def __init__(
        self,
        token: str | bool | None = None,
        cache: str | Path | None = None,
        offline: bool = False,
    ) -> None:
        self.token = token
        self._cache = cache
        self._offline = offline

    @cached_property
    def api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(token=self.token, library_name="zoopress", library_version=version("zoopress"))

    @property
    def cache(self) -> Path:
        """The folder of the client's cache."""
        from huggingface_hub import constants

        return Path(self._cache or constants.HF_HUB_CACHE).expanduser().resolve()

    @property
    def offline(self) -> bool:
        """Whether every request is forbidden."""
        from huggingface_hub import constants

        return self._offline or bool(constants.HF_HUB_OFFLINE)

    @property
    def why_offline(self) -> str:
        """What forbids requests."""
        return "local_files_only" if self._offline else "HF_HUB_OFFLINE"

    @property
    def online_again(self) -> str:
        """How to allow them."""
        return f"{'without' if self._offline else 'with'} {self.why_offline}" + (
            "" if self._offline else " unset"
        )

    def model(self, repo_id: str, revision: str | None = None) -> RemoteModel:
        """Ask for a model.

        Raises:
            HubError: if there is none, or it cannot be had.
        """
        found: RemoteModel = self.call(
            f"asking for {repo_id}", lambda: self._ask(repo_id, revision), repo_id, revision
        )
        return found

    def find(self, repo_id: str, revision: str | None = None) -> RemoteModel | None:
        """Ask for a model, None if there is no such repository or revision.

        Raises:
            HubError: if the Hub cannot tell.
        """

        def work() -> RemoteModel | None:
            try:
                return self._ask(repo_id, revision)
            except Exception as error:
                if _is_missing(error, self.token):
                    return None
                raise

        return self.call(f"looking for {repo_id}", work, repo_id, revision)

    def _ask(self, repo_id: str, revision: str | None) -> RemoteModel:
        info = self.api.model_info(repo_id, revision=revision, files_metadata=True)
        if not info.sha:
            raise HubError(f"{self.api.endpoint} does not say which commit of {repo_id} it has.")
        files: list[Any] = list(info.siblings or ())
        if any(file.lfs is None and not file.blob_id for file in files):
            # Not every server tells digests here.
            tree = self.api.list_repo_tree(info.id, recursive=True, revision=info.sha)
            files = [entry for entry in tree if hasattr(entry, "blob_id")]
        return RemoteModel(
            repo_id=info.id,
            commit=info.sha,
            files={_path(file): _remote_file(file) for file in files},
            private=bool(info.private),
            gated=bool(info.gated),
            card=_plain(info.card_data),
            tags=tuple(info.tags or ()),
            pipeline_tag=info.pipeline_tag,
            library_name=info.library_name,
            config=info.config or {},
        )

    def call(
        self, what: str, work: Callable[[], T], repo_id: str = "", revision: str | None = None
    ) -> T:
        """Do something on the Hub, again if it fails in a way that passes.

        Args:
            what: what is being done, for messages.
            work: does it; safe to do twice.
            repo_id: the repository it is about, after "datasets/" if it is one of data.
            revision: and its revision.

        Raises:
            HubError: in words that say what to do.
        """
        timed_out, started = 0, time.monotonic()
        for attempt, wait in enumerate((*WAITS_S, None), start=1):
            limit_requests()
            try:
                return work()
            except ZoopressError:
                raise
            except Exception as error:
                asked = _retry_after(error)
                timed_out += _is_timeout(error)
                # The client has repeated some requests already, each for as long as may be.
                hangs = timed_out > 1 or (timed_out and time.monotonic() - started > LONGEST_HANG_S)
                last = wait is None or hangs or (asked or 0) > LONGEST_WAIT_S
                if last or not _passes(error):
                    # Not "from error": its text or its request may hold the token.
                    message = explain(error, self.api.endpoint, repo_id, revision, self.token)
                    tried = f" It was tried {attempt} times." if attempt > 1 else ""
                    raise HubError(f"{what}: {message}{tried}") from None
                assert wait is not None
                pause = max(wait, asked or 0)
                log.warning("%s: %s; trying again in %.0f s", what, _short(error), pause)
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def without_tokens(text: str, given: str | bool | None = None) -> str:
    """Return a text with every token in it blotted out: the one that was given, and all others."""
    from huggingface_hub import get_token

    for token in (given, get_token()):
        if isinstance(token, str) and token:
            text = text.replace(token, "[token]")
    return _TOKEN.sub("[token]", text)


def explain(
    error: BaseException,
    endpoint: str,
    repo_id: str,
    revision: str | None,
    token: str | bool | None = None,
) -> str:
    """Say what an error of the client means and what to do about it."""
    return without_tokens(_meaning(_root(error), endpoint, repo_id, revision, token), token)


def _meaning(
    error: BaseException,
    endpoint: str,
    repo_id: str,
    revision: str | None,
    token: str | bool | None,
) -> str:
    from huggingface_hub import errors

    login = "log in with `hf auth login`, or set HF_TOKEN"
    status = status_of(error)
    server = without_tokens(str(getattr(error, "server_message", None) or "")).strip()
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            "HF_HUB_OFFLINE forbids requests, and the cache does not have it. Run it once with "
            "HF_HUB_OFFLINE unset."
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"the Hub wants to know who you are. To publish, {login}."
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo_id} is gated: its owner wants to be asked first. Ask for access on "
            f"{endpoint}/{repo_id}, then {login}."
        )
    # Without a token the Hub answers 401 to what does not exist, too; with one, only to a bad one.
    if status == 401 and _has_token(token):
        return f"the Hub does not accept the token ({server}). To have a valid one, {login}."
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{repo_id} has no branch, tag or commit {revision!r}. {endpoint}/{repo_id}/commits "
            "lists what it has."
        )
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return f"{repo_id} at {revision or 'main'} lacks a file: {_short(error)}."
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        kind = "dataset" if repo_id.startswith("datasets/") else "model"
        return (
            f"there is no {kind} {repo_id.removeprefix('datasets/')!r} on {endpoint}, or it is "
            f"private and needs a token. Check the name, or {login}."
        )
    if status == 403:
        return (
            f"the token may not do this: {server or 'forbidden'}. Use one with write access to "
            f"{repo_id}, and {login}."
        )
    if status == 429:
        return "the Hub limits how often it may be asked (429). Try again later, with a token."
    if status is not None and status >= 500:
        return f"the Hub fails ({status}{', ' + server if server else ''}). Try again later."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({_short(error)}). Free some space, or set HF_HOME to another."
    if _passes(error):
        return (
            f"{endpoint} cannot be reached ({_short(error)}). Check the network; with "
            "HF_HUB_OFFLINE=1, what is in the cache works without."
        )
    return f"{_short(error)}."


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of the client tells of."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _root(error: BaseException) -> BaseException:
    """Return what is behind the client's "not in the cache" and "error while uploading"."""
    from huggingface_hub import errors

    while error.__cause__ is not None and (
        isinstance(error, errors.LocalEntryNotFoundError)
        or (isinstance(error, RuntimeError) and "uploading" in str(error))
    ):
        error = error.__cause__
    return error


def _passes(error: BaseException) -> bool:
    """Tell whether a failure may be gone at the next attempt."""
    from huggingface_hub import errors

    error = _root(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return False
    status = status_of(error)
    if status is not None:
        return status in _PASSING
    network: type[BaseException] = errors.HTTPError  # type: ignore[attr-defined]
    broken = isinstance(error, OSError) and "Consistency check failed" in str(error)
    return broken or isinstance(error, (network, ConnectionError, TimeoutError))


def _retry_after(error: BaseException) -> float | None:
    """Return the seconds that the Hub asks to wait."""
    headers = getattr(getattr(_root(error), "response", None), "headers", None) or {}
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _short(error: BaseException) -> str:
    text = " ".join(without_tokens(str(_root(error))).split())
    return f"{type(_root(error)).__name__}: {text}"[:300].rstrip(". ")


def _has_token(given: str | bool | None) -> bool:
    from huggingface_hub import get_token

    return bool(given if isinstance(given, str) else given is not False and get_token())


def _is_timeout(error: BaseException) -> bool:
    """Tell whether a server said nothing for as long as it may."""
    root = _root(error)
    return isinstance(root, TimeoutError) or "Timeout" in type(root).__name__


def _is_missing(error: BaseException, token: str | bool | None) -> bool:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return False
    if isinstance(error, errors.RevisionNotFoundError):
        return True
    # Without a token the Hub answers 401 to what does not exist, too; with one, to a bad one.
    unknown = status_of(error) == 404 or (status_of(error) == 401 and not _has_token(token))
    return isinstance(error, errors.RepositoryNotFoundError) and unknown


def _path(file: Any) -> str:
    return str(getattr(file, "rfilename", None) or file.path)


def _plain(card_data: Any) -> dict[str, Any]:
    found = card_data.to_dict() if card_data is not None else {}
    return {key: value for key, value in found.items() if value is not None}


def _remote_file(item: Any) -> RemoteFile:
    lfs = getattr(item, "lfs", None)
    if lfs is not None:
        return RemoteFile(int(lfs.size), f"sha256:{lfs.sha256}")
    return RemoteFile(int(item.size or 0), f"git:{item.blob_id}" if item.blob_id else "")
