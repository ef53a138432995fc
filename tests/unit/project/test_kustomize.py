"""The Kubernetes manifests: they build, they fit each other, and they fit the code they start."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from athanor.v1 import job_service_pb2

from cluster import settings

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "k8s"
BASE = K8S / "base"
OVERLAYS = sorted(path.parent for path in (K8S / "overlays").glob("*/kustomization.yaml"))
Document = Mapping[str, Any]

# What KubeRay writes on the pods of a RayCluster, beside the labels of their template.
HEAD_LABELS = {"ray.io/cluster": "athanor", "ray.io/node-type": "head", "ray.io/group": "headgroup"}


@cache
def documents(folder: Path) -> list[Document]:
    """The resources of a base, as written."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    texts = [(folder / name).read_text("utf-8") for name in kustomization["resources"]]
    return [one for text in texts for one in yaml.safe_load_all(text)]


def built(folder: Path) -> list[Document]:
    """The same as kubectl builds it."""
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl on PATH: the manifests are only looked at as files")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(kind: str, name: str | None = None) -> Document:
    (found,) = [each for each in documents(BASE) if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found


def pods() -> Iterator[tuple[dict[str, str], Document]]:
    """(labels as they will be, pod spec) of everything that runs."""
    deployment = one("Deployment")["spec"]["template"]
    yield deployment["metadata"]["labels"], deployment["spec"]
    cluster = one("RayCluster")["spec"]
    head = cluster["headGroupSpec"]["template"]
    yield head["metadata"]["labels"] | HEAD_LABELS, head["spec"]
    for group in cluster["workerGroupSpecs"]:
        ray = {"ray.io/cluster": "athanor", "ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
        yield group["template"]["metadata"]["labels"] | ray, group["template"]["spec"]


def containers() -> list[Document]:
    return [container for _, pod in pods() for container in pod["containers"]]


def control_plane() -> Document:
    (container,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    return container


def environment() -> dict[str, str]:
    """Variables of the control plane; those from a Secret are empty."""
    return {each["name"]: each.get("value", "") for each in control_plane()["env"]}


def selected(selector: Mapping[str, str]) -> list[Document]:
    return [pod for labels, pod in pods() if selector.items() <= labels.items()]


def test_the_base_lists_every_file_it_has() -> None:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text("utf-8"))["resources"]
    assert sorted(listed) == sorted(path.name for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")
    names = [(each["kind"], each["metadata"]["name"]) for each in documents(BASE)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("folder", [BASE, *OVERLAYS], ids=lambda path: path.name)
def test_kubectl_builds_it_whole(folder: Path) -> None:
    resources = {(each["kind"], each["metadata"]["name"]): each for each in built(folder)}
    assert {(each["kind"], each["metadata"]["name"]) for each in documents(BASE)} <= resources.keys()
    spaced = [each for (kind, _), each in resources.items() if kind != "Namespace"]
    assert {each["metadata"]["namespace"] for each in spaced} == {"athanor"}
    ours = [each for each in resources.values() if each["kind"] != "Secret"]
    assert {each["metadata"]["labels"]["app.kubernetes.io/part-of"] for each in ours} == {"athanor"}
    assert set(re.findall(r'"image": "([^"]*)"', json.dumps(spaced))) == {f"athanor:{version('athanor-cluster')}"}


def test_every_selector_finds_a_pod() -> None:
    for service in (each for each in documents(BASE) if each["kind"] == "Service"):
        (pod,) = selected(service["spec"]["selector"])
        ports = [port for container in pod["containers"] for port in container["ports"]]
        known = {port["containerPort"] for port in ports} | {port["name"] for port in ports}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= known, service["metadata"]["name"]
    for budget in (each for each in documents(BASE) if each["kind"] == "PodDisruptionBudget"):
        assert selected(budget["spec"]["selector"]["matchLabels"]), budget["metadata"]["name"]
    deployment = one("Deployment")["spec"]
    assert len(selected(deployment["selector"]["matchLabels"])) == 1


def test_network_policies_speak_of_pods_that_exist() -> None:
    for policy in (each for each in documents(BASE) if each["kind"] == "NetworkPolicy"):
        spec = policy["spec"]
        assert selected(spec["podSelector"].get("matchLabels", {})), policy["metadata"]["name"]
        peers = [peer for rule in spec.get("ingress", []) for peer in rule.get("from", [])]
        peers += [peer for rule in spec.get("egress", []) for peer in rule.get("to", [])]
        near = [peer["podSelector"]["matchLabels"] for peer in peers if "namespaceSelector" not in peer]
        assert all(selected(labels) for labels in near), policy["metadata"]["name"]


def test_nothing_is_reachable_unless_a_policy_says_so() -> None:
    spec = one("NetworkPolicy", "athanor-default-deny")["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_claims_accounts_and_mounts_are_there() -> None:
    claims = {each["metadata"]["name"] for each in documents(BASE) if each["kind"] == "PersistentVolumeClaim"}
    accounts = {each["metadata"]["name"] for each in documents(BASE) if each["kind"] == "ServiceAccount"}
    for _, pod in pods():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        wanted = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes.values()
            if "persistentVolumeClaim" in volume
        }
        assert wanted <= claims
        assert pod["serviceAccountName"] in accounts
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == volumes.keys()


def test_pods_are_restricted() -> None:
    assert one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for _, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
    for container in containers():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True


def test_kubernetes_sets_no_variables_of_its_own() -> None:
    """A Service `athanor-x` would otherwise become ATHANOR_X_PORT=tcp://..., where the settings look for their own."""
    assert all(pod["enableServiceLinks"] is False for _, pod in pods())


def test_the_ray_cluster_is_the_ray_we_install() -> None:
    cluster = one("RayCluster")["spec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_ray_groups_have_bounds_and_fixed_sizes() -> None:
    groups = one("RayCluster")["spec"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["student", "teacher", "serve"]
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_storage_has_one_path_everywhere() -> None:
    paths = {
        mount["mountPath"]
        for container in containers()
        for mount in container["volumeMounts"]
        if mount["name"] == "storage"
    }
    assert paths == {environment()["ATHANOR_STORAGE"]}


def test_the_control_plane_reads_every_variable_that_is_set() -> None:
    known = {*settings.VARIABLES.values(), *settings.DRIVER_VARIABLES, *settings.OTHERS_VARIABLES}
    assert environment().keys() <= known


def test_commands_in_the_pod_find_the_control_plane_and_its_token() -> None:
    read = settings.Settings.from_env(environment())
    assert environment()["ATHANOR_ADDRESS"] == f"127.0.0.1:{read.listen.rpartition(':')[2]}"
    assert environment()["ATHANOR_TOKEN_FILE"] == str(read.admin_token_path)


def test_metrics_are_served_scraped_and_let_through_on_one_port() -> None:
    read = settings.Settings.from_env(environment())
    port = int(read.metrics_listen.rpartition(":")[2])
    assert {"name": "metrics", "containerPort": port} in control_plane()["ports"]
    annotations = one("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(port),
        "prometheus.io/path": "/metrics",
    }
    rules = one("NetworkPolicy", "athanor-control-plane")["spec"]["ingress"]
    (rule,) = [rule for rule in rules if rule["ports"] == [{"port": port}]]
    assert [peer["podSelector"]["matchLabels"] for peer in rule["from"]] == [{"athanor.dev/metrics": "true"}]


def head() -> Document:
    template: Document = one("RayCluster")["spec"]["headGroupSpec"]["template"]
    return template


def test_the_endpoint_is_reached_over_both_and_its_numbers_are_scraped() -> None:
    """Whoever asks models reaches HTTP and gRPC, Prometheus the HTTP port alone."""
    read = settings.Settings.from_env({**environment(), "ATHANOR_DATABASE_URL": "postgresql+psycopg://db/athanor"})
    (container,) = head()["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (ports["serve"], ports["serve-grpc"]) == (read.serve_port, read.serve_grpc_port)
    assert {each["port"] for each in one("Service", "athanor-ray")["spec"]["ports"]} >= {
        ports["serve"],
        ports["serve-grpc"],
    }
    assert head()["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(read.serve_port),
        "prometheus.io/path": "/metrics",
    }
    let_in = {
        label: [port["port"] for port in rule["ports"]]
        for rule in one("NetworkPolicy", "athanor-ray-head")["spec"]["ingress"]
        for peer in rule["from"]
        for label in peer["podSelector"]["matchLabels"]
    }
    assert let_in["athanor.dev/client"] == [ports["serve"], ports["serve-grpc"]]
    assert let_in["athanor.dev/metrics"] == [ports["serve"]]


def test_the_settings_accept_what_is_set() -> None:
    read = settings.Settings.from_env({**environment(), "ATHANOR_DATABASE_URL": "postgresql+psycopg://db/athanor"})
    services = {
        each["metadata"]["name"]: {port["port"] for port in each["spec"]["ports"]}
        for each in documents(BASE)
        if each["kind"] == "Service"
    }
    for address in (read.advertise, read.ray_dashboard_url.removeprefix("http://")):
        host, port = address.split(":")
        name, _, rest = host.partition(".")
        assert rest == f"{one('Namespace')['metadata']['name']}.svc"
        assert int(port) in services[name]
    assert read.serve_port in services["athanor-ray"]
    assert read.serve_host == "0.0.0.0"
    assert read.listen.startswith("0.0.0.0:")


def test_ports_are_the_defaults_of_the_code() -> None:
    plain = settings.Settings.from_env({})
    port = next(port for port in control_plane()["ports"] if port["name"] == "grpc")
    assert plain.listen.endswith(f":{port['containerPort']}")
    assert environment()["ATHANOR_SERVE_PORT"] == str(plain.serve_port)
    assert environment()["ATHANOR_RAY_DASHBOARD_URL"].rsplit(":", 1)[1] == plain.ray_dashboard_url.rsplit(":", 1)[1]


def test_the_token_is_where_kuberay_puts_it() -> None:
    """KubeRay names the Secret like the RayCluster, and its only key `auth_token`."""
    volumes = {volume["name"]: volume for volume in one("Deployment")["spec"]["template"]["spec"]["volumes"]}
    (mount,) = [mount for mount in control_plane()["volumeMounts"] if mount["name"] == "ray-token"]
    assert volumes["ray-token"]["secret"]["secretName"] == one("RayCluster")["metadata"]["name"]
    assert environment()["RAY_AUTH_TOKEN_PATH"] == f"{mount['mountPath']}/auth_token"
    assert environment()["RAY_AUTH_MODE"] == "token"


def test_probes_ask_for_services_that_exist() -> None:
    container = control_plane()
    probes = [container[f"{name}Probe"]["grpc"] for name in ("startup", "readiness", "liveness")]
    assert {probe["port"] for probe in probes} == {container["ports"][0]["containerPort"]}
    known = {"", *(service.full_name for service in job_service_pb2.DESCRIPTOR.services_by_name.values())}
    assert {probe.get("service", "") for probe in probes} <= known


def test_the_control_plane_outlives_its_own_shutdown() -> None:
    grace_s = one("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > settings.Settings.from_env({}).shutdown_grace_s


def test_commands_exist() -> None:
    import typer

    from cluster.cli.main import app

    program, *arguments = control_plane()["command"]
    assert program == "athanor"
    assert arguments[0] in typer.main.get_command(app).commands
    dockerfile = (K8S / "Dockerfile").read_text("utf-8")
    assert f"CMD {json.dumps(control_plane()['command'])}" in dockerfile


def test_the_image_holds_the_packages_of_the_wheel() -> None:
    copied = set(re.findall(r"^COPY (\w+) \w+$", (K8S / "Dockerfile").read_text("utf-8"), re.MULTILINE))
    assert copied == {"cluster", "trainer", "serving", "protos"}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert copied | {"pyproject.toml", "README.md"} == allowed
