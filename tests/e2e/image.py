"""The container image, built here, and programs that run from inside its file system as a strict cluster runs them."""

import asyncio
import json
import os
import shutil
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).resolve().parents[2]
BUILDAH = ROOT / ".run/image/buildah"  # which `build.sh --local-base` leaves there
NAME = "localhost/pushpush:tests"
MARK = "index-user-and-password.example"  # stands in the settings of pip while the image is built
UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h

# The root file system is read-only and only /tmp can be written to; /mnt is a folder of the test, such as secrets are.
_ENTER = """
root=$1 folder=$2
shift 2
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/dev"
for each in null zero random urandom; do
    : >"$root/dev/$each"
    mount --bind "/dev/$each" "$root/dev/$each"
done
mount --bind /proc "$root/proc"
mount --bind "$folder" "$root/mnt"
exec chroot "$root" "$@"
"""
_AS_USER = "--reuid={0} --regid={1} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all --pdeathsig=KILL"


def unusable() -> str | None:
    """Return why no image can be built and entered here, None when one can."""
    missing = [each for each in ("buildah", "mmdebstrap", "unshare") if shutil.which(each) is None]
    if missing:
        return f"{', '.join(missing)} missing (Debian: apt-get install buildah mmdebstrap; `make test` does, as root)"
    if os.geteuid() != 0:
        return "the file system of an image is made and entered by root"
    tried = subprocess.run(["unshare", "--mount", "mount", "--bind", "/", "/mnt"], capture_output=True, check=False)
    return None if tried.returncode == 0 else f"nothing can be mounted here: {tried.stderr.decode().strip()}"


def build() -> subprocess.CompletedProcess[str]:
    """Build the image as `make image` does where no registry can be reached."""
    env = {**os.environ, "IMAGE": NAME, "PIP_TRUSTED_HOST": MARK}
    command = ["sh", "deploy/image/build.sh", "--local-base"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def buildah(*words: str) -> str:
    """Run buildah on what `build` has made; return what it prints."""
    return subprocess.run([BUILDAH, *words], capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image, and its file system.

    Attributes:
        config: What the image says of itself: Env, User, Cmd, Labels and more, in docker's words.
        history: How it was made, as JSON.
        root: Where its file system is mounted.
    """

    config: dict[str, Any]
    history: str
    root: Path

    @classmethod
    def read(cls, root: str) -> Self:
        """Read what buildah knows of the image whose file system is mounted there."""
        known = json.loads(buildah("inspect", "--type", "image", NAME))
        history = json.dumps([known["History"], known["OCIv1"], known["Docker"]])
        return cls(config=known["Docker"]["config"], history=history, root=Path(root))

    async def start(self, *words: str, env: Mapping[str, str], folder: Path, output: int | IO[bytes] = PIPE) -> Process:
        """Start a program of the image; the id of the process is the program's own.

        Args:
            words: The program and its arguments.
            env: Added to the variables of the image.
            folder: What the program finds at /mnt.
            output: Where standard output and standard error go.
        """
        user, _, group = self.config["User"].partition(":")
        taken = ["setpriv", *_AS_USER.format(user, group).split(), "--", *words]
        return await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "sh", "-e", "-c", _ENTER, "enter", str(self.root), str(folder), *taken),
            env={**dict(each.split("=", 1) for each in self.config["Env"]), **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    async def run(self, *words: str, folder: Path, **env: str) -> tuple[int, str, str]:
        """Run a program of the image; return its exit code, and what it wrote to standard output and standard error."""
        process = await self.start(*words, env=env, folder=folder)
        out, err = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()
