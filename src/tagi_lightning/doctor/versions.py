"""Versions of what is installed against those that were tested, and releases that must never be imported."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import metadata, resources

from packaging.requirements import Requirement
from packaging.version import Version

from tagi_lightning.doctor.finding import Finding

NAME = "tagi-lightning"

LEAST_PYTHON = (3, 11)

COMPROMISED = dict.fromkeys(("lightning", "pytorch-lightning"), ("2.6.2", "2.6.3"))
"""Releases that stole credentials when they were imported (GHSA-w37p-236h-pfx3)."""

Installed = Callable[[str], str | None]


def installed_version(package: str) -> str | None:
    """Returns the version of an installed package, which is not imported, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def tested_versions() -> Mapping[str, str]:
    """Returns the versions this release was tested with, by package."""
    text = resources.files("tagi_lightning").joinpath("constraints.txt").read_text(encoding="utf-8")
    pinned = (line.partition("==") for line in text.splitlines() if "==" in line)
    return {name.strip().lower(): version.strip() for name, _, version in pinned}


@cache
def requirements() -> Mapping[str, Requirement]:
    """Returns what this package requires, extras left out; nothing where it runs from its sources uninstalled."""
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return {}
    found = [Requirement(line) for line in lines]
    return {each.name: each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})}


def compromised(installed: Installed = installed_version) -> dict[str, str]:
    """Returns the compromised releases that are installed, by package."""
    found = {package: installed(package) for package in COMPROMISED}
    return {package: version for package, version in found.items() if version in COMPROMISED[package]}


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Tells the interpreter."""
    least = ".".join(map(str, LEAST_PYTHON))
    told = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if tuple(version[:2]) < LEAST_PYTHON:
        return Finding("python", "problem", told, f"make the environment with Python {least} or later")
    return Finding("python", "ok", told)


def check_versions(installed: Installed = installed_version) -> Iterator[Finding]:
    """Tells which packages are as tested, and each one that is not.

    Args:
        installed: Gives the version of a package, or None where it is not there.
    """
    needed = requirements() or {name: Requirement(name) for name in COMPROMISED}
    if not requirements():
        yield Finding("versions", "warning", f"{NAME} is not installed: what it requires is not known", "make install")
    as_tested, others = [], []
    for package in needed:
        finding = check_version(package, installed(package), needed[package])
        if finding is None:
            as_tested.append(f"{package} {installed(package)}")
        else:
            others.append(finding)
    if as_tested:
        yield Finding("versions", "ok", f"as tested: {', '.join(as_tested)}")
    yield from others


def check_version(package: str, version: str | None, required: Requirement) -> Finding | None:
    """Returns what is to be told of one package, None where its version is the tested one.

    Args:
        package: Its name.
        version: The installed version; None where there is none.
        required: What this package requires of it.
    """
    tested = tested_versions().get(package.lower())
    install = f"pip install '{package}=={tested}'" if tested else f"pip install '{required}'"
    if version is None:
        return Finding(package, "problem", "not installed", install)
    if version in COMPROMISED.get(package, ()):
        return Finding(
            package,
            "problem",
            f"{version} is a COMPROMISED release, which steals credentials when it is imported",
            f"import nothing more, {install}, and change every credential this account can read",
        )
    if not required.specifier.contains(version, prereleases=True):
        return Finding(package, "problem", f"{version} does not fit {required.specifier}", install)
    if tested and Version(version).public != Version(tested).public:
        return Finding(package, "warning", f"{version}, tested was {tested}", f"where it misbehaves: {install}")
    return None
