"""``python -m pipelines VERB``, the same program as ``reid VERB``; the form that ``ray job submit`` runs.

A job brings this code to a machine that nothing was installed on from here, so its packages are checked first, by what
``pyproject.toml`` asks for.
"""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def unmet(project: Path) -> list[str]:
    """What is missing or of another version here, a line each; nothing where there is no such file."""
    if not project.exists():  # installed by a wheel, together with its packages
        return []
    try:
        import tomllib

        from packaging.requirements import Requirement
    except ModuleNotFoundError as error:
        return [f"{error.name} is missing (Python {platform.python_version()}, want 3.11 or newer)"]
    found = []
    for text in tomllib.loads(project.read_text())["project"]["dependencies"]:
        wanted = Requirement(text)
        try:
            has = version(wanted.name)
        except PackageNotFoundError:
            found.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(has, prereleases=True):
            found.append(f"{wanted.name} is {has}, not {wanted.specifier}")
    return found


def start() -> int:
    """Run the command line where it can run; exit code 2 otherwise."""
    if problems := unmet(Path(__file__).parents[1] / "pyproject.toml"):
        print(  # noqa: T201
            f"reid: {sys.executable} on {platform.node()} cannot run this code: {'; '.join(problems)}. Every node "
            "carries the environment: install requirements/gpu.txt (or cpu.txt) there, and have its bin folder "
            "first on the PATH of `ray start`",
            file=sys.stderr,
        )
        return 2
    from pipelines.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(start())
