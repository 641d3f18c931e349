"""Files for a fleet in shards: Helm chart (by Helm's library and the schemas of Kubernetes), compose, nginx."""

import re
import shutil
import subprocess
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

import tft_inference
import tft_trainer
from fleet_forecast.commands.model_life import KEPT_NOT_IN_USE
from fleet_forecast.serving.settings import load_settings

DEPLOY = Path(tft_inference.__file__).parent / "deploy"
CHART = DEPLOY / "kubernetes"
OLDEST, USUAL = "1.25", "1.31"  # versions of Kubernetes


def rendered(**values):
    """The objects of the chart by kind and name."""
    with helm.Chart.load(str(CHART)) as chart:
        texts = chart.render(values, name="fleet", namespace="prod")
    documents = [each for name, text in texts.items() if name.endswith(".yaml") for each in yaml.safe_load_all(text)]
    return {(each["kind"], each["metadata"]["name"]): each for each in documents if each}


@pytest.fixture(scope="module")
def three():
    return rendered(shards=3, serviceMonitor={"enabled": True}, extraArguments=["--prometheus=http://prometheus:9090"])


def test_helm_lints_the_chart_without_warnings():
    found = helm.lint(str(CHART))
    assert found["errors"] == []
    assert [each for each in found["messages"] if each["severity"] > 1] == []  # 1: an icon is recommended


@pytest.mark.parametrize(
    ("values", "version"),
    [
        ({}, OLDEST),
        ({}, USUAL),
        ({"shards": 1, "training": {"enabled": False}, "router": {"enabled": False}}, USUAL),
        ({"networkPolicy": {"clients": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}}, USUAL),
        ({"existingSecret": "own", "models": {"existingClaim": "own"}, "history": {"storageClass": "fast"}}, USUAL),
    ],
)
def test_each_object_keeps_the_schema_of_kubernetes(values, version):
    objects = rendered(**values)
    assert len(objects) > 3
    for each in objects.values():
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("values", [{"shards": 0}, {"shards": "2"}, {"shard": 2}])
def test_a_value_that_the_chart_does_not_have_is_refused(values):
    with helm.Chart.load(str(CHART)) as chart, pytest.raises(helm.HelmError, match="shard"):
        chart.render(values, name="fleet", namespace="prod")


def daemon_settings(container, pod):
    """The settings of a pod's daemon, from its command as the shell makes it."""
    script, arguments = container["command"][2], container["args"]
    shell = script.replace("exec python tft_inference.py", 'printf "%s\\n"')
    arguments = [each.replace("$(POD_IP)", "10.0.0.7") for each in arguments]
    done = subprocess.run(
        ["sh", "-c", shell, "daemon", *arguments],
        env={"POD_NAME": pod, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return load_settings(None, vars(tft_inference.build_parser().parse_args(done.stdout.splitlines())))


def test_each_pod_has_the_shard_of_its_ordinal_and_the_addresses_of_all(three):
    pods = three["StatefulSet", "fleet"]["spec"]
    assert pods["replicas"] == 3
    (container,) = pods["template"]["spec"]["containers"]
    for ordinal in range(3):
        settings = daemon_settings(container, f"fleet-{ordinal}")
        assert (settings.shard, settings.forward, settings.prometheus) == (
            f"{ordinal + 1}/3",
            True,
            "http://prometheus:9090",
        )
        assert settings.addresses_of_shards == {k: f"http://fleet-{k - 1}.fleet-shards:8000" for k in (1, 2, 3)}
        assert {"10.0.0.7", "fleet"} <= set(settings.allowed_hosts)
    assert ("Service", "fleet-shards") in three
    assert three["Service", "fleet-shards"]["spec"]["publishNotReadyAddresses"] is True
    (claim,) = pods["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "history"


def test_one_shard_needs_no_other(three):
    (container,) = rendered(shards=1)["StatefulSet", "fleet"]["spec"]["template"]["spec"]["containers"]
    settings = daemon_settings(container, "fleet-0")
    assert (settings.shard, settings.forward, settings.shard_peers) == ("1/1", False, ())


def test_every_selector_chooses_the_pods_it_is_for(three):
    def labels(kind, name):
        return three[kind, name]["spec"]["template"]["metadata"]["labels"]

    shard, router = labels("StatefulSet", "fleet"), labels("Deployment", "fleet-router")
    for kind, name, chosen in (
        ("Service", "fleet-shards", shard),
        ("Service", "fleet", router),
        ("PodDisruptionBudget", "fleet", shard),
    ):
        selector = three[kind, name]["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        assert selector.items() <= chosen.items(), (kind, name)
    assert not three["Service", "fleet-shards"]["spec"]["selector"].items() <= router.items()
    monitor = three["ServiceMonitor", "fleet"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= three["Service", "fleet-shards"]["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["honorLabels"] is True


def test_the_secret_has_what_the_pods_read(three):
    secret = three["Secret", "fleet"]["data"]
    (container,) = three["StatefulSet", "fleet"]["spec"]["template"]["spec"]["containers"]
    used = {match[1] for each in container["args"] if (match := re.search("=/secrets/(.*)", each))}
    assert used == set(secret) == {"token", "admin-token", "shard-token"}
    assert all(len(value) > 40 for value in secret.values())


def test_training_starts_with_flags_of_the_trainer_on_the_volume_of_shard_1(three):
    job = three["CronJob", "fleet-train"]["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    script = pod["containers"][0]["command"][2].replace("\\\n", " ")
    (line,) = [line for line in script.splitlines() if "tft_trainer.py --from-history" in line]
    words = line.partition("tft_trainer.py ")[2].partition(' "$@"')[0].split()
    arguments = tft_trainer.build_parser().parse_args(words)
    assert (arguments.from_history.name, arguments.keep, job["backoffLimit"]) == ("fleet.sqlite", 5, 0)
    assert f"|| [ $? -eq {KEPT_NOT_IN_USE} ]" in script
    claims = {each["name"]: each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"]}
    assert claims == {"history": "history-fleet-0", "models": "fleet-models"}


def directives(text):
    """nginx's directives without comments and addresses, sorted: the order of locations has no meaning."""
    lines = (re.sub(r"server [^;{]+;", "server ADDRESS;", line.partition("#")[0].strip()) for line in text.splitlines())
    return sorted(filter(None, lines))


def test_the_router_of_the_chart_and_of_compose_is_that_of_the_nginx_file():
    written = (DEPLOY / "nginx" / "shards.conf").read_text()
    chart = rendered(shards=2)["ConfigMap", "fleet-router"]["data"]["default.conf"]
    assert directives(chart) == directives(written)
    assert directives((DEPLOY / "compose" / "nginx.conf").read_text()) == directives(written)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="the program nginx is not installed")
def test_nginx_accepts_its_configuration(tmp_path):
    shutil.copy(DEPLOY / "nginx" / "shards.conf", tmp_path)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/log; events {{}} http {{ include {tmp_path}/shards.conf; }}"
    )
    done = subprocess.run(
        ["nginx", "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_shards_of_compose_are_the_whole_fleet():
    services = yaml.safe_load((DEPLOY / "compose.yml").read_text())["services"]
    shards = {}
    for name, service in services.items():
        if name.startswith("shard"):
            arguments = ["--daemon", "--host", "0.0.0.0", *service["command"]]
            shards[name] = load_settings(None, vars(tft_inference.build_parser().parse_args(arguments)))
    assert {name: each.shard for name, each in shards.items()} == {"shard1": "1/2", "shard2": "2/2"}
    for settings in shards.values():
        assert settings.addresses_of_shards == {1: "http://shard1:8000", 2: "http://shard2:8000"}
        assert settings.forward
    mounted = [volume for service in services.values() for volume in service.get("volumes", ())]
    files = [volume.split(":")[0] for volume in mounted if volume.startswith("./")]
    assert files
    assert all((DEPLOY / file).is_file() for file in files)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="the program promtool is not installed")
def test_promtool_and_amtool_accept_what_compose_mounts(tmp_path):
    text = (DEPLOY / "compose" / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/token", str(tmp_path / "token")))
    (tmp_path / "token").write_text("x" * 20)
    shutil.copy(DEPLOY / "fleet-forecast.rules.yml", tmp_path)
    commands = [["promtool", "check", "config", tmp_path / "prometheus.yml"]]
    if shutil.which("amtool"):
        commands.append(["amtool", "check-config", DEPLOY / "compose" / "alertmanager.yml"])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
