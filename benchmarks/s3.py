"""An S3 server in this process that fails once: the first time that an object is written, and that it is read."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class SilentHandler(MotoRequestHandler):
    """Logs errors alone."""

    def log_request(self, *_: object) -> None:
        """Nothing of a request."""


class FailingServer:
    """moto's server on a free port, with an empty bucket named ``bucket``, as long as the block lasts.

    Args:
        times: that it answers 503 to the same request.
    """

    def __init__(self, times: int = 1) -> None:
        self.times = times
        self.failed = 0  # requests
        self.asked: Counter[tuple[str, str]] = Counter()  # how often, by verb and path
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=SilentHandler
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which pyarrow finds the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-this-server",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """boto3's, for this server."""
        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        )

    def __enter__(self) -> "FailingServer":
        self._thread.start()
        self.client().create_bucket(Bucket="bucket")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        asked = (request["REQUEST_METHOD"], request["PATH_INFO"])
        self.asked[asked] += 1
        is_object = asked[1].count("/") > 1
        if not is_object or asked[0] not in ("PUT", "GET") or self.asked[asked] > self.times:
            return self._application(request, start)
        self.failed += 1
        request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
        start("503 Slow Down", [("Content-Type", "application/xml")])
        return [BUSY]
