"""deploy/kubernetes: valid by Kubernetes' own schemas, and of one mind with what the service has."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import models
from models.cli import VERBS
from models.errors import Refusal
from service.access import ACCESS
from service.serve import GRACE_SECONDS
from service.settings import read_settings
from service.telemetry import METRICS
from tests.conftest import ROOT, require
from tests.contract.kustomized import Object, objects_of, pod_of

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: the oldest and the newest that the schemas are checked for."""
OUR_IMAGE = "registry.example/overread"
VERB = 6
"""Of a container's arguments, the one that is a verb of ours."""


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return objects_of(FOLDER / "overlays" / request.param)


def of_kind(objects: list[Object], kind: str, name: str | None = None) -> list[Object]:
    return [thing for thing in objects if thing["kind"] == kind and name in {None, thing["metadata"]["name"]}]


def the(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = of_kind(objects, kind, name)
    return found


def validate(objects: list[Object]) -> None:
    for version in VERSIONS:
        for thing in objects:
            kubernetes_validate.validate(thing, version, strict=True)


def test_each_object_is_what_kubernetes_takes(objects: list[Object]) -> None:
    assert {thing["kind"] for thing in objects} >= {"Deployment", "Service", "NetworkPolicy", "HorizontalPodAutoscaler"}
    validate(objects)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda objects: pod_of(the(objects, "Deployment", "overread"))["containers"][0].update(imagePullPolcy="Always"),
        lambda objects: pod_of(the(objects, "Deployment", "overread"))["containers"][0]["ports"][0].update(containerPort="http"),
        lambda objects: the(objects, "HorizontalPodAutoscaler", "overread")["spec"].update(minReplicas="two"),
        lambda objects: the(objects, "NetworkPolicy", "overread-serve")["spec"].pop("podSelector") and objects,
        lambda objects: the(objects, "PersistentVolumeClaim", "overread-state")["spec"].update(accesModes=[]),
    ],
)
def test_a_wrong_field_is_seen(spoil: Callable[[list[Object]], Any]) -> None:
    objects = objects_of(FOLDER / "overlays" / "cpu")
    spoil(objects)
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(objects)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_makes_the_same_of_it(overlay: str) -> None:
    """Debian has no kubectl that is new enough, so this is checked where there is one."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl")
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    made = list(yaml.safe_load_all(subprocess.run(command, capture_output=True, check=True).stdout))
    ours = objects_of(FOLDER / "overlays" / overlay)

    def by_name(found: list[Object]) -> dict[tuple[str, str], Object]:
        return {(thing["kind"], thing["metadata"]["name"]): thing for thing in found}

    assert by_name(made) == by_name(ours)


def our_containers(objects: list[Object]) -> list[Object]:
    return [one for thing in objects for one in pod_of(thing).get("containers", ()) if one["image"].startswith(OUR_IMAGE)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_image_is_of_this_version(overlay: str) -> None:
    containers = our_containers(objects_of(FOLDER / "overlays" / overlay))
    assert len(containers) == 3
    assert {container["image"] for container in containers} == {f"{OUR_IMAGE}:{models.__version__}-{overlay}"}


def test_only_one_of_them_asks_for_a_gpu() -> None:
    asking = {
        overlay: [container["args"][VERB] for container in our_containers(objects_of(FOLDER / "overlays" / overlay))
                  if "nvidia.com/gpu" in container["resources"]["limits"]]
        for overlay in OVERLAYS
    }  # fmt: skip
    assert asking == {"cpu": [], "gpu": ["serve"]}


def check_commands(objects: list[Object]) -> None:
    """Compare what is started, and how it is asked, with what there is; raises AssertionError."""
    serve = the(objects, "Deployment", "overread")
    (container,) = pod_of(serve)["containers"]
    for arguments in (one["args"] for one in our_containers(objects) if one["args"] != ["sleep", "infinity"]):
        assert arguments[:5] == ["env", "-C", "src", "python", "-m"]  # where the Bento has our code, below its working directory
        assert find_spec(arguments[5])
        assert arguments[VERB] in VERBS
    (port,) = container["ports"]
    assert container["args"][container["args"].index("--port") + 1] == str(port["containerPort"])
    (way,) = the(objects, "Service", "overread")["spec"]["ports"]
    assert way["targetPort"] == port["name"]
    for name, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        asked = container[name]["httpGet"]
        assert (asked["path"], asked["port"]) == (path, port["name"])
        assert "public" in ACCESS["GET", path]
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod_of(serve)["terminationGracePeriodSeconds"] >= GRACE_SECONDS + wait + 5


def check_settings(objects: list[Object]) -> None:
    """Read the settings as a worker would; raises Refusal for a name or value that there is not."""
    settings = read_settings(the(objects, "ConfigMap", "overread-settings")["data"])
    for thing in objects:
        for container in pod_of(thing).get("containers", ()):
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            if container in our_containers(objects):
                assert mounts[str(settings.state)] == "state"
                assert mounts[str(settings.database_password_file.parent)] == "database"  # type: ignore[union-attr]


def check_references(objects: list[Object]) -> None:
    """Look whether what objects name is there; raises AssertionError."""
    pods = [thing["spec"]["template"] for thing in objects if pod_of(thing)]

    def selected(labels: dict[str, str]) -> list[Object]:
        return [pod for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]

    for thing in objects:
        if pod_of(thing):
            assert selected(thing["spec"]["selector"]["matchLabels"]) == [thing["spec"]["template"]]
            volumes = {volume["name"]: volume for volume in pod_of(thing)["volumes"]}
            for container in pod_of(thing)["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes) | {"data"}
                for source in container.get("envFrom", ()):
                    the(objects, "ConfigMap", source["configMapRef"]["name"])
            for volume in volumes.values():
                if "persistentVolumeClaim" in volume:
                    the(objects, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
                assert volume.get("secret", {}).get("secretName", "overread-database") == "overread-database"
        if thing["kind"] == "Service":
            assert len(selected(thing["spec"]["selector"])) == 1
        if thing["kind"] in {"PodDisruptionBudget", "NetworkPolicy"}:
            assert selected((thing["spec"].get("selector") or thing["spec"]["podSelector"]).get("matchLabels", {}))
    target = the(objects, "HorizontalPodAutoscaler", "overread")["spec"]["scaleTargetRef"]
    assert "replicas" not in the(objects, target["kind"], target["name"])["spec"], "two would decide about the replicas"


def check_pods(objects: list[Object]) -> None:
    """Look whether each pod may do only what it must; raises AssertionError."""
    for pod in filter(None, map(pod_of, objects)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            own = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
            assert own & {mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/tmp"}


def is_narrow(peer: Object) -> bool:
    """Tell whether one end of a way is 16 addresses at most, or what has certain labels: no network, and not every namespace."""
    if "ipBlock" in peer:
        return ip_network(peer["ipBlock"]["cidr"]).num_addresses <= 16
    return all(selector.get("matchLabels") or selector.get("matchExpressions") for selector in peer.values())


def check_network(objects: list[Object]) -> None:
    """Look whether each pod reaches, and is reached by, only what it must be; raises AssertionError."""
    nothing = the(objects, "NetworkPolicy", "nothing")["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ways: dict[str, set[tuple[str, Any]]] = {"serve": set(), "watch": set(), "commands": set(), "database": set()}
    for policy in of_kind(objects, "NetworkPolicy"):
        labels = policy["spec"]["podSelector"].get("matchLabels", {})
        for name in ways:
            own = {"app.kubernetes.io/name": "overread", "app.kubernetes.io/component": name}
            if name == "database":
                own = {"app.kubernetes.io/name": "overread-postgresql"}
            if labels and labels.items() <= own.items():
                ways[name] |= {
                    (direction, port["port"])
                    for direction in ("ingress", "egress")
                    for rule in policy["spec"].get(direction, ())
                    for port in rule["ports"]
                    if rule.get("to" if direction == "egress" else "from")
                }
    database = {("egress", 5432), ("egress", 53)}
    expected = {"serve": database | {("ingress", "http")}, "watch": database | {("egress", 443)}, "commands": database}
    assert ways == expected | {"database": {("ingress", "postgresql")}}
    for direction, end in (("ingress", "from"), ("egress", "to")):
        for policy in of_kind(objects, "NetworkPolicy"):
            for rule in policy["spec"].get(direction, ()):
                assert rule.get(end) and all(map(is_narrow, rule[end])), policy["metadata"]["name"]  # noqa: PT018


CHECKS = (check_commands, check_settings, check_references, check_pods, check_network)


@pytest.mark.parametrize("check", CHECKS)
def test_it_is_of_one_mind_with_the_service(objects: list[Object], check: Callable[[list[Object]], None]) -> None:
    check(objects)


def _serve(objects: list[Object]) -> Object:
    return pod_of(the(objects, "Deployment", "overread"))


def _container(objects: list[Object]) -> Object:
    return _serve(objects)["containers"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        (check_commands, lambda them: _container(them)["readinessProbe"]["httpGet"].update(path="/ready")),
        (check_commands, lambda them: _container(them)["ports"][0].update(containerPort=3001)),
        (check_commands, lambda them: _container(them)["args"].__setitem__(VERB, "server")),
        (check_commands, lambda them: _serve(them).update(terminationGracePeriodSeconds=30)),
        (check_settings, lambda them: the(them, "ConfigMap", "overread-settings")["data"].update(OVERREAD_THREAD="2")),
        (check_settings, lambda them: the(them, "ConfigMap", "overread-settings")["data"].update(OVERREAD_STATE="/srv")),
        (check_references, lambda them: the(them, "Service", "overread")["spec"]["selector"].update(a="b")),
        (check_references, lambda them: them.remove(the(them, "PersistentVolumeClaim", "overread-state"))),
        (check_references, lambda them: the(them, "Deployment", "overread")["spec"].update(replicas=2)),
        (check_pods, lambda them: _container(them)["securityContext"].update(readOnlyRootFilesystem=False)),
        (check_pods, lambda them: _container(them)["resources"].pop("limits")),
        (check_pods, lambda them: _serve(them)["securityContext"].pop("seccompProfile")),
        (check_network, lambda them: them.remove(the(them, "NetworkPolicy", "nothing"))),
        (check_network, lambda them: the(them, "NetworkPolicy", "overread-to-archive")["spec"]["podSelector"]["matchLabels"].pop(
            "app.kubernetes.io/component")),
        (check_network, lambda them: the(them, "NetworkPolicy", "overread-to-database")["spec"]["egress"].append({"ports": []})),
        (check_network, lambda them: the(them, "NetworkPolicy", "overread-to-archive")["spec"]["egress"][0]["to"][0].update(
            ipBlock={"cidr": "0.0.0.0/0"})),
        (check_network, lambda them: the(them, "NetworkPolicy", "overread-serve")["spec"]["ingress"][0]["from"].append(
            {"namespaceSelector": {}})),
        (check_pods, lambda them: _serve(them).update(initContainers=[{"name": "x", "image": "x", "securityContext": {}}])),
    ],
)  # fmt: skip
def test_a_difference_is_seen(check: Callable[[list[Object]], None], spoil: Callable[[list[Object]], Any]) -> None:
    objects = copy.deepcopy(objects_of(FOLDER / "overlays" / "cpu"))
    spoil(objects)
    with pytest.raises((AssertionError, Refusal, ValueError, KeyError)):
        check(objects)


def check_metric(objects: list[Object], rule: Object, documented: str) -> None:
    """Follow the autoscaler's metric back to the service; raises AssertionError."""
    (wanted,) = the(objects, "HorizontalPodAutoscaler", "overread")["spec"]["metrics"]
    name = wanted["pods"]["metric"]["name"]
    assert name in METRICS
    assert f"| `{name}` |" in documented
    assert rule["name"]["as"] == name
    series, labels = re.fullmatch(r"(\w+)\{(.*)\}", rule["seriesQuery"]).groups()  # type: ignore[union-attr]
    assert series == name
    assert set(re.findall(r'(\w+)!=""', labels)) == set(rule["resources"]["overrides"]) == {"namespace", "pod"}


@pytest.mark.parametrize("planted", [False, True])
def test_the_autoscaler_goes_by_a_metric_that_there_is(planted: bool) -> None:
    objects = objects_of(FOLDER / "overlays" / "cpu")
    text = (FOLDER / "monitoring" / "adapter.yaml").read_text()
    (rule,) = yaml.safe_load(text.replace("_queue_depth", "_queue") if planted else text)["rules"]
    if planted:
        the(objects, "HorizontalPodAutoscaler", "overread")["spec"]["metrics"][0]["pods"]["metric"]["name"] = "overread_queue"
        with pytest.raises(AssertionError):
            check_metric(objects, rule, (ROOT / "docs" / "metrics.md").read_text())
        return
    check_metric(objects, rule, (ROOT / "docs" / "metrics.md").read_text())


def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    """Debian's Prometheus cannot ask Kubernetes, so what is found that way stands there as a list; the rest is as it is."""
    require("promtool")
    document = yaml.safe_load((FOLDER / "monitoring" / "prometheus.yml").read_text())
    (job,) = document["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["overread"]}}]
    job["static_configs"] = [{"targets": ["127.0.0.1:3000"]}]
    told = {relabel["target_label"] for relabel in job["relabel_configs"] if "target_label" in relabel}
    assert told == {"namespace", "pod"}
    for spoilt in (False, True):
        if spoilt:
            job["relabel_configs"][0]["action"] = "hold"
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(document))
        command = ["promtool", "check", "config", "--syntax-only", str(tmp_path / "prometheus.yml")]
        assert (subprocess.run(command, capture_output=True, check=False).returncode == 0) is not spoilt


def test_what_a_kustomization_may_not_use_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\ncommonLabels: {a: b}\n")
    with pytest.raises(ValueError, match="commonLabels"):
        objects_of(tmp_path)
