"""A Google Cloud Storage that tests start: the emulator from PyPI, over HTTP, which also fails when told to.

`gcp-storage-emulator` keeps objects and speaks the JSON API; added here is what it leaves out and a workdir stands on:
preconditions on generations, lists in pages, several requests at once, and the generation of what is read. It is not
Google's: it shows that requests, repetitions and orders of writes are right, not how fast or how full a bucket is.
"""

import contextlib
import io
import json
import threading
import time
import urllib.parse
from functools import partial
from http import server

import pytest
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

PAGE = 1000  # what Google gives at most; tests lower it


class _Handler(emulator.RequestHandler):
    """One request: first what the test wants to go wrong, then preconditions, then the emulator."""

    protocol_version = "HTTP/1.1"

    def __init__(self, service, *args, **kwargs):
        self.service = service
        super().__init__(service.storage, *args, **kwargs)

    def do(self, method):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.rfile = io.BytesIO(body)
        name = _name_in(url.path, query, body)
        fault = self.service.next_fault(method, name)
        if isinstance(fault, float):
            time.sleep(fault)
            fault = None
        if fault == "cut":  # the answer breaks off
            self.close_connection = True
            return
        if fault is not None and fault not in ("lost", "half"):
            self.answer(fault, {"error": {"code": fault, "message": "asked for by a test"}})
            return
        out, self.wfile = self.wfile, io.BytesIO()
        with self.service.lock:
            refused = self.precondition(method, name, query)
            if refused:
                self.answer(refused, {"error": {"code": refused, "message": "conditionNotMet"}})
            elif method == "GET" and url.path.endswith("/o"):
                self.answer(200, self.service.page(url.path.split("/")[-2], query))
            else:
                self.meta = self.service.find(*name) if name and "media" in query.get("alt", "") else None
                emulator.Router(self).handle(method)
                self.meta = None
        made, self.wfile = self.wfile.getvalue(), out
        if self.headers.get("Range") and "media" in query.get("alt", ""):
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            self.service.ranges.append((name[1], int(first), int(last) + 1, fault))
        if fault == "half":  # the answer breaks off in its content
            self.wfile.write(made[: -(len(made) - made.index(b"\r\n\r\n") - 3) // 2])
            self.close_connection = True
            return
        if fault == "lost":  # it is done, and nobody hears of it
            self.answer(503, {"error": {"code": 503, "message": "asked for by a test"}})
        else:
            self.wfile.write(made)

    meta = None

    def end_headers(self):
        if self.meta:
            self.send_header("x-goog-generation", self.meta["generation"])
        super().end_headers()

    def answer(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def precondition(self, method, name, query):
        """The status with which a request on another generation is refused."""
        there = self.service.find(*name) if name else None
        generation = there["generation"] if there else "0"
        if method in ("POST", "PUT", "DELETE"):
            return 412 if query.get("ifGenerationMatch", generation) != generation else None
        if query.get("generation", generation) != generation:
            return 404
        return 304 if query.get("ifGenerationNotMatch") == generation != "0" else None

    def do_GET(self):
        self.do("GET")

    def do_POST(self):
        self.do("POST")

    def do_PUT(self):
        self.do("PUT")

    def do_DELETE(self):
        self.do("DELETE")

    def log_message(self, *args):
        pass


class Service:
    """faults: called with (method, object or None) of each request; None, or what goes wrong: a status such as 503,
    seconds to wait (a float), "lost" (done, and answered with 503), "cut" (no answer), "half" (half of one). requests:
    what was asked; ranges: (object, from, to, fault) of what was asked of contents.
    """

    def __init__(self):
        self.storage = Storage(use_memory_fs=True)
        self.storage._write_config_to_file = lambda: None  # all names, at each write
        self.lock, self.faults, self.requests = threading.RLock(), lambda method, name: None, []
        self.ranges = []
        self.page_size = PAGE
        buckets.create_bucket("bucket", self.storage)

    def next_fault(self, method, name):
        with self.lock:
            self.requests.append((method, name and name[1]))
        return self.faults(method, name and name[1])

    def find(self, bucket, name):
        try:
            return self.storage.get_file_obj(bucket, name)
        except NotFound:
            return None

    def names(self, prefix=""):
        return sorted(n for n in self.storage.objects.get("bucket", {}) if n.startswith(prefix))

    def state(self):
        """All that is in the bucket, for `put_back`."""
        return {name: (self.find("bucket", name), self.content(name)) for name in self.names()}

    def put_back(self, state):
        for name in self.names():
            self.storage.delete_file("bucket", name)
        for name, (known, content) in state.items():
            self.storage.create_file("bucket", name, content, known)

    def content(self, name):
        return self.storage.get_file("bucket", name)

    def page(self, bucket, query):
        objects, prefixes = self.storage.get_file_list(bucket, query.get("prefix"), query.get("delimiter"))
        every = sorted([(o["name"], o) for o in objects] + [(p, None) for p in prefixes], key=lambda x: x[0])
        start = query.get("pageToken", query.get("startOffset", ""))
        every = [x for x in every if x[0] >= start and ("endOffset" not in query or x[0] < query["endOffset"])]
        size = min(self.page_size, int(query.get("maxResults", self.page_size)))
        now, more = every[:size], every[size:]
        found = {"items": [o for _, o in now if o], "prefixes": [n for n, o in now if o is None]}
        return {"kind": "storage#objects", **found, **({"nextPageToken": more[0][0]} if more else {})}


def _name_in(path, query, body):
    """(bucket, name) of the object that a request is about."""
    parts = path.split("/b/", 1)
    if len(parts) < 2 or "/o" not in parts[1]:
        return None
    bucket, _, rest = parts[1].partition("/o")
    if rest.startswith("/"):
        return bucket, urllib.parse.unquote(rest[1:].split("/rewriteTo/")[0].split("/copyTo/")[0])
    if "name" in query:
        return bucket, query["name"]
    if query.get("uploadType") == "multipart":
        head = body.split(b"\r\n\r\n", 1)[1].split(b"\r\n--", 1)[0]
        return bucket, json.loads(head)["name"]
    if query.get("uploadType") == "resumable" and body and "upload_id" not in query:
        return bucket, json.loads(body)["name"]
    return None


@contextlib.contextmanager
def running():
    """(service, its address), with `gs://bucket` in it; children find it through the environment (`environment`)."""
    service = Service()
    http = server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, service))
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield service, f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def environment(address):
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture
def bucket_service(monkeypatch):
    """An empty `gs://bucket` for one test; what fails is repeated without much waiting."""
    from ia_jax.storage import bucket

    with running() as (service, address):
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(bucket, "FIRST_WAIT", 0.01)
        monkeypatch.setattr(bucket, "PATIENCE", 20.0)
        bucket._client.cache_clear()
        yield service
        if bucket._client.cache_info().currsize:
            bucket._client().close()
        bucket._client.cache_clear()
