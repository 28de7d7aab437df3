"""Parts the tests share: features, loop devices, peer tools, root filesystems, tree comparison, daemons."""

from tests.support.features import require
from tests.support.trees import snapshot_tree

__all__ = ["require", "snapshot_tree"]
