"""The Helm chart: lint, the schemas of Kubernetes, and what must hold for every set of values."""

from __future__ import annotations

import copy
import json
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.chart import CHART, VALUE_SETS, HelmRefusedError, Rendered, lint, rendered, values_of
from ucseg_runtime.version import __version__

OLDEST, NEWEST = "1.29", "1.37"
OF_THE_OPERATOR = {"PodMonitor", "PrometheusRule"}
WARNING = 2


@pytest.fixture(params=VALUE_SETS)
def chart(request: pytest.FixtureRequest) -> Rendered:
    return rendered(values_of(request.param))


def changed(name: str, path: str, value: object) -> dict[str, Any]:
    """A set of values with one of them replaced."""
    values = copy.deepcopy(values_of(name))
    *folders, last = path.split(".")
    place = values
    for folder in folders:
        place = place.setdefault(folder, {})
    place[last] = value
    return values


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", VALUE_SETS)
def test_helm_finds_nothing_to_warn_of(name: str, version: str) -> None:
    report = lint(values_of(name), f"v{version}.0")
    assert report["errors"] == []
    assert [item for item in report["messages"] if item["severity"] >= WARNING] == []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_manifests_fit_the_schemas_of_kubernetes(chart: Rendered, version: str) -> None:
    own = [manifest for manifest in chart.manifests if manifest["kind"] not in OF_THE_OPERATOR]
    assert len(own) >= 5
    for manifest in own:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_would_refuse_a_field_that_kubernetes_does_not_know(chart: Rendered) -> None:
    chart.server["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(chart.one("Deployment"), NEWEST, strict=True)


def test_everything_is_in_the_namespace_of_the_release_and_the_chart_is_of_this_version(chart: Rendered) -> None:
    assert {manifest["metadata"]["namespace"] for manifest in chart.manifests} == {"radiology"}
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert about["appVersion"] == __version__


def test_pods_fulfil_the_restricted_pod_security_standard(chart: Rendered) -> None:
    pod = chart.pod
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (10001, 10001)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
        }, container["name"]
        assert "memory" in container["resources"]["limits"]
    assert all(set(volume) - {"name"} <= ALLOWED_VOLUMES for volume in pod["volumes"])


ALLOWED_VOLUMES = {"persistentVolumeClaim", "emptyDir", "secret"}


def test_nothing_in_the_pod_can_ask_the_cluster(chart: Rendered) -> None:
    assert chart.pod["automountServiceAccountToken"] is False
    account = chart.one("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert chart.pod["serviceAccountName"] == account["metadata"]["name"]


def test_memory_that_is_written_to_is_limited(chart: Rendered) -> None:
    written = {volume["name"]: volume["emptyDir"] for volume in chart.pod["volumes"] if "emptyDir" in volume}
    assert set(written) >= {"tmp", "shm"}
    assert all("sizeLimit" in volume for volume in written.values())
    assert written["shm"]["medium"] == "Memory"
    mounts = {mount["mountPath"]: mount for mount in chart.server["volumeMounts"]}
    assert (mounts["/tmp"]["name"], mounts["/dev/shm"]["name"]) == ("tmp", "shm")


def test_the_server_starts_only_on_the_repository_of_the_digest_and_cannot_change_it(chart: Rendered) -> None:
    digest = chart.initial("verify")["command"]
    assert digest[:4] == ["ucseg-serve", "verify", "/models", "--digest"]
    assert digest[4].startswith("sha256:")
    assert chart.pod["initContainers"][-1]["name"] == "verify", "nothing is written after the check"
    assert chart.initial("verify")["image"] == chart.server["image"]
    seen = []
    for container in (chart.initial("verify"), chart.server):
        (mount,) = (item for item in container["volumeMounts"] if item["mountPath"] == "/models")
        assert mount["readOnly"] is True
        seen.append(mount)
    assert seen[0] == seen[1], "the same folder is checked and served"


def test_probes_ask_for_a_canary_then_for_life_and_readiness(chart: Rendered) -> None:
    startup = chart.server["startupProbe"]
    assert startup["exec"]["command"][:3] == ["ucseg-serve", "health", "/models"]
    waits_s = float(startup["exec"]["command"][-1])
    assert startup["timeoutSeconds"] > waits_s, "health ends by itself, with a message"
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 600
    assert chart.server["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    assert chart.server["livenessProbe"]["failureThreshold"] >= 3


def test_life_is_that_of_the_server_or_on_demand_that_of_the_canary() -> None:
    assert rendered(values_of("volume")).server["livenessProbe"]["httpGet"] == {
        "path": "/v2/health/live",
        "port": "http",
    }
    canary = rendered(values_of("tls")).server
    assert canary["livenessProbe"]["exec"] == canary["startupProbe"]["exec"]


@pytest.mark.parametrize(("name", "gpus"), [("volume", 1), ("object-store", 1), ("tls", 1), ("cpu", None)])
def test_a_server_asks_for_its_gpu(name: str, gpus: int | None) -> None:
    server = rendered(values_of(name)).server
    assert server["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert ("--allow-gpu-metrics=false" in server["args"]) == (gpus is None)


def test_selectors_find_the_pods_and_nothing_that_changes_with_a_release(chart: Rendered) -> None:
    labels = chart.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        chart.one("Deployment")["spec"]["selector"]["matchLabels"],
        chart.one("Service")["spec"]["selector"],
        chart.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        chart.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        chart.pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        *(monitor["spec"]["selector"]["matchLabels"] for monitor in chart.of("PodMonitor")),
    ]
    for selector in selectors:
        assert selector == {"app.kubernetes.io/name": "ucseg", "app.kubernetes.io/instance": "demo"}
        assert selector.items() <= labels.items()


def test_pod_labels_of_the_site_never_hide_the_pods_from_the_selectors() -> None:
    values = changed("volume", "podLabels", {"app.kubernetes.io/name": "other", "team": "radiology"})
    labels = rendered(values).one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert (labels["app.kubernetes.io/name"], labels["team"]) == ("ucseg", "radiology")


def test_ports_of_the_service_and_of_the_policies_are_those_of_the_container(chart: Rendered) -> None:
    ports = {port["name"]: port["containerPort"] for port in chart.server["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    assert {port["targetPort"] for port in chart.one("Service")["spec"]["ports"]} <= {"http", "grpc"}
    opened = {port["port"] for rule in chart.one("NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}
    assert opened <= set(ports)


def test_a_policy_that_names_nobody_lets_nobody_in(chart: Rendered) -> None:
    policy = chart.one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["from"] for rule in policy["ingress"]), "a rule without peers lets everybody in"
    assert all(rule["to"] for rule in policy["egress"]), "a rule without peers lets everything out"


@pytest.mark.parametrize(
    ("name", "ingress", "egress"),
    [
        ("volume", ["grpc", "metrics"], 0),
        ("object-store", ["grpc", "metrics"], 2),
        ("tls", ["metrics"], 0),
        ("cpu", [], 0),
    ],
)
def test_a_policy_opens_what_is_needed(name: str, ingress: list[str], egress: int) -> None:
    policy = rendered(values_of(name)).one("NetworkPolicy")["spec"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ingress
    assert len(policy["egress"]) == egress


def test_http_is_closed_to_clients_unless_it_is_asked_for() -> None:
    assert [port["name"] for port in rendered(values_of("volume")).one("Service")["spec"]["ports"]] == ["grpc"]
    opened = rendered(changed("volume", "service", {"http": True}))
    assert [port["name"] for port in opened.one("Service")["spec"]["ports"]] == ["grpc", "http"]
    clients = opened.one("NetworkPolicy")["spec"]["ingress"][0]
    assert [port["port"] for port in clients["ports"]] == ["grpc", "http"]


def test_the_number_of_servers_is_fixed_or_follows_the_queue_time() -> None:
    fixed = rendered(values_of("volume"))
    assert (fixed.one("Deployment")["spec"]["replicas"], fixed.of("HorizontalPodAutoscaler")) == (2, [])
    scaled = rendered(values_of("object-store"))
    assert "replicas" not in scaled.one("Deployment")["spec"], "an upgrade would undo what the autoscaler did"
    spec = scaled.one("HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == scaled.one("Deployment")["metadata"]["name"]
    assert spec["metrics"] == [
        {
            "type": "Pods",
            "pods": {
                "metric": {"name": "ucseg_queue_seconds_per_second"},
                "target": {"type": "AverageValue", "averageValue": "1"},
            },
        }
    ]


def test_a_stopped_server_gets_the_time_that_it_takes_itself(chart: Rendered) -> None:
    (flag,) = (item for item in chart.server["args"] if item.startswith("--exit-timeout-secs="))
    wait_s = int(chart.server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert chart.pod["terminationGracePeriodSeconds"] > int(flag.partition("=")[2]) + wait_s


def test_all_of_the_operator_s_objects_and_the_dashboard_come_when_they_are_asked_for() -> None:
    none, every = rendered(values_of("volume")), rendered(values_of("object-store"))
    assert [kind for kind in (*OF_THE_OPERATOR, "ConfigMap") if none.of(kind)] == []
    assert every.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"
    assert every.one("PodMonitor")["metadata"]["labels"]["release"] == "prometheus"
    rules = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))
    assert every.one("PrometheusRule")["spec"] == rules
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    assert json.loads(every.one("ConfigMap")["data"]["ucseg.json"]) == dashboard


def test_notes_say_when_nobody_can_reach_the_server() -> None:
    assert "nobody can reach" in rendered(values_of("cpu")).notes
    assert "nobody can reach" not in rendered(values_of("volume")).notes
    assert "--url grpcs://demo-ucseg.radiology:8001" in rendered(values_of("tls")).notes


def test_the_chart_starts_nothing_before_the_image_the_repository_and_its_digest_are_named() -> None:
    with pytest.raises(HelmRefusedError) as refused:
        rendered({})
    for place in ("/image/tag", "/modelRepository/digest", "/modelRepository/persistentVolumeClaim/claimName"):
        assert place in str(refused.value)


@pytest.mark.parametrize(
    ("name", "path", "value", "place"),
    [
        ("volume", "image.tag", "latest", "/image/tag"),
        ("volume", "image.tags", "0.1.0", "tags"),
        ("volume", "modelRepository.digest", "sha256:abc", "/modelRepository/digest"),
        ("volume", "modelRepository.source", "hostPath", "/modelRepository/source"),
        ("volume", "modelRepository.persistentVolumeClaim.subPath", "../other", "/subPath"),
        ("object-store", "modelRepository.objectStore.path", "bucket", "/objectStore/path"),
        ("object-store", "networkPolicy.objectStore", [], "/networkPolicy/objectStore"),
        ("tls", "service.http", True, "/service/http"),
        ("volume", "gpus", -1, "/gpus"),
        ("volume", "resources.limits", {"memory": "24Gi", "nvidia.com/gpu": 2}, "/resources/limits"),
        ("volume", "resources.limits", {"cpu": "4", "memory": None}, "/resources/limits"),
        ("volume", "replicas", 0, "/replicas"),
        ("volume", "extraArgs", ["--model-control-mode=explicit"], "/extraArgs/0"),
        ("volume", "networkPolicy.clients", [{}], "/networkPolicy/clients/0"),
        ("volume", "autoscaling.queueSecondsPerSecond", "0", "/autoscaling/queueSecondsPerSecond"),
        ("volume", "rollingUpdate", {"maxSurge": 0, "maxUnavailable": 0}, "/rollingUpdate"),
        ("volume", "probes.liveness.check", "never", "/probes/liveness/check"),
    ],
)
def test_values_that_would_not_work_or_not_be_safe_are_refused(name: str, path: str, value: object, place: str) -> None:
    with pytest.raises(HelmRefusedError) as refused:
        rendered(changed(name, path, value))
    assert place in str(refused.value)
