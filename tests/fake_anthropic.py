"""A local server that speaks Messages and Message Batches, counts and bills what it answers, and fails on request.

Which request fails, and how, depends on its content and on how often it came, never on time or on threads. The bill is
the server's own: its own token counts and its own prices.
"""

import hashlib
import json
import threading
from collections import Counter
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Dollars for a million tokens in and out, as announced for the models that the tests use.
DOLLARS = {
    "claude-sonnet-5-5": (Decimal(2), Decimal(10)),
    "claude-haiku-5-5": (Decimal("0.1"), Decimal("0.5")),
    "claude-opus-5-5": (Decimal(4), Decimal(20)),
    "claude-haiku-4-5": (Decimal(1), Decimal(5)),
}
STATUS = {"429": (429, "rate_limit_error"), "500": (500, "api_error"), "529": (529, "overloaded_error")}
# Failures before the work is done cost nothing; these two come after it, and are billed.
BILLED = ("drop_after", "truncate")


def agreeing(request):
    """An answer to whatever a schema asks for: yes, the highest number, and a reason."""
    properties = request["output_config"]["format"]["schema"]["properties"]
    best = {
        k: "exact" if "enum" not in v else "yes" if "yes" in v["enum"] else max(v["enum"])
        for k, v in properties.items()
    }
    return json.dumps(best)


class Server:
    """`answer(request) -> text`, or a list of blocks, or (either, stop_reason).

    `faults(path, digest, nth) -> kind or None`.
    """

    def __init__(self, answer, faults=lambda path, digest, nth: None, polls=1, retry_after="0", on_batch=None):
        self.answer, self.faults, self.polls = answer, faults, polls
        self.retry_after, self.on_batch = retry_after, on_batch
        self.lock = threading.RLock()
        self.bill, self.paid, self.seen, self.injected = Decimal(0), Counter(), Counter(), Counter()
        self.batches, self.headers = {}, []

    def message(self, request, batch):
        """Does the work and bills it."""
        text = self.answer(request)
        text, stop = text if isinstance(text, tuple) else (text, "end_turn")
        said = [{"type": "thinking", "thinking": "", "signature": ""}, {"type": "text", "text": text}]
        said, text = (text, json.dumps(text)) if isinstance(text, list) else (said, text)
        written = json.dumps([request["system"], request["messages"], request.get("tools", [])])
        tokens_in, tokens_out = len(written.split()) + 20, min(len(text.split()) + 30, request["max_tokens"])
        dollars_in, dollars_out = DOLLARS[request["model"]]
        with self.lock:
            self.bill += (tokens_in * dollars_in + tokens_out * dollars_out) / 1_000_000 / (2 if batch else 1)
            self.paid[digest(request)] += 1
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": request["model"],
            "content": said,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": tokens_in, "output_tokens": tokens_out},
        }

    def make_batch(self, requests):
        with self.lock:
            name = f"msgbatch_{len(self.batches)}"
            self.batches[name] = {"requests": requests, "polls": self.polls, "results": None}
        if self.on_batch:
            self.on_batch(name)
        return name

    def show_batch(self, name, base):
        b = self.batches[name]
        with self.lock:
            if b["polls"] and b["results"] is None:
                b["polls"] -= 1
            elif b["results"] is None:
                b["results"] = [self.result(r) for r in b["requests"]]
        done, n = b["results"] is not None, len(b["requests"])
        counts = dict.fromkeys(("canceled", "errored", "expired", "processing", "succeeded"), 0)
        return {
            "id": name,
            "type": "message_batch",
            "processing_status": "ended" if done else "in_progress",
            "request_counts": counts | {"succeeded" if done else "processing": n},
            "created_at": "2099-01-01T00:00:00Z",
            "expires_at": "2099-01-02T00:00:00Z",
            "results_url": f"{base}/v1/messages/batches/{name}/results" if done else None,
        }

    def result(self, row):
        kind = self.fault("item", digest(row["params"]))
        if kind:
            error = {"type": "error", "error": {"type": kind, "message": "no"}}
            result = {"type": "expired"} if kind == "expired" else {"type": "errored", "error": error}
        else:
            result = {"type": "succeeded", "message": self.message(row["params"], True)}
        return {"custom_id": row["custom_id"], "result": result}

    def slow(self):
        threading.Event().wait(0.05)

    def fault(self, path, what):
        with self.lock:
            nth = self.seen[path, what]
            self.seen[path, what] += 1
        kind = self.faults(path, what, nth)
        if kind:
            self.injected[kind] += 1
        return kind


def digest(request):
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def sometimes(share, kinds, tries=2):
    """A fault policy: about `share` of first and later tries fail, up to `tries` times in a row, each kind as often."""

    def faults(path, what, nth):
        number = int(hashlib.sha256(f"{path}{what}{nth}".encode()).hexdigest()[:8], 16)
        usable = [k for k in kinds if (k not in ("expired", "api_error")) == (path != "item")]
        if nth >= tries or not usable or number % 1000 >= 1000 * share:
            return None
        return usable[number // 1000 % len(usable)]

    return faults


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    @property
    def s(self) -> Server:
        return self.server.state

    def send(self, body, status=200, headers=(), cut=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        # Cut on the way: the length announced is that of what arrives, so that only the JSON is broken.
        data = data[: len(data) // 2] if cut else data
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def failed(self, path, what):
        """Injects a failure that comes before the work; the kind of one that is to come after it is returned."""
        kind = self.s.fault(path, what)
        if kind in STATUS:
            status, name = STATUS[kind]
            more = [("retry-after", self.s.retry_after)] if kind == "429" else [("retry-after-ms", "1")]
            self.send({"type": "error", "error": {"type": name, "message": kind}}, status, more)
            return True
        if kind == "drop":
            self.close_connection = True
            self.connection.close()
            return True
        if kind == "slow":
            self.s.slow()
        return kind

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.s.headers.append({k.lower(): v for k, v in self.headers.items()} | {":path": self.path})
        content = json.loads(body)
        what = digest(content)
        kind = self.failed("post", what)
        if kind is True:
            return
        if self.path == "/v1/messages":
            answer = self.s.message(content, False)
        else:
            answer = self.s.show_batch(self.s.make_batch(content["requests"]), self.base)
        if kind == "drop_after":
            self.close_connection = True
            self.connection.close()
            return
        self.send(answer, cut=kind == "truncate")

    def do_GET(self):
        path = self.path.split("?")[0]
        kind = self.failed("get", path)
        if kind is True:
            return
        parts = path.split("/")[4:]  # /v1/messages/batches/...
        if not parts:
            names = list(self.s.batches)[::-1]
            data = [self.s.show_batch(n, self.base) for n in names]
            return self.send({"data": data, "has_more": False, "first_id": None, "last_id": None})
        if parts[0] not in self.s.batches:
            return self.send({"type": "error", "error": {"type": "not_found_error", "message": "no"}}, 404)
        if len(parts) == 1:
            return self.send(self.s.show_batch(parts[0], self.base), cut=kind == "truncate")
        rows = self.s.batches[parts[0]]["results"]
        return self.send(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows[::-1]).encode(), cut=kind == "truncate"
        )

    @property
    def base(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args):  # a connection that was cut on purpose
        pass


@contextmanager
def serving(server):
    """The server's address, while it runs."""
    http = _Quiet(("127.0.0.1", 0), Handler)
    http.state = server
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
