"""``fsd push`` and ``fsd pull`` against a real registry on the loopback interface."""

from __future__ import annotations

import json

import pytest

from tests.support import registry
from tests.support.daemon import fsd
from tests.support.features import require
from tests.support.tools import StoreDirs, ToolBox

PLAIN = ("--tls-verify=false", "--insecure-policy")


@pytest.fixture(scope="module", autouse=True)
def _skopeo():
    require("skopeo")


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with registry.serving(tmp_path_factory.mktemp("registry") / "of") as address:
        yield address


def content(dirs):
    """Everything a store holds, as its listings tell."""
    return [fsd(dirs, table, "--json").stdout for table in ("images", "layers", "containers")]


def test_pushed_image_comes_back_as_it_was(dirs, host, home, tmp_path):
    (image,) = json.loads(fsd(dirs, "images", "small:1", "--json").stdout)
    name = f"{host}/some/small:1"
    assert fsd(dirs, "push", *PLAIN, "small:1", name).stdout.strip() == image["id"]
    other = StoreDirs(home / "g2", home / "r2")
    other.graphroot.mkdir()
    assert fsd(other, "pull", *PLAIN, name).stdout.strip() == image["id"]
    (pulled,) = json.loads(fsd(other, "images", name, "--json").stdout)
    assert (pulled["names"], len(pulled["layers"])) == ([name], len(image["layers"]))
    assert fsd(other, "check", "--digests").stdout == "nothing is wrong\n"
    digests = [
        {row["diff-digest"] for row in json.loads(fsd(store, "layers", "--json").stdout)}
        for store in (dirs, other)
    ]
    assert digests[0] == digests[1]
    podman = ToolBox(other, "btrfs", tmp_path / "tools").podman()
    assert podman("images", "-q", "--no-trunc").stdout.strip() == f"sha256:{image['id']}"
    assert podman("image", "inspect", "-f", "{{.Labels.kind}}", name).stdout.strip() == "test"


def test_pull_brings_a_removed_image_back_and_podman_runs_it(dirs, host, tmp_path):
    name = f"{host}/again:1"
    fsd(dirs, "tag", "small:1", name)
    kept = fsd(dirs, "export", "small:1", "-o", tmp_path / "before.tar")
    image = fsd(dirs, "push", *PLAIN, name).stdout.strip()  # by its own name, which is not its first
    before = (tmp_path / "before.tar").read_bytes()
    fsd(dirs, "rm", "--now", f"images/{image}")
    assert json.loads(fsd(dirs, "layers", "--json").stdout) == []
    assert fsd(dirs, "pull", *PLAIN, f"docker://{name}").stdout.strip() == image
    fsd(dirs, "export", name, "-o", tmp_path / "after.tar")
    assert kept.returncode == 0
    assert (tmp_path / "after.tar").read_bytes() == before
    fsd(dirs, "tag", name, "localhost/small:1")
    podman = ToolBox(dirs, "btrfs", tmp_path / "tools").podman()
    assert podman("run", "--rm", name, "cat", "/srv/owned").stdout == "by web\n"


def test_copy_goes_to_and_from_a_registry_too(dirs, host):
    place = f"docker://{host}/copied:1"
    fsd(dirs, "copy", *PLAIN, "small:1", place)
    image = fsd(dirs, "copy", *PLAIN, place, "localhost/copied:2").stdout.strip()
    assert image == json.loads(fsd(dirs, "images", "small:1", "--json").stdout)[0]["id"]
    fsd(dirs, "untag", "localhost/copied:2")


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("pull", ["{host}/nosuch:1"]),
        ("pull", ["{host}/some/small:nosuch"]),
        ("pull", ["{down}/small:1"]),
        ("pull", ["{host}/UPPER:1"]),
        ("push", ["small:1", "{down}/small:1"]),
        ("push", ["small:1", "{host}/UPPER:1"]),
        ("push", ["nosuch:1"]),
    ],
)
def test_failures_are_told_in_a_line_and_leave_nothing(dirs, host, verb, words):
    before = content(dirs)
    down = f"127.0.0.1:{registry.free_port()}"
    done = fsd(dirs, verb, *PLAIN, *(word.format(host=host, down=down) for word in words), check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("fsd: ")
    assert (done.stderr.count("\n"), "Traceback" in done.stderr, "level=" in done.stderr) == (1, False, False)
    assert content(dirs) == before
    assert fsd(dirs, "check").stdout == "nothing is wrong\n"


def test_registry_without_tls_is_refused_unless_allowed(dirs, host):
    done = fsd(dirs, "push", "--insecure-policy", "small:1", f"{host}/small:2", check=False)
    assert done.returncode == 125
    assert "HTTPS" in done.stderr
