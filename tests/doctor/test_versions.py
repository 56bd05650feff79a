import pytest
from packaging.requirements import Requirement

from tagi_lightning.doctor.versions import check_python, check_version, check_versions, requirements, tested_versions


def test_the_tested_versions_come_with_the_package_and_cover_what_it_requires():
    assert {name.lower() for name in requirements()} <= tested_versions().keys()
    for name, required in requirements().items():
        assert required.specifier.contains(tested_versions()[name.lower()]), name


@pytest.mark.parametrize(
    ("version", "state", "text"),
    [
        (None, "problem", "not installed"),
        ("2.5.0", "problem", "does not fit"),
        ("2.6.2", "problem", "COMPROMISED"),
        ("2.6.3", "problem", "COMPROMISED"),
        ("99.0", "warning", "tested was"),
    ],
)
def test_a_version_that_is_not_the_tested_one_is_told(version, state, text):
    finding = check_version("lightning", version, requirements()["lightning"])
    assert finding.state == state
    assert text in finding.text
    assert finding.advice


def test_the_tested_version_is_as_it_should_be_with_any_local_part():
    tested = tested_versions()["torch"]
    assert check_version("torch", tested, Requirement("torch>=2.6")) is None
    assert check_version("torch", f"{tested}+cu130", Requirement("torch>=2.6")) is None


def test_each_package_stands_in_one_finding():
    installed = {name: tested_versions()[name.lower()] for name in requirements()} | {"numpy": None, "tqdm": "0.1"}
    first, *others = check_versions(installed.get)
    assert first.state == "ok"
    assert sorted(finding.check for finding in others) == ["numpy", "tqdm"]
    assert all(f"{name} " in first.text for name in requirements() if name not in ("numpy", "tqdm"))


def test_an_old_python_is_a_problem():
    assert check_python((3, 10, 4)).state == "problem"
    assert check_python((3, 11, 0)).state == "ok"
