"""Data, label tables, checkpoints and results on an S3 server of this machine."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.pipelines.test_end_to_end import TINY

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]
LIMIT_S = 300


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """A server with a bucket, and how pyarrow finds it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stderr=subprocess.DEVNULL,
    )
    found = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-this-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    wait_for_port(port, server)
    try:
        yield found
    finally:
        server.terminate()
        server.wait()


def wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as there:
            if not there.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.2)
    raise TimeoutError("the S3 server did not start")


def client(environment: dict[str, str]) -> "boto3.client":  # type: ignore[valid-type]
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )


def reid(environment: dict[str, str], *words: str) -> str:
    """Run a command; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_run_on_s3(environment: dict[str, str], small_set: str, tmp_path: Path) -> None:
    s3 = client(environment)
    s3.create_bucket(Bucket="bucket")
    for path in Path(small_set).rglob("*.*"):
        s3.upload_file(str(path), "bucket", f"data/{path.relative_to(small_set)}")
    assert re.search(r"train\D+4\D+48", reid(environment, "scan", "s3://bucket/data"))
    command = ["train", "cluster_contrast", "--preset", "demo", "--name", "a", *TINY]
    on_s3 = ["--data", "s3://bucket/data", "--storage", "s3://bucket/runs"]
    reid(environment, *command, *on_s3)
    listed = s3.list_objects_v2(Bucket="bucket", Prefix="runs/a/")["Contents"]
    names = {entry["Key"].removeprefix("runs/a/") for entry in listed}
    assert {"config.json", "metrics.jsonl", "result.json", "last.safetensors"} <= names
    assert {f"labels/round-{number:04d}.parquet" for number in range(3)} <= names
    assert any(re.fullmatch(r"checkpoints/round-0002/state.pt", name) for name in names)

    def content(name: str) -> bytes:
        return s3.get_object(Bucket="bucket", Key=f"runs/a/{name}")["Body"].read()

    for name in ("config.json", "environment.json", "log.txt"):
        assert environment["AWS_SECRET_ACCESS_KEY"].encode() not in content(name)
    reid(environment, *command, "--data", small_set, "--storage", str(tmp_path))
    assert content("last.safetensors") == (tmp_path / "a" / "last.safetensors").read_bytes()
    before = json.loads(content("result.json"))
    reid(environment, *command, *on_s3)  # nothing is left to do
    assert json.loads(content("result.json")) == before
