"""`python -m tests.control_plane.golden_children`: prints the golden children, for a wanted change."""

from __future__ import annotations

import yaml

from tests.control_plane.samples import children


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


if __name__ == "__main__":
    print(yaml.dump_all(children().values(), Dumper=_Dumper, sort_keys=False, width=120), end="")
