"""profiles/kubernetes against a stand-in for a cluster: it speaks as much of the API as the plugin uses, and runs a pod
as a process in a folder of its own. What only real clusters have (images, nodes, cards) is not tested.

It needs `pip install -e .[kubernetes]`, git, rsync and a package index; elsewhere this says what is missing.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from repository import ROOT, tiny_experiment

PROFILE = ROOT / "workflow" / "profiles" / "kubernetes"
STEPS = 300

MISSING = [name for name in ("git", "rsync") if shutil.which(name) is None]
for module in ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_fs"):
    if importlib.util.find_spec(module) is None:
        MISSING.append(module.replace("_", "-"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


def quantity(text):
    """The number that a quantity of Kubernetes means."""
    number, unit = re.fullmatch(r"(\d+)([a-zA-Z]*)", str(text)).groups()
    return int(number) * {"": 1, "m": 1e-3, "M": 1e6, "Gi": 2**30}[unit]


def refused(job):
    """Why a real API server would not take the job; None if it would."""
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    requests, limits = (container["resources"].get(name, {}) for name in ("requests", "limits"))
    for name, amount in requests.items():
        if "/" in name and limits.get(name) != amount:
            return f"{name}: extended resources need a limit equal to the request"
        if name in limits and quantity(amount) > quantity(limits[name]):
            return f"{name}: requests {amount} of {limits[name]}"
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    if len(set(paths)) < len(paths):
        return f"mount paths are not unique: {paths}"
    if {mount["name"] for mount in container["volumeMounts"]} - {volume["name"] for volume in pod["volumes"]}:
        return "a mount without a volume"
    return None


class Cluster:
    """Jobs by name, as they were asked for, and the processes that stand for their pods."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment
        self.jobs, self.pods, self.exit_codes = {}, {}, {}

    def start(self, job):
        name = job["metadata"]["name"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        workdir = self.folder / name  # in place of an empty volume at /workdir
        workdir.mkdir()
        self.jobs[name] = job
        with (self.folder / f"{name}.log").open("w") as log:
            self.pods[name] = subprocess.Popen(
                [*container["command"], *container["args"]],
                cwd=workdir, env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def exit_code(self, name):
        if (code := self.pods[name].poll()) is not None:
            self.exit_codes[name] = 128 - code if code < 0 else code
        return self.exit_codes.get(name)

    def of_rule(self, rule):
        """The jobs that were asked to run a rule."""
        found = [job for job in self.jobs.values() if re.search(rf"--allowed-rules '?{rule}'?\s", arguments(job))]
        return found

    def kill(self, name):
        os.killpg(self.pods[name].pid, signal.SIGKILL)


def arguments(job):
    return job["spec"]["template"]["spec"]["containers"][0]["args"][1]


class Api(BaseHTTPRequestHandler):
    """What the plugin asks of an API server, for one cluster."""

    cluster: Cluster

    def answer(self, content, status=200):
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")

    def do_POST(self):
        content = self.body()
        if self.path.endswith("/jobs"):
            if reason := refused(content):
                self.answer({"kind": "Status", "message": reason}, 422)
                return
            self.cluster.start(content)
        self.answer(content, 201)

    def do_DELETE(self):
        self.body()
        self.answer({})

    def do_GET(self):
        url = urlsplit(self.path)
        query, parts = parse_qs(url.query), url.path.split("/")
        if url.path.endswith("/status"):
            name = parts[-2]
            code = self.cluster.exit_code(name)
            status = {"active": 1} if code is None else {"failed": 1} if code else {"succeeded": 1}
            self.answer(self.cluster.jobs[name] | {"status": status})
        elif url.path.endswith("/log"):
            # A pod that is not restarted has no earlier life.
            if query.get("previous") == ["true"]:
                self.answer({"kind": "Status", "message": "previous terminated container not found"}, 400)
            else:
                self.answer((self.cluster.folder / f"{parts[-2]}.log").read_text())
        else:
            name = query["labelSelector"][0].removeprefix("job-name=")
            code = self.cluster.exit_code(name)
            state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
            container = {"name": "snakemake", "image": "", "imageID": "", "ready": True, "restartCount": 0}
            status = {"containerStatuses": [container | {"state": state}]}
            self.answer({"items": [{"metadata": {"name": name}, "status": status}]})

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def checkout(tmp_path):
    """A git checkout of the files as they are."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr}")
    folder = tmp_path / "mounted" / "checkout"
    for name in filter(lambda name: (ROOT / name).exists(), listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    subprocess.run("git init -q && git add -A", shell=True, cwd=folder, check=True)
    return folder


@pytest.fixture
def cluster(tmp_path):
    wheels = tmp_path / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), "snakemake-storage-plugin-fs"]
    fetched = subprocess.run(pip, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"no package index: {fetched.stderr[-500:]}")
    # As in the image: `python` is what runs the suite, and the index is a folder.
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, command in (("python", f'"{sys.executable}"'), ("pip", f'"{sys.executable}" -m pip')):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (bin_folder / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PIP_"))} | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "BOOT_DEVICE": "cpu",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }
    (tmp_path / "pods").mkdir()
    running = Cluster(tmp_path / "pods", environment)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ApiOfCluster", (Api,), {"cluster": running}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = {"cluster": {"server": f"http://127.0.0.1:{server.server_port}"}, "name": "stand-in"}
    context = {"context": {"cluster": "stand-in", "user": "nobody"}, "name": "stand-in"}
    access = {"clusters": [address], "contexts": [context], "users": [{"name": "nobody", "user": {}}]}
    (tmp_path / "kubeconfig").write_text(json.dumps(access | {"current-context": "stand-in"}))
    running.kubeconfig = tmp_path / "kubeconfig"
    yield running
    server.shutdown()
    for name, pod in running.pods.items():
        if pod.poll() is None:
            running.kill(name)
        pod.wait(30)


def test_a_student_trains_in_pods_and_a_lost_pod_is_tried_again(cluster, checkout, tmp_path):
    """The profile as it is, but for the volume's place and how often the API is asked."""
    results = checkout / "volume" / "tiny"
    text = (PROFILE / "config.yaml").read_text().replace("/mnt/boot", str(checkout.parent))
    profile = yaml.safe_load(text) | {"seconds-between-status-checks": 1, "cores": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(profile))
    raw = tiny_experiment()
    raw["methods"]["boot-heun"]["training"]["steps"] = STEPS
    (checkout / "tiny.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    student = "volume/tiny/students/boot-heun/train-0"
    command = [sys.executable, "-m", "snakemake", student, "--workflow-profile", str(tmp_path / "config.yaml")]
    environment = os.environ | {"KUBECONFIG": str(cluster.kubeconfig), "BOOT_DEVICE": "cpu"}
    log = tmp_path / "snakemake.log"

    with log.open("w") as output:
        running = subprocess.Popen(
            [*command, "--configfile", "tiny.yaml"],
            cwd=checkout, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 400
        while not list(results.glob("state/boot-heun-*/seconds")):
            assert running.poll() is None, log.read_text()[-5000:]
            assert time.monotonic() < deadline, log.read_text()[-5000:]
            time.sleep(0.1)
        (job,) = cluster.of_rule("distil")
        cluster.kill(job["metadata"]["name"])
        assert running.wait(600) == 0, log.read_text()[-5000:]
    finally:
        running.kill()

    first, second = cluster.of_rule("distil")
    asked = [job["spec"]["template"]["spec"]["containers"][0]["resources"] for job in (first, second)]
    assert [resources["limits"]["memory"] for resources in asked] == ["16000M", "32000M"]
    assert asked[0]["limits"]["nvidia.com/gpu"] == "1"
    (data,) = cluster.of_rule("data")
    assert "nvidia.com/gpu" not in data["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (checkout / student / "nfe-1/unet/diffusion_pytorch_model.safetensors").exists()
    assert (results / "logs/distil/boot-heun/train-0.log").exists()
    assert not any((results / "state").glob("*")), "what was delivered is cleared away"

    # Nothing is left to do, with the profile and without.
    again = subprocess.run(
        [*command, "--dry-run", "--configfile", "tiny.yaml"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "Nothing to be done" in again.stdout + again.stderr, again.stdout + again.stderr


def test_the_manifest_names_what_the_profile_names():
    profile = yaml.safe_load((PROFILE / "config.yaml").read_text())
    parts = {part["kind"]: part for part in yaml.safe_load_all((PROFILE / "cluster.yaml").read_text())}
    (claim,) = profile["kubernetes-persistent-volumes"]
    name, place = claim.split(":")
    (container,) = parts["Pod"]["spec"]["containers"]
    assert container["volumeMounts"] == [{"name": name, "mountPath": place}]
    assert parts["PersistentVolumeClaim"]["metadata"]["name"] == name
    assert {part["metadata"].get("namespace", name) for part in parts.values()} == {profile["kubernetes-namespace"]}
    assert container["image"] == profile["container-image"]
    assert profile["default-storage-prefix"] == container["workingDir"]
    assert container["workingDir"].startswith(f"{place}/")
    (setting,) = profile["config"]
    folder = setting.removeprefix("results=")
    assert profile["precommand"].endswith(f" {container['workingDir']}/{folder} {folder}")
