"""Download and unpack the Debian packages that packages.csv names, without installing them."""

import argparse
import csv
import subprocess
from pathlib import Path

LIST = Path(__file__).resolve().parent / "packages.csv"


def read_packages() -> dict[str, str]:
    """Package -> version."""
    with LIST.open(encoding="utf-8", newline="") as file:
        return {row["package"]: row["version"] for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path, help="folder to unpack into, a folder a package")
    folder = parser.parse_args().packages
    for package, version in read_packages().items():
        target = folder / package
        if (target / "usr").exists():
            continue
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", f"{package}={version}"], cwd=target, check=True)
        (archive,) = target.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=target, check=True)
        archive.unlink()


if __name__ == "__main__":
    main()
