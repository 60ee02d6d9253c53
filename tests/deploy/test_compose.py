"""The compose file, as compose itself reads it; nothing is started."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import DEPLOY
from tests.deploy.started import program

SETTINGS = {"UCSEG_TAG": "0.1.0", "UCSEG_MODELS": "/srv/models", "UCSEG_DIGEST": "sha256:" + "0" * 64}
SERVICES = ["grafana", "prometheus", "triton", "verify"]


def compose(settings: dict[str, str], home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("docker-compose"), "--file", DEPLOY / "compose.yaml", "config"],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(home), "PATH": os.defpath, **settings},
    )


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    finished = compose(SETTINGS, tmp_path_factory.mktemp("home"))
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == "", "compose has nothing to warn of"
    found: dict[str, Any] = yaml.safe_load(finished.stdout)["services"]
    assert sorted(found) == SERVICES
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_starts_before_the_site_has_said_what(name: str, tmp_path: Path) -> None:
    finished = compose({key: value for key, value in SETTINGS.items() if key != name}, tmp_path)
    assert finished.returncode != 0
    assert name in finished.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(services: dict[str, Any], name: str) -> None:
    service = services[name]
    user = re.match(r"(\d+):\d+$", service["user"])
    assert user is not None
    assert int(user.group(1)) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert not {"cap_add", "privileged", "devices", "pid", "ipc", "userns_mode"} & set(service)
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ulimits"]["core"] == {"soft": 0, "hard": 0}
    assert all("size=" in folder for folder in service["tmpfs"])


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_of_one_release(services: dict[str, Any], name: str) -> None:
    tag = services[name]["image"].partition(":")[2]
    assert re.match(r"v?\d+\.\d+\.\d+$", tag)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_on_this_machine_alone(services: dict[str, Any], name: str) -> None:
    opened = services[name].get("ports", [])
    assert all(port["host_ip"] == "127.0.0.1" for port in opened)
    expected = {"triton": [8000, 8001], "prometheus": [9090], "grafana": [3000], "verify": []}
    assert [port["target"] for port in opened] == expected[name]


@pytest.mark.parametrize("name", ["grafana", "prometheus", "triton"])
def test_services_that_stay_are_watched_and_come_back(services: dict[str, Any], name: str) -> None:
    assert services[name]["restart"] == "unless-stopped"
    assert services[name]["healthcheck"]["test"][0] == "CMD"
    assert int(services[name]["mem_limit"]) > 0


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there_and_cannot_be_changed(services: dict[str, Any], name: str) -> None:
    for mount in services[name]["volumes"]:
        if mount["type"] == "bind":
            assert mount["read_only"] is True
            assert mount["source"] == SETTINGS["UCSEG_MODELS"] or Path(mount["source"]).exists()


def test_the_server_has_a_gpu_and_starts_on_the_repository_that_was_checked(services: dict[str, Any]) -> None:
    triton, verify = services["triton"], services["verify"]
    (device,) = triton["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
    assert triton["depends_on"]["verify"]["condition"] == "service_completed_successfully"
    assert verify["entrypoint"] == ["ucseg-serve", "verify", "/models", "--digest", SETTINGS["UCSEG_DIGEST"]]
    assert (verify["image"], verify["volumes"]) == (triton["image"], triton["volumes"])
    assert verify["network_mode"] == "none"
    assert verify["build"]["target"] == "triton"
    assert (Path(verify["build"]["context"]) / "Dockerfile").is_file()


def test_a_server_that_is_stopped_gets_the_time_that_it_takes_itself(services: dict[str, Any]) -> None:
    (flag,) = services["triton"]["command"]
    minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(\d+)s", services["triton"]["stop_grace_period"]).groups()
    assert 60 * int(minutes or 0) + int(seconds) > int(flag.removeprefix("--exit-timeout-secs="))


def test_prometheus_reads_the_server_and_its_rules_from_where_they_are_mounted(services: dict[str, Any]) -> None:
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))
    targets = {mount["target"] for mount in services["prometheus"]["volumes"]}
    assert set(settings["rule_files"]) <= targets
    assert "--config.file=/etc/prometheus/prometheus.yaml" in services["prometheus"]["command"]
    (job,) = settings["scrape_configs"]
    assert (job["job_name"], job["static_configs"]) == ("ucseg", [{"targets": ["triton:8002"]}])
    assert "inside" in services["triton"]["networks"]
    assert "inside" in services["prometheus"]["networks"]


def test_grafana_finds_its_source_and_its_dashboard(services: dict[str, Any]) -> None:
    targets = {mount["target"]: Path(mount["source"]) for mount in services["grafana"]["volumes"]}
    provisioning = targets["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "ucseg.yaml").read_text("utf-8"))["providers"]
    shown = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert shown in targets
    assert str(Path(shown).parent) == provider["options"]["path"]
    dashboard = json.loads(targets[shown].read_text(encoding="utf-8"))
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
