"""The cluster files, offline: by Ray's own schema and packaging, and by what they must agree on."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines import train
from pipelines.run.job import check

ROOT = Path(__file__).parents[1]
LAUNCHER = ["cluster.yaml", "deploy/cluster-onprem.yaml"]
FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "deploy").iterdir())]
LOCK = (ROOT / "requirements/gpu.txt").read_text()
UPLOADED = {"benchmarks", "pipelines", "pyproject.toml", "reid_core", "tests", "tune_spaces"}
MOST_UPLOADED = 5 * 2**20  # bytes
COMMANDS = (
    "initialization_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def locked(package):
    (version,) = re.findall(rf"^{package}==(\S+)", LOCK, re.MULTILINE)
    return version


def launched(name):
    """The file with Ray's defaults, as ``ray up`` would use it."""
    config = prepare_config(yaml.safe_load((ROOT / name).read_text()))
    validate_config(config)
    return config


@pytest.fixture(scope="module")
def manifests():
    documents = list(yaml.safe_load_all((ROOT / "deploy/rayjob.yaml").read_text()))
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def cluster(manifests):
    return manifests["RayJob"]["spec"]["rayClusterSpec"]


def pods(cluster):
    """Pod template by group; the head's is ``head``."""
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {
        name: group["template"]
        for name, group in ({"head": cluster["headGroupSpec"]} | groups).items()
    }


def gpus(template):
    limits = template["spec"]["containers"][0]["resources"]["limits"]
    return int(limits.get("nvidia.com/gpu", 0))


# ---- the cluster launcher


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_accepts_the_launcher_files(name):
    config = launched(name)
    for source in config["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).is_file()
    commands = [command for key in COMMANDS for command in config[key]]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)  # nothing is run
    assert not any(
        "http" in command for command in commands
    )  # a default of Ray's installs a nightly wheel


@pytest.mark.parametrize(
    "broken", [{"no_such_key": 1}, {"cluster_name": None}, {"head_node_type": "none"}]
)
def test_the_check_of_the_launcher_files_sees_mistakes(broken):
    raw = yaml.safe_load((ROOT / "cluster.yaml").read_text()) | broken
    with pytest.raises(Exception, match=next(iter(broken)) + "|None is not of type"):
        validate_config(prepare_config(raw))


def test_the_head_drives_and_other_machines_work():
    config = launched("cluster.yaml")
    types = dict(config["available_node_types"])
    assert types.pop(config["head_node_type"])["resources"] == {"CPU": 0}
    assert {bool(kind["resources"].get("GPU")) for kind in types.values()} == {True, False}
    for kind in types.values():
        assert 1 <= kind["min_workers"] <= kind["max_workers"]
    assert sum(kind["max_workers"] for kind in types.values()) <= config["max_workers"]


@pytest.mark.parametrize("name", LAUNCHER)
def test_nodes_get_the_locked_packages_and_a_loopback_dashboard(name):
    config = launched(name)
    for setup in (config["head_setup_commands"], config["worker_setup_commands"]):
        (sync,) = (command for command in setup if "pip sync" in command)
        assert "--require-hashes ~/reid/gpu.txt" in sync
        assert f"uv=={locked('uv')}" in " ".join(setup)
    assert config["file_mounts"]["~/reid/gpu.txt"] == "requirements/gpu.txt"
    (head,) = (command for command in config["head_start_ray_commands"] if "--head" in command)
    assert "--dashboard-host=127.0.0.1 " in head


@pytest.mark.parametrize("name", LAUNCHER)
def test_nodes_start_with_the_token_of_a_file(name, tmp_path):
    config = launched(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["file_mounts"]["~/reid/node.sh"] == "deploy/node.sh"
    assert any("~/.bashrc" in command for command in config["setup_commands"])
    found = subprocess.run(
        ["bash", "-c", f". {shlex.quote(str(ROOT / 'deploy/node.sh'))} && env"],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {
        "RAY_AUTH_MODE=token",
        f"RAY_AUTH_TOKEN_PATH={tmp_path}/.ray/auth_token",
        "RAY_idle_worker_killing_time_threshold_ms=600000",
    } <= set(found)
    assert f"PATH={tmp_path}/reid/env/bin:" in "\n".join(found)


def test_the_lock_has_what_the_head_starts_machines_with():
    assert locked("boto3")


# ---- Kubernetes


def test_the_ray_job_names_what_its_file_makes(manifests, cluster):
    assert set(manifests) == {"PersistentVolumeClaim", "NetworkPolicy", "RayJob"}
    assert manifests["RayJob"]["apiVersion"] == "ray.io/v1"
    assert manifests["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    claim = manifests["PersistentVolumeClaim"]["metadata"]["name"]
    selected = manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    images = set()
    for template in pods(cluster).values():
        assert template["metadata"]["labels"] == selected
        (volume,) = template["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim
        (container,) = template["spec"]["containers"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/shared"}]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        images.add(container["image"])
    assert len(images) == 1


def test_the_ray_job_goes_on_where_it_stopped_and_leaves_no_cluster(manifests):
    spec = manifests["RayJob"]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    assert "--name" in spec["entrypoint"]


def test_the_ray_job_has_the_locked_ray_and_the_token_of_a_secret(cluster):
    assert cluster["rayVersion"] == locked("ray")
    assert cluster["authOptions"] == {"mode": "token", "secretName": "reid-token"}
    image = (ROOT / "deploy/Dockerfile").read_text()
    assert f"uv=={locked('uv')}" in image
    assert "--require-hashes /tmp/gpu.txt" in image


def test_only_the_groups_of_the_ray_job_that_train_have_gpus(cluster):
    assert {name: gpus(template) for name, template in pods(cluster).items()} == {
        "head": 0,
        "gpu": 4,
        "cpu": 0,
    }
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_command_of_the_ray_job_fits_its_cluster(manifests, cluster):
    python, _, module, verb, *argv = shlex.split(manifests["RayJob"]["spec"]["entrypoint"])
    assert (python, module, verb) == ("python", "pipelines", "train")
    _, parsed = train.parse(argv)
    assert parsed is not None
    job = check(parsed)
    assert job.gpu
    ready = {group["groupName"]: group["replicas"] for group in cluster["workerGroupSpecs"]}
    assert job.workers <= sum(gpus(pods(cluster)[name]) * n for name, n in ready.items())
    assert job.storage.startswith("/shared/")
    assert job.data.startswith("/shared/")


# ---- all of them


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_secret_or_opens_the_dashboard(path):
    text = path.read_text()
    assert "0.0.0.0" not in text
    assert not re.search(r"AKIA|PRIVATE KEY|kind: Secret|aws_secret", text)
    assert not re.search(r"RAY_AUTH_TOKEN\b", text)
    assert not re.search(r"auth_token\"?\s*[:=]\s*[\"']?\w", text)
    assert not re.search(r"[0-9a-fA-F]{32,}", text)


@pytest.mark.parametrize("name", LAUNCHER)
def test_no_default_of_ray_opens_the_dashboard(name):
    assert "0.0.0.0" not in yaml.safe_dump(launched(name))


# ---- what a job uploads


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this tree as a user's would be: beside the code, all that must stay at home, 6 MB each."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    copy = tmp_path_factory.mktemp("checkout")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    for name in (
        ".git/pack",
        ".venv/lib.so",
        "data/a.jpg",
        "runs/r/last.safetensors",
        "market/a.jpg",
        "w.pth",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(os.urandom(6 * 2**20))
    (copy / ".env").write_text("TOKEN=secret")
    (copy / "pipelines/__pycache__").mkdir()
    (copy / "pipelines/__pycache__/train.pyc").write_bytes(b"")
    return copy


@pytest.mark.parametrize("gitignore", [True, False])
@pytest.mark.parametrize(
    "excludes", [get_runtime_env_default_excludes(), []], ids=["default", "none"]
)
def test_a_job_uploads_the_code_and_nothing_else(checkout, tmp_path, gitignore, excludes):
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=gitignore, excludes=excludes)
    with ZipFile(package) as archive:
        names = set(archive.namelist())
    assert package.stat().st_size < MOST_UPLOADED
    assert {name.split("/")[0] for name in names} == UPLOADED
    code = {
        str(path.relative_to(checkout))
        for folder in ("pipelines", "reid_core", "tune_spaces")
        for path in (checkout / folder).rglob("*.py")
    }
    assert code <= names
    assert not any("__pycache__" in name for name in names)
