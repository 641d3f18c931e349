"""Names, rules files, business time and demand, each held to an independent source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server_profiles import PROFILES, ServerProfile, infer_profile_from_name, match_profile

NAMES = {
    "ml_compute": ("ppml0015", "ppgpu1", "cptrain22"),
    "database": ("ppdb042", "psdb1", "oracle3", "mongo07", "postgres12"),
    "web_api": ("ppweb123", "ppapi4", "nginx9", "tomcat80"),
    "conductor_mgmt": ("ppcon01", "conductor2", "egomgmt3"),
    "data_ingest": ("ppetl001", "ppkafka1", "stream5", "spark12"),
    "risk_analytics": ("pprisk001", "varrisk2", "credit3"),
    "generic": ("ppgen001", "unknown_server"),
}


@pytest.mark.parametrize(("name", "profile"), [(n, p) for p, names in NAMES.items() for n in names])
def test_documented_names_give_their_profile_in_any_case_and_as_a_full_domain_name(name: str, profile: str) -> None:
    for spelling in (name, name.upper(), f"{name}.dc1.example.com"):
        assert infer_profile_from_name(spelling) == profile


@pytest.mark.parametrize("name", ["ppml", "myppml01", "ppdb-x", "database01", "", "ppm l01", "nginx.example1"])
def test_names_without_the_prefix_at_the_start_or_without_digits_are_generic(name: str) -> None:
    assert match_profile(name) == (ServerProfile.GENERIC, None)


def test_the_rule_that_matched_is_named_also_for_generic_servers() -> None:
    assert match_profile("PPML0015").rule == r"pattern ppml\d+ (built-in)"
    assert match_profile("ppgen001").rule == r"pattern ppgen\d+ (built-in)"
    assert match_profile("unknown_server").rule is None


def test_every_profile_has_baselines_for_every_metric_and_its_own_incidents() -> None:
    assert set(PROFILES) == set(ServerProfile)
    columns = {tuple(spec.baselines) for spec in PROFILES.values()}
    assert columns == {("cpu_pct", "mem_pct", "disk_io_mb_s", "net_in_mb_s", "net_out_mb_s", "latency_ms")}
    labels = [label for spec in PROFILES.values() for label in spec.incidents]
    assert len(labels) == len(set(labels)) == 24
    assert PROFILES[ServerProfile.DATABASE].rhythm.maintenance is not None


def test_the_documented_shares_of_demand_are_those_of_the_simulation() -> None:
    document = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    rows = "\n".join(f"| `{profile}` | {spec.shared_demand} |" for profile, spec in PROFILES.items())
    assert f"| profile | shared demand |\n|---|---|\n{rows}\n" in document


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_shared_demand_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"shared_demand of web_api is .*; give 0 to 1"):
        replace(PROFILES[ServerProfile.WEB_API], shared_demand=share)
