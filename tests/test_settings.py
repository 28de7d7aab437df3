"""``fsd.toml``: values, units, mistakes."""

from __future__ import annotations

import pytest

from fsd.bursts import OnError
from fsd.settings import Settings, load_settings, settings_path
from store.config import StoreOptions
from store.errors import BadValue

tomllib = pytest.importorskip("tomllib")


def test_missing_file_gives_the_built_in_values(tmp_path):
    assert load_settings(tmp_path / "fsd.toml") == Settings()


def test_what_is_shown_can_be_read_again(tmp_path):
    path = tmp_path / "fsd.toml"
    path.write_text(str(Settings()))
    assert load_settings(path) == Settings(source=str(path))


def test_values_have_units(tmp_path):
    path = tmp_path / "fsd.toml"
    path.write_text(
        '[bursts]\nquiet = "2m"\non-error = "deny"\nnoise = ["*.tmp"]\n[trash]\nlifetime = "7d"\n'
        "[retention]\nkeep-last = 3\nspace-floor = 0.5\n[timer]\ninterval = 90\n"
    )
    found = load_settings(path)
    assert (found.bursts.quiet, found.bursts.on_error, found.bursts.noise) == (
        120.0,
        OnError.DENY,
        ("*.tmp",),
    )
    assert (found.trash.lifetime, found.retention.keep_last, found.timer.interval) == (604800.0, 3, 90.0)
    assert found.retention.space_floor == 0.5


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[bursts", "fsd.toml"),
        ("[burst]\nquiet = 1", "burst"),
        ("[bursts]\nquite = 1", "quite"),
        ("[bursts]\nquiet = -1", "quiet"),
        ("[bursts]\nquiet = true", "quiet"),
        ('[bursts]\non-error = "maybe"', "on-error"),
        ('[retention]\nkeep-last = "3"', "keep-last"),
        ('[on-write]\ncontainers = "always"', "containers"),
        ("quiet = 1", "quiet"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path, text, named):
    path = tmp_path / "fsd.toml"
    path.write_text(text)
    with pytest.raises(BadValue, match=named) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_file_is_looked_for_beside_storage_conf():
    options = StoreOptions(sources=("/usr/share/containers/storage.conf", "/srv/conf/storage.conf"))
    assert str(settings_path(options, {})) == "/srv/conf/fsd.toml"
    assert str(settings_path(options, {"FSD_CONF": "/x/y.toml"})) == "/x/y.toml"
