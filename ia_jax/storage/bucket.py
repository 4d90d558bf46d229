"""Objects in a Google Cloud Storage bucket, under paths `gs://bucket/name`.

An object is written whole or not at all, and every reader sees the newest one at once. So nothing is written beside and
renamed here: a write replaces the generation that it found, and is refused where somebody else has written meanwhile
(`write`). Requests that fail or are not answered are repeated for `PATIENCE` seconds; of a write whose answer was lost,
the mark that it carries tells that it was done.

There are no directories: one exists while an object's name begins with it.
"""

import datetime
import io
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from ia_jax.errors import ConfigError, IAError

PATIENCE = 300.0  # seconds for which a request is repeated
FIRST_WAIT = 1.0  # seconds before it is repeated for the first time; then twice as long each time, with chance in it
TIMEOUT = (
    20.0  # seconds without a byte, after which a request counts as not answered; at most `lease.TERM - lease.SAFE`
)
IN_FLIGHT = 32  # requests at once, where there are many
PIECE = 64 * 2**20  # bytes of a file that are uploaded at once; a multiple of 256 KiB
SHORT_ANSWERS = 8  # after which a range that comes in parts is given up
MARK = "ia_jax_mark"  # of each write another: tells versions apart, also after a copy to another bucket
S = TypeVar("S")
T = TypeVar("T")


class ChangedError(IAError):
    """Somebody else has written to an object meanwhile."""


@dataclass(frozen=True)
class Object:
    """What the bucket says of an object. name: without the bucket. modified: seconds since 1970, by its clock."""

    name: str
    size: int
    generation: int
    modified: float
    mark: str


@dataclass(frozen=True)
class Listing:
    objects: list[Object]
    directories: list[str]  # names that end in "/"


# ------------------------------------------------------------------------------------------------------------- objects


def split(path: os.PathLike[str] | str) -> tuple[str, str]:
    """(bucket, name) of a path. Raises ConfigError where it has no bucket."""
    bucket, _, name = str(path).removeprefix("gs://").partition("/")
    if not bucket:
        raise ConfigError(f"{path} names no bucket; give gs://BUCKET/NAME")
    return bucket, name.rstrip("/")


def find(path: os.PathLike[str] | str) -> Object | None:
    """What is known of the object at `path`, without its content; None if there is none."""
    bucket, name = split(path)
    with _told(path):
        blob = _bucket(bucket).get_blob(name, **_patiently()) if name else None
    return blob and _object(blob)


def read(path: os.PathLike[str] | str, generation: int | None = None) -> bytes:
    """The content, of this generation. Raises FileNotFoundError."""
    bucket, name = split(path)
    with _told(path):
        return _bucket(bucket).blob(name, generation=generation).download_as_bytes(**_patiently())


def read_into(path: os.PathLike[str] | str, generation: int, start: int, into: memoryview) -> None:
    """Fills `into` with the bytes from `start` on, of this generation. Raises FileNotFoundError; IAError: too few came.

    An answer that breaks off is asked for again; one that is whole and shorter than asked for, for what is missing.
    """
    (bucket, name), out = split(path), _Filling(into)
    with _told(path):
        blob = _bucket(bucket).blob(name, generation=generation)
        for _ in range(SHORT_ANSWERS):
            # In one piece: by default Google's client hands on 8 KiB at a time.
            how = {"raw_download": True, "checksum": None, "single_shot_download": True, **_patiently()}
            blob.download_to_file(out, start=start + out.filled, end=start + len(into) - 1, **how)
            if out.filled == len(into):
                return
    raise IAError(
        f"{path}: of {len(into)} bytes from {start} on, {out.filled} came in {SHORT_ANSWERS} answers; give the same "
        "command again"
    )


class _Filling(io.RawIOBase):
    """Takes what is downloaded, one after the other, into memory that is there already."""

    def __init__(self, into: memoryview):
        self._into, self.filled = into, 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        room = len(self._into) - self.filled
        if len(content) > room:
            raise IAError(f"{len(content)} bytes came where {room} were asked for; give the same command again")
        self._into[self.filled : self.filled + len(content)] = content
        self.filled += len(content)
        return len(content)


def upload(local: os.PathLike[str] | str, path: os.PathLike[str] | str) -> None:
    """A local file of any size, in pieces; the object is there, whole, when the last one is."""
    check_guards(path)
    bucket, name = split(path)
    with _told(path, in_bucket=False):
        blob = _bucket(bucket).blob(name, chunk_size=PIECE)
        blob.metadata = {MARK: secrets.token_hex(6)}
        how = _patiently(lambda _: check_guards(path))
        blob.upload_from_filename(str(local), content_type="application/octet-stream", **how)


def write(
    path: os.PathLike[str] | str, content: bytes, over: int | None = None, patience: float | None = None
) -> Object:
    """Writes over the generation `over` (0: where nothing is; None: what is there as the write begins).

    Raises ChangedError where there is another by then; so of two that write at once, one is told. `patience`: seconds
    for which it is tried, if not `PATIENCE`; before each try the guards are asked again.
    """
    check_guards(path)
    if over is None:
        there = find(path)
        over = there.generation if there else 0
    (bucket, name), mark = split(path), secrets.token_hex(6)
    with _told(path, in_bucket=False):
        from google.api_core.exceptions import PreconditionFailed  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        blob = _bucket(bucket).blob(name)
        blob.metadata = {MARK: mark}
        how = _patiently(lambda _: check_guards(path), patience)
        try:
            blob.upload_from_string(content, content_type="application/octet-stream", if_generation_match=over, **how)
            return _object(blob)
        except PreconditionFailed:
            there = find(path)
    if there is not None and there.mark == mark:  # it was done, the answer was lost, and it was tried again
        return there
    raise ChangedError(f"{path} was written by another run meanwhile; let one run at a time work in a workdir")


def remove(path: os.PathLike[str] | str, missing_ok: bool = False) -> None:
    """Raises FileNotFoundError unless `missing_ok`."""
    if find(path) is not None:
        _remove_listed(path)
    elif not missing_ok:
        raise FileNotFoundError(2, "no such object", str(path))


def copy(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
    """Inside the service: nothing is fetched. `target` becomes that object, whatever it was."""
    check_guards(target)
    (from_bucket, from_name), (to_bucket, to_name) = split(source), split(target)
    with _told(source):
        blob, token = _bucket(to_bucket).blob(to_name), None
        while True:
            origin = _bucket(from_bucket).blob(from_name)
            token, _, _ = blob.rewrite(origin, token=token, **_patiently())
            if token is None:
                return


def beginning(path: os.PathLike[str] | str, flat: bool = True, most: int | None = None) -> Listing:
    """The objects whose paths begin with the text `path`, in order of their names: one request for each 1000.

    flat: all of them; else those right there, and the names up to the next "/" of those further below. most: as many.
    """
    bucket, name = str(path).removeprefix("gs://").split("/", 1)
    with _told(path, in_bucket=False):
        pages = _client().list_blobs(
            bucket, prefix=name, delimiter=None if flat else "/", max_results=most, **_patiently()
        )
        objects = [_object(blob) for blob in pages]
        return Listing(objects, sorted(pages.prefixes))


def below(directory: os.PathLike[str] | str) -> list[Object]:
    """All objects in a directory, however deep; in order of their names."""
    return [o for o in beginning(f"{directory}/").objects if not o.name.endswith("/")]


def each(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """`function` of each item, in their order, many at once. Raises the first error."""
    with ThreadPoolExecutor(IN_FLIGHT, "bucket") as pool:
        return list(pool.map(function, items))


def _remove_listed(path: os.PathLike[str] | str) -> None:
    check_guards(path)
    bucket, name = split(path)
    with suppress(FileNotFoundError), _told(path):  # gone already: by a try whose answer was lost
        _bucket(bucket).blob(name).delete(**_patiently(lambda _: check_guards(path)))


def remove_tree(directory: os.PathLike[str] | str) -> None:
    """All of a directory. What lies right in it goes first: there are the marks that say that all is there."""
    objects, (bucket, top) = below(directory), split(directory)
    depth = f"{top}/".count("/") if top else 0
    for there in (True, False):
        part = [f"gs://{bucket}/{o.name}" for o in objects if (o.name.count("/") == depth) is there]
        each(_remove_listed, part)


def copy_tree(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
    """All of a directory. What lies right in it comes last, for the reason in `remove_tree`."""
    objects, (bucket, top) = below(source), split(source)
    depth = f"{top}/".count("/") if top else 0
    for there in (False, True):
        part = [o.name for o in objects if (o.name.count("/") == depth) is there]
        each(lambda name: copy(f"gs://{bucket}/{name}", f"{target}/{name[len(top) + 1 if top else 0 :]}"), part)


# -------------------------------------------------------------------------------------------------------------- guards

_guards: dict[str, Callable[[], None]] = {}


@contextmanager
def guarded(directory: os.PathLike[str] | str, check: Callable[[], None]) -> Iterator[None]:
    """Inside, every write below `directory` calls `check` first, which raises where this process may not write."""
    prefix = f"{directory}/"
    _guards[prefix] = check
    try:
        yield
    finally:
        del _guards[prefix]


def check_guards(path: os.PathLike[str] | str) -> None:
    for prefix, check in list(_guards.items()):
        if str(path).startswith(prefix):
            check()


# ------------------------------------------------------------------------------------------------------------- service


@lru_cache(maxsize=1)
def _client() -> Any:
    """Google's client, with the credentials of this machine or user; or the emulator's in STORAGE_EMULATOR_HOST."""
    from google.cloud import storage  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from requests.adapters import HTTPAdapter

    client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "ia-jax"))  # no request is about a project
    for scheme in ("https://", "http://"):  # a connection for each request at once; by default 10 are kept
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=IN_FLIGHT))
    return client


def _bucket(name: str) -> Any:
    return _client().bucket(name)


def _patiently(again: Callable[[Exception], None] | None = None, patience: float | None = None) -> dict[str, Any]:
    """How a request is made. again: called before each further try, with the error of the last."""
    from google.api_core.retry import Retry  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from google.cloud.storage.retry import DEFAULT_RETRY  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    retry = Retry(
        predicate=DEFAULT_RETRY._predicate,
        initial=FIRST_WAIT,
        maximum=32.0,
        timeout=PATIENCE if patience is None else patience,
        on_error=again,
    )
    return {"retry": retry, "timeout": TIMEOUT}


def _object(blob: Any) -> Object:
    modified = blob.updated.timestamp() if blob.updated else datetime.datetime.now(datetime.UTC).timestamp()
    return Object(blob.name, int(blob.size or 0), int(blob.generation), modified, (blob.metadata or {}).get(MARK, ""))


@contextmanager
def _told(path: os.PathLike[str] | str, in_bucket: bool = True) -> Iterator[None]:
    """Errors in one line, with what to do: FileNotFoundError for an object that is not there, IAError for the rest.

    in_bucket: whether "not found" can mean the object, and does not mean the bucket.
    """
    try:
        from google.api_core import exceptions as api  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
        from google.cloud import storage as _  # noqa: F401  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
        from requests.exceptions import RequestException
    except ImportError:
        raise ConfigError(f"{path}: a bucket needs Google's client; pip install 'ia-jax[gcs]'") from None
    try:
        yield
    except api.NotFound as error:
        if not in_bucket or "bucket does not exist" in str(error.message):
            bucket = split(path)[0]
            raise IAError(
                f"there is no bucket {bucket}; make it (gcloud storage buckets create gs://{bucket})"
            ) from None
        raise FileNotFoundError(2, "no such object", str(path)) from None
    except DefaultCredentialsError:
        raise ConfigError(
            f"{path}: no Google credentials here; run `gcloud auth application-default login`, give the VM a service "
            "account, or set GOOGLE_APPLICATION_CREDENTIALS"
        ) from None
    except (api.Forbidden, api.Unauthorized, GoogleAuthError) as error:
        raise IAError(
            f"{path}: not allowed ({_short(error)}); give this account the role Storage Object Admin on the bucket"
        ) from None
    except api.PreconditionFailed:
        raise
    except (api.GoogleAPIError, RequestException, ConnectionError, TimeoutError) as error:
        cause = getattr(error, "cause", None) or error  # of a RetryError
        if isinstance(cause, api.TooManyRequests):
            raise IAError(
                f"{path}: a quota of the bucket is used up ({_short(cause)}); raise it or wait, then run again"
            ) from None
        raise IAError(
            f"{path}: the bucket does not answer ({_short(cause)}; tried for up to {PATIENCE:g} s); look at the "
            "network, then give the same command again"
        ) from None


def _short(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "message", None) or error).split())
    text = re.sub(r"^[A-Z]+ https?://\S+: ", "", text)
    return text if len(text) <= 160 else f"{text[:80]}…{text[-80:]}"
