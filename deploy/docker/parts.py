"""What of this repository one service's image needs: `parts.py lock SERVICE`, `parts.py folders SERVICE`.

`lock` prints the part of requirements.lock that the service's packages need, hashes included; `folders` the folders of
our own packages. Needs are read from the pyproject.toml files and from the metadata of the installed packages, so the
whole lock must be installed where this runs; nothing is fetched and nothing is chosen anew.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def own_packages() -> dict[str, tuple[str, dict[str, list[Requirement]]]]:
    """Our packages: name -> (folder below the root, what it needs by extra; "" is always needed)."""
    found = {}
    for path in sorted(ROOT.glob("schemas/pyproject.toml")) + sorted(ROOT.glob("*/*/pyproject.toml")):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        texts = {"": project.get("dependencies", []), **project.get("optional-dependencies", {})}
        needs = {extra: [Requirement(text) for text in needed] for extra, needed in texts.items()}
        found[project["name"]] = (str(path.parent.relative_to(ROOT)), needs)
    return found


def closure(service: str) -> tuple[list[str], set[str]]:
    """Folders of our packages and names of all others that `service` (a folder of services/) needs to run.

    An image runs its service, so it holds what every extra of the service needs.

    Raises:
        KeyError: there is no such service.
    """
    own = own_packages()
    _, extras = own[f"stampede-{service}"]
    seen: dict[tuple[str, str], None] = {}
    waiting = [(Requirement(f"stampede-{service}[{','.join(filter(None, extras))}]"), "")]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in sorted({"", *requirement.extras}):
            if (name, wanted) in seen:
                continue
            seen[name, wanted] = None
            if name.startswith("stampede-"):
                needs = own[name][1][wanted]
            else:
                needs = [Requirement(text) for text in requires(name) or []]
            waiting += [(need, wanted) for need in needs]
    names = dict.fromkeys(name for name, _ in seen)
    return [own[name][0] for name in names if name in own], {name for name in names if name not in own}


def locked(names: set[str], lock: str) -> Iterator[str]:
    """The blocks of the lock for these packages: the pin and its hashes.

    Raises:
        ValueError: one of them is not in the lock.
    """
    blocks = re.findall(r"^[^\s#].*(?:\n[ \t].*)*\n", lock, re.MULTILINE)
    named = [(str(canonicalize_name(re.split(r"[=\[;\s]", block, maxsplit=1)[0])), block) for block in blocks]
    if missing := names - {name for name, _ in named}:
        raise ValueError(f"requirements.lock lacks {', '.join(sorted(missing))}: run `make lock`")
    yield from (block for name, block in named if name in names)


def main() -> int:
    """Command line."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("lock", "folders"):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        folders, names = closure(sys.argv[2])
        if sys.argv[1] == "folders":
            sys.stdout.write("".join(f"./{folder}\n" for folder in folders))
        else:
            sys.stdout.writelines(locked(names, (ROOT / "requirements.lock").read_text(encoding="utf-8")))
    except KeyError as error:
        sys.stderr.write(f"parts.py: no package {error} in this repository; SERVICE is a folder of services/\n")
        return 1
    except ValueError as error:
        sys.stderr.write(f"parts.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
